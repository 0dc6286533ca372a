"""Students whose value after distillation is known, and their scores before any training: on the digits, Fashion-MNIST and CIFAR-100.

diswot    the 64 residual networks that DisWOT's authors distilled on CIFAR-100; teacher of the scores: ResNet-56 with random weights, and
          a small one trained here, since theirs is not at hand
kd        networks of the KD table, all distilled anew with one published recipe (KD, Hinton 2015): only the architecture differs
table     the recipes of the KD table themselves: architecture, losses, views and optimiser all differ
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau
from torch import nn

from autokd.arguments import vocabulary
from autokd.core.data import to_float
from autokd.data import Data
from autokd.recipe import StudentSpec
from autokd.scope import CostOf
from autokd.space import Space
from autokd.students import resolve
from autokd.students.normalise import set_normalisation
from autokd.teacher import Teacher
from benchmarks.core.images import BESIDE, as_data, choose, load
from benchmarks.search.diswot import DEPTHS, Diswot
from benchmarks.search.kd_problems import TEACHER, problem
from benchmarks.search.kd_table import KDTable
from benchmarks.search.kd_training import Job, Place, train
from benchmarks.search.tables import Point
from benchmarks.search.training_free_scores import DRAWS, Seen, look, own, similarities

ROWS = 64  # of a batch that networks are shown; as many as in DisWOT's own experiments
ARCHITECTURES = 64  # of the KD table's 128
RESNET56 = {"width": 16, "depth1": 9, "depth2": 9, "depth3": 9}
SMALL = {"width": 16, "depth1": 3, "depth2": 3, "depth3": 3}  # ResNet-20, the trained teacher
TAUGHT, SMALL_EPOCHS = 20_000, 5  # rows and epochs of its training
EARLY = (1, 3)  # epochs; 3 of 27 is the first rung of a search
CHANCE = 0.1
Array = NDArray[np.float64]
Scores = dict[str, Array]  # (inits, architectures) by name


@dataclass(frozen=True)
class Case:
    """Students on one problem, and what they are compared with."""

    name: str
    data: Data
    students: tuple[StudentSpec, ...]
    teacher: dict[str, Any]  # spec of the untrained resnet
    trained: nn.Module
    epoch_seconds: float = float("nan")  # of the processor, median of its trainings


@dataclass(frozen=True)
class Known:
    """Trainings of a case's students, means over their seeds."""

    name: str
    student: NDArray[np.int64]  # (trainings,) which architecture
    values: Array  # (trainings,) at the end
    early: dict[int, Array]  # after so many epochs
    seeds: float = float("nan")  # Kendall's tau of the ends with one seed and with the other


# ---- scores


def measure(case: Case, inits: int) -> tuple[Scores, Array]:
    """Every score, and the seconds of the processor that one look took, (architectures,)."""
    scores: defaultdict[str, Array] = defaultdict(lambda: np.full((inits, len(case.students)), np.nan))
    seconds = np.zeros((inits, len(case.students)))
    for init, draw in product(range(inits), DRAWS):
        x, y = _batch(case.data, init)
        untrained = build(StudentSpec.model_validate({"family": "resnet", **case.teacher}), case.data, init, draw)
        teachers = {"random": look(untrained, x, y), "trained": look(case.trained.eval(), x, y)}
        for place, spec in enumerate(case.students):
            begun = time.process_time()
            student = build(spec, case.data, 1000 + init, draw)
            seen = look(student, x, y)
            found = own(student, seen) | _against(seen, teachers)
            if not draw:
                seconds[init, place] = time.process_time() - begun
            for name, score in found.items():
                if not (draw and name.startswith(("relation", "nwot"))):  # the same as without
                    scores[f"{name}, {draw}" if draw else name][init, place] = score
    return dict(scores), np.median(seconds, axis=0)


def build(spec: StudentSpec, data: Data, seed: int, draw: str = "") -> nn.Module:
    """An untrained network in train mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DRAWS[draw](resolve(spec.family).build(spec.fields, data.input_shape, data.classes))
    set_normalisation(network, data.mean, data.std)
    return network.train()


def _against(seen: Seen, teachers: dict[str, Seen]) -> dict[str, float]:
    return {
        f"{name}, {which} teacher": score
        for which, teacher in teachers.items()
        for name, score in similarities(seen, teacher).items()
    }


def _batch(data: Data, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = np.sort(np.random.default_rng(seed).choice(len(data.train.y), ROWS, replace=False))
    return to_float(torch.tensor(data.train.x[rows])), torch.tensor(data.train.y[rows]).long()


def sizes(case: Case) -> dict[str, Array]:
    """What is known for nothing."""
    costs = [CostOf(case.data)(spec) for spec in case.students]
    return {"params": np.array([float(c.params) for c in costs]), "FLOPs": np.array([float(c.flops) for c in costs])}


# ---- DisWOT's students


def diswot(folder: Path = BESIDE) -> tuple[Case, list[Known]]:
    table = Diswot(folder / "hpo" / "diswot_s1.csv")
    points = table.reference_points()
    specs = tuple(
        StudentSpec.model_validate({"family": "resnet", "width": 16, **dict(zip(SMALL_DEPTHS, depths, strict=True))})
        for depths in product(DEPTHS, repeat=3)
    )
    data = as_data(load(choose("cifar100", TAUGHT, str(folder))))
    trained = Teacher.fit(data, "resnet", spec=SMALL, epochs=SMALL_EPOCHS)
    ends = np.array([table.final(point) for point in points])
    return Case("diswot", data, specs, RESNET56, trained.module), [Known("diswot", np.arange(len(ends)), ends, {})]


SMALL_DEPTHS = ("depth1", "depth2", "depth3")

# ---- our own table's


def kd(name: str, work: Path, folder: Path = BESIDE) -> tuple[Case, list[Known]]:
    """The table's architectures on one of its problems: those distilled here with one recipe, and all in the table."""
    table = KDTable.load()
    space = Space.parse(table.space, vocabulary())
    data, teacher = problem(name, folder)
    points = [space.complete(point) for point in table.points]
    keys = [_student(point) for point in points]
    architectures = list(dict.fromkeys(keys))
    specs = tuple(space.recipe(points[keys.index(key)]).student for key in architectures)
    chosen = np.sort(np.random.default_rng(0).choice(len(architectures), ARCHITECTURES, replace=False))
    recipe = {field: value for field, value in points[0].items() if not field.startswith("student.")}
    alike = [space.complete({**recipe, **dict(architectures[place])}) for place in chosen]
    at, student = table.problems.index(name), np.array([architectures.index(key) for key in keys])
    trained = _distilled(name, space, alike, Place(folder, work))
    known = [
        _known(f"{name}, one recipe", chosen, _curves(trained, space.epochs)),
        _known(f"{name}, table", student, np.nan_to_num(table.curves[at].astype(float), nan=CHANCE)),
    ]
    seconds = float(np.median([each["seconds"] for pair in trained for each in pair]))
    return Case(name, data, specs, TEACHER, teacher.module, seconds), known


def _student(point: Point) -> tuple[tuple[str, Any], ...]:
    return tuple((field, value) for field, value in point.items() if field.startswith("student."))


def _distilled(name: str, space: Space, points: Sequence[Point], place: Place) -> list[list[dict[str, Any]]]:
    """Trainings of every point with two seeds; those of an earlier call are read."""
    file = place.work / f"{name}.json"
    if file.exists():
        return json.loads(file.read_text())
    place.work.mkdir(parents=True, exist_ok=True)
    recipes = [space.recipe(point) for point in points]
    trained = [
        [train(Job(name, number, recipe, seed), space.epochs, place) for seed in (0, 1)]
        for number, recipe in enumerate(recipes)
    ]
    file.write_text(json.dumps(trained))
    return trained


def _curves(trained: list[list[dict[str, Any]]], epochs: int) -> Array:
    """(trainings, seeds, epochs); a student that fails is at chance from then on, as in a search."""
    curves = np.full((len(trained), len(trained[0]), epochs), CHANCE)
    for at in np.ndindex(*curves.shape[:2]):
        ended = trained[at[0]][at[1]]["accuracy"]
        curves[at][: len(ended)] = ended
    return curves


def _known(name: str, student: NDArray[np.int64], curves: Array) -> Known:
    ends = curves[:, :, -1]
    early = {epoch: curves[:, :, epoch - 1].mean(1) for epoch in EARLY}
    return Known(name, student, ends.mean(1), early, float(kendalltau(ends[:, 0], ends[:, 1]).statistic))
