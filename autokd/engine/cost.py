"""What trainings cost: relative before they ran, in seconds once they have, and in wall-clock time on several lanes."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from autokd.constraints import Cost
from autokd.history import Trial
from autokd.recipe import Recipe

BACKWARD = 2.0  # a backward pass costs about two forward passes


def relative_cost(recipe: Recipe, student: Cost, teacher: Cost, taped: bool = False) -> float:
    """FLOPs per training image and epoch: student and peers forward and backward on all rows, and the teacher unless taped."""
    networks = (1 + recipe.peers.count) * student.flops * (1 + BACKWARD)
    return _rows(recipe) * networks + (0.0 if taped else recording_cost(recipe, teacher))


def recording_cost(recipe: Recipe, teacher: Cost) -> float:
    """FLOPs per training image and epoch of the teacher alone: once per seed and view policy where it is taped."""
    return _rows(recipe) * teacher.flops if recipe.terms else 0.0


def _rows(recipe: Recipe) -> float:
    """Rows per image."""
    return 1 / (1 - recipe.augment.rho) if recipe.augment.policy == "jda" else 1.0


def epoch_seconds(trials: Iterable[Trial]) -> float | None:
    """Measured seconds per epoch over these trials, None before anything was measured."""
    measured = [trial for trial in trials if trial.epoch]
    epochs = sum(trial.epoch for trial in measured)
    return sum(trial.seconds for trial in measured) / epochs if epochs else None


def makespan(trainings: Iterable[float], lanes: int, busy: Sequence[float] = ()) -> float:
    """Seconds until the last of these trainings ends, each begun in its turn on the lane that is free first.

    `busy` are seconds after which lanes become free that are occupied now.

    >>> makespan([2.0, 2.0, 2.0], lanes=2)
    4.0
    """
    free = [*busy, *([0.0] * (lanes - len(busy)))]
    heapq.heapify(free)
    for seconds in trainings:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)
