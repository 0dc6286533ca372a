"""What trainings cost: relative before they ran, in seconds once they have, and in wall-clock time on several lanes."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from autokd.budget import Budget
from autokd.constraints import Cost
from autokd.engine.encoding import Encoding, Rows
from autokd.engine.gaussian import spread_out
from autokd.engine.passes import listens, of_peers, of_term
from autokd.history import History, Trial
from autokd.recipe import Recipe

TIMED_LEAST, TIMED_MOST = 5, 200  # trials for a cost model
RIDGE = 0.1
BEYOND = 0.5  # how far from what was measured a cost is believed to lie, in its logarithm
BACKWARD = 2.0  # a backward pass costs about two forward passes


def relative_cost(recipe: Recipe, student: Cost, teacher: Cost, taped: bool = False) -> float:
    """FLOPs per training image and epoch: student and peers forward and backward on all rows, the teacher unless taped, and what losses ask for."""
    asked = [*map(of_term, recipe.terms), of_peers(recipe.peers)]
    own = (1 + BACKWARD) * (1 + sum(each.student for each in asked)) + sum(each.frozen for each in asked)
    heard = sum(each.teacher for each in asked) + (not taped and listens(recipe))
    return _rows(recipe) * ((1 + recipe.peers.count) * student.flops * own + heard * teacher.flops)


def recording_seconds(history: History, recipe: Recipe) -> float:
    """Seconds that the teacher takes to record what one full training of such a recipe sees, by the plan's measurement.

    Measured, for FLOPs say nothing here: those of a very small student cost many times what a large teacher's do.
    """
    plan = history.head.get("plan") or {}
    return _rows(recipe) * float(plan.get("recording_seconds", 0.0)) if listens(recipe) else 0.0


def _rows(recipe: Recipe) -> float:
    """Rows per image."""
    return {"jda": 1 / (1 - recipe.augment.rho), "rotations": 4.0}.get(recipe.augment.policy, 1.0)


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


@dataclass(frozen=True)
class CostModel:
    """Seconds per epoch over a space: their logarithm is about linear in the (logarithms of the) fields."""

    encoding: Encoding
    weights: Rows
    centre: Rows
    bounds: tuple[float, float]

    @classmethod
    def fitted(cls, history: History, encoding: Encoding) -> CostModel | None:
        """To the measured trials; None while they are too few."""
        timed = [trial for trial in history.in_role("search") if trial.epoch and trial.seconds > 0][-TIMED_MOST:]
        if len(timed) < TIMED_LEAST:
            return None
        features = spread_out(encoding.rows([trial.point for trial in timed]), encoding.widths)
        measured = np.log([trial.seconds / trial.epoch for trial in timed])
        centre = np.append(features.mean(0), measured.mean())
        off = features - centre[:-1]
        squares = off.T @ off + RIDGE * np.eye(off.shape[1])
        weights = np.linalg.solve(squares, off.T @ (measured - centre[-1]))
        return cls(encoding, weights, centre, (float(measured.min()) - BEYOND, float(measured.max()) + BEYOND))

    def log_cost(self, rows: Rows) -> Rows:
        features = spread_out(rows, self.encoding.widths) - self.centre[:-1]
        return np.clip(self.centre[-1] + features @ self.weights, *self.bounds)


def thrift(history: History) -> float:
    """The power of its cost that an improvement is divided by: the share of the time that is left (cost cooling, Lee et al. 2020).

    So cheap recipes are asked first, and dear ones are not left out for ever. 0 where the budget does not count time.
    """
    budget = Budget.from_dict(history.budget) if history.budget else None
    if budget is None or budget.kind != "seconds":
        return 0.0
    return min(1.0, max(0.0, 1 - history.elapsed / budget.amount))
