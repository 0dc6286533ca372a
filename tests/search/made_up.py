"""A table by formula: small, conditional, with diverging trainings, and known from end to end."""

from __future__ import annotations

import math

import numpy as np

from autokd.rules import Rule, Vocabulary
from autokd.space import Space
from benchmarks.search.tables import Point, Table

EPOCHS = 9
VOCABULARY = Vocabulary(
    families={"wide": {"width": Rule("int", 8, 1, 64)}, "deep": {"depth": Rule("int", 2, 1, 9)}},
    objectives={"kd": {"temperature": Rule("float", 4.0, 1.0, 20.0)}},
)
SPACE = f"""\
version: 1
about: for tests
task: classification
epochs: {{max: {EPOCHS}}}
fields:
  student.family: {{choice: [wide, deep]}}
  student.wide.width: {{int: [1, 64], log: true}}
  student.deep.depth: {{int: [1, 9]}}
  terms.kd.weight: 1
  terms.kd.temperature: {{float: [1, 20], log: true}}
  optim.lr: {{float: [1e-3, 1], log: true}}
"""


class MadeUp(Table):
    """Best with the widest student, T = 4 and lr = 0.03; diverges at once with lr above 0.6, in the fourth epoch above 0.3."""

    name = "made-up"
    suite = "lcbench"
    floor = 0.0
    architecture = frozenset({"student.family", "student.wide.width", "student.deep.depth"})

    def __init__(self, seeds: int = 1, first: str = "") -> None:
        self.space = Space.parse(SPACE + first, VOCABULARY, origin="made-up")
        self.seeds = seeds

    def values(self, point: Point, seed: int = 0) -> np.ndarray:
        size = math.log2(float(point.get("student.wide.width", 8 * point.get("student.deep.depth", 1))))
        end = 0.7 + 0.02 * size - 0.05 * (math.log10(float(point["optim.lr"])) + 1.5) ** 2 + 0.01 * seed
        end -= 0.02 * abs(math.log2(float(point["terms.kd.temperature"])) - 2)
        values = end - 0.5 * np.exp(-np.arange(1, EPOCHS + 1) / 2)
        if float(point["optim.lr"]) > 0.3:
            values[0 if float(point["optim.lr"]) > 0.6 else 3 :] = np.nan
        return values

    def epoch_seconds(self, point: Point) -> float:
        return 1.0 + float(point.get("student.deep.depth", 1))
