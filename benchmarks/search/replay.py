"""One search on one table: trains by looking up, counts what it cost, remembers who led when.

The unit of budget is the full training: epochs divided by the epochs of one, or seconds divided by the median seconds of one. A training
that diverges is paid for up to the epoch in which it did. Whoever searches, the incumbent is the best at the highest fidelity reached.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np

from benchmarks.search.tables import Point, Table

UNITS = ("epochs", "seconds")
ROUNDING = 1e-9


class BudgetSpent(Exception):
    """Nothing more can be trained."""


@dataclass
class Trajectory:
    """What would have been handed over at which time: values of full trainings by what was spent until then."""

    spent: list[float] = field(default_factory=list)
    found: list[float] = field(default_factory=list)

    def add(self, spent: float, found: float) -> None:
        if not self.found or self.found[-1] != found:
            self.spent.append(spent)
            self.found.append(found)

    def at(self, budget: float, nothing: float) -> float:
        """The value handed over at this budget; `nothing` before there was any."""
        place = bisect_right(self.spent, budget + ROUNDING)
        return self.found[place - 1] if place else nothing


@dataclass
class Trial:
    """A training that may be gone on with."""

    point: Point
    epoch: int = 0
    failed: bool = False
    values: dict[int, float] = field(default_factory=dict)  # those asked for, by epoch


class Replay:
    """A budget to be spent on one table."""

    def __init__(self, table: Table, seed: int, budget: float, unit: str = "epochs") -> None:
        self.table, self.seed, self.budget, self.unit = table, seed, budget, unit
        self.spent = 0.0
        self.trajectory = Trajectory()
        self._best: tuple[int, float] = (0, -np.inf)

    def advance(self, trial: Trial, to: int, leads: bool = True) -> float | None:
        """Train up to `to` epochs and measure; None if it diverged. `leads`: whether it may become the incumbent by that.

        Raises BudgetSpent if the budget does not reach.
        """
        values = self.table.values(trial.point, self.seed % self.table.seeds)
        wrong = np.flatnonzero(~np.isfinite(values[trial.epoch : to]))
        last = trial.epoch + int(wrong[0]) + 1 if len(wrong) else to
        self._pay(trial.point, last - trial.epoch)
        trial.epoch, trial.failed = last, bool(len(wrong))
        if trial.failed:
            return None
        value = trial.values[to] = float(values[to - 1])
        if leads and (to, value) > self._best:
            self._best = (to, value)
            self.trajectory.add(self.spent, self.table.final(trial.point))
        return value

    def full(self, point: Point) -> float | None:
        """Train from beginning to end."""
        return self.advance(Trial(point), self.table.epochs)

    def _pay(self, point: Point, epochs: int) -> None:
        each = 1 / self.table.epochs
        if self.unit == "seconds":
            each = self.table.epoch_seconds(point) / self.table.reference.seconds
        if self.spent + epochs * each > self.budget + ROUNDING:
            self.spent = self.budget
            raise BudgetSpent
        self.spent += epochs * each
