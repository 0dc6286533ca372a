"""What a budget buys, said before anything starts: rungs, length of a full training, expected trials."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from autokd.budget import Budget
from autokd.core.device import Setting
from autokd.engine.controls import SEEDS
from autokd.engine.cost import makespan
from autokd.engine.engine import FINAL_SHARE
from autokd.engine.rungs import ETA, rungs_for

SHORTEST = 3  # epochs of a full training
LONGEST_SHARE = 0.08  # of a time budget for one full training: recipes may cost five times the one that is measured


@dataclass(frozen=True)
class Plan:
    """Seconds are estimates from one measured epoch of the default recipe; None where the budget is not a time."""

    teacher_value: float
    epoch_seconds: float
    full_training_seconds: float
    rungs: tuple[int, ...]
    lanes: int
    expected_trials: int
    search_seconds: float | None
    final_seconds: float
    precision: str  # in words, of students and teacher
    recording_seconds: float = 0.0  # of the teacher on the tape, for one full training
    tape: str = ""  # in words
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "rungs": list(self.rungs), "notes": list(self.notes)}


def make_plan(
    budget: Budget,
    longest: int,
    lanes: int,
    epoch_seconds: float,
    teacher_value: float,
    setting: Setting,
    epochs: int | None = None,
    notes: Iterable[str] = (),
    teacher_seconds: float = 0.0,
    taped: bool = True,
) -> Plan:
    """`longest` is the space's full training; a time or epoch budget may buy less. `epochs` overrides both.

    `epoch_seconds` are of a student alone, `teacher_seconds` of the teacher over all rows: once per seed if `taped`, else always.
    """
    finals = final_trainings(teacher_seconds / epoch_seconds, taped)
    full = epochs or min(longest, _affordable(budget, lanes, epoch_seconds, finals))
    shortest = min(SHORTEST, longest)
    if full < shortest and epochs is None:
        full = shortest
        notes = (*notes, f"the budget is very short: trainings have {shortest} epochs and the finals may exceed it")
    rungs = rungs_for(full)
    final = makespan(finals, lanes) * full * epoch_seconds
    each = epoch_seconds if taped else epoch_seconds + teacher_seconds
    recording = full * teacher_seconds if taped else 0.0
    seconds = budget.amount * (1 - FINAL_SHARE) if budget.kind == "seconds" else None
    return Plan(
        teacher_value=teacher_value,
        epoch_seconds=each,
        full_training_seconds=full * each,
        rungs=rungs,
        lanes=lanes,
        expected_trials=_expected(budget, rungs, lanes, each, recording),
        recording_seconds=recording,
        search_seconds=seconds,
        final_seconds=final,
        precision=f"students {setting.precision}, teacher {setting.teacher_precision}",
        notes=tuple(notes),
    )


def final_trainings(teacher: float, taped: bool) -> tuple[float, ...]:
    """What the finals cost, in full trainings of a student: winner, no distillation, default KD, for every seed.

    `teacher` is what the teacher adds to one, once a seed where it is taped.
    """
    return SEEDS * (1 + teacher, 1.0, 1.0 if taped else 1 + teacher)


def _affordable(budget: Budget, lanes: int, epoch_seconds: float, finals: tuple[float, ...]) -> int:
    """Epochs of a full training such that the finals fit into their share of the budget."""
    if budget.kind == "seconds":
        share = min(FINAL_SHARE / makespan(finals, lanes), LONGEST_SHARE)
        return int(share * budget.amount / epoch_seconds)
    if budget.kind == "epochs":
        return int(FINAL_SHARE * budget.amount / len(finals))
    return 10**9


def _expected(budget: Budget, rungs: tuple[int, ...], lanes: int, epoch_seconds: float, recording: float) -> int:
    """Trials started, if one in ETA is promoted at every rung and each costs what the default recipe costs."""
    if budget.kind == "trials":
        return int(budget.amount)
    steps = [high - low for low, high in zip((0, *rungs[:-1]), rungs, strict=True)]
    each = sum(step / ETA**index for index, step in enumerate(steps))
    epochs = budget.amount * (1 - FINAL_SHARE)
    if budget.kind == "seconds":
        epochs = (epochs * lanes - recording) / epoch_seconds
    return max(1, int(epochs / each))
