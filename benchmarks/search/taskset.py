"""TaskSet: text RNNs on IMDb under 1,000 random settings of an Adam variant, 50 points a curve; half of them learn nothing, some diverge.

A point is answered by the recorded setting nearest to it in the unit cube of the logarithms. Losses are turned round, and cut off at twice
the loss of a guess, which a curve of 1e18 would otherwise drown.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from autokd.rules import Rule, Vocabulary
from autokd.space import Space
from benchmarks.search.tables import Point, Table

POINTS = 50
WORST = 2 * math.log(2)
RANGES = {  # of what was drawn, log-uniform, in the order of the file's columns
    "optim.lr": (1e-8, 10.0),
    "terms.adam.one_minus_beta1": (1e-4, 1.0),
    "terms.adam.one_minus_beta2": (1e-6, 1.0),
    "terms.adam.epsilon": (1e-10, 1e3),
    "terms.adam.l1": (1e-8, 10.0),
    "terms.adam.l2": (1e-8, 10.0),
    "terms.adam.linear_decay": (1e-7, 1e-4),
    "terms.adam.exponential_decay": (1e-6, 1e-3),
}
FROM_ONE = ("terms.adam.one_minus_beta1", "terms.adam.one_minus_beta2")  # recorded as beta
VOCABULARY = Vocabulary(
    families={"rnn": {}},
    objectives={
        "adam": {
            name.rpartition(".")[2]: Rule("float", math.sqrt(low * high), low, high)
            for name, (low, high) in RANGES.items()
            if name.startswith("terms.")
        }
    },
)
SPACE = f"""\
version: 1
about: settings of an Adam variant, as parameters of one term
task: classification
epochs: {{max: {POINTS}}}
fields:
  student.family: rnn
  terms.adam.weight: 1
""" + "".join(f"  {name}: {{float: [{low}, {high}], log: true}}\n" for name, (low, high) in RANGES.items())


class Taskset(Table):
    """One network and batch size."""

    suite = "taskset"
    floor = -WORST

    def __init__(self, file: Path) -> None:
        self.name = f"taskset-{file.stem.removeprefix('imdb_')}"
        self.space = Space.parse(SPACE, VOCABULARY, origin="taskset")
        with np.load(file) as recorded:
            settings = recorded["hp"].astype(np.float64)
            loss = recorded["valid"][:, 1:].astype(np.float64)  # the first is the untrained network
        for column, name in enumerate(RANGES):
            if name in FROM_ONE:
                settings[:, column] = 1 - settings[:, column]
        self._cube = _unit(settings)
        finite = np.logical_and.accumulate(np.isfinite(loss), axis=1)  # once diverged, diverged
        self._values = np.where(finite, -np.minimum(loss, WORST), np.nan)

    def values(self, point: Point, seed: int = 0) -> np.ndarray:
        return self._values[self._nearest(point)]

    def reference_points(self) -> list[Point]:
        """The recorded settings."""
        low, high = np.log(np.array(list(RANGES.values()))).T
        settings = np.exp(low + self._cube * (high - low))
        return [self.space.complete(dict(zip(RANGES, map(float, row), strict=True))) for row in settings]

    def _nearest(self, point: Point) -> int:
        asked = _unit(np.array([[point[name] for name in RANGES]]))
        return int(((self._cube - asked) ** 2).sum(axis=1).argmin())


def _unit(settings: np.ndarray) -> np.ndarray:
    low, high = np.log(np.array(list(RANGES.values()))).T
    return np.clip((np.log(np.maximum(settings, 1e-12)) - low) / (high - low), 0, 1)
