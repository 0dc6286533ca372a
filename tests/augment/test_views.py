"""Batches: which rows there are, what they hold, and that they can be replayed; confidence weights against reference
numbers.
"""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from autokd.augment.base import base_view
from autokd.augment.jda import jda
from autokd.augment.views import ccd_weight, make_batch
from autokd.errors import InputError
from autokd.objectives.logits import KD
from autokd.protocols import Batch, Outputs
from autokd.recipe import AugmentSpec

torch.set_num_threads(1)
X = torch.randint(0, 256, (300, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(300) % 7
INDEX = torch.randperm(300, generator=torch.Generator().manual_seed(1))


def made(index: Tensor = INDEX[:40], seed: int = 3, epoch: int = 2, x: Tensor = X, **augment: object) -> Batch:
    spec = AugmentSpec.model_validate({"policy": "jda", **augment})
    return make_batch(x[index], Y[index], index, augment=spec, seed=seed, epoch=epoch, pad=1, flip=True)


def row_of(batch: Batch, index: int, view: int) -> Tensor | None:
    found = ((batch.index == index) & (batch.view == view)).nonzero()[:, 0]
    return batch.x[found[0]] if len(found) else None


def identical(a: Batch, b: Batch) -> bool:
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in fields(Batch)]
    return all((one is None and two is None) or torch.equal(one, two) for one, two in pairs)


# ---- policies


def test_policy_none_is_the_data_in_units_of_one() -> None:
    batch = made(policy="none")
    assert torch.equal(batch.x, X[INDEX[:40]].float() / 255) and torch.equal(batch.y, Y[INDEX[:40]])
    assert torch.equal(batch.index, INDEX[:40]) and torch.equal(batch.parent, torch.arange(40))
    assert not bool(batch.view.any()) and batch.fired is None


def test_policy_base_is_the_base_view() -> None:
    batch = made(policy="base")
    expected = base_view(X[INDEX[:40]].float() / 255, 3, 2, INDEX[:40], 0, 1, True)
    assert torch.equal(batch.x, expected) and batch.fired is None


def test_policy_jda_adds_a_chain_then_a_crop_of_its_own() -> None:
    batch = made(rho=0.5, p=0.4)
    assert batch.fired is not None and len(batch.x) == 80 and batch.fired.shape == (80, 14)
    assert torch.equal(batch.x[:40], made(policy="base").x) and not bool(batch.fired[:40].any())
    assert torch.equal(batch.parent, torch.arange(40).repeat(2)) and batch.view.tolist() == [0] * 40 + [1] * 40
    strong, fired = jda(
        X[INDEX[:40]].float() / 255, chain="cifar100", p=0.4, magnitude=1.0, seed=3, epoch=2, index=INDEX[:40], view=1
    )
    assert torch.equal(batch.x[40:], base_view(strong, 3, 2, INDEX[:40], 1, 1, True))
    assert torch.equal(batch.fired[40:], fired)
    assert torch.equal(batch.y, Y[batch.index]) and torch.equal(batch.index, batch.index[batch.parent])


def test_p_zero_leaves_a_crop_and_mirror_of_its_own() -> None:
    batch = made(p=0.0)
    expected = base_view(X[INDEX[:40]].float() / 255, 3, 2, INDEX[:40], 1, 1, True)
    assert torch.equal(batch.x[40:], expected) and not torch.equal(batch.x[40:], batch.x[:40])


@pytest.mark.parametrize("policy", ["none", "base"])
def test_vectors_pass_untouched(policy: str) -> None:
    vectors = torch.randn(300, 5, generator=torch.Generator().manual_seed(2))
    assert torch.equal(made(x=vectors, policy=policy).x, vectors[INDEX[:40]])


def test_jda_on_vectors_is_refused() -> None:
    with pytest.raises(InputError, match=r"jda needs images .*got rows of shape \(5,\)"):
        made(x=torch.zeros(300, 5))


def test_float_images_of_another_range_get_the_same_views() -> None:
    spec = AugmentSpec(policy="jda", p=0.4)
    scaled = make_batch(
        X[INDEX[:40]].float() / 255 * 2 - 1,
        Y[INDEX[:40]],
        INDEX[:40],
        augment=spec,
        seed=3,
        epoch=2,
        pad=1,
        flip=True,
        value_range=(-1.0, 1.0),
    )
    torch.testing.assert_close(scaled.x, 2 * made(p=0.4).x - 1, rtol=0, atol=1e-5)


# ---- proportion


@pytest.mark.parametrize("rho", [1 / 3, 1 / 2, 0.6, 2 / 3, 3 / 4])
def test_proportion_of_augmented_rows(rho: float) -> None:
    x, y, per_image = (
        torch.zeros(4000, 1, 2, 2, dtype=torch.uint8),
        torch.zeros(4000, dtype=torch.int64),
        rho / (1 - rho),
    )
    batch = make_batch(x, y, torch.arange(4000), augment=AugmentSpec(policy="jda", rho=rho, p=0.0), seed=0, epoch=0)
    augmented = int((batch.view > 0).sum())
    share = per_image % 1
    assert abs(augmented - 4000 * per_image) <= 3 * (4000 * share * (1 - share)) ** 0.5 + 1e-6
    assert abs(augmented / len(batch.view) - rho) < 0.02
    keys = batch.index * 10 + batch.view
    assert len(keys.unique()) == len(keys)


def test_no_augmented_rows_at_rho_zero() -> None:
    batch = made(rho=0.0)
    assert len(batch.x) == 40 and batch.fired is not None and batch.fired.shape == (40, 14)
    assert torch.equal(batch.x, made(policy="base").x)


def test_more_rows_are_added_to_the_same_ones_as_rho_grows() -> None:
    few, many = made(rho=0.3), made(rho=0.7)
    for index, view in zip(few.index.tolist(), few.view.tolist(), strict=True):
        one, two = row_of(few, index, view), row_of(many, index, view)
        assert one is not None and two is not None and torch.equal(one, two)
    assert len(many.x) > len(few.x)


# ---- replay


def test_same_arguments_give_the_same_batch_bit_for_bit() -> None:
    torch.manual_seed(1)
    first = made(rho=0.6)
    torch.manual_seed(2)
    assert identical(first, made(rho=0.6))


@pytest.mark.parametrize("changes", [{"seed": 4}, {"epoch": 3}])
def test_another_seed_or_epoch_gives_other_views(changes: dict[str, int]) -> None:
    first, other = made(), made(**changes)  # type: ignore[arg-type]
    differing = (first.x != other.x).flatten(1).any(1).float().mean()
    assert float(differing) > 0.8 and first.fired is not None and other.fired is not None
    assert not torch.equal(first.fired, other.fired)


def test_rows_do_not_depend_on_the_rest_of_the_batch() -> None:
    whole, part = made(index=INDEX[:40], rho=0.6), made(index=INDEX[[33, 5, 260]], rho=0.6)
    shared = INDEX[[33, 5]].tolist()
    for index in shared:
        for view in range(3):
            one, two = row_of(whole, index, view), row_of(part, index, view)
            assert (one is None and two is None) or (one is not None and two is not None and torch.equal(one, two))


# ---- cosine confidence


def ccd_inputs() -> tuple[Tensor, Tensor, Batch]:
    """The reference pairs: rows 0, 2 original, 1, 3 augmented of the closed logits, base rows put first; float64."""
    i, j = torch.arange(4.0, dtype=torch.float64)[:, None], torch.arange(5.0, dtype=torch.float64)
    order = torch.tensor([0, 2, 1, 3])
    student, teacher = 2 * torch.sin(1.3 * i + 0.7 * j), 3 * torch.cos(0.9 * i - 0.4 * j + 0.2)
    view, parent = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    batch = Batch(torch.zeros(4, 1), torch.tensor([1, 3, 1, 3]), torch.tensor([0, 1, 0, 1]), view, parent)
    return student[order], teacher[order], batch


def test_ccd_weights_are_the_reference_ones() -> None:
    _, teacher, batch = ccd_inputs()
    expected = [1.0, 1.0, 1.8389384657578502, 1.2256728536825647]  # ccd.w
    assert ccd_weight(teacher, batch).tolist() == pytest.approx(expected, rel=1e-9)
    mean = (expected[2] + expected[3]) / 2
    assert ccd_weight(teacher, batch, True).tolist() == pytest.approx(
        [1, 1, expected[2] / mean, expected[3] / mean], rel=1e-9
    )


def test_weighted_kd_over_all_rows_is_the_reference_soft_loss() -> None:
    student, teacher, batch = ccd_inputs()
    terms = KD(temperature=4.0)(Outputs(student), Outputs(teacher), batch, ccd_weight(teacher, batch))
    assert float(terms["kd"]) / 16 == pytest.approx(0.10264128316070907, rel=1e-9)  # ccd.soft
    total = 2 * (0.5 * float(torch.nn.functional.cross_entropy(student, batch.y)) + 0.5 * float(terms["kd"]))
    assert total == pytest.approx(3.600809348254751, rel=1e-9)  # ccd.total
    plain = KD(temperature=4.0)(Outputs(student), Outputs(teacher), batch)
    total = 2 * (0.5 * float(torch.nn.functional.cross_entropy(student, batch.y)) + 0.5 * float(plain["kd"]))
    assert total == pytest.approx(3.2724662807400122, rel=1e-9)  # ccd.kd_on_the_same_rows


def test_identical_views_weigh_two_opposite_ones_nothing() -> None:
    _, teacher, batch = ccd_inputs()
    same = torch.cat([teacher[:2], teacher[:1], -teacher[1:2]])
    assert ccd_weight(same, batch).tolist() == pytest.approx([1, 1, 2, 0], abs=1e-12)


def test_weights_follow_the_parent_not_the_position() -> None:
    _, teacher, batch = ccd_inputs()
    order = torch.tensor([3, 0, 2, 1])
    place = torch.argsort(order)
    moved = Batch(batch.x, batch.y[order], batch.index[order], batch.view[order], place[batch.parent[order]])
    torch.testing.assert_close(ccd_weight(teacher[order], moved), ccd_weight(teacher, batch)[order])


@pytest.mark.parametrize("normalise", [False, True])
def test_weights_are_finite_without_augmented_rows_and_for_silent_teachers(normalise: bool) -> None:
    base = made(policy="base")
    assert torch.equal(ccd_weight(torch.randn(40, 7), base, normalise), torch.ones(40))
    assert torch.equal(ccd_weight(torch.zeros(80, 7), made(), normalise), torch.ones(80))
