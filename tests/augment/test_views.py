"""Batches: which rows there are, what they hold, and that they can be replayed; confidence weights against reference
numbers.
"""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from autokd.augment.base import base_view
from autokd.augment.jda import CHAINS, jda
from autokd.augment.views import ccd_weight, make_batch
from autokd.core.step import row_weights
from autokd.errors import InputError, RecipeError
from autokd.objectives.logits import KD
from autokd.protocols import Batch, Outputs
from autokd.recipe import AugmentSpec, Recipe

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


@pytest.mark.parametrize("chain", CHAINS)
def test_p_zero_leaves_a_crop_and_mirror_of_its_own(chain: str) -> None:
    batch = made(p=0.0, chain=chain)
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


FORMS: dict[str, tuple[dict[str, object], list[float]]] = {  # of the reference pairs, in closed form
    "cosine": ({}, [1.8389384657578502, 1.2256728536825647]),
    "half": ({}, [1.8389384657578502 / 2, 1.2256728536825647 / 2]),
    "power": ({"power": 2.5}, [1.8389384657578502**2.5, 1.2256728536825647**2.5]),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_weight_follow_from_the_reference_ones(form: str) -> None:
    _, teacher, batch = ccd_inputs()
    fields, expected = FORMS[form]
    assert ccd_weight(teacher, batch, form=form, **fields).tolist() == pytest.approx([1, 1, *expected], rel=1e-9)  # type: ignore[arg-type]


def test_softened_and_centred_forms_compare_what_they_say() -> None:
    _, teacher, batch = ccd_inputs()
    for form, seen in (
        ("softened", (teacher / 4).softmax(1)),
        ("centred", teacher - teacher.mean(1, keepdim=True)),
    ):
        expected = [1 + float(seen[row] @ seen[row - 2] / (seen[row].norm() * seen[row - 2].norm())) for row in (2, 3)]
        assert ccd_weight(teacher, batch, form=form).tolist() == pytest.approx([1, 1, *expected], rel=1e-9)
        assert ccd_weight(teacher, batch).tolist() != pytest.approx([1, 1, *expected], rel=1e-3)
    hot = ccd_weight(teacher, batch, form="softened", temperature=1e6)
    torch.testing.assert_close(hot[2:], torch.full((2,), 2.0, dtype=hot.dtype), msg="of uniform distributions")
    moved = ccd_weight(teacher + torch.tensor([[5.0], [-3.0], [9.0], [0.0]]), batch, form="centred")
    torch.testing.assert_close(moved, ccd_weight(teacher, batch, form="centred"), msg="offsets of rows do not count")


@pytest.mark.parametrize("form", ["cosine", "half", "power", "softened", "centred"])
@pytest.mark.parametrize("normalise", [False, True])
def test_every_form_is_finite_and_of_mean_one_if_that_is_asked_for(form: str, normalise: bool) -> None:
    _, teacher, batch = ccd_inputs()
    opposite = torch.cat([teacher[:2], -teacher[:1], teacher[3:]])
    for logits in (teacher, opposite, torch.zeros(4, 5, dtype=torch.float64), opposite.float()):
        weight = ccd_weight(logits, batch, normalise, form, 0.3)
        assert bool(weight.isfinite().all()) and float(weight.min()) >= 0 and weight[:2].tolist() == [1, 1]
        assert not normalise or float(weight[2:].mean()) == pytest.approx(1)


def test_weights_of_one_are_kd_on_all_rows_and_identical_views_raise_it_by_half() -> None:
    student, teacher, batch = ccd_inputs()
    same = Outputs(torch.cat([teacher[:2], teacher[:2]]))
    plain = KD(temperature=4.0)(Outputs(student), same, batch)["kd"]
    half = KD(temperature=4.0)(Outputs(student), same, batch, ccd_weight(same.logits, batch, form="half"))["kd"]
    assert float(half) == pytest.approx(float(plain), rel=1e-12)
    double, twice = ccd_weight(same.logits, batch), Outputs(torch.cat([student[:2], student[:2]]))
    assert double.tolist() == pytest.approx([1, 1, 2, 2], rel=1e-12)
    plain = KD(temperature=4.0)(twice, same, batch)["kd"]
    assert float(KD(temperature=4.0)(twice, same, batch, double)["kd"]) == pytest.approx(1.5 * float(plain), rel=1e-12)


def test_recipes_choose_the_form() -> None:
    _, teacher, batch = ccd_inputs()
    for chosen in ({"ccd_form": "power", "ccd_power": 3.0}, {"ccd_form": "softened", "ccd_temperature": 2.0}):
        augment = {"policy": "jda", "ccd": True, **chosen}
        recipe = Recipe.from_dict({"student": {"family": "resnet"}, "augment": augment})
        expected = ccd_weight(teacher, batch, form=str(chosen["ccd_form"]), power=3.0, temperature=2.0)
        assert torch.equal(row_weights(recipe, Outputs(teacher), batch), expected)  # type: ignore[arg-type]
    for wrong in ({"ccd_form": "cosin"}, {"ccd_power": 0}, {"ccd_power": 8.1}, {"ccd_temperature": 0}):
        with pytest.raises(RecipeError, match=f"augment.{next(iter(wrong))}"):
            Recipe.from_dict({"student": {"family": "resnet"}, "augment": wrong})


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
