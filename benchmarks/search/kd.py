"""Our own table: real distillation trainings of a conditional space, noisy, two seeds each, with times. See kd_table.py for the file.

A point is answered by the recorded recipe nearest to it (Gower's distance): numbers by the distance within their (log) range, choices by
being the same, a field that exists on one side only as being at the far end. A wrong branch thus differs in everything that hangs on it,
and answers only where its own branch has nothing near. Answering with rows that were really trained keeps the noise, the divergence and
the costs of the table; it also makes every task a landscape of plateaus, which favours nobody's smooth model.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np

from autokd.arguments import vocabulary
from autokd.constraints import Cost
from autokd.recipe import StudentSpec, Value
from autokd.space import Space
from autokd.space_fields import Field
from autokd.students import resolve
from autokd.students.describe import describe
from benchmarks.search.kd_table import PATH, KDTable
from benchmarks.search.tables import Point, Table

WEIGHTS = {"optim.lr": 4.0}  # decides most; a guess, as the other ones are


class Kd(Table):
    """One of the table's problems."""

    suite = "kd"

    def __init__(self, problem: str, path: Path = PATH) -> None:
        table = _loaded(path)
        place = table.problems.index(problem)
        told = table.about["problems"][place]
        self.name = f"kd-{problem}"
        self.space = Space.parse(table.space, vocabulary(), origin="kd")
        self.seeds = table.curves.shape[2]
        self.floor = float(told["chance"])
        self.architecture = frozenset(f.name for f in self.space.fields if f.name.startswith("student."))
        self.points = [self.space.complete(point) for point in table.points]
        self._curves = table.curves[place].astype(np.float64)
        seconds = table.seconds[place].astype(np.float64)  # NaN where no epoch ended: those cost what the median does
        self._seconds = np.where(np.isfinite(seconds), seconds, np.nanmedian(seconds)).mean(axis=1)
        self._input, self._classes = tuple(told["input_shape"]), round(1 / told["chance"])
        self._codes = np.array([self._coded(point) for point in self.points])
        self._is_choice = np.array([field.kind == "choice" for field in self.space.fields])
        self._weights = np.array([WEIGHTS.get(field.name, 1.0) for field in self.space.fields])

    def values(self, point: Point, seed: int = 0) -> np.ndarray:
        return self._curves[self.nearest(point), seed]

    def epoch_seconds(self, point: Point) -> float:
        return float(self._seconds[self.nearest(point)])

    def cost(self, student: StudentSpec) -> Cost:
        return describe(resolve(student.family), student.fields, self._input, self._classes, name=student.family)

    def reference_points(self) -> list[Point]:
        """The recorded recipes."""
        return self.points

    def nearest(self, point: Point, among: np.ndarray | None = None) -> int:
        """The row that answers for a point, of all or of some."""
        distance = self._distance(self._coded(point))
        return int(distance.argmin() if among is None else among[distance[among].argmin()])

    def _distance(self, codes: np.ndarray) -> np.ndarray:
        apart = np.abs(self._codes - codes)
        apart[:, self._is_choice] = np.where(apart[:, self._is_choice] > 0, 1.0, apart[:, self._is_choice])
        here, there = ~np.isnan(codes), ~np.isnan(self._codes)
        return np.asarray((self._weights * np.where(here & there, apart, here != there)).sum(axis=1))

    def _coded(self, point: Point) -> np.ndarray:
        """Numbers within their range, places of choices, NaN where a field does not exist."""
        return np.array([_code(f, point[f.name]) if f.name in point else np.nan for f in self.space.fields])


def _code(field: Field, value: Value) -> float:
    if field.kind == "choice":
        return float(field.choices.index(value))
    scale = math.log if field.log else float
    return (scale(float(value)) - scale(field.low)) / (scale(field.high) - scale(field.low))


@lru_cache(1)
def _loaded(path: Path) -> KDTable:
    return KDTable.load(path)
