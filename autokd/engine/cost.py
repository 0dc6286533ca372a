"""What a recipe costs per epoch: relative before it is trained, in seconds once it has been."""

from __future__ import annotations

from collections.abc import Iterable

from autokd.constraints import Cost
from autokd.history import Trial
from autokd.recipe import Recipe

BACKWARD = 2.0  # a backward pass costs about two forward passes


def relative_cost(recipe: Recipe, student: Cost, teacher: Cost) -> float:
    """FLOPs per training image and epoch: student and peers forward and backward, teacher forward, on all rows."""
    rows = 1.0
    if recipe.augment.policy == "jda":
        rows = 1 / (1 - recipe.augment.rho)
    networks = (1 + recipe.peers.count) * student.flops * (1 + BACKWARD)
    return rows * (networks + (teacher.flops if recipe.terms else 0))


def epoch_seconds(trials: Iterable[Trial]) -> float | None:
    """Measured seconds per epoch over these trials, None before anything was measured."""
    measured = [trial for trial in trials if trial.epoch]
    epochs = sum(trial.epoch for trial in measured)
    return sum(trial.seconds for trial in measured) / epochs if epochs else None
