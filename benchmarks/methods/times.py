"""What an epoch of each system takes: trainings of a few epochs in turns, in one process, which has the machine to itself if the figures are to mean anything."""

from __future__ import annotations

from math import inf
from statistics import mean, median

import autokd
from autokd.recipe import Recipe
from autokd.teacher import Teacher
from benchmarks.methods.options import Options
from benchmarks.methods.systems import KD, systems
from benchmarks.methods.worlds import world
from benchmarks.search.judge import markdown

ROUNDS, EPOCHS = 2, 3  # the first epoch of a training is not counted


def times(options: Options) -> str:
    """Seconds an epoch, medians over the rounds, and relative to kd."""
    teacher, recipes = world(options.images, options.data), systems()
    rounds = [{name: _epoch(teacher, recipe, options) for name, recipe in recipes.items()} for _ in range(ROUNDS)]
    taken = {name: median(each[name] for each in rounds) for name in recipes}
    rows = [[name, f"{seconds:.2f}", f"{seconds / taken[KD]:.2f}"] for name, seconds in taken.items()]
    return markdown(["system", "seconds an epoch", "relative to kd"], rows)


def _epoch(teacher: Teacher, recipe: Recipe, options: Options) -> float:
    """Mean over all epochs but the first; infinite where the training failed, as at chance."""
    try:
        done = autokd.distill(teacher, recipe, epochs=EPOCHS, tape=options.results / "tape", verbose=False)
    except autokd.errors.TrialFailure:
        return inf
    return mean(log["seconds"] for log in done.history[1:])
