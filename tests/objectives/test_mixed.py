"""Numbers and identities of the losses on mixed rows, and what their shares and partners are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from losses import FakeAsk, batch_of, built, called, number, permuted, random_outputs, reference, total
from scipy import stats
from torch import Tensor
from torch.nn import functional

from autokd.augment.counters import uniform
from autokd.errors import RecipeError
from autokd.objectives import OBJECTIVES
from autokd.objectives.logits import decoupled_rows, kl_rows
from autokd.objectives.mixed import beta_quantile, box, mixed_ce_rows, outside_kl_rows, successors
from autokd.protocols import Batch, Shapes

PARTNERS = torch.tensor([0, 3, 1, 2])  # labels of the partners of the reference rows
DRAWS = uniform(0, 0, torch.arange(40_000))


class Heard(FakeAsk):
    """Remembers the rows that it was asked about."""

    def student(self, x: Tensor) -> Any:
        self.rows = x
        return super().student(x)


def asked(batch: Batch, **fields: float | str) -> tuple[Heard, dict[str, Tensor]]:
    """What was asked in a step of these rows, and its terms."""
    student, teacher = random_outputs(0, n=len(batch.y)), random_outputs(1, n=len(batch.y))
    ask = Heard(student, teacher)
    return ask, called(built("msst", student, teacher, **fields), student, teacher, batch, ask=ask)


# ---- losses


def test_reference_numbers() -> None:
    student, teacher, batch = reference()
    labels = torch.stack([batch.y, PARTNERS], 1)
    outside = 16 * outside_kl_rows(student.logits, teacher.logits, labels, 4.0).mean()
    assert number(outside) == pytest.approx(1.189164412, rel=1e-9)  # msst.nc.T4
    similarity = 16 * kl_rows(student.logits, teacher.logits, 4.0).mean()
    assert number(similarity) == pytest.approx(1.313917463, rel=1e-9)  # msst.sim.T4


def test_the_mixture_of_cross_entropies_is_that_of_the_mixed_label() -> None:
    student, _, batch = reference()
    labels, shares = torch.stack([batch.y, PARTNERS], 1), torch.tensor([[0.3, 0.7]], dtype=torch.float64).expand(4, 2)
    one_hot = torch.eye(5, dtype=torch.float64)
    soft = (shares[:, :, None] * one_hot[labels]).sum(1)
    expected = -(soft * student.logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(mixed_ce_rows(student.logits, labels, shares), expected, rtol=0, atol=1e-15)
    parts = [functional.cross_entropy(student.logits, y, reduction="none") for y in labels.T]
    torch.testing.assert_close(0.3 * parts[0] + 0.7 * parts[1], expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_with_one_label_the_classes_outside_are_those_of_dkd(temperature: float) -> None:
    student, teacher, batch = reference()
    found = outside_kl_rows(student.logits, teacher.logits, batch.y[:, None].expand(4, 2), temperature)
    _, nckd = decoupled_rows(student.logits, teacher.logits, batch.y, temperature)
    torch.testing.assert_close(found, nckd, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("loud", [1.0, 6e4])
def test_the_classes_outside_have_finite_gradients(loud: float) -> None:
    student = (loud * random_outputs(0).logits.sign()).requires_grad_()
    teacher = loud * random_outputs(1).logits.sign()
    found = outside_kl_rows(student, teacher, torch.tensor([[0, 1, 2, 3, 4, 0], [1, 1, 0, 4, 2, 0]]).T, 0.5)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert bool(found.isfinite().all()) and bool(gradient.isfinite().all()) and bool((found >= -1e-3).all())


# ---- the objective


def test_of_unmixed_rows_it_is_kd_and_cross_entropy_on_the_clean_batch() -> None:
    batch = batch_of([0, 1, 2, 3, 4, 0])
    ask, terms = asked(batch, portion=0.0)
    assert torch.equal(ask.rows, batch.x)
    own, other = ask.network(batch.x).logits, ask.frozen(batch.x).logits
    assert number(terms["similarity"]) == pytest.approx(0.9 * 16 * number(kl_rows(own, other, 4.0).mean()), rel=1e-6)
    assert number(terms["mix_ce"]) == pytest.approx(0.1 * number(functional.cross_entropy(own, batch.y)), rel=1e-6)
    assert set(terms) == {"mix_ce", "similarity"}


@pytest.mark.parametrize(("mixer", "images"), [("mixup", 2), ("cutmix", 2), ("mixup3", 3)])
def test_a_mixed_row_is_what_its_shares_say(mixer: str, images: int) -> None:
    """Labels of one class each, images constant: a row's mean is the mean of its images' by their shares."""
    rows = torch.arange(5)
    x = (0.1 + 0.2 * rows[:, None, None, None]).expand(-1, 1, 4, 4)
    ask, terms = asked(Batch(x, rows, rows, torch.zeros_like(rows), rows), mixer=mixer, rho=0.0)
    objective = built("msst", random_outputs(0, n=5), random_outputs(1, n=5), mixer=mixer)
    mixed, labels, shares = objective._mixed(Batch(x, rows, rows, torch.zeros_like(rows), rows), ask)
    assert labels.shape == shares.shape == (5, images) and torch.equal(ask.rows, mixed)
    assert shares.sum(1).tolist() == pytest.approx([1] * 5) and len(set(shares[:, 0].tolist())) == 1, "one for all rows"
    assert all(len(set(row)) == images for row in labels.tolist()), "nobody is mixed with itself"
    expected = (shares * (0.1 + 0.2 * labels)).sum(1)
    assert mixed.mean((1, 2, 3)).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    said = mixed_ce_rows(ask.network(mixed).logits, labels, shares).mean()
    assert number(terms["mix_ce"]) == pytest.approx(number(said), rel=1e-6)


def test_base_rows_alone_are_mixed_and_counted() -> None:
    batch = batch_of([0, 1, 2, 0, 1, 2])
    views = Batch(
        batch.x,
        batch.y,
        torch.tensor([0, 1, 2, 0, 1, 2]),
        torch.tensor([0, 0, 0, 1, 1, 1]),
        torch.tensor([0, 1, 2] * 2),
    )
    ask, terms = asked(views)
    _, of_base = asked(batch_of([0, 1, 2]))
    assert torch.equal(ask.rows[3:], batch.x[3:]) and not torch.equal(ask.rows[:3], batch.x[:3])
    assert {name: number(term) for name, term in terms.items()} == pytest.approx(
        {name: number(term) for name, term in of_base.items()}, rel=1e-5
    )


def test_a_portion_of_the_rows_is_mixed() -> None:
    batch = batch_of([k % 5 for k in range(64)])
    ask, _ = asked(batch, portion=0.25)
    changed = (ask.rows != batch.x).flatten(1).any(1)
    assert 6 <= int(changed.sum()) <= 26
    more, _ = asked(batch, portion=0.75)
    assert bool(((more.rows != batch.x).flatten(1).any(1) | ~changed).all()), (
        "those of a smaller portion are among them"
    )


@pytest.mark.parametrize("mixer", ["mixup", "cutmix", "mixup3"])
def test_rows_in_another_order_are_mixed_alike(mixer: str) -> None:
    batch, order = batch_of([0, 1, 2, 3, 4, 0]), torch.tensor([5, 2, 0, 3, 1, 4])
    straight, moved = (asked(rows, mixer=mixer, portion=0.7)[0].rows for rows in (batch, permuted(batch, order)))
    assert torch.equal(straight[order], moved)


def test_the_incorrect_classes_are_a_part_where_they_have_a_weight() -> None:
    ask, terms = asked(batch_of([0, 1, 2, 3, 4, 0]), eta=2.0)
    own, other = ask.network(ask.rows).logits, ask.frozen(ask.rows).logits
    objective = built("msst", own_outputs := random_outputs(0), own_outputs, eta=2.0)
    _, labels, _ = objective._mixed(batch_of([0, 1, 2, 3, 4, 0]), ask)
    expected = 2 * 16 * outside_kl_rows(own, other, labels, 4.0).mean()
    assert number(terms["incorrect"]) == pytest.approx(number(expected), rel=1e-6)
    assert number(total(terms)) > number(terms["incorrect"]) > 0


@pytest.mark.parametrize(("mixer", "classes"), [("mixup", 3), ("cutmix", 3), ("mixup3", 4)])
def test_too_few_classes_outside_are_refused(mixer: str, classes: int) -> None:
    few, enough = Shapes(classes, 7), Shapes(classes + 1, 7)
    with pytest.raises(
        RecipeError, match=rf"with {mixer} needs at least {classes + 1} classes, got {classes}; set eta to 0"
    ):
        OBJECTIVES["msst"](eta=0.5, mixer=mixer).build(few, few)
    OBJECTIVES["msst"](eta=0.5, mixer=mixer).build(enough, enough)
    OBJECTIVES["msst"](mixer=mixer).build(few, few)


def test_boxes_need_images() -> None:
    batch = batch_of([0, 1, 2])
    flat = Batch(batch.x.flatten(1), batch.y, batch.index, batch.view, batch.parent)
    with pytest.raises(RecipeError, match=r"cutmix needs images .*got rows of shape \(16,\); use mixup"):
        asked(flat, mixer="cutmix")
    assert asked(flat)[0].rows.shape == (3, 16)


# ---- shares and partners


@pytest.mark.parametrize(
    ("a", "b"), [(a, a) for a in (0.05, 0.1, 0.4, 1.0, 1.5, 4.0, 8.0)] + [(0.1, 0.2), (1.0, 2.0), (8.0, 16.0)]
)
def test_quantiles_of_beta_variables(a: float, b: float) -> None:
    """As probabilities: where the density has a pole, quantiles themselves differ by less than any unit."""
    u = torch.linspace(0.0005, 0.9995, 1000)
    found = beta_quantile(u, a, b)
    assert bool((found[1:] >= found[:-1]).all()) and float(found[0]) >= 0 and float(found[-1]) <= 1
    expected = stats.beta.ppf(u.double().numpy(), a, b)
    assert abs(found.numpy() - expected).max() < 2e-4
    as_tensors = beta_quantile(u, torch.tensor(a, dtype=torch.float64), torch.tensor(b))
    torch.testing.assert_close(as_tensors, found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("a", [0.1, 0.4, 1.0, 4.0])
def test_moments_of_shares(a: float) -> None:
    found = beta_quantile(DRAWS, a, a).double()
    spread = 1 / (4 * (2 * a + 1))
    assert float(found.mean()) == pytest.approx(0.5, abs=5 * (spread / len(DRAWS)) ** 0.5)
    assert float(found.var()) == pytest.approx(spread, rel=0.03)


def test_a_uniform_share_is_the_number_itself() -> None:
    torch.testing.assert_close(beta_quantile(DRAWS, 1.0, 1.0), DRAWS, rtol=0, atol=1e-6)
    assert beta_quantile(DRAWS[3], 1.0, 1.0).shape == ()


def test_three_shares_are_exchangeable() -> None:
    first, second = uniform(0, 1, torch.arange(40_000)), uniform(0, 2, torch.arange(40_000))
    kept, rest = beta_quantile(first, 0.7, 1.4), beta_quantile(second, 0.7, 0.7)
    shares = torch.stack([kept, (1 - kept) * rest, (1 - kept) * (1 - rest)])
    assert shares.mean(1).tolist() == pytest.approx([1 / 3] * 3, abs=0.01)
    assert shares.var(1).tolist() == pytest.approx([2 / 9 / 3.1] * 3, rel=0.05)  # of Dirichlet(a, a, a), a = 0.7


def test_partners_go_once_around_the_members() -> None:
    member = torch.tensor([True, False, True, True, True, False, True])
    seen = set()
    for draw in range(50):
        partner = successors(uniform(0, draw, torch.arange(7)), member)
        assert partner[~member].tolist() == [1, 5]
        at, around = 0, []
        for _ in range(5):
            at = int(partner[at])
            around.append(at)
        assert sorted(around) == [0, 2, 3, 4, 6] and around[-1] == 0
        seen.add(tuple(partner.tolist()))
    assert len(seen) > 15  # of 24
    assert successors(torch.tensor([0.5]), torch.tensor([True])).tolist() == [0]
    assert successors(torch.tensor([0.5, 0.2]), torch.tensor([False, False])).tolist() == [0, 1]


def test_a_box_takes_its_area_unless_the_border_cuts_it() -> None:
    middle, corner = torch.tensor(0.5), torch.tensor(0.0)
    assert not box(8, 8, torch.tensor(1.0), middle, middle).any() and bool(
        box(8, 6, torch.tensor(0.0), middle, middle).all()
    )
    assert float(box(8, 8, torch.tensor(0.75), middle, middle).float().mean()) == 0.25
    assert float(box(8, 8, torch.tensor(0.75), corner, corner).float().mean()) == 0.0625
