"""What a search has found: everything a user reads off a run folder, from its ledger alone.

`Result(run_dir)` writes nothing and can be made while the search still runs. Without finals, the best student is the
best search trial; with them, it is the winner retrained with fresh seeds, beside two controls trained equally long.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, Literal

from autokd import front, words
from autokd.ablation import Ablation, ablations
from autokd.errors import InputError, RunFolderError, nearest
from autokd.finals import Row, chosen, final_rows, finalists, is_the_winner, scores, standing
from autokd.gain import CONTROLS, Gain, Split, paired_gain
from autokd.goals import check_preference, goals_of
from autokd.history import History, Trial
from autokd.importance import Importance, importance
from autokd.ledger import lives, read_events
from autokd.recipe import Recipe
from autokd.tally import Tally, tally

if TYPE_CHECKING:
    import pandas

State = Literal["running", "interrupted", "finished"]
LEDGER = "ledger.jsonl"


@dataclass(frozen=True)
class Best:
    """The student to take away. Means and standard deviations are over `n` seeds, and so is the mean of `seconds`."""

    recipe: Recipe
    trial: str
    metric: str
    value_mean: float  # validation
    value_sd: float | None
    n: int
    test_mean: float | None
    test_sd: float | None
    params: int
    flops: int
    seconds: float  # of training
    size_ratio: float | None  # teacher's parameters / student's


class Result:
    """A run folder, read. Raises RunFolderError if it holds no search."""

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)
        path = self.run_dir / LEDGER
        if not path.is_file():
            raise RunFolderError(
                f"a run folder must hold {LEDGER}, got {self.run_dir}; give the folder that autokd search printed"
            )
        self.events, self.problems, _ = read_events(path)
        if not any(event["event"] == "search" for event in self.events):
            raise RunFolderError(
                f"{path} must begin with a search, got {len(self.events)} events without one; "
                "start a search in a new folder"
            )
        self.history = History.replay(self.events)
        self._rows = final_rows(self.history)

    def __repr__(self) -> str:
        return f"Result({str(self.run_dir)!r}, {self.state}: {self.headline()})"

    # ---- the search as a whole

    @property
    def head(self) -> dict[str, Any]:
        """The ledger's `search` event: seed, budget, constraints, rungs, data, plan, versions."""
        return self.history.head

    @property
    def name(self) -> str:
        return str(self.head.get("name") or self.run_dir.name)

    @property
    def metric(self) -> str:
        return str(self.head.get("metric", "accuracy"))

    @property
    def state(self) -> State:
        """ "running" means that the process of the last session lives on this machine."""
        if self.history.finished is not None:
            return "interrupted" if self.history.finished == "interrupted" else "finished"
        sessions = [event for event in self.events if event["event"] == "session"]
        return "running" if sessions and lives(sessions[-1].get("pid")) else "interrupted"

    @property
    def teacher(self) -> dict[str, Any]:
        """name, params, flops, value (validation) and, once it was read, test."""
        tests = [event["value"] for event in self.history.tests if event["role"] == "teacher"]
        return {**self.head.get("teacher", {}), "test": tests[-1] if tests else None}

    @property
    def failures(self) -> dict[str, int]:
        """How many trials failed, by reason."""
        return dict(
            Counter(trial.reason or "unknown" for trial in self.history.trials.values() if trial.state == "failed")
        )

    # ---- the students

    @property
    def best(self) -> Best | None:
        """The winner of the finals, or of the search so far; None while no trial has a value.

        Raises GoalError, with the front, where there are several goals and the search was not told what to prefer.
        """
        self.check_preferred()
        return self.leading

    def check_preferred(self) -> None:
        """Raise GoalError, with the front, where there are several goals and the search was not told what to prefer."""
        if self.head.get("prefer") is None and self.pareto():
            front.preferred(self.history, None)

    def pareto(self) -> list[front.Member]:
        """With several goals, the students than which no other is better in every goal, the best by the metric first."""
        return front.members(self.history)

    def choose(self, prefer: str) -> front.Member:
        """The one of the front that is preferred: "accuracy", "params", "knee", or limits: "params<=20k, latency_ms<=5"."""
        return front.preferred(self.history, check_preference(prefer, self.metric))

    @property
    def leading(self) -> Best | None:
        """As `best`; with several goals and no preference, the most accurate one."""
        finals = finalists(self.history, "winner")
        trial = finals[0] if finals else chosen(self.history)
        if trial is None:
            return None
        row = self._row("winner")
        return Best(
            recipe=trial.recipe,
            trial=self.history.winner if finals and self.history.winner else trial.id,
            metric=self.metric,
            value_mean=mean(row.values),
            value_sd=row.value_sd,
            n=row.n,
            test_mean=row.test_mean,
            test_sd=row.test_sd,
            params=trial.params,
            flops=trial.flops,
            seconds=mean(final.seconds for final in finals) if finals else trial.seconds,
            size_ratio=row.size_ratio,
        )

    @property
    def recipe(self) -> Recipe | None:
        """The recipe of `best`."""
        return self.best.recipe if self.best else None

    def rows(self) -> list[Row]:
        """The final table: teacher, best student, and its two controls once they have run."""
        return list(self._rows)

    def _row(self, role: str) -> Row:
        return next(row for row in self._rows if row.role == role)

    def gain(self, control: str, split: Split = "test") -> Gain | None:
        """What the search brought over a control ("no_kd" or "default_kd").

        None before any pair is measured, and where the winner's recipe is the control's.
        """
        if control not in CONTROLS:
            raise InputError(f"unknown control '{control}'; {nearest(control, CONTROLS)}")
        if is_the_winner(self.history, control):
            return None
        ours, theirs = scores(self.history, "winner", split), scores(self.history, control, split)
        return paired_gain(control, split, [ours[key] - theirs[key] for key in sorted(ours.keys() & theirs.keys())])

    def gains(self) -> list[Gain]:
        """Every gain that was measured, test before validation."""
        splits: tuple[Split, ...] = ("test", "validation")
        found = [self.gain(control, split) for split in splits for control in CONTROLS]
        return [gain for gain in found if gain is not None]

    def headline(self) -> str:
        """The result in one sentence."""
        best, teacher = self.leading, self.teacher
        if best is not None and self.history.head.get("prefer") is None and goals_of(self.history):
            return front.headline(self.history, self.metric)
        if best is None:
            failed = sum(self.failures.values())
            return f"no student yet: {len(self.history.trials)} trials started, {failed} failed"
        smaller = f", {words.times(best.size_ratio)} smaller than the teacher" if best.size_ratio else ""
        on_test = best.test_mean is not None and teacher["test"] is not None
        split = "test" if on_test else "validation"
        ours = words.score(best.test_mean if on_test else best.value_mean, metric=self.metric)
        theirs = words.score(teacher["test"] if on_test else teacher.get("value"), metric=self.metric)
        versus = "" if theirs == words.MISSING else f" against the teacher's {theirs}"
        return f"a student of {words.count(best.params)} parameters{smaller}: {ours} {split} {self.metric}{versus}"

    # ---- why

    def importance(self) -> Importance | None:
        """Which fields of the space mattered, with intervals; None while there are too few trials to say."""
        return self._importance

    @cached_property
    def _importance(self) -> Importance | None:
        return importance(self.history)

    def methods(self) -> list[Tally]:
        """How far each loss, system of peers, view policy, teacher and family came; of parts of which several were tried."""
        return tally(self.history)

    def ablation(self) -> list[Ablation]:
        """The winner with one thing changed at a time, the costliest change first; empty if none was trained."""
        return ablations(self.history)

    # ---- all trials

    def leaderboard(self) -> pandas.DataFrame:
        """All trials, highest epoch first, then by value; one column per recipe value."""
        import pandas

        trials = sorted(self.history.trials.values(), key=standing, reverse=True)
        frame = pandas.DataFrame([_record(trial) | dict(trial.recipe.flat()) for trial in trials])
        return frame if len(frame) else pandas.DataFrame(columns=list(RECORD))

    def to_dict(self) -> dict[str, Any]:
        """A summary that json.dumps takes."""
        best = self.leading
        return {
            "run_dir": str(self.run_dir),
            "name": self.name,
            "state": self.state,
            "reason": self.history.finished,
            "metric": self.metric,
            "teacher": self.teacher,
            "best": None if best is None else {**_plain(best), "recipe": best.recipe.to_dict()},
            "rows": [_plain(row) | _statistics(row) for row in self._rows],
            "gains": [_plain(gain) for gain in self.gains()],
            "importance": self._importance and self._importance.to_dict(),
            "ablation": [entry.to_dict() for entry in self.ablation()],
            "front": [member.to_dict() for member in self.pareto()],
            "trials": dict(Counter(trial.state for trial in self.history.trials.values())),
            "failures": self.failures,
            "epochs": self.history.epochs,
            "elapsed": self.history.elapsed,
            "budget": self.history.budget or self.head.get("budget", {}),
            "seed": self.head.get("seed"),
            "problems": self.problems,
        }


# ---- small things

DONE, SPENT = ("role", "state", "source", "seed", "epoch"), ("params", "flops", "seconds", "reason")
RECORD = ("trial", *DONE, "value", *SPENT, "recipe")


def _record(trial: Trial) -> dict[str, Any]:
    fixed = {"trial": trial.id, "value": math.nan if trial.value is None else trial.value, "recipe": trial.recipe.id}
    return {name: fixed[name] if name in fixed else getattr(trial, name) for name in RECORD}


def _plain(item: Best | Row | Gain) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(item).items()}


def _statistics(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ("n", "value_mean", "value_sd", "test_mean", "test_sd")}
