"""A step's batch: base views of its images and, with JDA, augmented rows; and the confidence weights of those rows.

Base rows come first, then the rows of augmented view 1, 2, …; which row belongs to which is said by `parent`, never
by position.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from autokd.augment.base import base_view
from autokd.augment.counters import Stream, uniform
from autokd.augment.jda import jda
from autokd.errors import InputError
from autokd.protocols import Batch
from autokd.recipe import AugmentSpec


def make_batch(
    x: Tensor,
    y: Tensor,
    index: Tensor,
    *,
    augment: AugmentSpec,
    seed: int,
    epoch: int,
    pad: int = 0,
    flip: bool = False,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Batch:
    """The batch of the images `index` (B,) of the data x (n, …), uint8 or float, and y (n,), all on one device.

    uint8 becomes float/255. Policy "base" crops (padding `pad`) and mirrors (`flip`) images; vectors stay. Policy
    "jda" adds, per image, a = rho/(1 − rho) augmented rows on average: view v = 1, 2, … is there with probability
    a − (v − 1), clipped to [0, 1]. Its chain comes before a crop and flip of its own. `value_range` is that of float
    images. A row depends on (seed, epoch, its index, its view) and the augmentation's settings only. Raises
    InputError for jda on anything but images.
    """
    if augment.policy == "jda" and x.ndim != 4:
        raise InputError(
            f"jda needs images (n, channels, height, width), got data of shape {tuple(x.shape)}; use base or none"
        )
    parent = torch.arange(len(index), device=index.device)
    view = torch.zeros_like(parent)
    if augment.policy == "jda":
        extra, extra_view = _augmented_rows(augment.rho, seed, epoch, index)
        parent, view = torch.cat([parent, extra]), torch.cat([view, extra_view])
    rows = index[parent]
    images, fired = _as_float(x[rows]), None
    if augment.policy == "jda":
        limits = value_range if x.is_floating_point() else (0.0, 1.0)
        images, fired = _strengthen(images, len(index), augment, seed, epoch, rows, view, limits)
    if augment.policy != "none" and x.ndim == 4:
        images = base_view(images, seed, epoch, rows, view, pad, flip)
    return Batch(x=images, y=y[rows], index=rows, view=view, parent=parent, fired=fired)


def _as_float(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x.float() / 255


def _augmented_rows(rho: float, seed: int, epoch: int, index: Tensor) -> tuple[Tensor, Tensor]:
    """Parent rows and view numbers (≥ 1) of the augmented rows."""
    per_image = rho / (1 - rho)
    parents, views = [index.new_zeros(0)], [index.new_zeros(0)]
    for view in range(1, math.ceil(per_image) + 1):
        chosen = (uniform(seed, epoch, index, view, Stream.PICK) < per_image - (view - 1)).nonzero()[:, 0]
        parents.append(chosen)
        views.append(torch.full_like(chosen, view))
    return torch.cat(parents), torch.cat(views)


def _strengthen(
    images: Tensor,
    base: int,
    augment: AugmentSpec,
    seed: int,
    epoch: int,
    index: Tensor,
    view: Tensor,
    value_range: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Run the chain on the rows from `base` on; (images, fired) for all rows."""
    strong, fired = jda(
        images[base:],
        chain=augment.chain,
        p=augment.p,
        magnitude=augment.magnitude,
        seed=seed,
        epoch=epoch,
        index=index[base:],
        view=view[base:],
        value_range=value_range,
    )
    return torch.cat([images[:base], strong]), torch.cat([fired.new_zeros(base, fired.shape[1]), fired])


def ccd_weight(teacher_logits: Tensor, batch: Batch, normalise: bool = False) -> Tensor:
    """Row weights (N,): 1 for base rows, 1 + cos(z_original, z_augmented) in [0, 2] for augmented ones.

    z are the teacher's raw logits (N, C), without temperature or centring. `normalise` divides the augmented weights
    by their mean, so that the total weight of distillation does not change. Cosine confidence distillation (ACCV 2022).
    """
    cosine = torch.cosine_similarity(teacher_logits, teacher_logits[batch.parent], dim=1, eps=1e-8)
    augmented = batch.view > 0
    weight = 1 + cosine
    if normalise:
        mean = (weight * augmented).sum() / augmented.sum().clamp_min(1)
        weight = weight / mean.clamp_min(1e-6)
    return torch.where(augmented, weight, 1.0).to(teacher_logits.dtype)
