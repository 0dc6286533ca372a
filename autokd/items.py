"""Items of a user's torch map-style Dataset as rows: read by number, checked against the first, never all at once.

A dataset that changes its shape, raises or mislabels in mid-epoch is named by item, in one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from autokd.arrays import Array, pixels
from autokd.errors import DataError

Pair = tuple[Array, Array]


class Form(NamedTuple):
    """What every item of a dataset looks like, found from its first."""

    given: tuple[int, ...]  # shape of x as the dataset has it
    shape: tuple[int, ...]  # (C, H, W) or (D,)
    dtype: np.dtype[Any]  # of x: uint8 or float32
    channels_last: bool  # as given
    target_shape: tuple[int, ...]  # of y; () for one label per item
    target_dtype: np.dtype[Any]  # int64 or float32

    @property
    def row_bytes(self) -> int:
        x, y = (int(np.prod(shape)) for shape in (self.shape, self.target_shape))
        return x * self.dtype.itemsize + y * self.target_dtype.itemsize


class Items:
    """Items of a map-style dataset of (x, y), read by number and checked. Crosses processes as its dataset, without rows."""

    def __init__(self, dataset: Any, name: str, form: Form, packed: bytes = b"", classes: int | None = None) -> None:
        self._dataset, self.name, self.form, self.packed, self.classes = dataset, name, form, packed, classes

    def __getstate__(self) -> dict[str, Any]:
        """The dataset goes as it was packed before anything was read: files it opened since then could not cross."""
        return {**vars(self), "_dataset": None}

    @property
    def dataset(self) -> Any:
        """The user's dataset; in another process it is unpacked when it is first used. Raises DataError."""
        if self._dataset is None:
            import cloudpickle

            try:
                self._dataset = cloudpickle.loads(self.packed)
            except Exception as error:  # runs code of the dataset's own
                raise DataError(
                    f"the {self.name} dataset cannot be opened in another process: {told(error)}; "
                    "its module must be importable there"
                ) from None
        return self._dataset

    def read(self, numbers: Sequence[int]) -> Pair:
        """x (N, …) and y (N, …) of the items with these numbers. Raises DataError that names the first bad item."""
        form = self.form
        x = np.empty((len(numbers), *form.shape), form.dtype)
        y = np.empty((len(numbers), *form.target_shape), form.target_dtype)
        for row, number in enumerate(numbers):
            given, target = item(self.dataset, number, self.name)
            self._check(number, given, target)
            x[row] = given.transpose(2, 0, 1) if form.channels_last else given.reshape(form.shape)
            y[row] = target
        self._check_values(numbers, x, y)
        return x, y

    def _check(self, number: int, given: Array, target: Array) -> None:
        form, where = self.form, f"item {number} of the {self.name} dataset"
        if given.shape != form.given:
            raise DataError(f"{where} has shape {given.shape}, its first has {form.given}; resize or pad them to one")
        if given.dtype != np.uint8 if form.dtype == np.uint8 else given.dtype.kind != "f":
            raise DataError(f"{where} is {given.dtype}, its first becomes {form.dtype}; give all in one type")
        if target.shape != form.target_shape:
            raise DataError(
                f"{where} has a target of shape {target.shape}, its first {form.target_shape}; give one shape"
            )
        if target.dtype != form.target_dtype:
            raise DataError(f"{where} has a target of {target.dtype}, its first {form.target_dtype}; give one type")

    def _check_values(self, numbers: Sequence[int], x: Array, y: Array) -> None:
        if x.dtype != np.uint8 and x.size and not (np.isfinite(x.min()) and np.isfinite(x.max())):
            bad = int(np.argmax(~np.isfinite(x.reshape(len(x), -1)).all(1)))
            raise DataError(
                f"item {numbers[bad]} of the {self.name} dataset holds NaN or infinite values; "
                "drop it or use numpy.nan_to_num"
            )
        self.check_labels(numbers, y)

    def check_labels(self, numbers: Sequence[int], y: Array) -> None:
        """Raises DataError for a label there is no class for, once the number of classes is known."""
        if self.classes is not None and len(y) and (y.min() < 0 or y.max() >= self.classes):
            bad = int(np.argmax((y < 0) | (y >= self.classes)))
            raise DataError(
                f"labels must be 0 to {self.classes - 1}, item {numbers[bad]} of the {self.name} dataset has {y[bad]}; "
                "mend it or give classes="
            )


class Kept:
    """Which items are trained on: all but those held out. Position in the training split -> number of the item."""

    def __init__(self, total: int, held: Array) -> None:
        self.length = total - len(held)
        self._before = np.sort(held) - np.arange(len(held))  # training items before each one held out

    def __len__(self) -> int:
        return self.length

    def numbers(self, positions: Array) -> Array:
        return positions + np.searchsorted(self._before, positions, side="right")

    def of(self, values: Array) -> Array:
        """Those of the values, one for each item, that belong to training rows."""
        return np.delete(values, self._before + np.arange(len(self._before)))


class LazyRows:
    """One half of the training rows as an array that is read when it is asked for: x (part 0) or y (part 1)."""

    def __init__(self, items: Items, kept: Kept, part: int) -> None:
        self.items, self.kept, self.part = items, kept, part

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.kept), *(self.items.form.target_shape if self.part else self.items.form.shape))

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.items.form.target_dtype if self.part else self.items.form.dtype

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, key: Any) -> Array:
        """Rows at a position, a slice, a mask or an array of positions. Raises DataError, IndexError."""
        if isinstance(key, slice):
            positions = np.fromiter(range(len(self))[key], dtype=np.int64)
        else:
            positions = np.asarray(key)
            positions = np.flatnonzero(positions) if positions.dtype == bool else positions.astype(np.int64)
        positions = np.where(positions < 0, positions + len(self), positions)
        if positions.size and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"there are {len(self)} training rows, got {key}")
        read = self.items.read(self.kept.numbers(np.atleast_1d(positions)).tolist())[self.part]
        return read if positions.ndim else read[0]

    def __array__(self, *_: Any, **__: Any) -> Array:
        raise DataError(
            f"streamed rows are not held in memory, all {len(self)} were asked for; take some of them by index"
        )


# ---- one item


def form_of(dataset: Any, name: str) -> Form:
    """The form of the first item. Raises DataError for what cannot be trained on."""
    given, target = item(dataset, 0, name)
    x, channels_last = pixels(given[None], f"items of the {name} dataset")
    return Form(given.shape, x.shape[1:], x.dtype, channels_last, target.shape, target.dtype)


def item(dataset: Any, number: int, name: str) -> Pair:
    """One item as two arrays. Raises DataError that names it, whatever the dataset raises."""
    where = f"item {number} of the {name} dataset"
    try:
        read = dataset[number]
    except Exception as error:  # the dataset is the user's own code
        raise DataError(f"{where} cannot be read: {told(error)}; mend the dataset or leave the item out") from error
    if not isinstance(read, tuple | list) or len(read) != 2:
        kind = type(read).__name__
        raise DataError(f"{where} must be a pair (x, label), got {kind}; return one from __getitem__")
    try:
        x, y = (values_of(half) for half in read)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} must hold arrays: {told(error)}; convert it in __getitem__") from None
    if y.dtype.kind not in "biuf":
        raise DataError(f"{where} must have a numeric target, got {y.dtype}; number the classes 0, 1, 2, …")
    return x, y.astype(np.float32 if y.dtype.kind == "f" else np.int64, copy=False)


def values_of(value: Any) -> Array:
    """Numbers, a numpy array or a torch tensor as an array."""
    if hasattr(value, "detach"):  # a torch tensor
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()  # numpy knows no bfloat16
    return np.asarray(value)


def told(error: BaseException) -> str:
    """An exception of the user's own code in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
