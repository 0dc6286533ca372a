"""Base views are crops and mirrors of the reflected image, all of them, equally often."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from autokd.augment.base import base_view
from autokd.errors import InputError

torch.set_num_threads(1)


def images(n: int, channels: int = 3, height: int = 5, width: int = 6) -> torch.Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_view_is_a_crop_of_the_reflected_image(channels: int) -> None:
    x, pad = images(60, channels), 2
    out = base_view(x, 0, 0, torch.arange(60), 0, pad, True)
    padded = functional.pad(x, (pad,) * 4, mode="reflect")
    crops = torch.stack([padded[:, :, top : top + 5, left : left + 6] for top in range(5) for left in range(5)])
    candidates = torch.cat([crops, crops.flip(-1)])
    hits = (candidates == out).flatten(2).all(2)
    assert out.shape == x.shape and bool((hits.sum(0) == 1).all())
    assert len(hits.float().argmax(0).unique()) > 25  # of 50 places


def test_places_and_mirrors_are_equally_frequent() -> None:
    ramp = torch.arange(12.0).view(1, 1, 1, 12).expand(9000, 1, 3, 12)
    out = base_view(ramp, 1, 0, torch.arange(9000), 0, 1, True)
    mirrored = out[:, 0, 1, 5] > out[:, 0, 1, 6]
    assert abs(float(mirrored.float().mean()) - 0.5) < 3 * 0.5 / 9000**0.5
    left = torch.where(mirrored, 12 - out[:, 0, 1, 5] - 6, out[:, 0, 1, 5] - 5)
    for offset in (-1, 0, 1):
        assert abs(float((left == offset).float().mean()) - 1 / 3) < 4 * (2 / 9 / 9000) ** 0.5


def test_nothing_asked_nothing_done() -> None:
    x = images(4)
    assert base_view(x, 0, 0, torch.arange(4), 0, 0, False) is x
    flipped = base_view(x, 0, 0, torch.arange(4), 0, 0, True)
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(-1)) for a, b in zip(flipped, x, strict=True))


def test_a_row_depends_on_its_own_counters_only() -> None:
    x, index = images(30), torch.arange(100, 130)
    view = torch.tensor([0, 1] * 15)
    whole = base_view(x, 5, 2, index, view, 2, True)
    some = torch.tensor([7, 29, 0])
    assert torch.equal(base_view(x[some], 5, 2, index[some], view[some], 2, True), whole[some])
    for seed, epoch, other in ((6, 2, view), (5, 3, view), (5, 2, 1 - view)):
        assert not torch.equal(base_view(x, seed, epoch, index, other, 2, True), whole)


@pytest.mark.parametrize("pad", [-1, 5])
def test_impossible_padding_is_refused(pad: int) -> None:
    with pytest.raises(InputError, match=rf"pad must be in \[0, 4\] for 5×6 images, got {pad}"):
        base_view(images(1), 0, 0, torch.arange(1), 0, pad, False)
