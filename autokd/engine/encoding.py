"""Points of a conditional space as rows of numbers, and back.

A column per searched field: a number's position in [0, 1] along its (log) range, a choice's index. A field that does not exist at a
point holds INACTIVE there, so that two points of one branch differ only in what both have.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from autokd.rules import Value
from autokd.space import Space
from autokd.space_fields import PRIOR_SHARE, Field, Point, among, same

Rows = NDArray[np.float64]
INACTIVE = (
    0.5  # where a number is placed that does not exist: the middle, a choice: between two indices, so like no other
)
MOST_LEVELS = 512  # integers of wider ranges are treated as floats until they are decoded


class Encoding:
    """Rows for one space. `widths` are the numbers of choices of each column, 0 for a number."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.fields = tuple(entry for entry in space.fields if entry.searched)
        self.column = {entry.name: place for place, entry in enumerate(self.fields)}
        self.widths = np.array([len(entry.choices) if entry.kind == "choice" else 0 for entry in self.fields], int)
        self._levels = [_levels(entry) for entry in self.fields]

    def row(self, point: Mapping[str, Value]) -> Rows:
        """A point as numbers."""
        return np.array([_place(f, point[f.name]) if f.name in point else INACTIVE for f in self.fields])

    def rows(self, points: list[Point]) -> Rows:
        return np.array([self.row(point) for point in points]).reshape(len(points), len(self.fields))

    def point(self, row: Rows) -> Point:
        """The point a row stands for."""
        point: Point = {}
        for entry in self.space.fields:
            if entry.active(point):
                point[entry.name] = _value(entry, row[self.column[entry.name]]) if entry.searched else entry.choices[0]
        return point

    def settle(self, rows: Rows) -> Rows:
        """Rows as `row(point(row))` would give them: integers on their steps, INACTIVE where a field does not exist."""
        settled = rows.copy()
        exists: dict[str, NDArray[np.bool_]] = {}
        for entry in self.space.fields:
            here = np.ones(len(rows), bool)
            for name, values in entry.when:
                here &= exists[name] & self._holds(name, values, settled)
            exists[entry.name] = here
            if entry.searched:
                column, levels = self.column[entry.name], self._levels[self.column[entry.name]]
                if levels is not None:
                    settled[:, column] = _nearest(levels, settled[:, column])
                settled[~here, column] = INACTIVE
        return settled

    def draw(self, rng: np.random.Generator, count: int) -> Rows:
        """Rows from the priors."""
        drawn = rng.random((count, len(self.fields)))
        for place, entry in enumerate(self.fields):
            if entry.kind == "choice":
                drawn[:, place] = _drawn_choices(entry, rng, count)
            elif entry.prior is not None:
                near = _drawn_near(entry.unit(float(entry.prior)), entry.spread, rng, count)
                drawn[:, place] = np.where(rng.random(count) < PRIOR_SHARE, near, drawn[:, place])
        return self.settle(drawn)

    def vary(self, rng: np.random.Generator, rows: Rows, scale: float) -> Rows:
        """Neighbours of rows: some numbers moved by about `scale`, now and then a choice made anew."""
        shape = rows.shape
        moved = rng.random(shape) < max(0.4, 2 / shape[1])
        varied = np.clip(np.where(moved, rows + rng.normal(0.0, scale, shape), rows), 0.0, 1.0)
        for place in np.flatnonzero(self.widths):
            again = (rng.random(shape[0]) < scale) | (rows[:, place] == INACTIVE)
            anew = rng.integers(self.widths[place], size=shape[0])
            varied[:, place] = np.where(again, anew, rows[:, place])
        return self.settle(varied)

    def _holds(self, name: str, values: tuple[Value, ...], rows: Rows) -> NDArray[np.bool_]:
        """Where the decider `name`, if it exists, has one of `values`."""
        if name not in self.column:
            fixed = next(entry for entry in self.space.fields if entry.name == name)
            return np.full(len(rows), among(fixed.choices[0], values))
        column = self.column[name]
        wanted = [_place(self.fields[column], value) for value in values if self.fields[column].misfit(value) is None]
        return np.isclose(rows[:, column, None], np.array(wanted, float)[None, :], rtol=0, atol=1e-9).any(1)


def _place(entry: Field, value: Value) -> float:
    if entry.kind == "choice":
        return float(next(place for place, choice in enumerate(entry.choices) if same(choice, value)))
    return entry.unit(float(value))


def _value(entry: Field, place: float) -> Value:
    return entry.choices[int(round(place))] if entry.kind == "choice" else entry.value_at(float(place))


def _levels(entry: Field) -> Rows | None:
    """Where the values of an integer lie, None for what has no steps."""
    if entry.kind != "int" or (entry.high - entry.low) / entry.step >= MOST_LEVELS:
        return None
    return np.array([entry.unit(float(n)) for n in range(int(entry.low), int(entry.high) + 1, entry.step)])


def _nearest(levels: Rows, places: Rows) -> Rows:
    between = (levels[1:] + levels[:-1]) / 2
    return np.asarray(levels[np.searchsorted(between, places)])


def _drawn_near(centre: float, spread: float, rng: np.random.Generator, count: int) -> Rows:
    """From a normal distribution that is cut off at 0 and 1."""
    below, above = ndtr((np.array([0.0, 1.0]) - centre) / spread)
    return np.asarray(np.clip(centre + spread * ndtri(rng.uniform(below, above, count)), 0.0, 1.0))


def _drawn_choices(entry: Field, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    if entry.prior is None:
        return rng.integers(len(entry.choices), size=count)
    likely = int(_place(entry, entry.prior))
    others = rng.integers(1, len(entry.choices), size=count)
    return np.where(rng.random(count) < PRIOR_SHARE, likely, (likely + others) % len(entry.choices))
