"""Samples of a training split drawn by class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autokd.errors import RecipeError


class ByClass(nn.Module):
    """A training split sorted by class, where a random number becomes a sample. Made anew from the labels, so not part of a checkpoint.

    Buffers: order (n,), samples class by class; first (C,), where a class begins in it; count (C,), its samples. All int64.
    """

    order: Tensor
    first: Tensor
    count: Tensor

    def __init__(self, y: Tensor) -> None:
        """`y` (n,) int64, the label of each sample. Raises RecipeError if all have one class."""
        super().__init__()
        count = torch.bincount(y)
        if int((count > 0).sum()) < 2:
            raise RecipeError(
                f"samples of other classes need 2 classes or more, got 1 in {len(y)} rows; use other data"
            )
        self.register_buffer("order", torch.argsort(y, stable=True), persistent=False)
        self.register_buffer("first", count.cumsum(0) - count, persistent=False)
        self.register_buffer("count", count, persistent=False)

    def other_class(self, y: Tensor, random: Tensor) -> Tensor:
        """Samples of other classes than `y`, uniform over all of these for `random` uniform in [0, 1); shapes are broadcast, int64.

        Random numbers are of 24 bits: times a count of at most 2²⁴ they stay below it in float32.
        """
        own = self.count[y]
        place = (random * (len(self.order) - own)).long()  # among the samples of the others
        return self.order[torch.where(place < self.first[y], place, place + own)]
