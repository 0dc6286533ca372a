"""Real images for the benchmark, from files that are already here: CIFAR-100, Fashion-MNIST, or scikit-learn's digits.

The first two lie in `shared/data`, a folder beside the project, or wherever `--data` says. CIFAR-100 is packed there as differences, which
take about 10 s to undo, so a plain copy is kept in the user's cache folder. Nothing is downloaded; nothing is written to the source.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from autokd.data import Data
from benchmarks.core.measure import Absent

Array = NDArray[np.uint8]
Splits = dict[str, Array]  # x_train, y_train, x_test, y_test
BESIDE = Path(__file__).resolve().parents[2].parent / "shared" / "data"
VERSION = 1  # of the plain copies
LEAST_VALIDATION = 240


@dataclass(frozen=True)
class Source:
    """Which images, and how many of them. Small, so that it can cross processes."""

    name: str  # "cifar100", "fashion_mnist" or "digits"
    rows: int  # for training
    folder: str = str(BESIDE)
    held: int = 0  # for validation; 0: an eighth as many, at least 240


class Images(NamedTuple):
    """Training and validation images, uint8 (N, C, H, W), with labels (N,) uint8. Every class is in both."""

    name: str
    x: Array
    y: Array
    val_x: Array
    val_y: Array
    classes: int
    flip: bool  # whether a mirrored image keeps its label

    @property
    def pad(self) -> int:
        """Pixels by which a crop may shift: 4 of 32."""
        return max(1, self.x.shape[-1] // 8)

    @property
    def moments(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, images in [0, 1]."""
        unit = self.x.astype(np.float64) / 255
        return unit.mean((0, 2, 3)).tolist(), unit.std((0, 2, 3)).tolist()


def choose(name: str, rows: int, folder: str | None = None, held: int = 0) -> Source:
    """The named images; "auto" is CIFAR-100 where it is, else the digits. Raises Absent where there are none of that name."""
    folder = folder or str(BESIDE)
    if name == "auto":
        name = "cifar100" if (Path(folder) / "cifar100").is_dir() else "digits"
    if name not in READERS:
        raise Absent(f"images must be one of {', '.join(READERS)}, got '{name}'")
    if name != "digits" and not (Path(folder) / name).is_dir():
        raise Absent(f"{name} is not in {folder}; give --data FOLDER")
    return Source(name, rows, folder, held)


def load(source: Source) -> Images:
    """The images, every class alike: as many as asked for, or all there are, and at least one of each class."""
    splits = READERS[source.name](Path(source.folder) / source.name)
    classes = int(splits["y_train"].max()) + 1
    train = balanced(splits["y_train"], max(source.rows, classes))
    held = balanced(splits["y_test"], max(source.held or max(source.rows // 8, LEAST_VALIDATION), classes))
    x, y = splits["x_train"][train], splits["y_train"][train]
    val_x, val_y = splits["x_test"][held], splits["y_test"][held]
    return Images(source.name, x, y, val_x, val_y, classes, flip=source.name != "digits")


def as_data(images: Images) -> Data:
    """The same images for autokd. The validation images stand in for a test split, which the benchmark never reads."""
    return Data(
        images.x,
        images.y,
        x_val=images.val_x,
        y_val=images.val_y,
        x_test=images.val_x,
        y_test=images.val_y,
        classes=images.classes,
        flip=images.flip,
        pad=images.pad,
        name=images.name,
    )


def balanced(y: Array, rows: int) -> NDArray[np.int64]:
    """Positions of `rows` labels, the first of every class, then the second of every class, …; in ascending order."""
    turn = np.zeros(len(y), dtype=np.int64)
    for label in np.unique(y):
        own = np.flatnonzero(y == label)
        turn[own] = np.arange(len(own))
    return np.sort(np.argsort(turn, kind="stable")[:rows])


# ---- the files


def _cifar100(folder: Path) -> Splits:
    cache = user_cache_path("autokd") / "benchmarks"
    names = {f"{letter}_{split}": cache / f"cifar100-v{VERSION}-{letter}_{split}.npy" for letter, split in PARTS}
    if not all(path.exists() for path in names.values()):
        cache.mkdir(parents=True, exist_ok=True)
        for split, files in CIFAR_FILES.items():
            x, y = _unpacked(folder, files)
            _keep(names[f"x_{split}"], x)
            _keep(names[f"y_{split}"], y)
    return {name: np.load(path, mmap_mode="r") for name, path in names.items()}


def _unpacked(folder: Path, files: tuple[str, ...]) -> tuple[Array, Array]:
    """Pixels are coded as differences along both axes, and red and blue as differences from green."""
    xs, ys = [], []
    for file in files:
        with np.load(folder / file) as packed:
            x = packed["r"].cumsum(2, dtype="u1").cumsum(3, dtype="u1")
            x[:, 0] += x[:, 1]
            x[:, 2] += x[:, 1]
            xs.append(x)
            ys.append(packed["y"])
    return np.concatenate(xs), np.concatenate(ys)


def _keep(path: Path, array: Array) -> None:
    """Written whole or not at all: another process may be reading, or writing the same."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp.npy")
    np.save(temporary, array)
    os.replace(temporary, path)


def _fashion_mnist(folder: Path) -> Splits:
    with np.load(folder / "fashion_mnist.npz") as file:
        splits = {f"{letter}_{split}": file[f"{letter}_{split}"] for letter, split in PARTS}
    return {name: array[:, None] if name.startswith("x") else array for name, array in splits.items()}


def _digits(folder: Path) -> Splits:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = np.minimum(x.reshape(-1, 1, 8, 8) * 16, 255).astype(np.uint8)
    y = y.astype(np.uint8)
    held = np.arange(len(y)) % 5 == 0
    return {"x_train": x[~held], "y_train": y[~held], "x_test": x[held], "y_test": y[held]}


PARTS = [(letter, split) for letter in "xy" for split in ("train", "test")]
CIFAR_FILES = {"train": ("train_0.npz", "train_1.npz", "train_2.npz"), "test": ("test.npz",)}
READERS: dict[str, Callable[[Path], Splits]] = {
    "cifar100": _cifar100,
    "fashion_mnist": _fashion_mnist,
    "digits": _digits,
}
