"""The data of a search: checked arrays in three splits, read from wherever the user keeps them.

Validation rows are carved from the training rows, stratified, so that the test split is read once, at the very end.
What was decided for the user (a split carved, flips switched off) is told in `notes`. Images are kept as they are
given: uint8 (divided by 255 when a network sees them) or float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autokd import sources, stream
from autokd.arrays import Array, moments, pair, stratified
from autokd.errors import DataError
from autokd.items import LazyRows

TEST_FRACTION = 0.2  # of the rows, where no test split is given
SPLITS = ("train", "val", "test")


class Split(NamedTuple):
    """x (N, C, H, W) or (N, D), uint8 or float32; y (N,) int64. Of training rows that are streamed, read when indexed."""

    x: Any
    y: Any


class Data:
    """Training, validation and test rows of one classification problem. Raises DataError for what cannot be used.

    Images may be (N, H, W), (N, C, H, W) or (N, H, W, C), uint8 or float; vectors (N, D); numpy, torch or lists.
    Channels are taken to be last when the last axis is 1 or 3 long and the second is not. Without `x_test` a fifth of
    the rows is set aside; without `x_val` a further fifth of what is left, a tenth from 10,000 rows on
    (`val_fraction`). Both are stratified and drawn by `seed`. `flip` says whether images may be mirrored (default:
    those with three channels), `pad` by how many pixels they may be shifted (default: an eighth of the shorter side).
    """

    def __init__(
        self,
        x_train: object,
        y_train: object,
        *,
        x_test: object = None,
        y_test: object = None,
        x_val: object = None,
        y_val: object = None,
        classes: int | None = None,
        class_names: Sequence[str] | None = None,
        flip: bool | None = None,
        pad: int | None = None,
        name: str = "arrays",
        val_fraction: float | None = None,
        seed: int = 0,
    ) -> None:
        self.name = name
        self.notes: list[str] = []
        self.origin: dict[str, Any] = {"kind": "arrays"}
        self.source: stream.Source | None = None  # of training rows that are not in memory
        self.deterministic = True  # a row is the same whenever it is read, so that outputs for it can be recorded
        given = {"train": (x_train, y_train), "val": (x_val, y_val), "test": (x_test, y_test)}
        splits = self._checked(
            {split: (x, y) for split, (x, y) in given.items() if split == "train" or x is not None or y is not None}
        )
        self.class_names = None if class_names is None else tuple(map(str, class_names))
        self.classes = _check_classes(splits, classes, self.class_names)
        _check_fraction(val_fraction)
        self._carve(splits, val_fraction, seed)
        self.train, self.val, self.test = (splits[split] for split in SPLITS)
        self.flip = self._flip(flip)
        self.pad = self._pad(pad)

    # ---- what there is

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) or (D,)."""
        return self.train.x.shape[1:]

    @cached_property
    def value_range(self) -> tuple[float, float]:
        """Lowest and highest value a network sees: (0, 1) for uint8 and floats inside it, else the training rows'."""
        return _range_of(self.train.x)

    @property
    def mean(self) -> Array:
        """(C,) or (D,) float32, of the training rows as a network sees them."""
        return self._moments[0]

    @property
    def std(self) -> Array:
        """(C,) or (D,) float32, of the training rows as a network sees them; 1 for a channel that never changes."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[Array, Array]:
        return _moments_of(self.train.x)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the SHA-256 of all rows, their split and the number of classes."""
        digest = hashlib.sha256(str(self.classes).encode())
        for split in SPLITS:
            for array in getattr(self, split):
                digest.update(f"{split} {array.dtype} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """All of it but the rows, fit for JSON."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "sizes": {split: len(getattr(self, split).y) for split in SPLITS},
            "classes": self.classes,
            "class_names": None if self.class_names is None else list(self.class_names),
            "input_shape": list(self.input_shape),
            "flip": self.flip,
            "pad": self.pad,
            "value_range": list(self.value_range),
            "origin": self.origin,
            "notes": self.notes,
        }

    # ---- reading and writing

    @classmethod
    def load(cls, source: object, root: str | Path | None = None, **options: Any) -> Data:
        """Data from "digits", an .npz file, a folder written by `save`, "torchvision:CIFAR10" or two torch Datasets.

        An .npz file holds x_train and y_train, and may hold x_test, y_test, x_val, y_val, class_names. Torchvision's
        files are looked for under `root`; nothing is downloaded. `options` are the keywords of Data.
        """
        if isinstance(source, tuple | list):
            if len(source) != 2:
                raise DataError(f"a pair of datasets (train, test) is needed, got {len(source)}")
            if "memory" in options:
                return cls.stream(*source, **options)
            return cls.from_datasets(*source, **options)
        if not isinstance(source, str | Path):
            raise DataError(
                f"data must be a name, a path or a pair of datasets, got {type(source).__name__}; see Data.load"
            )
        origin = sources.origin_of(source, root)
        if options:
            origin["options"] = options
        return cls.from_origin(origin)

    @classmethod
    def from_origin(cls, origin: Mapping[str, Any]) -> Data:
        """The data that `data.origin`, or the answer of `save`, tells of."""
        kind, options = origin.get("kind"), dict(origin.get("options", {}))
        if kind == "stream":
            raise DataError(
                f"data streamed from {origin.get('dataset')} are not kept; make them again with Data.stream and pass them"
            )
        if kind == "folder":
            return cls._from_folder(Path(origin["path"]))
        if kind not in sources.READERS:
            raise DataError(f"data given as {kind} cannot be read again; write them with data.save(folder)")
        arrays, notes = sources.READERS[kind](origin)
        data = cls(**{"name": Path(str(origin.get("name", origin.get("path")))).stem, **arrays, **options})
        data.origin = dict(origin)
        data.notes = notes + data.notes
        return data

    @classmethod
    def from_datasets(cls, train: Any, test: Any = None, **options: Any) -> Data:
        """Data from torch Datasets of (image or vector, label), each item read once: random transforms are frozen."""
        arrays = sources.materialise(train, "train")
        if test is not None:
            arrays |= sources.materialise(test, "test")
        data = cls(**{"name": type(train).__name__, **arrays, **options})
        data.notes.insert(0, "each item of the datasets was read once; random transforms of theirs are frozen")
        return data

    @classmethod
    def stream(
        cls,
        train: Any,
        test: Any = None,
        val: Any = None,
        *,
        memory: int | str = "1GB",
        workers: int | None = None,
        classes: int | None = None,
        class_names: Sequence[str] | None = None,
        flip: bool | None = None,
        pad: int | None = None,
        name: str | None = None,
        val_fraction: float | None = None,
        seed: int = 0,
    ) -> Data:
        """Data larger than memory: training rows are read from a torch map-style Dataset of (row, label) as they are needed.

        `memory`, bytes or "500MB", bounds the rows that each lane holds: those read ahead, validation and test (half of it
        at most). `workers` processes read for each lane; by default none on a CPU, whose cores train, and up to four on a
        GPU. Without `val` or `test`, a tenth of the items is drawn by `seed` for it, 10,000 at most. `classes` is needed
        where the dataset has no `.targets` or `.labels`. Mean, deviation, value range and fingerprint are taken from a
        sample. Raises DataError.
        """
        _check_fraction(val_fraction)
        given = {"train": train, "val": val, "test": test}
        opened = stream.opened(given, memory, workers, val_fraction, seed)
        data = cls.__new__(cls)
        data.name, data.notes, data.deterministic = name or type(train).__name__, opened.notes, opened.deterministic
        data.source = source = opened.source
        data.class_names = None if class_names is None else tuple(map(str, class_names))
        x, y = (LazyRows(source.items, source.kept, part) for part in (0, 1))
        labels = opened.training_labels(classes is not None or class_names is not None)
        data.classes = _check_classes({"train": Split(x, labels)}, classes, data.class_names)
        splits = opened.splits(data.classes)
        data.train, data.val, data.test = Split(x, y), Split(*splits["val"]), Split(*splits["test"])
        data.value_range, data._moments = _range_of(opened.sample[0]), _moments_of(opened.sample[0])
        data.fingerprint = opened.fingerprint(data.classes, splits)
        data.origin = {"kind": "stream", "dataset": type(train).__qualname__, "memory": source.memory}
        data.flip, data.pad = data._flip(flip), data._pad(pad)
        return data

    def save(self, folder: str | Path) -> dict[str, Any]:
        """Write the rows as .npy files and the rest as data.json; returns the origin from which they can be read."""
        if self.source is not None:
            raise DataError(f"{self.name} is streamed, its rows cannot be saved; keep the Dataset, and the seed")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            for letter, array in zip("xy", getattr(self, split), strict=True):
                np.save(folder / f"{letter}_{split}.npy", array, allow_pickle=False)
        (folder / "data.json").write_text(json.dumps(self.describe(), indent=1))
        return {"kind": "folder", "path": str(folder.resolve())}

    @classmethod
    def _from_folder(cls, folder: Path) -> Data:
        arrays, head = sources.read_folder(folder)
        kept = {key: head[key] for key in ("classes", "class_names", "flip", "pad", "name")}
        data = cls(**(arrays | kept))
        if data.fingerprint != head["fingerprint"]:
            raise DataError(f"the rows in {folder} are not those once saved (fingerprint differs); save them again")
        data.notes, data.origin = head["notes"], {"kind": "folder", "path": str(folder.resolve())}
        return data

    # ---- decisions

    def _checked(self, given: dict[str, tuple[object, object]]) -> dict[str, Split]:
        splits: dict[str, Split] = {}
        for split, (x, y) in given.items():
            good_x, good_y, channels_last = pair(x, y, split)
            splits[split] = Split(good_x, good_y)
            if channels_last and split == "train":
                self.notes.append(f"images are taken to have channels last: {good_x.shape[1]} channels")
            _check_alike(splits["train"].x, good_x, split)
        return splits

    def _carve(self, splits: dict[str, Split], val_fraction: float | None, seed: int) -> None:
        missing = [split for split in ("test", "val") if split not in splits]
        _check_enough(splits["train"].y, self.classes, missing)
        for split in missing:
            x, y = splits["train"]
            fraction = TEST_FRACTION if split == "test" else val_fraction or (0.2 if len(y) < 10_000 else 0.1)
            chosen = stratified(y, fraction, seed + (split == "val"))
            splits["train"], splits[split] = Split(x[~chosen], y[~chosen]), Split(x[chosen], y[chosen])
            if split == "test":
                rows = f"{fraction:.0%} of the rows ({chosen.sum()}, stratified, seed {seed})"
                self.notes.append(f"no test split was given: {rows} were set aside as one")

    def _flip(self, flip: bool | None) -> bool:
        images = len(self.input_shape) == 3
        if flip is not None:
            if flip and not images:
                raise DataError("flip=True needs images, got vectors; leave flip out")
            return bool(flip)
        if images and self.input_shape[0] != 3:
            self.notes.append("images are not mirrored, for they have no three channels; flip=True allows it")
        elif images:
            self.notes.append("images may be mirrored left to right; flip=False forbids it")
        return images and self.input_shape[0] == 3

    def _pad(self, pad: int | None) -> int:
        if len(self.input_shape) != 3:
            if pad:
                raise DataError(f"pad={pad} needs images, got vectors; leave pad out")
            return 0
        side = min(self.input_shape[1:])
        if pad is None:
            return max(1, round(side / 8))
        if isinstance(pad, bool) or not isinstance(pad, int) or not 0 <= pad < side:
            raise DataError(f"pad must be an int from 0 to {side - 1}, less than the image's side, got {pad!r}")
        return pad


# ---- what rows are like


def _range_of(x: Array) -> tuple[float, float]:
    if x.dtype == np.uint8:
        return 0.0, 1.0
    low, high = float(x.min()), float(x.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return (low, high) if low < high else (low, low + 1.0)


def _moments_of(x: Array) -> tuple[Array, Array]:
    mean, std = moments(x)
    return mean.astype(np.float32), np.where(std > 1e-6 * np.maximum(1, abs(mean)), std, 1).astype(np.float32)


# ---- rules across splits


def _check_fraction(val_fraction: float | None) -> None:
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise DataError(f"val_fraction must be between 0 and 1, got {val_fraction}; leave it out for the default")


def _check_alike(train: Array, other: Array, split: str) -> None:
    if other.shape[1:] != train.shape[1:]:
        raise DataError(
            f"x_{split} must have rows shaped as those of x_train, {train.shape[1:]}, got {other.shape[1:]}"
        )
    if other.dtype != train.dtype:
        raise DataError(
            f"x_{split} must be of the type of x_train, {train.dtype}, got {other.dtype}; convert one of them"
        )


def _check_classes(splits: dict[str, Split], classes: int | None, class_names: tuple[str, ...] | None) -> int:
    """The number of classes, given or counted; every label must be below it and known in training."""
    train = splits["train"].y
    counted = classes if classes is not None else len(class_names) if class_names else int(train.max()) + 1
    if isinstance(counted, bool) or not isinstance(counted, int | np.integer) or counted < 2:
        shown = "one class only" if classes is None else repr(classes)
        raise DataError(f"there must be at least 2 classes, got {shown}; there is nothing to tell apart")
    if class_names is not None and len(class_names) != counted:
        raise DataError(f"class_names must name each of the {counted} classes, got {len(class_names)} names")
    seen = np.unique(train)
    if len(seen) < 2:
        raise DataError(
            f"y_train must hold at least 2 classes, got class {seen[0]} only; there is nothing to tell apart"
        )
    for split, (_, y) in splits.items():
        if (classes is not None or class_names) and y.max() >= counted:
            raise DataError(
                f"y_{split} must be below classes={counted}, got {y.max()} in row {int(np.argmax(y >= counted))}"
            )
        unseen = np.setdiff1d(y, seen)
        if len(unseen):
            raise DataError(
                f"y_{split} holds class {unseen[0]}, which y_train does not; give training rows of every class"
            )
    if classes is None and not class_names and len(seen) < counted:
        gap = int(np.setdiff1d(np.arange(counted), seen)[0])
        raise DataError(
            f"y_train must use every class 0 to {counted - 1}, class {gap} is missing; renumber or give classes="
        )
    return int(counted)


def _check_enough(y: Array, classes: int, missing: list[str]) -> None:
    """Each class that occurs needs one row for training and one for every split that is carved."""
    counts = np.bincount(y, minlength=classes)
    counts = np.where(counts == 0, len(y), counts)
    needed = 1 + len(missing)
    if counts.min() < needed:
        fewest = int(counts.argmin())
        what = " and ".join({"val": "validation", "test": "test"}[split] for split in missing)
        rule = f"each class needs at least {needed} samples to carve the {what} split"
        raise DataError(f"{rule}, class {fewest} has {counts[fewest]}; give more rows or splits of your own")
