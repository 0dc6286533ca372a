"""What each part of the winner is worth: the winner trained again with one thing changed, against itself, paired by seed.

Which changes are trained is decided by engine/ablation.py; here they are read off the ledger. Validation split only: the test split
is for the winner and its controls.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from autokd import words
from autokd.gain import paired_gain
from autokd.history import History, Trial

ROLE = "ablation"
SOURCE = "ablation: "  # followed by what was changed


@dataclass(frozen=True)
class Ablation:
    """The change in the validation score when one thing of the winner is changed; negative where the winner had it right."""

    change: str  # "without kd", "optim.lr=0.1"
    instead_of: str  # what the winner has, where a value was changed; else empty
    differences: tuple[float, ...]  # one for each seed that the winner and the changed recipe were both trained with
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    larger_than_noise: bool | None  # as of a gain

    @property
    def n(self) -> int:
        return len(self.differences)

    def sentence(self, metric: str = "accuracy") -> str:
        """The change in honest words."""
        seeds = f"{self.n} paired seed{'s' if self.n > 1 else ''}"
        amount = words.difference(self.mean, self.sd, metric)
        return f"{self.label}: {amount} of validation {metric} ({seeds}); {self.judgement()}."

    @property
    def label(self) -> str:
        """The change in words: "optim.lr=0.1 instead of 0.2"."""
        return f"{self.change} instead of {self.instead_of}" if self.instead_of else self.change

    def judgement(self) -> str:
        """Whether that is more than noise, in words."""
        if self.n < 2:
            return "one seed cannot say whether this is more than noise"
        if self.larger_than_noise is None:
            return "all seeds differ equally, so the noise cannot be estimated"
        if not self.larger_than_noise:
            return "within the noise between seeds, no effect shown"
        if self.mean < 0:
            return "larger than the noise between seeds, the winner needs what was changed"
        return "larger than the noise between seeds, the changed recipe is better"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "differences": list(self.differences), "n": self.n}


def ablations(history: History) -> list[Ablation]:
    """What was trained of the present winner's ablation, the costliest change first; empty before any pair is there."""
    changed: dict[str, list[Trial]] = {}
    for trial in history.finals(ROLE):
        changed.setdefault(change_of(trial), []).append(trial)
    found = [_ablation(history, change, trials) for change, trials in changed.items()]
    return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.mean)


def change_of(trial: Trial) -> str:
    """What was changed in an ablation trial."""
    return trial.source.removeprefix(SOURCE)


def differences(history: History, trials: list[Trial]) -> list[float]:
    """Changed minus winner, of seeds with which both were trained to the end."""
    winner = {trial.seed: trial for trial in history.finals("winner") if trial.state == "complete"}
    pairs = [(trial, winner[trial.seed]) for trial in trials if trial.state == "complete" and trial.seed in winner]
    return [ours.values[ours.epoch][0] - theirs.values[theirs.epoch][0] for ours, theirs in pairs]


def _ablation(history: History, change: str, trials: list[Trial]) -> Ablation | None:
    found = differences(history, trials)
    gain = paired_gain(ROLE, "validation", found)
    if gain is None:
        return None
    instead_of, interval = _winners_value(history, change), (gain.low, gain.high)
    return Ablation(change, instead_of, tuple(found), gain.mean, gain.sd, *interval, gain.larger_than_noise)


def _winners_value(history: History, change: str) -> str:
    """What the winner has for the field that a change names."""
    name, equals, _ = change.partition("=")
    winner = history.trials[history.winner or ""]
    return words.value(winner.point[name]) if equals and name in winner.point else ""
