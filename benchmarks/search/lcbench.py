"""LCBench by its YAHPO surrogate: multi-layer perceptrons on OpenML tasks, 52 epochs, no noise, with times.

A smooth model of real runs, which flatters Gaussian processes; nothing diverges.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from autokd.constraints import Cost
from autokd.recipe import StudentSpec
from autokd.rules import Rule, Vocabulary
from autokd.space import Space
from benchmarks.search.tables import Point, Table

EPOCHS = 52
SPACE = f"""\
version: 1
about: training settings and width of a perceptron
task: classification
epochs: {{max: {EPOCHS}}}
fields:
  student.family: funnel
  student.funnel.num_layers: {{int: [1, 5]}}
  student.funnel.max_units: {{int: [64, 1024], log: true}}
  student.funnel.max_dropout: {{float: [0, 1]}}
  optim.batch: {{int: [16, 512], log: true}}
  optim.lr: {{float: [1e-4, 0.1], log: true}}
  optim.momentum: {{float: [0.1, 0.99]}}
  optim.weight_decay: {{float: [1e-5, 0.1]}}
"""
VOCABULARY = Vocabulary(
    families={
        "funnel": {
            "num_layers": Rule("int", 3, 1, 5),
            "max_units": Rule("int", 256, 64, 1024),
            "max_dropout": Rule("float", 0.2, 0.0, 1.0),
        }
    }
)
COLUMNS = (  # of the surrogate's input, after the epoch
    "optim.batch",
    "optim.lr",
    "optim.momentum",
    "optim.weight_decay",
    "student.funnel.num_layers",
    "student.funnel.max_units",
    "student.funnel.max_dropout",
)
SECONDS, ACCURACY = 0, 1  # columns of its output


class Lcbench(Table):
    """One OpenML task. Curves once asked for are kept."""

    suite = "lcbench"
    floor = 0.0
    architecture = frozenset({"student.funnel.num_layers", "student.funnel.max_units"})

    def __init__(self, folder: Path, task: str) -> None:
        self.name = f"lcbench-{task}"
        self.space = Space.parse(SPACE, VOCABULARY, origin="lcbench")
        self.code = json.loads((folder / "tasks.json").read_text())["tasks"][task]
        self.model = str(folder / "model.onnx")
        self._known: dict[tuple[float, ...], tuple[np.ndarray, float]] = {}

    def values(self, point: Point, seed: int = 0) -> np.ndarray:
        return self._curve(point)[0]

    def epoch_seconds(self, point: Point) -> float:
        return self._curve(point)[1]

    def cost(self, student: StudentSpec) -> Cost:
        """Hidden layers only: the surrogate does not say how many features and classes its tasks have."""
        params = student.fields["num_layers"] * student.fields["max_units"] ** 2
        return Cost(params, 2 * params)

    def ends(self, points: list[Point]) -> tuple[np.ndarray, np.ndarray]:
        y = self._ask([(EPOCHS, *_inputs(point)) for point in points])
        return y[:, ACCURACY], y[:, SECONDS]

    def _curve(self, point: Point) -> tuple[np.ndarray, float]:
        inputs = _inputs(point)
        if inputs not in self._known:
            y = self._ask([(epoch, *inputs) for epoch in range(1, EPOCHS + 1)])
            self._known[inputs] = (y[:, ACCURACY], float(y[-1, SECONDS]) / EPOCHS)
        return self._known[inputs]

    def _ask(self, rows: list[tuple[float, ...]]) -> np.ndarray:
        """What the surrogate says of (epoch, settings) in one call, accuracies as shares, times of at least a second."""
        fed = {"x_cat": np.full((len(rows), 1), self.code, np.int32), "x_cont": np.array(rows, np.float32)}
        y: np.ndarray = _session(self.model).run(["output"], fed)[0].astype(np.float64)
        y[:, ACCURACY] /= 100
        y[:, SECONDS] = np.maximum(y[:, SECONDS], 1.0)
        return y


def _inputs(point: Point) -> tuple[float, ...]:
    return tuple(float(point[name]) for name in COLUMNS)


@lru_cache(1)
def _session(path: str) -> Any:
    """One model serves every task of a process."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
