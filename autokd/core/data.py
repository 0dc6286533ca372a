"""Data at rest on the device: a batch is an index, and there is no loader in the hot path."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from autokd.augment.counters import permutation
from autokd.augment.views import make_batch
from autokd.data import Data, Split
from autokd.protocols import Batch
from autokd.recipe import AugmentSpec


class Resident:
    """Training and validation rows of one data set on one device. uint8 images stay uint8 until they are used."""

    def __init__(self, data: Data, device: str = "cpu") -> None:
        self.data, self.device = data, device
        self.x, self.y = self._to_device(data.train)
        self.val_x, self.val_y = self._to_device(data.val)

    def __len__(self) -> int:
        return len(self.y)

    def steps(self, batch: int) -> int:
        """Batches per epoch. They are of equal size within one row, so that none is too small for batch statistics."""
        return max(1, round(len(self) / batch))

    def epoch(self, augment: AugmentSpec, batch: int, seed: int, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch. Every row is a pure function of (seed, epoch, its index, its view)."""
        order = permutation(seed, epoch, len(self), self.device)
        for index in order.tensor_split(self.steps(batch)):
            yield make_batch(
                self.x,
                self.y,
                index,
                augment=augment,
                seed=seed,
                epoch=epoch,
                pad=self.data.pad,
                flip=self.data.flip,
                value_range=self.data.value_range,
            )

    def float_rows(self, split: Split) -> tuple[Tensor, Tensor]:
        """A whole split in float units on the device: for evaluation."""
        x, y = self._to_device(split)
        return to_float(x), y

    def _to_device(self, split: Split) -> tuple[Tensor, Tensor]:
        return torch.tensor(split.x, device=self.device), torch.tensor(split.y, device=self.device)


def to_float(x: Tensor) -> Tensor:
    """uint8 rows in [0, 1]; other rows as they are."""
    return x.float() / 255 if x.dtype == torch.uint8 else x
