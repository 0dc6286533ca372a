"""The operations equal Pillow's; the chain fires as it should, in order, and only where it should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from autokd.augment import p_for_changed_share
from autokd.augment.counters import Stream, uniform
from autokd.augment.jda import CHAINS, OPERATIONS, jda
from autokd.errors import InputError
from autokd.recipe import AugmentSpec

torch.set_num_threads(1)
SIZE = (16, 64)  # height, width


def pictures() -> np.ndarray:
    """Uint8 (6, H, W, 3): waves with noise, pure noise in a narrow range, one colour, two colours."""
    draw = np.random.default_rng(0)
    y, x, c = np.meshgrid(*(np.arange(n) for n in (*SIZE, 3)), indexing="ij")
    waves = [127 + 90 * np.sin(0.2 * k * x + 0.15 * y + c) + draw.normal(0, 12, x.shape) for k in (1, 2, 3)]
    noise, flat = draw.integers(40, 180, x.shape), np.full(x.shape, 77)
    return np.stack([*waves, noise, flat, np.where(x < 9, 30, 201)]).clip(0, 255).astype(np.uint8)


def levels(images: np.ndarray) -> Tensor:
    return torch.tensor(images).permute(0, 3, 1, 2).float()


def affine(coefficients: tuple[float, ...], how: Image.Resampling) -> Callable[[Image.Image], Image.Image]:
    return lambda i: i.transform(
        i.size, Image.Transform.AFFINE, coefficients, how, fillcolor=(128, 128, 128) if i.mode == "RGB" else 128
    )


HEIGHT, WIDTH = SIZE
CUBIC, NEAREST = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
PILLOW: list[tuple[str, float, Callable[[Image.Image], Image.Image]]] = [
    ("invert", 0, ImageOps.invert),
    ("autocontrast", 0, ImageOps.autocontrast),
    ("equalise", 0, ImageOps.equalize),
    ("posterise", 4.0, lambda i: ImageOps.posterize(i, 4)),
    ("posterise", 8.0, lambda i: ImageOps.posterize(i, 8)),
    ("solarise", 142.2, lambda i: ImageOps.solarize(i, 143)),
    ("colour", 0.4, lambda i: ImageEnhance.Color(i).enhance(1.4)),
    ("colour", -0.8, lambda i: ImageEnhance.Color(i).enhance(0.2)),
    ("contrast", 0.7, lambda i: ImageEnhance.Contrast(i).enhance(1.7)),
    ("contrast", -0.3, lambda i: ImageEnhance.Contrast(i).enhance(0.7)),
    ("brightness", 0.6, lambda i: ImageEnhance.Brightness(i).enhance(1.6)),
    ("brightness", -0.3, lambda i: ImageEnhance.Brightness(i).enhance(0.7)),
    ("sharpness", 0.9, lambda i: ImageEnhance.Sharpness(i).enhance(1.9)),
    ("sharpness", -0.5, lambda i: ImageEnhance.Sharpness(i).enhance(0.5)),
    ("rotate", 20 / 3, lambda i: i.rotate(20 / 3, fillcolor=(128, 128, 128) if i.mode == "RGB" else 128)),
    ("rotate", 30.0, lambda i: i.rotate(30, fillcolor=(128, 128, 128) if i.mode == "RGB" else 128)),
    ("shear_x", 0.8 / 3, affine((1, 0.8 / 3, 0, 0, 1, 0), CUBIC)),
    ("shear_x", -0.5 / 3, affine((1, -0.5 / 3, 0, 0, 1, 0), CUBIC)),
    ("shear_y", 0.8 / 3, affine((1, 0, 0, 0.8 / 3, 1, 0), CUBIC)),
    ("shear_y", -0.8 / 3, affine((1, 0, 0, -0.8 / 3, 1, 0), CUBIC)),
    ("translate_x", 50 / 331, affine((1, 0, 50 / 331 * WIDTH, 0, 1, 0), NEAREST)),
    ("translate_x", -50 / 331, affine((1, 0, -50 / 331 * WIDTH, 0, 1, 0), NEAREST)),
    ("translate_y", 0.403, affine((1, 0, 0, 0, 1, 0.403 * HEIGHT), NEAREST)),
    ("translate_y", -0.403, affine((1, 0, 0, 0, 1, -0.403 * HEIGHT), NEAREST)),
]


def batch_like(n: int, channels: int = 3, size: tuple[int, int] = (6, 6)) -> Tensor:
    grid = torch.randint(0, 256, (n, channels, *size), generator=torch.Generator().manual_seed(0))
    return grid.float() / 255


def settings(**changes: object) -> dict[str, Any]:
    return {"chain": "cifar100", "p": 0.3, "magnitude": 1.0, "seed": 0, "epoch": 0, "view": 1} | changes


# ---- operations


@pytest.mark.parametrize(("name", "magnitude", "pillow"), PILLOW, ids=[f"{n}{m:+.2f}" for n, m, _ in PILLOW])
@pytest.mark.parametrize("channels", [1, 3])
def test_operations_equal_pillow(
    name: str, magnitude: float, pillow: Callable[[Image.Image], Image.Image], channels: int
) -> None:
    images = pictures() if channels == 3 else pictures()[..., :1]
    expected = np.stack([np.asarray(pillow(Image.fromarray(image.squeeze()))) for image in images])
    ours = OPERATIONS[name].run(levels(images), magnitude)
    difference = (ours - levels(expected.reshape(images.shape))).abs()
    assert float((difference > 0).float().mean()) < 0.005
    if name != "rotate":  # Pillow rotates in 16-bit fixed point: a pixel on the seam of two sources may take the other
        assert float(difference.max()) <= 1


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (8, 8)])
def test_operations_keep_shape_and_whole_levels_on_small_images(name: str, size: tuple[int, int]) -> None:
    x = (batch_like(3, 1, size) * 255).round()
    out = OPERATIONS[name].run(x, {"posterise": 4.0, "solarise": 100.0, "rotate": 30.0}.get(name, 0.3))
    assert out.shape == x.shape and torch.equal(out, out.round())
    assert float(out.min()) >= 0 and float(out.max()) <= 255


# ---- chains


STEP = {
    "rotate": 30 / 9,
    "shear_x": 0.3 / 9,
    "shear_y": 0.3 / 9,
    "translate_x": 150 / 331 / 9,
    "translate_y": 150 / 331 / 9,
}
PAPER = {  # operation and point of its ten-point grid, as they are published
    "cifar10": "invert rotate:2 shear_y:8 posterise=4 autocontrast colour:3 sharpness:9 equalise contrast:7 translate_y:3 "
    "brightness:6 solarise:2 translate_x:3 shear_x:8",
    "cifar100": "autocontrast contrast:3 posterise=8 solarise:4 translate_y:8 shear_x:5 brightness:3 shear_y:0 translate_x:1 "
    "sharpness:5 invert colour:4 equalise rotate:3",
    "imagenet": "posterise=4 solarise:5 equalise posterise=5 equalise equalise solarise:3 posterise=6 rotate:3 equalise "
    "rotate:8 rotate:9 equalise invert colour:4 rotate:8 colour:8 sharpness:7 shear_x:5 colour:0 equalise solarise:5 invert "
    "colour:4 equalise",
}


def read(entry: str) -> tuple[str, float]:
    """An entry as above, with its magnitude."""
    name, _, point = entry.partition(":")
    if "=" in entry:
        name, _, bits = entry.partition("=")
        return name, float(bits)
    if not point:
        return name, 0.0
    return name, 256 * (1 - int(point) / 9) if name == "solarise" else int(point) * STEP.get(name, 0.1)


@pytest.mark.parametrize("chain", PAPER)
def test_chains_are_the_published_ones(chain: str) -> None:
    expected = [read(entry) for entry in PAPER[chain].split()]
    assert [name for name, _ in CHAINS[chain]] == [name for name, _ in expected]
    assert [magnitude for _, magnitude in CHAINS[chain]] == pytest.approx([magnitude for _, magnitude in expected])


def test_published_magnitudes_are_those_of_the_table() -> None:
    rounded = {name: [(operation, round(m, 3)) for operation, m in chain] for name, chain in CHAINS.items()}
    assert rounded["cifar10"][1:4] == [("rotate", 6.667), ("shear_y", 0.267), ("posterise", 4.0)]
    assert rounded["cifar10"][9:12] == [("translate_y", 0.151), ("brightness", 0.6), ("solarise", 199.111)]
    assert rounded["cifar100"][3:6] == [("solarise", 142.222), ("translate_y", 0.403), ("shear_x", 0.167)]
    assert rounded["cifar100"][8] == ("translate_x", 0.050) and rounded["cifar100"][-1] == ("rotate", 10.0)
    assert [m for operation, m in rounded["imagenet"] if operation == "solarise"] == [113.778, 170.667, 113.778]
    assert [m for operation, m in rounded["imagenet"] if operation == "rotate"] == [10.0, 26.667, 30.0, 26.667]
    assert {operation for chain in CHAINS.values() for operation, _ in chain} == set(OPERATIONS)


def test_recipes_know_the_chains() -> None:
    assert get_args(AugmentSpec.model_fields["chain"].annotation) == tuple(CHAINS)


@pytest.mark.parametrize("clean", ["cifar100-clean", "imagenet-clean", "cifar10"])
def test_every_operation_of_a_clean_chain_fires(clean: str) -> None:
    published = CHAINS[clean.removesuffix("-clean")]
    idle = {("posterise", 8.0), ("shear_y", 0.0), ("colour", 0.0)}
    assert CHAINS[clean] == tuple(entry for entry in published if entry not in idle)
    _, fired = jda(batch_like(2), **settings(chain=clean, p=1.0), index=torch.arange(2))
    assert bool(fired.all()) and fired.shape[1] == {"cifar10": 14, "cifar100-clean": 12, "imagenet-clean": 24}[clean]


def test_the_grey_chain_leaves_out_what_does_nothing_to_grey_images_or_takes_their_ink_away() -> None:
    assert CHAINS["grey"] == tuple(
        entry for entry in CHAINS["cifar10"] if entry[0] not in ("colour", "invert", "solarise")
    )
    _, fired = jda(batch_like(2, 1), **settings(chain="grey", p=1.0), index=torch.arange(2))
    assert bool(fired.all()) and fired.shape == (2, 11)
    ink = torch.zeros(1, 1, 8, 8)
    ink[:, :, 2:6, 3:5] = 255
    thresholds = [m for chain in CHAINS.values() for operation, m in chain if operation == "solarise"]
    assert not any(bool(OPERATIONS["solarise"].run(ink, threshold).any()) for threshold in thresholds)


# ---- shares of changed rows

HALF_CHANGED = {
    "cifar10": 0.04830484699,
    "cifar100": 0.05612568732,
    "cifar100-clean": 0.05612568732,
}  # of the reference
HALF_CHANGED |= {"imagenet": 0.02846805885, "imagenet-clean": 0.02846805885}


@pytest.mark.parametrize("chain", HALF_CHANGED)
def test_p_for_half_of_the_rows_is_the_reference_one(chain: str) -> None:
    assert p_for_changed_share(chain, 0.5) == pytest.approx(HALF_CHANGED[chain], rel=1e-9)


@pytest.mark.parametrize(("chain", "p", "listed", "share"), [
    ("cifar10", 0.5, 7.0, 0.9999389648), ("cifar100", 0.3, 4.2, 0.9861587128), ("imagenet", 0.2, 5.0, 0.9952776335)
])  # fmt: skip
def test_p_leads_to_its_share_and_back(chain: str, p: float, listed: float, share: float) -> None:
    assert p * len(CHAINS[chain]) == pytest.approx(listed)
    assert p_for_changed_share(chain, share) == pytest.approx(p, rel=1e-5)


def test_what_has_no_effect_does_not_count() -> None:
    assert p_for_changed_share("cifar100", 0.5, channels=1) == pytest.approx(
        1 - 0.5 ** (1 / 11)
    )  # colour of grey images
    assert p_for_changed_share("cifar10", 0.5, magnitude=0.1) == pytest.approx(
        1 - 0.5 ** (1 / 13)
    )  # posterise to 7.6 bits
    assert (p_for_changed_share("grey", 0.0), p_for_changed_share("grey", 1.0)) == (0.0, 1.0)


def test_so_many_rows_are_changed() -> None:
    n, q = 4000, 0.3
    p = p_for_changed_share("cifar100", q)
    _, fired = jda(batch_like(n, size=(2, 2)), **settings(p=p), index=torch.arange(n))
    assert abs(float(fired.any(1).float().mean()) - q) < 3 * (q * (1 - q) / n) ** 0.5


@pytest.mark.parametrize("q", [-0.1, 1.1, float("nan")])
def test_what_is_no_share_is_refused(q: float) -> None:
    with pytest.raises(InputError, match=r"must be in \[0, 1\]"):
        p_for_changed_share("cifar10", q)


# ---- firing


@pytest.mark.parametrize(("chain", "idle"), [("cifar10", []), ("cifar100", [2, 7]), ("imagenet", [19])])
def test_operations_fire_with_probability_p_and_idle_ones_never(chain: str, idle: list[int]) -> None:
    n, p = 3000, 0.3
    x = batch_like(n, size=(4, 4))
    _, fired = jda(x, **settings(chain=chain, p=p), index=torch.arange(n))
    for position, rate in enumerate(fired.float().mean(0).tolist()):
        expected, sigma = (0.0, 1e-9) if position in idle else (p, (p * (1 - p) / n) ** 0.5)
        assert abs(rate - expected) < 3.5 * sigma, (position, rate)
    pairs = torch.corrcoef(fired[:, [k for k in range(fired.shape[1]) if k not in idle]].float().T).fill_diagonal_(0)
    assert float(pairs.abs().max()) < 5 / n**0.5


HALF = [
    0,
    10 / 3,
    0.4 / 3,
    6.0,
    0,
    0.15,
    0.45,
    0,
    0.35,
    25 / 331,
    0.3,
    256 * 8 / 9,
    25 / 331,
    0.4 / 3,
]  # the cifar10 chain's, halved


@pytest.mark.parametrize(("scale", "magnitudes"), [(1.0, [m for _, m in CHAINS["cifar10"]]), (0.5, HALF)])
def test_all_fire_in_the_published_order_with_their_own_signs(scale: float, magnitudes: list[float]) -> None:
    x, index = batch_like(30, size=(16, 16)), torch.arange(30)
    out, fired = jda(x, **settings(chain="cifar10", p=1.0, magnitude=scale, seed=3), index=index)
    assert bool(fired.all())
    negative = uniform(3, 0, index[:, None], 1, Stream.SIGN, torch.arange(14)) < 0.5
    two_sided = {"colour", "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y"}
    for row in range(30):
        image = (x[row : row + 1] * 255).round()
        for position, ((name, _), magnitude) in enumerate(zip(CHAINS["cifar10"], magnitudes, strict=True)):
            down = bool(negative[row, position]) and name in two_sided
            image = OPERATIONS[name].run(image, -magnitude if down else magnitude)
        torch.testing.assert_close(out[row], image[0] / 255, rtol=0, atol=1e-6)


def test_p_zero_changes_nothing_and_rows_without_a_hit_stay_bit_for_bit() -> None:
    x = torch.rand(200, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    out, fired = jda(x, **settings(p=0.0), index=torch.arange(200))
    assert torch.equal(out, x) and not bool(fired.any())
    before = x.clone()
    out, fired = jda(x, **settings(p=0.05), index=torch.arange(200))
    quiet = ~fired.any(1)
    assert 20 < int(quiet.sum()) < 180
    assert torch.equal(out[quiet], x[quiet]) and torch.equal(x, before)
    assert float((out[~quiet] != x[~quiet]).flatten(1).any(1).float().mean()) > 0.9


def test_colour_of_grey_images_is_not_counted() -> None:
    _, fired = jda(batch_like(100, 1), **settings(p=1.0), index=torch.arange(100))
    assert not bool(fired[:, [2, 7, 11]].any()) and bool(fired[:, [0, 1, 3, 12]].all())


def test_magnitudes_stay_where_they_mean_something() -> None:
    x, index = batch_like(64, size=(16, 16)), torch.arange(64)
    for chain in CHAINS:
        out, _ = jda(x, **settings(chain=chain, p=1.0, magnitude=2.0), index=index)
        assert bool(out.isfinite().all()) and float(out.min()) >= 0 and float(out.max()) <= 1
    _, fired = jda(x, **settings(chain="cifar10", p=1.0, magnitude=0.1), index=index)
    assert not bool(fired[:, 3].any())  # posterise to 7.6 bits keeps all eight


def test_values_of_another_range_are_mapped_there_and_back() -> None:
    x, index = batch_like(64), torch.arange(64)
    plain, fired = jda(x, **settings(), index=index)
    mapped, same = jda(4 * x - 1, **settings(), index=index, value_range=(-1.0, 3.0))
    torch.testing.assert_close(mapped, 4 * plain - 1, rtol=0, atol=1e-5)
    assert torch.equal(fired, same)


def test_a_row_depends_on_its_own_counters_only() -> None:
    x, index = batch_like(50), torch.arange(50)
    whole, fired = jda(x, **settings(seed=4, epoch=2), index=index)
    some = torch.tensor([31, 2, 49])
    part, part_fired = jda(x[some], **settings(seed=4, epoch=2), index=index[some])
    assert torch.equal(part, whole[some]) and torch.equal(part_fired, fired[some])
    for changes in ({"seed": 5, "epoch": 2}, {"seed": 4, "epoch": 3}, {"seed": 4, "epoch": 2, "view": 2}):
        assert not torch.equal(jda(x, **settings(**changes), index=index)[1], fired)


def test_no_rows() -> None:
    out, fired = jda(torch.zeros(0, 3, 6, 6), **settings(), index=torch.arange(0))
    assert out.shape == (0, 3, 6, 6) and fired.shape == (0, 14)


@pytest.mark.parametrize("shape", [(2, 2, 6, 6), (2, 5), (2, 6, 6)])
def test_other_than_images_of_one_or_three_channels_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="jda needs images"):
        jda(torch.zeros(shape), **settings(), index=torch.arange(2))


def test_unknown_chain_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="unknown JDA chain 'cifar1000'; did you mean 'cifar100'"):
        jda(batch_like(1), **settings(chain="cifar1000"), index=torch.arange(1))
