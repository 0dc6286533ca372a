"""Images, teachers and the common student: what all trainings of a comparison share."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

import autokd
from autokd.recipe import AugmentSpec, OptimSpec, StudentSpec
from autokd.teacher import Teacher
from benchmarks.core.images import READERS, balanced

TEACHER = {"width": 16, "depth1": 1, "depth2": 1, "depth3": 1}
STUDENT = StudentSpec.model_validate({"family": "resnet", "width": 6, "depth1": 1, "depth2": 1, "depth3": 1})
AUGMENT = AugmentSpec(policy="jda", chain="cifar100", p=0.2, rho=0.5)  # of the arms that have it
OPTIM = OptimSpec(batch=64, lr=0.05)


class Size(NamedTuple):
    """Rows for the student, for the teacher, and held for validation; epochs of the teacher."""

    student: int
    teacher: int
    held: int
    epochs: int


SIZES = {
    "digits": Size(600, 1_000, 200, 30),
    "fashion_mnist": Size(4_000, 16_000, 1_000, 15),
    "cifar100": Size(8_000, 18_000, 1_000, 30),
}


@lru_cache
def world(name: str, folder: Path, share: float = 1.0, teacher: str = "plain") -> Teacher:
    """The teacher of `name`, with the student's data; `share` of the labelled rows are left to the student.

    The student's rows are the first of each class among the teacher's. Teachers are trained once on a machine.
    """
    size, splits = SIZES[name], READERS[name](folder / name)
    x, y = splits["x_train"], splits["y_train"]
    taught = balanced(y, size.teacher + size.held)
    held = balanced(y[taught][::-1], size.held)  # the last of each class
    mine = np.ones(len(taught), dtype=bool)
    mine[len(taught) - 1 - held] = False
    rows, validation = taught[mine], taught[~mine]

    def data(chosen: np.ndarray) -> autokd.Data:
        return autokd.Data(
            x[chosen],
            y[chosen],
            x_val=x[validation],
            y_val=y[validation],
            x_test=splits["x_test"],
            y_test=splits["y_test"],
            flip=name != "digits",
            pad=max(1, x.shape[-1] // 8),
            classes=int(y.max()) + 1,
            name=name,
        )

    fitted = TEACHERS[teacher](data(rows), size.epochs)
    few = rows[balanced(y[rows], round(share * size.student))]
    return Teacher(fitted.module, data(few), name=f"{teacher}-{name}", about=fitted.about)


def _plain(data: autokd.Data, epochs: int) -> Teacher:
    return Teacher.fit(data, "resnet", spec=TEACHER, epochs=epochs)


def _augmented(data: autokd.Data, epochs: int) -> Teacher:
    """As many steps on twice the rows."""
    return Teacher.fit(data, "resnet", spec=TEACHER, epochs=epochs, augment=AUGMENT)


TEACHERS: dict[str, Callable[[autokd.Data, int], Teacher]] = {
    "plain": _plain,
    "augmented": _augmented,
}
