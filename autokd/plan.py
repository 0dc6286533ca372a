"""What a budget buys, said before anything starts: rungs, length of a full training, expected trials."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import Any

from autokd.budget import Budget
from autokd.constraints import Cost
from autokd.core.device import Setting
from autokd.engine.controls import ROLES, SEEDS
from autokd.engine.cost import makespan, relative_cost
from autokd.engine.engine import FINAL_LEAST, FINAL_MOST, FINAL_SHARE, SAFETY
from autokd.engine.rungs import ETA, rungs_for
from autokd.engine.sampler import Sampler

SHORTEST = 3  # epochs of a full training
LONGEST_SHARE = 0.08  # of a time budget for one full training: recipes may cost five times the one that is measured
USUAL = 1.6  # where they cost more than this in the mean, trainings are so much shorter

SAMPLE = 24  # recipes of which the typical cost is taken
CROWDED = 1.25  # what lanes on all cores cost each other: the one epoch is measured alone
VISIT_SECONDS = 0.3  # from a lane's report to its next trial's first step
START_SECONDS = 4.0  # from the plan to the first step


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
    typical: float = 1.0,
) -> Plan:
    """`longest` is the space's full training; a time or epoch budget may buy less. `epochs` overrides both.

    `epoch_seconds` are of a student alone, `teacher_seconds` of the teacher over all rows: once per seed if `taped`, else always.
    `typical` is what the space's recipes cost in the mean, relative to the one that was measured.
    """
    finals = final_trainings(teacher_seconds / epoch_seconds, taped)
    full = epochs or min(longest, _affordable(budget, lanes, epoch_seconds, finals, typical))
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
        expected_trials=_expected(budget, rungs, lanes, Expense(each * typical, final * typical, recording)),
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


def _affordable(budget: Budget, lanes: int, epoch_seconds: float, finals: tuple[float, ...], typical: float) -> int:
    """Epochs of a full training such that the finals fit into their share of the budget, and many trainings into the rest."""
    if budget.kind == "seconds":
        share = min(FINAL_SHARE / makespan(finals, lanes), LONGEST_SHARE * min(1.0, USUAL / typical))
        return int(share * budget.amount / epoch_seconds)
    if budget.kind == "epochs":
        return int(FINAL_SHARE * budget.amount / len(finals))
    return 10**9


def typical_cost(sampler: Sampler, teacher: Cost, taped: bool) -> float:
    """What a search's recipes cost in the mean, relative to the first of them.

    Half by FLOPs and half by the number of steps: small students spend as long on launching kernels as in them.
    """
    sample = sampler.sample(SAMPLE)
    flops = [relative_cost(each.recipe, each.cost, teacher, taped) for each in sample]
    launches = [(1 + each.recipe.peers.count) / each.recipe.optim.batch for each in sample]
    return mean((own / flops[0] + launch / launches[0]) / 2 for own, launch in zip(flops, launches, strict=True))


@dataclass(frozen=True)
class Expense:
    """Expected seconds: of an epoch of a trial, of all finals, of recording."""

    epoch: float
    finals: float
    recording: float


def _expected(budget: Budget, rungs: tuple[int, ...], lanes: int, expense: Expense) -> int:
    """Trials started, if one in ETA is promoted at every rung and what the finals need is kept back."""
    if budget.kind == "trials":
        return int(budget.amount)
    steps = [high - low for low, high in zip((0, *rungs[:-1]), rungs, strict=True)]
    epochs = sum(step / ETA**index for index, step in enumerate(steps))  # of each trial begun
    if budget.kind == "epochs":
        needed = min(SEEDS * len(ROLES) * rungs[-1], FINAL_MOST * budget.amount)
        return max(1, int((budget.amount - needed) / epochs))
    visits = sum(1 / ETA**index for index in range(len(rungs)))
    crowded = CROWDED if lanes > 1 else 1.0
    each = epochs * crowded * expense.epoch + visits * VISIT_SECONDS
    kept = SAFETY * crowded * expense.finals
    search = budget.amount - min(max(kept, FINAL_LEAST * budget.amount), FINAL_MOST * budget.amount) - START_SECONDS
    return max(1, int((search * lanes - expense.recording) / each))
