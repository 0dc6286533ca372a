"""What a ledger says, folded: the trials of a search and how far each has come.

`History.replay(events)` and `history.add(event)` are the same fold, so that a killed search, a report and a live display
all see one state.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from autokd.constraints import Cost
from autokd.ledger import Event
from autokd.probe import Probe
from autokd.recipe import Recipe
from autokd.rules import Value

TrialState = Literal["running", "paused", "complete", "stopped", "failed", "infeasible"]


@dataclass
class Trial:
    """One recipe being trained. `values` maps epoch -> (value, tiebreak), both higher is better."""

    id: str
    role: str  # "search" | "winner" | "no_kd" | "default_kd" | "ablation"
    recipe: Recipe
    point: dict[str, Value]  # where in the space it lies; empty outside the search
    source: str  # "published: …" | "quasi-random" | "prior" | "model" | "control" | "final" | "ablation: …"
    seed: int
    params: int
    flops: int
    started: float  # seconds of the search
    bytes: int = 0  # of its weights
    memory: int = 0  # its activations take at most, in bytes
    latency_ms: float | None = None  # measured before it was trained, if it was
    group: str | None = None  # of a final: the search trial it retrains or controls
    state: TrialState = "running"
    to: int = 0  # the epoch it was last sent to
    epoch: int = 0  # the last epoch reported
    values: dict[int, tuple[float, float]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)  # of the last report
    curve: list[dict[str, Any]] = field(default_factory=list)  # one entry an epoch
    seconds: float = 0.0  # of training
    checkpoint: str | None = None
    retries: int = 0
    reason: str | None = None  # of a failure
    message: str | None = None

    @property
    def cost(self) -> Cost:
        return Cost(self.params, self.flops, self.bytes, self.memory)

    @property
    def value(self) -> float | None:
        """The validation value at the last epoch reported."""
        return self.values[self.epoch][0] if self.values else None


@dataclass
class History:
    """The state of one search."""

    head: dict[str, Any] = field(default_factory=dict)  # the `search` event
    budget: dict[str, Any] = field(default_factory=dict)  # of the latest session
    rungs: tuple[int, ...] = ()
    trials: dict[str, Trial] = field(default_factory=dict)
    elapsed: float = 0.0
    epochs: int = 0  # trained so far, over all trials
    latencies: dict[str, float] = field(default_factory=dict)  # measured milliseconds, by architecture
    winner: str | None = None  # trial chosen by the search, once the finals began
    front: tuple[str, ...] = ()  # others that are retrained, where there are several goals
    final_seeds: tuple[int, ...] = ()
    tests: list[dict[str, Any]] = field(default_factory=list)
    finished: str | None = None  # the reason, once finished
    _roles: dict[str, list[Trial]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _sorted: int = field(default=0, init=False, repr=False, compare=False)  # trials of which the role was looked at

    @classmethod
    def replay(cls, events: Iterable[Event]) -> History:
        history = cls()
        for event in events:
            history.add(event)
        return history

    def add(self, event: Event) -> None:
        """Fold one event in. Events about trials that are not known (their line was corrupt) are passed over."""
        self.elapsed = max(self.elapsed, event["elapsed"])
        trial = self.trials.get(event.get("trial", ""))
        if trial is not None or event["event"] in ("search", "session", "start", "finals", "test", "finish"):
            getattr(self, f"_on_{event['event']}")(event, trial)

    def finals(self, role: str, of: str | None = None) -> list[Trial]:
        """The retrainings of the current winner ("winner") or of a control of it, or of trial `of`, by seed."""
        chosen = [trial for trial in self.in_role(role) if trial.group == (of or self.winner)]
        return sorted(chosen, key=lambda trial: trial.seed)

    def in_role(self, role: str) -> list[Trial]:
        """Trials of one role, in the order in which they began. Asked for at every decision, so each trial is sorted once."""
        for trial in islice(self.trials.values(), self._sorted, None):
            self._roles.setdefault(trial.role, []).append(trial)
        self._sorted = len(self.trials)
        return list(self._roles.get(role, ()))

    @property
    def running(self) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.state == "running"]

    def to_probe(self, trial: Trial) -> Probe | None:
        """What is to be measured before this trial is trained; None if nothing is, or its architecture was measured."""
        wanted = self.head.get("probe")
        new = trial.role == "search" and trial.epoch == 0 and trial.recipe.student.key not in self.latencies
        return Probe(**wanted) if wanted and new else None

    # ---- one method per event

    def _on_search(self, event: Event, _: Trial | None) -> None:
        self.head, self.rungs = event, tuple(event["rungs"])

    def _on_session(self, event: Event, _: Trial | None) -> None:
        if self.budget and event["budget"] != self.budget:  # more was given: the search goes on, new finals follow
            self.winner, self.front, self.final_seeds = None, (), ()
        self.budget, self.finished = event["budget"], None
        for trial in self.trials.values():
            if trial.state in ("running", "stopped"):
                trial.state = "paused"

    def _on_start(self, event: Event, _: Trial | None) -> None:
        recipe = Recipe.from_dict(event["recipe"])
        self.trials[event["trial"]] = Trial(
            id=event["trial"],
            role=event["role"],
            recipe=recipe,
            point=event["point"],
            source=event["source"],
            seed=event["seed"],
            params=event["params"],
            flops=event["flops"],
            bytes=event.get("bytes", 0),
            memory=event.get("memory", 0),
            latency_ms=self.latencies.get(recipe.student.key) if self.latencies else None,
            started=event["elapsed"],
            group=event.get("group"),
            to=event["to"],
        )

    def _on_resume(self, event: Event, trial: Trial) -> None:
        trial.state, trial.to = "running", event["to"]

    def _on_probe(self, event: Event, trial: Trial) -> None:
        self.latencies[event["architecture"]] = trial.latency_ms = event["latency_ms"]
        if not event["feasible"]:
            trial.state = "infeasible"

    def _on_rung(self, event: Event, trial: Trial) -> None:
        self.epochs += max(0, event["epoch"] - trial.epoch)
        trial.epoch = event["epoch"]
        trial.values[event["epoch"]] = (event["value"], event["tiebreak"])
        trial.metrics = event["metrics"]
        trial.curve = [row for row in trial.curve if row["epoch"] <= event["epoch"] - len(event["history"])]
        trial.curve += event["history"]
        trial.seconds += event["seconds"]
        trial.checkpoint = event["checkpoint"]
        trial.state = "complete" if trial.epoch >= self.rungs[-1] else "paused"

    def _on_retry(self, event: Event, trial: Trial) -> None:
        trial.retries += 1

    def _on_fail(self, event: Event, trial: Trial) -> None:
        trial.state, trial.reason, trial.message = "failed", event["reason"], event["message"]

    def _on_finals(self, event: Event, _: Trial | None) -> None:
        self.winner, self.final_seeds = event["winner"], tuple(event["seeds"])
        self.front = tuple(event.get("front") or ())

    def _on_test(self, event: Event, _: Trial | None) -> None:
        self.tests.append(event)

    def _on_finish(self, event: Event, _: Trial | None) -> None:
        self.finished = event["reason"]
        for trial in self.trials.values():
            if trial.state in ("running", "paused"):
                trial.state = "stopped"


def ranked(history: History, rung: int) -> list[Trial]:
    """Search trials that came to `rung`, best first; those that failed on the way there are the worst."""
    tried = history.in_role("search")
    reached = [trial for trial in tried if rung in trial.values and trial.state != "failed"]
    failed = [trial for trial in tried if trial.state == "failed" and (rung in trial.values or trial.to == rung)]
    return sorted(reached, key=lambda trial: trial.values[rung], reverse=True) + failed
