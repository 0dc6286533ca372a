"""Numbers and identities of the losses on rows at the teacher's boundary."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from losses import (
    FakeAsk,
    batch_of,
    built,
    called,
    everything_finite,
    number,
    permuted,
    random_outputs,
    right,
    rows,
    with_gradient,
)
from torch import Tensor

from autokd.augment.counters import uniform
from autokd.engine.passes import PASSES
from autokd.objectives.boundary import base_rows, boundary_rows, target_classes
from autokd.objectives.logits import kl_rows, mean_over
from autokd.protocols import Outputs, Samples
from autokd.recipe import TermSpec

LABELS = [0, 1, 2, 3, 4, 0, 1, 2]
LINEAR = torch.tensor([[2.0, 0, 1], [0, 1, -1]], dtype=torch.float64)
FAR = 1e6  # a range that clamps nothing


def linear(x: Tensor, of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """A teacher of two classes, z = Wx."""
    leaf = x.detach().requires_grad_()
    logits = leaf @ LINEAR.T
    return logits.detach(), torch.autograd.grad(of(logits), leaf)[0]


def pair(n: int = 8, correct: bool = True) -> tuple[Outputs, Outputs]:
    """Networks that classify all rows rightly, or none."""
    labels = [(label + (not correct)) % 5 for label in LABELS[:n]]
    return tuple(right(random_outputs(seed, n=n), labels, by=9.0) for seed in (0, 1))  # type: ignore[return-value]


# ---- the attack


def test_first_step_on_a_linear_teacher() -> None:
    x = torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
    moved = boundary_rows(x, torch.tensor([1]), linear, 1, 0.3, -FAR, FAR)
    assert (moved - x)[0].tolist() == pytest.approx(
        [-0.40002, 0.20001, -0.40002], rel=1e-9
    )  # amkd.linear_teacher.first_step


def test_a_row_flips_after_five_steps_and_then_stays() -> None:
    x = torch.tensor([[1.0, 0, 0], [10, 0, 0]], dtype=torch.float64)
    found = {n: boundary_rows(x, torch.tensor([1, 1]), linear, n, 0.3, -FAR, FAR) for n in (4, 5, 6, 40)}
    says = {n: (moved @ LINEAR.T).argmax(1).tolist() for n, moved in found.items()}
    assert says[4] == [0, 0] and says[5] == [1, 0], "the other row goes on"  # amkd.linear_teacher.steps_to_flip
    assert torch.equal(found[5][0], found[6][0]) and torch.equal(found[5][0], found[40][0])
    assert says[40] == [1, 1]
    logits = found[40] @ LINEAR.T
    assert bool(((logits[:, 1] - logits[:, 0]) < 1e-4).all()), "just across"


def test_rows_stay_within_the_range_of_the_data_and_flat_teachers_move_nothing() -> None:
    x = torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
    moved = boundary_rows(x, torch.tensor([1]), linear, 5, 0.3, 0.0, 1.0)
    assert float(moved.min()) == 0 and float(moved.max()) <= 1
    flat = boundary_rows(x, torch.tensor([1]), lambda x, of: (torch.ones(1, 2), 0 * x), 5, 0.3, 0.0, 1.0)
    assert torch.equal(flat, x)


# ---- which rows, and where to


def test_target_classes_are_drawn_in_proportion_to_the_teacher() -> None:
    n = 20_000
    logits = torch.tensor([[2.0, 0.0, 1.0, 5.0, -1.0]]).expand(n, -1)
    for y in (0, 3, 4):
        found = torch.bincount(target_classes(logits, torch.full((n,), y), uniform(0, 0, torch.arange(n))), minlength=5)
        p = logits[0].softmax(0)
        p[y] = 0
        assert found[y] == 0
        assert (found / n).tolist() == pytest.approx((p / p.sum()).tolist(), abs=0.015)


@pytest.mark.parametrize("random", [0.0, 1 - 2.0**-24])
def test_a_target_is_always_another_class(random: float) -> None:
    for logits in (torch.zeros(5, 5), 6e4 * torch.eye(5), -6e4 * torch.eye(5)):
        y = torch.arange(5)
        k = target_classes(logits, y, torch.full((5,), random))
        assert bool((k != y).all()) and int(k.min()) >= 0 and int(k.max()) < 5
    assert target_classes(torch.zeros(2, 2), torch.tensor([0, 1]), torch.full((2,), random)).tolist() == [1, 0]


def test_base_rows_are_those_both_know_and_differ_on_most() -> None:
    y = torch.tensor([0, 1, 2, 0])
    teacher = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 0, 9], [0, 9, 0]])
    student = torch.tensor([[9.0, 0, 0], [0, 1, 0.9], [0, 9, 0], [9, 0, 0]])
    indices, fit = base_rows(student, teacher, y, 3)
    assert indices[:2].tolist() == [1, 0] and fit.tolist() == [True, True, False]
    gaps = (teacher.softmax(1) - student.softmax(1)).square()
    assert gaps[1, [0, 2]].sum() > gaps[0, [1, 2]].sum()


# ---- the objective


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_one_base_row_keeps_its_axis_and_none_give_nothing(n: int) -> None:
    for correct in (True, False):
        student, teacher = pair(n, correct)
        student, leaves = with_gradient(student)
        ask = FakeAsk(student, teacher)
        terms = called(built("amkd", student, teacher), student, teacher, batch_of(LABELS[:n]), ask=ask)
        assert everything_finite(terms, [*leaves, *ask.network.parameters()])
        assert (number(terms["boundary"]) > 0) is correct
        if not correct:
            assert sum(map(number, terms.values())) == 0


def test_rows_that_are_not_fit_do_not_count() -> None:
    """Of two chosen rows one is fit: the loss is that of the fit one alone."""
    student, teacher = pair()
    wrong = torch.tensor([row != 3 for row in range(8)])
    logits = torch.where(wrong[:, None], -teacher.logits, teacher.logits)
    teacher = Outputs(logits, teacher.embedding, teacher.stages)
    batch, ask = batch_of(LABELS), FakeAsk(student, teacher)
    found = called(built("amkd", student, teacher, mu=0.0), student, teacher, batch, ask=ask)
    three = torch.tensor([3])
    alone = type(batch)(batch.x[three], batch.y[three], batch.index[three], batch.view[three], torch.tensor([0]))
    own = called(built("amkd", student, teacher, mu=0.0), rows(student, three), rows(teacher, three), alone, ask=ask)
    assert number(found["boundary"]) == pytest.approx(number(own["boundary"]), rel=1e-5)


def test_without_triplets_and_t2_it_is_the_published_boundary_loss() -> None:
    """Cross-entropy at T without T²: KL up to the teacher's entropy, which has no gradient."""
    student, teacher = pair()
    batch, ask = batch_of(LABELS), FakeAsk(student, teacher)
    objective = built("amkd", student, teacher, mu=0.0, t2=False, beta=2.0)
    found = called(objective, student, teacher, batch, ask=ask)
    chosen, fit = base_rows(student.logits, teacher.logits, batch.y, 2)
    assert bool(fit.all()) and number(found["triplet"]) == 0
    k = target_classes(teacher.logits, batch.y, ask.uniform(10, batch.index, batch.view))[chosen]
    x = boundary_rows(batch.x[chosen], k, ask.slope, 10, 0.075, 0.0, 1.0)
    own, other = ask.network(x).logits, ask.frozen(x).logits.detach()
    p = (other / 3).softmax(1)
    entropy = -(p * p.log()).sum(1)
    expected = 2 * (kl_rows(own, other, 3.0) + entropy).mean()
    assert number(found["boundary"]) == pytest.approx(number(expected), rel=1e-5)
    gradients = [
        torch.autograd.grad(loss, ask.network.layers[0], retain_graph=True)[0]
        for loss in (found["boundary"], 2 * kl_rows(own, other, 3.0).mean())
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    with_t2 = called(built("amkd", student, teacher, mu=0.0), student, teacher, batch)
    assert number(with_t2["boundary"]) == pytest.approx(9 * number(found["boundary"]), rel=1e-5)


@pytest.mark.parametrize("positive", ["teacher", "student"])
def test_triplets_by_their_definition(positive: str) -> None:
    student, teacher = pair()
    batch, ask = batch_of(LABELS), FakeAsk(student, teacher)
    objective = built("amkd", student, teacher, portion=0.5, mu=3.0, margin=40.0, positive=positive)
    found = number(called(objective, student, teacher, batch, ask=ask)["triplet"])
    chosen, _ = base_rows(student.logits, teacher.logits, batch.y, 4)
    k = target_classes(teacher.logits, batch.y, ask.uniform(10, batch.index, batch.view))[chosen]
    x = boundary_rows(batch.x[chosen], k, ask.slope, 10, 0.075, 0.0, 1.0)
    own, other = ask.network(x).logits, ask.frozen(x).logits
    possible = []
    for n in range(4):
        a, p = own[n], (other[n] if positive == "teacher" else student.logits[chosen[n]])
        negatives = [student.logits[m] for m in range(8) if LABELS[m] == int(k[n])]
        possible.append([float(((a - p + 1e-6).norm() - (a - q + 1e-6).norm() + 40).relu()) for q in negatives])
    assert all(possible), "every class is in the batch"
    assert 3 * sum(map(min, possible)) / 4 - 1e-3 <= found <= 3 * sum(map(max, possible)) / 4 + 1e-3
    assert found > 0


def test_a_triplet_whose_class_is_not_in_the_batch_is_left_out() -> None:
    student, teacher = pair()
    same = [3] * 8
    student, teacher = (right(each, same, by=50.0) for each in (student, teacher))
    student, leaves = with_gradient(student)
    ask = FakeAsk(student, teacher)
    terms = called(built("amkd", student, teacher), student, teacher, batch_of(same), ask=ask)
    assert number(terms["triplet"]) == 0 and number(terms["boundary"]) > 0
    assert everything_finite(terms, [*leaves, *ask.network.parameters()])


def test_a_class_that_is_not_in_the_batch_is_remembered() -> None:
    """The negative is then the running mean of its logits, and what is remembered is part of the state."""
    student, teacher = pair()
    objective = built("amkd", student, teacher, margin=40.0, mu=1.0)
    called(objective, student, teacher, batch_of(LABELS))
    means = torch.stack([student.logits[torch.tensor(LABELS) == c].mean(0) for c in range(5)])
    torch.testing.assert_close(objective.state_dict()["means"], means)
    same = [3] * 8
    alike = tuple(right(each, same, by=50.0) for each in (student, teacher))
    ask, batch = FakeAsk(*alike), batch_of(same)
    found = called(objective, *alike, batch, ask=ask)["triplet"]
    chosen, _ = base_rows(alike[0].logits, alike[1].logits, batch.y, 2)
    k = target_classes(alike[1].logits, batch.y, ask.uniform(10, batch.index, batch.view))[chosen]
    x = boundary_rows(batch.x[chosen], k, ask.slope, 10, 0.075, 0.0, 1.0)
    own, other = ask.network(x).logits, ask.frozen(x).logits
    far = [(own[n] - means[k[n]] + 1e-6).norm() for n in range(2)]
    expected = sum(((own[n] - other[n] + 1e-6).norm() - far[n] + 40).relu() for n in range(2)) / 2
    assert number(found) == pytest.approx(float(expected), rel=1e-5) and number(found) > 0
    moved = 0.9 * means[3] + 0.1 * alike[0].logits.mean(0)
    torch.testing.assert_close(objective.state_dict()["means"][3], moved)
    torch.testing.assert_close(objective.state_dict()["means"][2], means[2])


def test_rows_in_another_order_are_driven_alike() -> None:
    student, teacher = pair()
    order = torch.tensor([5, 2, 7, 0, 3, 1, 6, 4])
    objective, batch = built("amkd", student, teacher, portion=0.5, margin=40.0), batch_of(LABELS)
    straight = called(objective, student, teacher, batch)
    moved = called(objective, rows(student, order), rows(teacher, order), permuted(batch, order))
    assert {name: number(term) for name, term in moved.items()} == pytest.approx(
        {name: number(term) for name, term in straight.items()}, rel=1e-5
    )
    assert number(straight["triplet"]) > 0


def test_driven_rows_are_clamped_to_the_range_of_the_data() -> None:
    student, teacher = pair()
    ask, asked = FakeAsk(student, teacher), list[Tensor]()
    ask.student = lambda x: asked.append(x) or ask.network(x)  # type: ignore[func-returns-value, assignment]
    objective = built("amkd", student, teacher, eta=5.0)
    objective.know(Samples(torch.arange(10) % 5, (0.3, 0.6)))
    called(objective, student, teacher, batch_of(LABELS), ask=ask)
    assert float(asked[0].min()) == pytest.approx(0.3) and float(asked[0].max()) == pytest.approx(0.6)


@pytest.mark.parametrize(("steps", "portion"), [(1, 0.5), (3, 0.25), (10, 0.125)])
def test_the_attack_is_in_the_cost(steps: int, portion: float) -> None:
    student, teacher = pair()
    ask = FakeAsk(student, teacher)
    objective = built("amkd", student, teacher, steps=steps, portion=portion)
    called(objective, student, teacher, batch_of(LABELS), ask=ask)
    told = PASSES["amkd"]({"steps": steps, "portion": portion})
    assert (ask.asked["student"], ask.asked["teacher"]) == (8 * told.student, 8 * told.teacher)


def test_the_published_schedules_are_those_of_terms() -> None:
    kd = TermSpec.model_validate({"objective": "kd", "weight": 4.0, "schedule": "decay", "floor": 0.25})
    own = TermSpec.model_validate({"objective": "amkd", "weight": 1.0, "schedule": "decay", "share": 0.75})
    at = [epoch / 80 for epoch in (0, 40, 60, 80)]
    assert [kd.weight * kd.factor(e) for e in at] == pytest.approx([4, 2.5, 1.75, 1])  # amkd.alpha.0_40_60_80
    assert [2 * own.factor(e) for e in at] == pytest.approx([2, 2 / 3, 0, 0])  # amkd.beta.0_40_60_80


def test_a_mean_over_no_rows_is_zero() -> None:
    rows = torch.tensor([1.0, torch.inf], requires_grad=True)
    assert number(mean_over(torch.tensor([False, False]), rows)) == 0
    mean = mean_over(torch.tensor([True, False]), rows)
    assert number(mean) == 1 and torch.autograd.grad(mean, rows)[0].tolist() == [1, 0]
