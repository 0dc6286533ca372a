"""A recorded task: a space, and how the training of every point in it goes.

Values are validation values, higher is better. A training may diverge: its values are NaN from that epoch on, and a student that came of it
counts as `floor`. Regret is normalised: 0 is the best of the reference students, 1 their median.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autokd.constraints import Cost
from autokd.recipe import StudentSpec
from autokd.rules import Value
from autokd.space import Space

Point = dict[str, Value]
REFERENCE = 1000  # random points that stand for a space too large to be gone through


@dataclass(frozen=True)
class Reference:
    """Full trainings that others are compared with."""

    best: float
    median: float
    seconds: float  # median of a full training


class Table(ABC):
    """One task. `space.epochs` is the length of a full training; 1 where no curves were recorded."""

    name: str
    suite: str
    space: Space
    floor: float = -np.inf  # the value of a student that diverged; nothing is worse
    seeds: int = 1  # repetitions of every training
    architecture: frozenset[str] = frozenset()  # fields that decide which network it is

    @property
    def epochs(self) -> int:
        return self.space.epochs

    @abstractmethod
    def values(self, point: Point, seed: int = 0) -> np.ndarray:
        """(epochs,) of one training, NaN from where it diverged."""

    def epoch_seconds(self, point: Point) -> float:
        """Of an epoch's training. A minute where times were not recorded."""
        return 60.0

    def cost(self, student: StudentSpec) -> Cost:
        """Of one network; all alike where the table does not say."""
        return Cost(1, 1)

    def final(self, point: Point) -> float:
        """What a full training is worth, the mean over its seeds."""
        ends = [self.values(point, seed)[-1] for seed in range(self.seeds)]
        return float(np.mean([end if np.isfinite(end) else self.floor for end in ends]))

    def regret(self, value: float) -> float:
        """Normalised; below 0 where a value is better than the best of the reference."""
        best, median = self.reference.best, self.reference.median
        return (best - value) / (best - median)

    @cached_property
    def reference(self) -> Reference:
        finals, seconds = self.ends(self.reference_points())
        return Reference(float(finals.max()), float(np.median(finals)), float(np.median(seconds)))

    def ends(self, points: list[Point]) -> tuple[np.ndarray, np.ndarray]:
        """What full trainings of these points are worth, and how many seconds they take."""
        finals = [self.final(point) for point in points]
        return np.array(finals), self.epochs * np.array([self.epoch_seconds(point) for point in points])

    def reference_points(self) -> list[Point]:
        """Every point, or a sample that is always the same."""
        rng = random.Random("reference")
        return [draw(self.space, rng) for _ in range(REFERENCE)]


def draw(space: Space, rng: random.Random) -> Point:
    """A point drawn uniformly."""
    return space.quantile([rng.random() for _ in space.fields])
