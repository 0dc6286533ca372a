"""A step's batch: base views of its images, with JDA augmented rows, or their rotations; and the confidence weights of augmented rows.

Base rows come first, then the rows of augmented view 1, 2, …; which row belongs to which is said by `parent`, never
by position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from autokd.augment.base import base_view
from autokd.augment.counters import Stream, uniform
from autokd.augment.jda import CHAINS, jda
from autokd.augment.rotations import require_square, rotated_view
from autokd.errors import InputError
from autokd.protocols import Batch
from autokd.recipe import AugmentSpec

ROTATIONS = 3  # views of an image beside its base view: turned by 90, 180 and 270 degrees
VERSION = 1  # of the views: raised whenever one of them comes out differently, so that nothing recorded before is used


class Made(NamedTuple):
    """Images of some rows, float, and which operations of the JDA chain changed them ((N, L) bool; None for base views)."""

    x: Tensor
    fired: Tensor | None = None


def make_batch(
    x: Tensor,
    y: Tensor,
    index: Tensor,
    *,
    augment: AugmentSpec,
    seed: int | Tensor,
    epoch: int | Tensor,
    pad: int = 0,
    flip: bool = False,
    value_range: tuple[float, float] = (0.0, 1.0),
    recorded: Callable[[int, Tensor], Made] | None = None,
) -> Batch:
    """The batch of the samples `index` (B,) with raw rows x (B, …), uint8 or float, and targets y (B, …), all on one device.

    uint8 becomes float/255. Policy "base" crops (padding `pad`) and mirrors (`flip`) images; vectors stay. Policy
    "jda" adds, per image, a = rho/(1 − rho) augmented rows on average: view v = 1, 2, … is there with probability
    a − (v − 1), clipped to [0, 1]. Its chain comes before a crop and flip of its own. `value_range` is that of float
    images. Policy "rotations" adds every image turned by 90, 180 and 270 degrees as views 1, 2, 3. A row depends on (seed,
    epoch, its index, its view) and the augmentation's settings only, so that augmented rows may also come from
    `recorded(view, index)`. Raises InputError for jda on anything but images, for rotations on anything but square ones.
    """
    own = torch.arange(len(index), device=index.device)
    if augment.policy in ("none", "base"):
        images = make_view(x, index, 0, augment, seed, epoch, pad, flip, value_range).x
        return Batch(x=images, y=y, index=index, view=torch.zeros_like(own), parent=own)
    if augment.policy == "rotations":
        require_square(tuple(x.shape[1:]))
    elif x.ndim != 4:
        raise InputError(
            f"jda needs images (n, channels, height, width), got rows of shape {tuple(x.shape[1:])}; use base or none"
        )
    parents, views = [own], [torch.zeros_like(own)]
    made = [make_view(x, index, 0, augment, seed, epoch, pad, flip, value_range)]
    for view, parent in _augmented_rows(augment, seed, epoch, index):
        rows = index[parent]
        parents.append(parent)
        views.append(torch.full_like(parent, view))
        if recorded is not None:
            made.append(recorded(view, rows))
        else:
            made.append(make_view(x[parent], rows, view, augment, seed, epoch, pad, flip, value_range))
    parent = torch.cat(parents)
    return Batch(
        x=torch.cat([each.x for each in made]),
        y=y[parent],
        index=index[parent],
        view=torch.cat(views),
        parent=parent,
        fired=_all_fired(made, augment.chain) if augment.policy == "jda" else None,
    )


def make_view(
    x: Tensor,
    index: Tensor,
    view: int,
    augment: AugmentSpec,
    seed: int | Tensor,
    epoch: int | Tensor,
    pad: int,
    flip: bool,
    value_range: tuple[float, float],
) -> Made:
    """View number `view` of the samples `index` (N,) with raw rows x (N, …): 0 is the base view, 1, 2, … are augmented."""
    limits = value_range if x.is_floating_point() else (0.0, 1.0)
    if view > 0 and augment.policy == "rotations":
        return Made(_as_float(rotated_view(x, seed, epoch, index, view, pad, flip, augment.crops)))
    if view > 0:
        images, fired = jda(
            _as_float(x),
            chain=augment.chain,
            p=augment.p,
            magnitude=augment.magnitude,
            seed=seed,
            epoch=epoch,
            index=index,
            view=view,
            value_range=limits,
        )
        return Made(base_view(images, seed, epoch, index, view, pad, flip), fired)
    if augment.policy != "none" and x.ndim == 4:
        x = base_view(x, seed, epoch, index, view, pad, flip)  # before it becomes float: a quarter of the bytes to move
    return Made(_as_float(x))


def _all_fired(made: list[Made], chain: str) -> Tensor:
    """(N, L) bool for all rows of a batch; nothing fires on base rows."""
    length = len(CHAINS[chain])
    return torch.cat(
        [each.x.new_zeros(len(each.x), length, dtype=torch.bool) if each.fired is None else each.fired for each in made]
    )


def _as_float(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x.float().div_(255)


def augmented_views(augment: AugmentSpec) -> int:
    """How many augmented views an image may have in a batch."""
    return {"jda": math.ceil(augmented_per_image(augment.rho)), "rotations": ROTATIONS}.get(augment.policy, 0)


def augmented_per_image(rho: float) -> float:
    """Augmented rows per image, rho/(1 − rho), on average. Within a hundredth of a whole number, from 1 on, it is that number.

    So two thirds may be written as 0.667: a third view that 3 images in 1000 have would have to be recorded of all of them.
    """
    exact = rho / (1 - rho)
    whole = round(exact)
    return float(whole) if whole and abs(exact - whole) < 0.01 else exact


def _augmented_rows(
    augment: AugmentSpec, seed: int | Tensor, epoch: int | Tensor, index: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """View numbers (≥ 1) and the positions in `index` of the images that have that view, if any has."""
    per_image = ROTATIONS if augment.policy == "rotations" else augmented_per_image(augment.rho)
    for view in range(1, augmented_views(augment) + 1):
        if (
            per_image - (view - 1) >= 1
        ):  # every image: nothing to be counted, so that a step of whole views is recordable
            yield view, torch.arange(len(index), device=index.device)
            continue
        chosen = (uniform(seed, epoch, index, view, Stream.PICK) < per_image - (view - 1)).nonzero()[:, 0]
        if len(chosen):
            yield view, chosen


def ccd_weight(
    teacher_logits: Tensor,
    batch: Batch,
    normalise: bool = False,
    form: str = "cosine",
    power: float = 1.0,
    temperature: float = 4.0,
) -> Tensor:
    """Row weights (N,): 1 for base rows; for augmented ones, by `form`, with c = cos(z_original, z_augmented):

        cosine    1 + c in [0, 2], the published form: raw logits z (N, C) of the teacher, no temperature, no centring
        half      (1 + c)/2 in [0, 1]: identical views weigh as much as a base row
        power     (1 + c)^power
        softened  1 + c of softmax(z/temperature), in [1, 2]
        centred   1 + c of z less its mean over classes: a common offset of all logits does not count as agreement

    `normalise` divides the augmented weights by their mean, so that the total weight of distillation does not change. Cosine
    confidence distillation (ACCV 2022; level A for "cosine"; the other forms and `normalise` are ours).
    """
    compared = _compared(teacher_logits, form, temperature)
    cosine = torch.cosine_similarity(compared, compared[batch.parent], dim=1, eps=1e-8)
    weight = (1 + cosine).clamp_min(0)  # rounding leads below 0, where powers are not numbers
    if form == "power":
        weight = weight**power
    elif form == "half":
        weight = weight / 2
    augmented = batch.view > 0
    if normalise:
        mean = (weight * augmented).sum() / augmented.sum().clamp_min(1)
        weight = weight / mean.clamp_min(1e-6)
    return torch.where(augmented, weight, 1.0).to(teacher_logits.dtype)


def _compared(logits: Tensor, form: str, temperature: float) -> Tensor:
    """Of which the cosine is taken."""
    if form == "softened":
        return (logits / temperature).softmax(1)
    return logits - logits.mean(1, keepdim=True) if form == "centred" else logits
