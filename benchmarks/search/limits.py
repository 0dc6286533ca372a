"""Limits on the student, and two goals at once: which students are begun, and what front the trained ones leave.

A front's hypervolume is the area between accuracy above the table's median and the logarithm of parameters below the largest seen,
each as a share of its range in the reference: 0 is nothing, 1 would be the best accuracy with the fewest parameters.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from autokd.budget import Budget
from autokd.constraints import Limits
from benchmarks.search.full_fidelity import random_search
from benchmarks.search.judge import markdown
from benchmarks.search.ours import Simulation
from benchmarks.search.replay import BudgetSpent, Replay, Trial
from benchmarks.search.tables import Point, Table

GOALS = ("accuracy", "params")
Pair = tuple[float, float]  # value, parameters


class Kept(Replay):
    """Remembers which points were trained to the end."""

    def __init__(self, table: Table, seed: int, budget: float) -> None:
        super().__init__(table, seed, budget)
        self.points: list[Point] = []

    def advance(self, trial: Trial, to: int, leads: bool = True) -> float | None:
        value = super().advance(trial, to, leads)
        if value is not None and to == self.table.epochs:
            self.points.append(trial.point)
        return value


def begun_above(table: Table, limit: float, budget: int, seed: int) -> tuple[int, int]:
    """(trials begun, of them above the limit) in a search with this limit on the parameters."""
    history = _search(table, budget, seed, Limits(params=limit)).director.history
    sizes = [table.cost(trial.recipe.student).params for trial in history.trials.values()]
    return len(sizes), sum(size > limit for size in sizes)


def trained_by_engine(table: Table, budget: int, seed: int) -> list[Point]:
    """Points trained to the end in a search that is after accuracy and few parameters at once."""
    history = _search(table, budget, seed, Limits(), GOALS).director.history
    return [trial.point for trial in history.trials.values() if trial.state == "complete"]


def trained_at_random(table: Table, budget: int, seed: int) -> list[Point]:
    replay = Kept(table, seed, budget)
    with suppress(BudgetSpent):
        random_search(replay)
    return replay.points


def _search(table: Table, budget: int, seed: int, limits: Limits, goals: Sequence[str] = ()) -> Simulation:
    with tempfile.TemporaryDirectory() as scratch:
        epochs = Budget("epochs", budget * table.epochs)
        simulation = Simulation(table, seed, epochs, Path(scratch), limits=limits, goals=goals)
        simulation.run()
        return simulation


def pairs(table: Table, points: Iterable[Point]) -> list[Pair]:
    return [(table.final(point), float(table.cost(table.space.recipe(point).student).params)) for point in points]


def hypervolume(found: Sequence[Pair], reference: Sequence[Pair]) -> float:
    """Of the pairs found, relative to the ranges of the reference."""
    values, sizes = [value for value, _ in reference], [math.log(size) for _, size in reference]
    floor, best, small, large = statistics.median(values), max(values), min(sizes), max(sizes)
    points = sorted(((v - floor) / (best - floor), (large - math.log(s)) / (large - small)) for v, s in found)
    area, height = 0.0, 0.0
    for value, smallness in reversed(points):  # from the most accurate on
        if value > 0 and smallness > height:
            area += value * (smallness - height)
            height = smallness
    return area


def report(tables: Sequence[Table], budget: int, seeds: int) -> str:
    limited, fronts = [], []
    for table in tables:
        reference = pairs(table, table.reference_points())
        limit = sorted(size for _, size in reference)[len(reference) // 5]
        begun = [begun_above(table, limit, budget, seed) for seed in range(seeds)]
        limited.append(
            [table.name, f"{limit:,.0f}", str(sum(b for b, _ in begun)), str(sum(above for _, above in begun))]
        )
        both = [
            [hypervolume(pairs(table, trained(table, budget, seed)), reference) for seed in range(seeds)]
            for trained in (trained_by_engine, trained_at_random)
        ]
        wins = sum(ours > other for ours, other in zip(*both, strict=True))
        fronts.append([table.name, *(f"{statistics.mean(each):.3f}" for each in both), f"{wins} of {seeds}"])
    head = ["task", "most parameters (the smallest fifth)", "begun", "above the limit"]
    return "\n\n".join(
        [
            f"# A limit on the parameters, {budget} trainings, {seeds} seeds",
            markdown(head, limited),
            f"# Accuracy against parameters: hypervolume after {budget} trainings",
            markdown(["task", "autokd", "random", "autokd larger"], fronts),
        ]
    )
