"""DisWOT's 64 students: every ResNet with 1, 3, 5 or 7 blocks in each of three stages, distilled once on CIFAR-100.

Only where trainings ended was recorded, so this table has one fidelity: a "full training" is its only epoch, and whatever early stopping
a method has, it cannot use here. One run each: differences of a few tenths of a per cent are noise.
"""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path

import numpy as np

from autokd.constraints import Cost
from autokd.recipe import StudentSpec
from autokd.rules import Rule, Vocabulary
from autokd.space import Space
from benchmarks.search.tables import Point, Table

DEPTHS = (1, 3, 5, 7)
STAGES = ("depth1", "depth2", "depth3")
CHANNELS = (16, 32, 64)
IMAGE = 32
CLASSES = 100
SPACE = """\
version: 1
about: blocks in each stage of a ResNet
task: classification
epochs: {max: 1}
fields:
  student.family: resnet
""" + "".join(f"  student.resnet.{stage}: {{int: [1, 7], step: 2}}\n" for stage in STAGES)
VOCABULARY = Vocabulary(families={"resnet": {stage: Rule("int", 1, 1, 7) for stage in STAGES}})


class Diswot(Table):
    """Accuracies with distillation."""

    name = suite = "diswot"
    floor = 0.0
    architecture = frozenset(f"student.resnet.{stage}" for stage in STAGES)

    def __init__(self, file: Path) -> None:
        self.space = Space.parse(SPACE, VOCABULARY, origin="diswot")
        rows = np.genfromtxt(file, delimiter=",", names=True)
        self._final = {tuple(int(row[stage]) for stage in STAGES): float(row["acc_kd"]) / 100 for row in rows}

    def values(self, point: Point, seed: int = 0) -> np.ndarray:
        return np.array([self._final[_depths(point)]])

    def cost(self, student: StudentSpec) -> Cost:
        """Of convolutions and classifier; FLOPs are two per multiply-accumulate."""
        depths = [student.fields[stage] for stage in STAGES]
        stem, macs = 27 * CHANNELS[0], 27 * CHANNELS[0] * IMAGE**2
        params = stem + (CHANNELS[-1] + 1) * CLASSES
        for stage, (before, width) in enumerate(pairwise((CHANNELS[0], *CHANNELS))):
            weights = 9 * width * (before + (2 * depths[stage] - 1) * width)
            params += weights
            macs += weights * (IMAGE // 2**stage) ** 2
        return Cost(params, 2 * macs)

    def epoch_seconds(self, point: Point) -> float:
        return 60.0 * sum(_depths(point))  # not recorded: in proportion to the blocks

    def reference_points(self) -> list[Point]:
        names = [f"student.resnet.{stage}" for stage in STAGES]
        return [self.space.complete(dict(zip(names, d, strict=True))) for d in product(DEPTHS, repeat=3)]


def _depths(point: Point) -> tuple[int, ...]:
    return tuple(int(point[f"student.resnet.{stage}"]) for stage in STAGES)
