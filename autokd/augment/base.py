"""The base view: a random crop of the padded image and a random mirror, one gather for the whole batch."""

from __future__ import annotations

import torch
from torch import Tensor

from autokd.augment.counters import Stream, uniform
from autokd.errors import InputError


def base_view(
    x: Tensor, seed: int | Tensor, epoch: int | Tensor, index: Tensor, view: Tensor | int, pad: int, flip: bool
) -> Tensor:
    """Crop each image of (N, C, H, W) at a random place of its reflected continuation; mirror it with probability ½.

    `index` (N,) and `view` (N,) say which numbers a row gets. The border is reflected, so that no value enters that
    the data do not have. Raises InputError unless 0 <= pad < min(H, W).
    """
    height, width = x.shape[2:]
    if not 0 <= pad < min(height, width):
        raise InputError(
            f"pad must be in [0, {min(height, width) - 1}] for {height}×{width} images, got {pad}; make it smaller"
        )
    if pad == 0 and not flip:
        return x
    row = _offsets(height, pad, uniform(seed, epoch, index, view, Stream.TOP))
    column = _offsets(width, pad, uniform(seed, epoch, index, view, Stream.LEFT))
    if flip:
        mirrored = uniform(seed, epoch, index, view, Stream.FLIP) < 0.5
        column = torch.where(mirrored[:, None], column.flip(1), column)
    position = (row[:, :, None] * width + column[:, None, :]).flatten(1)
    source = position[:, None, :].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, source).view(x.shape)


def _offsets(size: int, pad: int, random: Tensor) -> Tensor:
    """Source coordinates (N, size) of a window that starts at −pad … pad; reflected, the border pixel once."""
    start = (random * (2 * pad + 1)).long() - pad
    at = (start[:, None] + torch.arange(size, device=random.device)).abs()
    return torch.where(at >= size, 2 * (size - 1) - at, at)
