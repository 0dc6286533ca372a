"""Rotations: which rows there are, what they hold, and that they can be replayed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autokd.augment.base import base_view
from autokd.augment.views import augmented_views, make_batch
from autokd.errors import InputError
from autokd.protocols import Batch
from autokd.recipe import AugmentSpec

torch.set_num_threads(1)
X = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(60) % 7
INDEX = torch.randperm(60, generator=torch.Generator().manual_seed(1))[:20]


def made(
    crops: str = "own",
    index: Tensor = INDEX,
    seed: int = 3,
    epoch: int = 2,
    pad: int = 2,
    flip: bool = True,
    x: Tensor = X,
) -> Batch:
    spec = AugmentSpec.model_validate({"policy": "rotations", "crops": crops})
    return make_batch(x[index], Y[index], index, augment=spec, seed=seed, epoch=epoch, pad=pad, flip=flip)


@pytest.mark.parametrize("crops", ["own", "shared"])
def test_four_rows_per_image_base_rows_first(crops: str) -> None:
    batch = made(crops)
    assert batch.view.tolist() == [v for v in range(4) for _ in range(20)]
    assert torch.equal(batch.parent, torch.arange(20).repeat(4)) and batch.fired is None
    assert torch.equal(batch.index, INDEX.repeat(4)) and torch.equal(batch.y, Y[INDEX].repeat(4))
    base = base_view(X[INDEX].float() / 255, 3, 2, INDEX, 0, 2, True)
    assert torch.equal(batch.x[:20], base), "the base view of any other policy"


def test_shared_crops_are_the_base_view_turned() -> None:
    batch = made("shared")
    for view in range(4):
        assert torch.equal(batch.x[20 * view : 20 * (view + 1)], torch.rot90(batch.x[:20], view, (2, 3)))


@pytest.mark.parametrize("crops", ["own", "shared"])
def test_without_crops_and_mirrors_both_are_the_image_turned(crops: str) -> None:
    batch = made(crops, pad=0, flip=False)
    for view in range(4):
        expected = torch.rot90(X[INDEX].float() / 255, view, (2, 3))
        assert torch.equal(batch.x[20 * view : 20 * (view + 1)], expected)


def test_own_crops_are_taken_after_mirror_and_turn() -> None:
    turned = torch.rot90(X[INDEX], 1, (2, 3)).float() / 255
    assert torch.equal(made(flip=False).x[20:40], base_view(turned, 3, 2, INDEX, 1, 2, False))
    mirrored = made(pad=0).x  # no crop: what is left is mirror and turn
    for view in range(1, 4):
        assert torch.equal(mirrored[20 * view : 20 * (view + 1)], torch.rot90(mirrored[:20], view, (2, 3)))
    own, shared = made("own"), made("shared")
    assert not any(torch.equal(a, b) for a, b in zip(own.x[20:].split(20), shared.x[20:].split(20), strict=True))


@pytest.mark.parametrize("crops", ["own", "shared"])
def test_rows_depend_on_their_own_counters_only(crops: str) -> None:
    whole, part = made(crops), made(crops, index=INDEX[[7, 3]])
    for view in range(4):
        assert torch.equal(part.x[2 * view : 2 * view + 2], whole.x[20 * view : 20 * (view + 1)][[7, 3]])
    assert torch.equal(made(crops).x, whole.x)
    for other in (made(crops, seed=4), made(crops, epoch=3)):
        assert float((other.x != whole.x).flatten(1).any(1).float().mean()) > 0.8


def test_float_images_are_turned_too() -> None:
    batch = made(x=X.float() / 255)
    assert torch.equal(batch.x, made().x)


@pytest.mark.parametrize("shape", [(60, 5), (60, 1, 4, 6)])
def test_what_is_not_square_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"rotations need square images .*; use base, jda or none"):
        made(x=torch.zeros(shape), pad=1)


def test_number_of_views() -> None:
    assert augmented_views(AugmentSpec(policy="rotations")) == 3
