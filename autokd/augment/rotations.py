"""Views 1, 2, 3 of an image: turned by 90, 180 and 270 degrees counter-clockwise, to the pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from autokd.augment.base import base_view
from autokd.augment.counters import Stream, uniform
from autokd.errors import InputError


def rotated_view(
    x: Tensor,
    seed: int | Tensor,
    epoch: int | Tensor,
    index: Tensor,
    view: int,
    pad: int,
    flip: bool,
    crops: str,
) -> Tensor:
    """The images (N, C, S, S) turned by 90·`view` degrees. All views of an image are mirrored, or none is.

    `crops` "shared" turns the base view itself (Yang et al., IJCAI 2021); with "own" the image is mirrored, turned and then cropped
    at a place of this view's own (Xu et al., ECCV 2020).
    """
    if crops == "shared":
        return torch.rot90(base_view(x, seed, epoch, index, 0, pad, flip), view, (2, 3))
    if flip:  # by the base view's number
        mirrored = uniform(seed, epoch, index, 0, Stream.FLIP) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return base_view(torch.rot90(x, view, (2, 3)), seed, epoch, index, view, pad, flip=False)


def require_square(shape: tuple[int, ...]) -> None:
    """Raise InputError unless rows of this shape can be turned by 90 degrees and keep it."""
    if len(shape) != 3 or shape[1] != shape[2]:
        raise InputError(
            f"rotations need square images (channels, side, side), got rows of shape {shape}; use base, jda or none"
        )
