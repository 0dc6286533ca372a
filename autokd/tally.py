"""How far each method of a search came: losses, systems of peers, views, the teacher's stage 0, families of students."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import inf
from statistics import median
from typing import Any

from autokd.history import History, Trial, ranked
from autokd.recipe import Recipe

PARTS: dict[str, Callable[[Recipe], Sequence[str]]] = {
    "loss": lambda recipe: [term.objective for term in recipe.terms] or ["no distillation"],
    "peers": lambda recipe: [recipe.peers.system if recipe.peers.count else "none"],
    "views": lambda recipe: ["jda + ccd" if recipe.augment.ccd else recipe.augment.policy],
    "teacher": lambda recipe: ["as given" if recipe.stage0 == "none" else recipe.stage0],
    "student": lambda recipe: [recipe.student.family],
}


@dataclass(frozen=True)
class Tally:
    """The search's trials that have one method; one of several losses counts for each of them."""

    part: str
    name: str
    begun: int
    further: int  # past the first rung
    done: int  # trained to the end
    beats: (
        float | None
    )  # share of the search's trials that they beat at the first rung, in the median; failed ones are beaten by all
    best: float | None  # highest validation value at any epoch

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def tally(history: History) -> list[Tally]:
    """Part by part, what came farthest first; parts of which the search tried one alone are left out."""
    tried = history.in_role("search")
    beaten = _beaten(history, history.rungs[0]) if history.rungs else {}
    found = []
    for part, names_of in PARTS.items():
        names = sorted({name for trial in tried for name in names_of(trial.recipe)})
        each = [_tally(part, name, [t for t in tried if name in names_of(t.recipe)], beaten) for name in names]
        found += sorted(each, key=_standing, reverse=True) if len(names) > 1 else []
    return found


def _tally(part: str, name: str, trials: Sequence[Trial], beaten: dict[str, float]) -> Tally:
    shares = [beaten[trial.id] for trial in trials if trial.id in beaten]
    return Tally(
        part,
        name,
        begun=len(trials),
        further=sum(len(trial.values) > 1 for trial in trials),
        done=sum(trial.state == "complete" for trial in trials),
        beats=median(shares) if shares else None,
        best=max((value for trial in trials for value, *_ in trial.values.values()), default=None),
    )


def _standing(entry: Tally) -> tuple[bool, float, float]:
    return entry.done > 0, -inf if entry.best is None else entry.best, entry.beats or 0.0


def _beaten(history: History, rung: int) -> dict[str, float]:
    """By trial: the share of the others that it beats at `rung`, of those that came there or failed on their way."""
    trials = ranked(history, rung)
    values = [-inf if trial.state == "failed" else trial.values[rung][0] for trial in trials]
    order = sorted(values)
    return {t.id: bisect_left(order, value) / max(1, len(trials) - 1) for t, value in zip(trials, values, strict=True)}
