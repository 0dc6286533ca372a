"""Numbers and identities of the losses of metric learning: triplet, triplet_embedding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from losses import (
    FakeAsk,
    batch_of,
    built,
    called,
    everything_finite,
    number,
    random_outputs,
    reference,
    rows,
    total,
    with_gradient,
)
from torch import Tensor, nn
from torch.nn import functional

from autokd.engine.passes import PASSES
from autokd.objectives.metric import all_apart, apart
from autokd.protocols import Outputs

LABELS = [0, 1, 2, 3, 4, 0]
NEGATIVES = [[2 * np.sin(0.4 * i + 0.9 * j + 1) for j in range(5)] for i in range(4)]
IN_BATCH = ("random", "semi-hard", "hardest", "all")
TRIPLETS = pytest.mark.parametrize("name", ["triplet", "triplet_embedding"])


class Says(FakeAsk):
    """A student that says the same of whatever it is asked."""

    def __init__(self, student: Outputs, teacher: Outputs, logits: Tensor) -> None:
        super().__init__(student, teacher)
        self.logits, self.seen = logits, list[Tensor]()

    def student(self, x: Tensor) -> Outputs:
        return Outputs(self.logits)

    def base(self, index: Tensor) -> Tensor:
        self.seen.append(index)
        return super().base(index)


def compared(name: str, student: Outputs, teacher: Outputs, labels: list[int], **fields: float | str) -> float:
    return number(total(called(built(name, student, teacher, **fields), student, teacher, batch_of(labels))))


# ---- the published form


def test_triplet_reference_number() -> None:
    student, teacher, batch = reference()
    negatives = torch.tensor(NEGATIVES, dtype=torch.float64)
    ask = Says(student, teacher, negatives)
    objective = built("triplet", student, teacher)
    found = called(objective, student, teacher, batch, ask=ask)["triplet"]
    assert number(found) == pytest.approx(3.368111930640746, rel=1e-9)  # triplet.m5
    official = nn.TripletMarginLoss(margin=5)(teacher.logits, student.logits, negatives)
    assert number(found) == pytest.approx(number(official), rel=1e-12)
    kd = built("kd", student, teacher, temperature=1.0)(student, teacher, batch)["kd"]
    whole = kd + functional.cross_entropy(student.logits, batch.y) + 2 * found
    assert number(whole) == pytest.approx(9.757564588, rel=1e-9)  # triplet.total.lambda1.mu2
    [drawn] = ask.seen
    assert bool((drawn % 5 != batch.y).all()), "sample i has the class i modulo 5"


def test_the_gradient_reaches_the_student_on_the_drawn_rows_and_stays_below_the_margin() -> None:
    student, teacher = random_outputs(0), random_outputs(1)
    student, leaves = with_gradient(student)
    for margin, reached in ((5.0, True), (-1e3, False)):
        ask, objective = FakeAsk(student, teacher), built("triplet", student, teacher)
        objective.margin = margin
        called(objective, student, teacher, batch_of(LABELS), ask=ask)["triplet"].backward()
        assert bool(ask.network.layers[0].grad.any()) is reached  # type: ignore[union-attr]
        assert bool(leaves[0].grad.any()) is reached  # type: ignore[union-attr]
        leaves[0].grad = None


def test_views_of_one_image_draw_samples_of_their_own() -> None:
    student, teacher = random_outputs(0, n=4), random_outputs(1, n=4)
    batch, ask = batch_of([0, 1, 0, 1]), Says(student, teacher, student.logits)
    twice = torch.tensor([0, 1, 0, 1])
    views = type(batch)(batch.x, batch.y, twice, torch.tensor([0, 0, 1, 1]), twice)
    called(built("triplet", student, teacher), student, teacher, views, ask=ask)
    [drawn] = ask.seen
    assert not torch.equal(drawn[:2], drawn[2:])


def test_from_the_student_as_anchor_the_teacher_is_asked() -> None:
    student, teacher = random_outputs(0), random_outputs(1)
    ask = FakeAsk(student, teacher)
    terms = called(built("triplet", student, teacher, anchor="student"), student, teacher, batch_of(LABELS), ask=ask)
    assert number(terms["triplet"]) > 0 and dict(ask.asked) == {"teacher": 6}
    told = PASSES["triplet"]({"anchor": "student"})
    assert (told.student, told.teacher) == (0, 1)


@pytest.mark.parametrize("negatives", IN_BATCH)
def test_negatives_in_the_batch_cost_no_pass(negatives: str) -> None:
    student, teacher = random_outputs(0), random_outputs(1)
    ask = FakeAsk(student, teacher)
    called(built("triplet", student, teacher, negatives=negatives), student, teacher, batch_of(LABELS), ask=ask)
    assert not ask.asked and PASSES["triplet"]({"negatives": negatives}).student == 0


# ---- distances


@pytest.mark.parametrize("metric", ["l2", "squared", "cosine"])
def test_distances_of_all_rows_are_those_of_single_ones(metric: str) -> None:
    student, teacher, _ = reference()
    a, b = teacher.logits, student.logits
    both = all_apart(a, b, metric)
    torch.testing.assert_close(both.diagonal(), apart(a, b, metric), rtol=1e-9, atol=1e-12)
    for shift in (1, 2, 3):
        torch.testing.assert_close(
            both.roll(-shift, 1).diagonal(), apart(a, b.roll(-shift, 0), metric), rtol=1e-9, atol=1e-12
        )
    squares = (a - b + 1e-6).square().sum(1)
    expected = {"l2": squares.sqrt(), "squared": squares, "cosine": 1 - torch.cosine_similarity(a, b)}[metric]
    torch.testing.assert_close(apart(a, b, metric), expected)


# ---- negatives in the batch, by their definition


def by_definition(s: np.ndarray, t: np.ndarray, negatives: str, margin: float, form: str) -> float:
    near = [np.linalg.norm(t[n] - s[n]) for n in range(len(s))]
    short, pairs = [], [distance**2 for distance in near]
    for n, label in enumerate(LABELS):
        far = sorted(np.linalg.norm(t[n] - s[k]) for k, other in enumerate(LABELS) if other != label)
        beyond = [distance for distance in far if distance > near[n]]
        chosen = {"all": far, "hardest": far[:1], "semi-hard": beyond[:1] or far[-1:]}[negatives]
        short.append(np.mean([max(0.0, near[n] - distance + margin) for distance in chosen]))
        pairs.append(np.mean([max(0.0, margin - distance) ** 2 for distance in chosen]))
    return float(np.mean(short if form == "triplet" else pairs))


@pytest.mark.parametrize("negatives", ["all", "hardest", "semi-hard"])
@pytest.mark.parametrize("form", ["triplet", "pair"])
@pytest.mark.parametrize("margin", [0.5, 5.0])
@pytest.mark.parametrize("gain", [1.0, 3.0])  # with rows far apart some have no negative beyond their own
def test_negatives_in_the_batch_by_their_definition(negatives: str, form: str, margin: float, gain: float) -> None:
    student, teacher = random_outputs(0), random_outputs(1, scale=gain)
    s, t = student.logits.double().numpy(), teacher.logits.double().numpy()
    found = compared("triplet", student, teacher, LABELS, margin=margin, negatives=negatives, form=form)
    assert found == pytest.approx(by_definition(s, t, negatives, margin, form), rel=1e-4)


def test_a_random_negative_is_one_of_another_class_and_all_are_their_mean() -> None:
    student, teacher = random_outputs(0), random_outputs(1)
    found = []
    for start in range(0, 600, 6):
        batch = batch_of(LABELS)
        other = type(batch)(batch.x, batch.y, batch.index + start, batch.view, batch.parent)
        objective = built("triplet", student, teacher, negatives="random")
        found.append(number(called(objective, student, teacher, other)["triplet"]))
    assert np.mean(found) == pytest.approx(compared("triplet", student, teacher, LABELS, negatives="all"), rel=0.05)
    assert len(set(found)) > 50


@pytest.mark.parametrize("negatives", IN_BATCH)
@pytest.mark.parametrize("fields", [{}, {"form": "pair"}, {"anchor": "student"}, {"metric": "cosine"}], ids=str)
def test_rows_without_another_class_have_no_negatives(negatives: str, fields: dict[str, str]) -> None:
    student, leaves = with_gradient(random_outputs(0))
    teacher = random_outputs(1)
    objective = built("triplet", student, teacher, negatives=negatives, **fields)
    alone = called(objective, student, teacher, batch_of([3] * 6))["triplet"]
    (gradient,) = torch.autograd.grad(alone, leaves[0])
    if fields.get("form") == "pair":
        assert number(alone) == pytest.approx(float(apart(teacher.logits, student.logits).square().mean()), rel=1e-5)
    else:
        assert number(alone) == 0 and not gradient.any()
    some = called(objective, student, teacher, batch_of([3, 3, 3, 3, 3, 1]))
    assert everything_finite(some, leaves) and number(some["triplet"]) > 0


@pytest.mark.parametrize("negatives", IN_BATCH)
def test_it_is_zero_where_all_keep_the_margin(negatives: str) -> None:
    corners = 100 * torch.eye(5)
    teacher = Outputs(corners, corners)
    student, leaves = with_gradient(Outputs(corners + 0.1, corners))
    for margin in (5.0, 50.0):  # corners are 141 apart
        objective = built("triplet", student, teacher, negatives=negatives, margin=margin)
        terms = called(objective, student, teacher, batch_of([0, 1, 2, 3, 4]))
        assert number(terms["triplet"]) == 0 and not torch.autograd.grad(terms["triplet"], leaves[0])[0].any()


def test_the_student_is_pushed_from_its_own_rows_or_from_the_teachers() -> None:
    student, teacher = random_outputs(0), random_outputs(1)
    mirrored = compared("triplet", student, teacher, LABELS, anchor="student", negatives="all")
    plain, exchanged = (
        compared("triplet", *who, LABELS, negatives="all") for who in ((student, teacher), (teacher, student))
    )
    assert mirrored == pytest.approx(exchanged, rel=1e-4)
    assert mirrored != pytest.approx(plain, rel=1e-3)


@TRIPLETS
@pytest.mark.parametrize("metric", ["l2", "squared", "cosine"])
@pytest.mark.parametrize("form", ["triplet", "pair"])
@pytest.mark.parametrize("negatives", ["dataset", *IN_BATCH])
def test_rows_that_lie_together_have_finite_gradients(name: str, metric: str, form: str, negatives: str) -> None:
    teacher = random_outputs(1)
    student, leaves = with_gradient(rows(teacher, torch.tensor([1, 0, 1, 1, 4, 5])))  # other classes' points exactly
    objective = built(name, student, teacher, metric=metric, form=form, negatives=negatives)
    if name == "triplet_embedding":
        nn.init.eye_(objective.projection.weight), nn.init.zeros_(objective.projection.bias)
    assert everything_finite(called(objective, student, teacher, batch_of(LABELS)), leaves)


# ---- what is compared


def test_probabilities_are_compared_as_such() -> None:
    student, teacher = random_outputs(0), random_outputs(1)
    soft = [Outputs(each.logits.softmax(1), each.embedding, each.stages) for each in (student, teacher)]
    found = compared("triplet", student, teacher, LABELS, space="probabilities", negatives="all", margin=1.0)
    assert found == pytest.approx(compared("triplet", *soft, LABELS, negatives="all", margin=1.0), rel=1e-6)


def test_embeddings_are_compared_at_the_teachers_width() -> None:
    student, teacher = random_outputs(0), random_outputs(1, width=9)
    objective = built("triplet_embedding", student, teacher, negatives="all")
    assert objective.projection.weight.shape == (9, 7)
    own = objective.projection(student.embedding).detach()
    as_logits = Outputs(own, own), Outputs(teacher.embedding, teacher.embedding)  # type: ignore[arg-type]
    found = number(total(called(objective, student, teacher, batch_of(LABELS))))
    assert found == pytest.approx(compared("triplet", *as_logits, LABELS, negatives="all"), rel=1e-5)
