"""What a user gives as pixels and labels -> arrays autokd can use, or one line that says what is wrong.

    pixels   uint8 (N, C, H, W) or float32 (N, C, H, W), from (N, H, W), (N, C, H, W) or (N, H, W, C); vectors (N, D)
    labels   int64 (N,), 0 … classes - 1

Nothing is guessed silently: float or one-hot labels, integer pixels that are not uint8, NaN and objects are refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autokd.errors import DataError

Array = NDArray[Any]


def pixels(value: object, name: str) -> tuple[Array, bool]:
    """The images or vectors, contiguous, and whether they came with channels last. Raises DataError."""
    x = _numeric(value, name)
    if x.ndim not in (2, 3, 4):
        raise DataError(f"{name} must be images (N, H, W), (N, C, H, W), (N, H, W, C) or vectors (N, D), got {x.shape}")
    if 0 in x.shape:
        raise DataError(f"{name} must hold at least one row and one value per row, got shape {x.shape}")
    if x.dtype != np.uint8:
        x = _float32(x, name)
    if x.ndim == 3:
        x = x[:, None]
    channels_last = x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3)
    if channels_last:
        x = x.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(x), channels_last


def labels(value: object, name: str) -> Array:
    """The labels, int64 (N,), none negative. Raises DataError."""
    y = _numeric(value, name)
    _check_label_shape(y, name)
    if len(y) == 0:
        raise DataError(f"{name} must hold at least one label, got none")
    if np.issubdtype(y.dtype, np.floating):
        whole = bool(np.isfinite(y).all()) and bool((y == np.round(y)).all())
        remedy = f"use {name}.astype(int)" if whole else "these are no class labels; number the classes 0, 1, 2, …"
        raise DataError(f"{name} must be integers, got {y.dtype}; {remedy}")
    if y.min() < 0:
        raise DataError(
            f"{name} must be 0 or more, got {y.min()} in row {int(np.argmax(y < 0))}; number the classes 0, 1, 2, …"
        )
    if y.max() > np.iinfo(np.int32).max:
        raise DataError(f"{name} must be class numbers, got {y.max()}; number the classes 0, 1, 2, …")
    return y.astype(np.int64)


def pair(x: object, y: object, split: str) -> tuple[Array, Array, bool]:
    """Pixels and labels of one split, one label per row, and whether channels came last. Raises DataError."""
    x_name, y_name = f"x_{split}", f"y_{split}"
    for given, missing, other in ((x, x_name, y_name), (y, y_name, x_name)):
        if given is None:
            raise DataError(f"{x_name} and {y_name} go together, got {other} without {missing}; give both")
    good_x, channels_last = pixels(x, x_name)
    good_y = labels(y, y_name)
    if len(good_x) != len(good_y):
        raise DataError(f"{x_name} and {y_name} must be equally long, got {len(good_x)} and {len(good_y)} rows")
    return good_x, good_y, channels_last


def moments(x: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each channel, float64, uint8 divided by 255; a few rows at a time for memory."""
    axes, unit = (0, *range(2, x.ndim)), 255.0 if x.dtype == np.uint8 else 1.0
    centre = x[:1024].mean(axes, dtype=np.float64)
    around = centre.reshape(-1, *(1 for _ in axes[1:]))
    total, squares = np.zeros_like(centre), np.zeros_like(centre)
    for start in range(0, len(x), 1024):
        off = x[start : start + 1024] - around
        total += off.sum(axes)
        squares += (off * off).sum(axes)
    count = x.size / len(centre)
    mean_off = total / count
    return (centre + mean_off) / unit, np.sqrt(np.maximum(squares / count - mean_off**2, 0)) / unit


def stratified(y: Array, fraction: float, seed: int) -> Array:
    """A mask (N,) of about `fraction` of the rows of every class: at least one row of each, never all."""
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        take = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        chosen[rng.permutation(rows)[:take]] = True
    return chosen


def _numeric(value: Any, name: str) -> Array:
    if hasattr(value, "detach"):  # a torch tensor, without importing torch
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()  # numpy knows no bfloat16
    try:
        array = np.asarray(value)
    except ValueError:
        raise DataError(f"{name} must have rows of one shape, got rows that differ; resize or pad them") from None
    if array.dtype.kind in "US":
        remedy = (
            f"use class_names, {name} = numpy.unique({name}, return_inverse=True)" if "y" in name else "give numbers"
        )
        raise DataError(f"{name} must be numbers, got text; {remedy}")
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{name} must be a plain numeric array, got dtype {array.dtype}; convert it with numpy.stack or astype"
        )
    return array


def _float32(x: Array, name: str) -> Array:
    if not np.issubdtype(x.dtype, np.floating):
        remedy = f"use {name}.astype('uint8') if the values are 0 to 255, else {name}.astype('float32')"
        raise DataError(f"{name} must be uint8 or float, got {x.dtype}; {remedy}")
    with np.errstate(over="ignore"):
        x = x.astype(np.float32, copy=False)
    if not np.isfinite(x.min()) or not np.isfinite(x.max()):  # a NaN anywhere makes both NaN; quicker than a mask
        bad = ~np.isfinite(x.reshape(len(x), -1))
        first = int(np.argmax(bad.any(1)))
        raise DataError(
            f"{name} must be finite, got {int(bad.sum())} values that are NaN or infinite, first in row {first}; "
            f"drop those rows or use numpy.nan_to_num"
        )
    return x


def _check_label_shape(y: Array, name: str) -> None:
    if y.ndim == 2 and y.shape[1] == 1:
        raise DataError(f"{name} must have shape (N,), got {y.shape}; use {name}.reshape(-1)")
    if y.ndim == 2:
        raise DataError(f"{name} must have shape (N,), got {y.shape}; if it is one-hot use {name}.argmax(axis=1)")
    if y.ndim != 1:
        raise DataError(f"{name} must have shape (N,), got {y.shape}")
