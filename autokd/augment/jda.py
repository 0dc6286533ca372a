"""Joint data augmentation: a fixed chain of image operations, each fired independently with probability p.

Joint data augmentation and cosine confidence distillation, ACCV 2022; chains and magnitudes are the published ones (level A),
`grey` is ours. An image is taken to 8-bit levels if anything fires on it, and left alone bit for bit if nothing does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from autokd.augment import operations, warps
from autokd.augment.counters import Stream, uniform
from autokd.errors import InputError, nearest


@dataclass(frozen=True)
class Operation:
    """`run` takes (levels, magnitude). Magnitude `rest` changes nothing; deviations from it are what is scaled."""

    run: Callable[[Tensor, float], Tensor]
    rest: float | None = 0.0  # None: there is no magnitude
    signed: bool = False  # the direction is drawn per image
    whole: bool = False  # magnitudes are whole numbers
    low: float = 0.0  # magnitudes are kept within [low, high]
    high: float = float("inf")


OPERATIONS: dict[str, Operation] = {
    "invert": Operation(operations.invert, rest=None),
    "autocontrast": Operation(operations.autocontrast, rest=None),
    "equalise": Operation(operations.equalise, rest=None),
    "posterise": Operation(operations.posterise, rest=8.0, low=1.0, whole=True),  # bits kept
    "solarise": Operation(operations.solarise, rest=256.0),  # threshold
    "colour": Operation(operations.colour, signed=True),  # factor 1 ± magnitude, also for the next three
    "contrast": Operation(operations.contrast, signed=True),
    "brightness": Operation(operations.brightness, signed=True),
    "sharpness": Operation(operations.sharpness, signed=True),
    "rotate": Operation(warps.rotate, high=180.0),  # degrees, always counter-clockwise
    "shear_x": Operation(warps.shear_x, signed=True),
    "shear_y": Operation(warps.shear_y, signed=True),
    "translate_x": Operation(warps.translate_x, signed=True),  # share of the side
    "translate_y": Operation(warps.translate_y, signed=True),
}

# (operation, magnitude) in order. Published values are points of ten-point grids: rotation 30°·i/9, shear 0.3·i/9,
# translation (150/331)·i/9, enhancements 0.9·i/9, threshold 256·(1 − i/9). Entries of magnitude `rest` do nothing;
# in these three they keep their place.
Chain = tuple[tuple[str, float], ...]
PUBLISHED: dict[str, Chain] = {
    "cifar10": (
        ("invert", 0.0),
        ("rotate", 20 / 3),
        ("shear_y", 0.8 / 3),
        ("posterise", 4.0),
        ("autocontrast", 0.0),
        ("colour", 0.3),
        ("sharpness", 0.9),
        ("equalise", 0.0),
        ("contrast", 0.7),
        ("translate_y", 50 / 331),
        ("brightness", 0.6),
        ("solarise", 256 * 7 / 9),
        ("translate_x", 50 / 331),
        ("shear_x", 0.8 / 3),
    ),
    "cifar100": (
        ("autocontrast", 0.0),
        ("contrast", 0.3),
        ("posterise", 8.0),
        ("solarise", 256 * 5 / 9),
        ("translate_y", 400 / 3 / 331),
        ("shear_x", 0.5 / 3),
        ("brightness", 0.3),
        ("shear_y", 0.0),
        ("translate_x", 50 / 3 / 331),
        ("sharpness", 0.5),
        ("invert", 0.0),
        ("colour", 0.4),
        ("equalise", 0.0),
        ("rotate", 10.0),
    ),
    "imagenet": (
        ("posterise", 4.0),
        ("solarise", 256 * 4 / 9),
        ("equalise", 0.0),
        ("posterise", 5.0),
        ("equalise", 0.0),
        ("equalise", 0.0),
        ("solarise", 256 * 6 / 9),
        ("posterise", 6.0),
        ("rotate", 10.0),
        ("equalise", 0.0),
        ("rotate", 80 / 3),
        ("rotate", 30.0),
        ("equalise", 0.0),
        ("invert", 0.0),
        ("colour", 0.4),
        ("rotate", 80 / 3),
        ("colour", 0.8),
        ("sharpness", 0.7),
        ("shear_x", 0.5 / 3),
        ("colour", 0.0),
        ("equalise", 0.0),
        ("solarise", 256 * 4 / 9),
        ("invert", 0.0),
        ("colour", 0.4),
        ("equalise", 0.0),
    ),
}
# On grey images colour does nothing, and what turns ink into ground takes digits and spectrograms out of what is known of
# their class: inverted ones are never seen elsewhere, and of white ink on black a threshold below 255 leaves nothing.
NOT_GREY = ("colour", "invert", "solarise")


def _clean(chain: Chain) -> Chain:
    """Without the entries that do nothing."""
    return tuple((name, magnitude) for name, magnitude in chain if magnitude != OPERATIONS[name].rest)


CHAINS: dict[str, Chain] = {
    **PUBLISHED,
    "cifar100-clean": _clean(PUBLISHED["cifar100"]),
    "imagenet-clean": _clean(PUBLISHED["imagenet"]),
    "grey": tuple(entry for entry in PUBLISHED["cifar10"] if entry[0] not in NOT_GREY),
}


def p_for_changed_share(chain: str, q: float, *, channels: int = 3, magnitude: float = 1.0) -> float:
    """The p at which a share q in [0, 1] of the augmented rows is changed by the chain, beyond crop and mirror.

    Solves 1 − (1 − p)^L = q, L being the number of operations that can change images of so many `channels` at this `magnitude`:
    p = 1 − (1 − q)^(1/L). So the two readings of "the proportion of augmented samples" (p, and rows that are really changed) meet:
    half of the rows are changed at p = .0483 of cifar10 (L = 14), .0561 of cifar100 (12), .0285 of imagenet (24). An operation that
    fires may still leave an image as it is (autocontrast of one that has full contrast): q is an upper bound. Raises InputError.
    """
    if not 0 <= q <= 1:
        raise InputError(f"a share of rows must be in [0, 1], got q={q}; take 0.5 for half of them")
    effective = sum(step is not None for step in _steps(chain, magnitude, channels))
    return float(1 - (1 - q) ** (1 / effective))


def jda(
    x: Tensor,
    *,
    chain: str,
    p: float,
    magnitude: float,
    seed: int | Tensor,
    epoch: int | Tensor,
    index: Tensor,
    view: Tensor | int,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """The chain on images (N, C, H, W) with values in `value_range` -> (images, fired (N, L) bool).

    `magnitude` scales every deviation from doing nothing. Entries that can do nothing (colour of a grey image,
    magnitude 0) are never reported as fired. Rows on which nothing fires come back unchanged. Raises InputError for
    other than images of 1 or 3 channels.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise InputError(
            f"jda needs images of shape (N, 1 or 3, height, width), got {tuple(x.shape)}; use policy base or none"
        )
    steps = _steps(chain, magnitude, x.shape[1])
    fired, negative = _draw(steps, p, seed, epoch, index, view)
    rows = fired.any(1).nonzero()[:, 0]
    if len(rows) == 0:
        return x, fired
    low, high = value_range
    levels = ((x.index_select(0, rows) - low) * (255 / (high - low))).round().clamp(0, 255)
    _run(levels, steps, fired[rows].cpu(), negative[rows].cpu())
    changed = levels / 255 if value_range == (0.0, 1.0) else levels * ((high - low) / 255) + low
    return x.index_copy(0, rows, changed.to(x.dtype)), fired


def _steps(chain: str, scale: float, channels: int) -> list[tuple[Operation, float] | None]:
    """Operation and scaled magnitude of each position; None where nothing can happen. May raise InputError."""
    if chain not in CHAINS:
        raise InputError(f"unknown JDA chain '{chain}'; {nearest(chain, CHAINS)}")
    return [_step(name, magnitude, scale, channels) for name, magnitude in CHAINS[chain]]


def _step(name: str, magnitude: float, scale: float, channels: int) -> tuple[Operation, float] | None:
    operation = OPERATIONS[name]
    if operation.rest is None:
        return operation, magnitude
    scaled = operation.rest + (magnitude - operation.rest) * scale
    scaled = min(max(round(scaled) if operation.whole else scaled, operation.low), operation.high)
    inert = scaled == operation.rest or (name == "colour" and channels == 1)
    return None if inert else (operation, scaled)


def _draw(
    steps: list[tuple[Operation, float] | None],
    p: float,
    seed: int | Tensor,
    epoch: int | Tensor,
    index: Tensor,
    view: Tensor | int,
) -> tuple[Tensor, Tensor]:
    """What fires, (N, L) bool, and the directions, (N, L) bool (True: negative)."""
    position = torch.arange(len(steps), device=index.device)
    view = view[:, None] if isinstance(view, Tensor) else view
    able = torch.tensor([step is not None for step in steps], device=index.device)
    fired = (uniform(seed, epoch, index[:, None], view, Stream.FIRE, position) < p) & able
    return fired, uniform(seed, epoch, index[:, None], view, Stream.SIGN, position) < 0.5


def _run(levels: Tensor, steps: list[tuple[Operation, float] | None], fired: Tensor, negative: Tensor) -> None:
    """Change `levels` in place, operation by operation, only where it fires. `fired`, `negative` are on the CPU."""
    for position, step in enumerate(steps):
        if step is None:
            continue
        operation, magnitude = step
        down = fired[:, position] & negative[:, position] & operation.signed
        for signed, mask in ((magnitude, fired[:, position] & ~down), (-magnitude, down)):
            rows = mask.nonzero()[:, 0].to(levels.device)
            if len(rows):
                levels.index_copy_(0, rows, operation.run(levels.index_select(0, rows), signed))
