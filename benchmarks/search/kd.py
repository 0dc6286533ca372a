"""Our own table: real distillation trainings of a conditional space, noisy, two seeds each, with times. See kd_table.py for the file.

A point is answered by the recorded recipe nearest to it (Gower's distance): numbers by the distance within their (log) range, choices by
being the same, a field that exists on one side only as being at the far end. Fields weigh as much as they matter: as a random forest over
the table's own trainings says, plus a little. With 420 recipes in some forty fields all alike, hardly any recipe would be answered by one
of about its learning rate; `left_out` says how good the answers are. Answering with rows that were really trained keeps the noise, the
divergence and the costs of the table; it also makes a landscape of plateaus, which flatters nobody's smooth model.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.stats import rankdata, spearmanr
from sklearn.ensemble import RandomForestRegressor

from autokd.arguments import vocabulary
from autokd.constraints import Cost
from autokd.recipe import StudentSpec
from autokd.rules import Value
from autokd.space import Space
from autokd.space_fields import Field
from autokd.students import resolve
from autokd.students.describe import describe
from benchmarks.search.kd_table import PATH, KDTable
from benchmarks.search.tables import Point, Table

TREES, LEAF = 200, 3
LITTLE = 0.05  # of the average field's weight, for fields that the forest does not use


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
        self._weights = self._importance() + LITTLE

    def values(self, point: Point, seed: int = 0) -> np.ndarray:
        return self._curves[self.nearest(point), seed]

    def epoch_seconds(self, point: Point) -> float:
        return float(self._seconds[self.nearest(point)])

    def cost(self, student: StudentSpec) -> Cost:
        return describe(resolve(student.family), student.fields, self._input, self._classes, name=student.family)

    def reference_points(self) -> list[Point]:
        """The recorded recipes."""
        return self.points

    def nearest(self, point: Point) -> int:
        """The row that answers for a point."""
        return int(self._distance(self._coded(point)).argmin())

    def left_out(self) -> float:
        """How good the answers are: Spearman's correlation between what recipes are worth and what their nearest others are."""
        worth = np.array([self._worth(row) for row in range(len(self.points))])
        others = [int(self._distance(codes).argsort(kind="stable")[1]) for codes in self._codes]
        return float(spearmanr(worth, worth[others]).statistic)

    def _importance(self) -> np.ndarray:
        """Of every field, 1 on average."""
        worth = rankdata([self._worth(row) for row in range(len(self.points))])
        forest = RandomForestRegressor(TREES, min_samples_leaf=LEAF, random_state=0)
        forest.fit(np.nan_to_num(self._codes, nan=-1.0), worth)
        return np.asarray(forest.feature_importances_ * len(self.space.fields))

    def _worth(self, row: int) -> float:
        ends = self._curves[row, :, -1]
        return float(np.where(np.isfinite(ends), ends, self.floor).mean())

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
