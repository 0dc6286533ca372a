"""The training rows of one data set, ready for one device: a batch is an index, and there is no loader in the hot path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from autokd.augment.counters import permutation
from autokd.augment.views import Made, make_batch
from autokd.data import Data, Split
from autokd.protocols import Batch
from autokd.recipe import AugmentSpec


class Rows(Protocol):
    """Training rows that can be fetched by index, and the whole validation split."""

    data: Data
    val_x: Tensor
    val_y: Tensor

    def __len__(self) -> int: ...

    def fetch(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each batch of indices, in order: raw rows (B, …), uint8 or float32 as the data have them, and targets (B, …)."""

    def close(self) -> None: ...


class Resident:
    """A data set that rests on the device. uint8 images stay uint8 until they are used."""

    def __init__(self, data: Data, device: str = "cpu") -> None:
        self.data, self.device = data, device
        self.x, self.y = self._to_device(data.train)
        self.val_x, self.val_y = self._to_device(data.val)

    def __len__(self) -> int:
        return len(self.y)

    def fetch(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for index in batches:
            yield self.pick(index)

    def pick(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Raw rows and targets of one batch."""
        return self.x[index], self.y[index]

    def close(self) -> None:
        """Nothing runs in the background."""

    def _to_device(self, split: Split) -> tuple[Tensor, Tensor]:
        return torch.tensor(split.x, device=self.device), torch.tensor(split.y, device=self.device)


def steps(rows: int, batch: int) -> int:
    """Batches per epoch. They are of equal size within one row, so that none is too small for batch statistics."""
    return max(1, round(rows / batch))


def order(rows: int, batch: int, seed: int, epoch: int, device: str) -> tuple[Tensor, ...]:
    """The indices of each batch of an epoch: a function of (seed, epoch), the same on every device."""
    return permutation(seed, epoch, rows, device).tensor_split(steps(rows, batch))


def batch_of(
    data: Data,
    picked: tuple[Tensor, Tensor],
    index: Tensor,
    augment: AugmentSpec,
    seed: int | Tensor,
    epoch: int | Tensor,
    recorded: Callable[[int, Tensor], Made] | None,
) -> Batch:
    """The finished batch of the samples `index`, of which the raw rows and targets have been picked."""
    x, y = picked
    return make_batch(
        x,
        y,
        index,
        augment=augment,
        seed=seed,
        epoch=epoch,
        pad=data.pad,
        flip=data.flip,
        value_range=data.value_range,
        recorded=recorded,
    )


def to_float(x: Tensor) -> Tensor:
    """uint8 rows in [0, 1]; other rows as they are."""
    return x.float() / 255 if x.dtype == torch.uint8 else x
