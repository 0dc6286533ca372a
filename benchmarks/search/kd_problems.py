"""The two problems of the KD table: small real images and the teacher that knows them, each made once on a machine.

The validation rows decide every rank in the table, so they are many and the training rows few. A student of the digits sees the very
rows its teacher was trained on; on Fashion-MNIST the teacher has seen twenty times as many, as with a teacher from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autokd.data import Data
from autokd.teacher import Teacher
from benchmarks.core.images import READERS, balanced

TEACHER = {"width": 16, "depth1": 1, "depth2": 1, "depth3": 1}  # a resnet
DIGITS_ROWS, DIGITS_HELD = 400, 800  # for training, for validation
FASHION_ROWS, FASHION_TAUGHT, FASHION_HELD = 400, 8_000, 1_000  # for students, for the teacher, for validation


Pair = tuple[NDArray[Any], NDArray[Any]]  # images and labels


class Rows(NamedTuple):
    """uint8 images (N, 1, side, side) and labels, for the student, for the teacher, for validation."""

    student: Pair
    teacher: Pair
    held: Pair


class Problem(NamedTuple):
    """What students are trained on, and who teaches them."""

    data: Data
    teacher: Teacher


def digits(folder: Path) -> Rows:
    """Of scikit-learn's 1,797 digits."""
    splits = READERS["digits"](folder)
    x = np.concatenate([splits["x_train"], splits["x_test"]])
    y = np.concatenate([splits["y_train"], splits["y_test"]])
    train, rest = _parted(x, y, balanced(y, DIGITS_ROWS))
    held, _ = _parted(*rest, balanced(rest[1], DIGITS_HELD))
    return Rows(train, train, held)


def fashion_mnist(folder: Path) -> Rows:
    """The first rows of each class, nine pixels averaged to one: a ninth of the operations."""
    splits = READERS["fashion_mnist"](folder / "fashion_mnist")
    x, y = splits["x_train"], splits["y_train"]
    test_x, test_y = splits["x_test"], splits["y_test"]
    few, many, held = balanced(y, FASHION_ROWS), balanced(y, FASHION_TAUGHT), balanced(test_y, FASHION_HELD)
    return Rows((shrunk(x[few]), y[few]), (shrunk(x[many]), y[many]), (shrunk(test_x[held]), test_y[held]))


READ: dict[str, tuple[Callable[[Path], Rows], bool, int]] = {  # rows, whether they may be mirrored, teacher's epochs
    "digits": (digits, False, 60),
    "fashion_mnist": (fashion_mnist, True, 15),
}


def problem(name: str, folder: Path) -> Problem:
    """The named problem. Its teacher is trained at the first call on a machine, then taken from the cache."""
    read, flip, epochs = READ[name]
    rows = read(folder)
    data, taught = (_data(train, rows.held, flip, name) for train in (rows.student, rows.teacher))
    return Problem(data, Teacher.fit(taught, "resnet", spec=TEACHER, epochs=epochs))


def shrunk(x: NDArray[Any], side: int = 3) -> NDArray[np.uint8]:
    """Images of a third of the side: means of 3 x 3 pixels; what is left over at the right and bottom edge is cut off."""
    (n, channels), (height, width) = x.shape[:2], (size // side for size in x.shape[2:])
    whole = x[:, :, : height * side, : width * side]
    return np.rint(whole.reshape(n, channels, height, side, width, side).mean((3, 5))).astype(np.uint8)


def _parted(x: NDArray[Any], y: NDArray[Any], chosen: NDArray[np.int64]) -> tuple[Pair, Pair]:
    """The chosen rows, and the others."""
    others = np.setdiff1d(np.arange(len(y)), chosen)
    return (x[chosen], y[chosen]), (x[others], y[others])


def _data(train: Pair, held: Pair, flip: bool, name: str) -> Data:
    """The validation rows stand in for a test split, which the table never reads."""
    (x, y), (held_x, held_y) = train, held
    return Data(x, y, x_val=held_x, y_val=held_y, x_test=held_x, y_test=held_y, classes=10, flip=flip, pad=1, name=name)
