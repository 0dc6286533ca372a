"""The point operations and enhancements of JDA on batches of 8-bit levels, with the semantics of Pillow.

A batch here is float32 (n, C, H, W) holding whole numbers 0 … 255, C = 1 or 3; every operation gives whole numbers
again, rounded as Pillow's ImageOps and ImageEnhance round. All take (batch, magnitude), whether they have a magnitude
or not.
"""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (19595.0, 38470.0, 7471.0)  # ITU-R 601 in 1/65536, as Pillow has it; the sums are exact in float32
NUDGE = 1e-3  # added before flooring: undoes arithmetic that lands just below a whole number


def invert(x: Tensor, magnitude: float) -> Tensor:
    return 255 - x


def posterise(x: Tensor, bits: float) -> Tensor:
    """Keep the upper `bits` bits, 1 … 8."""
    step = 2.0 ** (8 - bits)
    return (x / step).floor() * step


def solarise(x: Tensor, threshold: float) -> Tensor:
    """Invert levels from `threshold` on."""
    return (255.0 * (x >= threshold) - x).abs()  # a where on noisy pixels takes three times as long on a CPU


def autocontrast(x: Tensor, magnitude: float) -> Tensor:
    """Stretch each channel to 0 … 255; a channel of one level stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    scale = 255 / (high - low).clamp_min(1)
    return torch.where(high > low, ((x - low) * scale + NUDGE).floor(), x)


def equalise(x: Tensor, magnitude: float) -> Tensor:
    """Straighten each channel's cumulative histogram by Pillow's integer look-up table.

    A channel stays as it is if it has one level, or fewer than 255 pixels below its highest level.
    """
    levels = x.flatten(2).flatten(0, 1).long()  # (n·C, H·W)
    planes, pixels = levels.shape
    slot = levels + 256 * torch.arange(planes, device=x.device)[:, None]
    histogram = torch.bincount(slot.flatten(), minlength=256 * planes).view(planes, 256)
    highest = histogram.gather(1, levels.amax(1, keepdim=True))
    step = (pixels - highest) // 255
    below = histogram.cumsum(1) - histogram
    straight = ((below + step // 2) // step.clamp_min(1)).clamp_max(255)
    table = torch.where(step > 0, straight, torch.arange(256, device=x.device))
    return table.to(x.dtype).gather(1, levels).view(x.shape)


def colour(x: Tensor, magnitude: float) -> Tensor:
    """Saturation by the factor 1 + magnitude. Nothing for one channel."""
    return _blend(grey(x), x, magnitude)


def contrast(x: Tensor, magnitude: float) -> Tensor:
    mean = (grey(x).mean((1, 2, 3), keepdim=True) + 0.5).floor()
    return _blend(mean, x, magnitude)


def brightness(x: Tensor, magnitude: float) -> Tensor:
    return _blend(x.new_zeros(()), x, magnitude)


def sharpness(x: Tensor, magnitude: float) -> Tensor:
    """Away from the image smoothed by (1 1 1, 1 5 1, 1 1 1)/13; its border is not smoothed."""
    if min(x.shape[2:]) < 3:
        return x
    columns = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    square = (
        columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:]
    )  # of the 3×3 neighbourhood; ten times faster than pooling
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1] = ((square + 4 * x[:, :, 1:-1, 1:-1]) / 13 + 0.5).floor()
    return _blend(smooth, x, magnitude)


def grey(x: Tensor) -> Tensor:
    """Luminance, (n, 1, H, W)."""
    if x.shape[1] == 1:
        return x
    red, green, blue = (weight * x[:, channel : channel + 1] for channel, weight in enumerate(LUMA))
    return ((red + green + blue + 32768) / 65536).floor()


def _blend(degenerate: Tensor, x: Tensor, magnitude: float) -> Tensor:
    """degenerate + factor·(x − degenerate) with factor 1 + magnitude, at least 0."""
    factor = max(0.0, 1 + magnitude)
    return (degenerate + factor * (x - degenerate) + NUDGE).clamp(0, 255).floor()
