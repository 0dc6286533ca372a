"""crd: what it draws, what it remembers, and its number against the definition written out in NumPy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from losses import FakeAsk, batch_of, called, number, precise_outputs, random_outputs, shapes
from torch import Tensor
from torch.nn import functional

from autokd.errors import RecipeError
from autokd.objectives.contrastive import CRD, contrast
from autokd.protocols import Batch, Outputs, Samples, Shapes

CLASSES = torch.tensor([7, 2, 2, 9, 7, 2, 2, 9, 9, 2, 2, 2])  # of 12 samples: 2, 7 and 3 of a kind


def crd(student: Outputs, teacher: Outputs, y: Tensor = CLASSES, **fields: float) -> CRD:
    torch.manual_seed(0)
    objective = CRD(**{"negatives": 16, "dim": 8, **fields})
    objective.know(Samples(y))
    objective.build(shapes(student), shapes(teacher))
    return objective.to(student.logits.dtype)


def views(index: list[int], view: list[int], parent: list[int]) -> Batch:
    rows = torch.tensor(index)
    return Batch(torch.zeros(len(rows), 1), CLASSES[rows], rows, torch.tensor(view), torch.tensor(parent))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def projected(objective: CRD, student: Outputs, teacher: Outputs) -> tuple[np.ndarray, np.ndarray]:
    pairs = (objective.project_student, student.embedding), (objective.project_teacher, teacher.embedding)
    own, other = (unit(layer(embedding).detach().numpy()) for layer, embedding in pairs)
    return own, other


# ---- the loss


def test_crd_by_its_definition_in_two_steps() -> None:
    """Step by step: Z is of the first batch, memories are those of the step before."""
    student, teacher, batch = precise_outputs(0), precise_outputs(1), batch_of([0] * 6, torch.float64)
    objective = crd(student, teacher, tau=0.1, momentum=0.3)
    own, other = projected(objective, student, teacher)
    memories = [objective.of_teachers.numpy().copy(), objective.of_students.numpy().copy()]
    drawn = objective._drawn(batch, FakeAsk(student, teacher)).numpy()
    normalisers: list[float] = []
    for step in range(2):
        expected = 0.0
        for direction, rows in enumerate((own, other)):
            memory = memories[direction]
            likeness = np.array([[np.exp(row @ memory[k] / 0.1) for k in (n, *drawn[n])] for n, row in enumerate(rows)])
            if step == 0:
                normalisers.append(12 * likeness.mean())
            p, noise = likeness / normalisers[direction], 16 / 12
            per_row = np.log(p[:, 0] / (p[:, 0] + noise + 1e-7)) + np.log(noise / (p[:, 1:] + noise + 1e-7)).sum(1)
            expected -= per_row.mean()
        assert number(called(objective, student, teacher, batch)["crd"]) == pytest.approx(expected, rel=1e-9)
        for memory, rows in zip(memories, (other, own), strict=True):
            memory[:6] = unit(0.3 * memory[:6] + 0.7 * rows)
    assert objective.normalisers.tolist() == pytest.approx(normalisers)
    assert np.allclose(objective.of_teachers.numpy(), memories[0]) and np.allclose(objective.of_students, memories[1])


def test_crd_draws_a_row_to_its_own_sample_and_away_from_others() -> None:
    student, teacher, batch = precise_outputs(0), precise_outputs(1), batch_of([0] * 6, torch.float64)
    objective = crd(student, teacher)
    own, other = projected(objective, student, teacher)
    near, far = copy.deepcopy(objective), copy.deepcopy(objective)
    called(objective, student, teacher, batch)
    for each, sign in ((near, 1.0), (far, -1.0)):
        each.normalisers.copy_(objective.normalisers)
        each.of_teachers[:6] = sign * torch.from_numpy(own)
        each.of_students[:6] = sign * torch.from_numpy(other)
    assert number(called(near, student, teacher, batch)["crd"]) < number(called(far, student, teacher, batch)["crd"])


def test_crd_at_first_remembers_rows_of_about_unit_norm() -> None:
    student = random_outputs(0)
    memory = crd(student, student, torch.arange(2000) % 2, dim=128).of_students
    assert float(memory.square().sum(1).mean()) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("negatives", [16, 4096])
def test_crd_of_rows_that_are_all_alike(negatives: int) -> None:
    """Likelihood 1/n of everything: a sample is told from K others by chance."""
    likelihood = torch.full((3, 1 + negatives), 1 / 50, dtype=torch.float64)
    expected = np.log(1 + negatives) + negatives * np.log(1 + 1 / negatives)
    assert number(contrast(likelihood, negatives, 50)) == pytest.approx(expected, rel=1e-5)


# ---- negatives


def test_negatives_are_of_other_classes_and_all_of_them_equally_often() -> None:
    student = random_outputs(0)
    objective = crd(student, student, negatives=3000)
    batch = views([0, 1, 3, 11], [0] * 4, [0, 1, 2, 3])
    for sample, negatives in zip(batch.index.tolist(), objective._drawn(batch, FakeAsk(student, student)), strict=True):
        others = (CLASSES[sample] != CLASSES).nonzero().flatten()
        counts = torch.bincount(negatives, minlength=len(CLASSES))
        assert torch.equal(counts.nonzero().flatten(), others)
        assert counts[others].float().numpy() == pytest.approx(3000 / len(others), rel=0.2)


def test_the_extremes_of_a_draw_are_the_first_and_the_last_sample_of_other_classes() -> None:
    class Extreme(FakeAsk):
        def __init__(self, chance: float) -> None:
            super().__init__(student, student)
            self.chance = chance

        def uniform(self, *counters: Tensor | int) -> Tensor:
            return torch.full((3, 16), self.chance)

    student = random_outputs(0)
    y = torch.arange(60_001) % 3
    objective, batch = crd(student, student, y), batch_of([0, 1, 2])
    assert objective._drawn(batch, Extreme(0.0))[:, 0].tolist() == [1, 0, 0]
    assert objective._drawn(batch, Extreme(1 - 2.0**-24))[:, 0].tolist() == [59_999, 59_999, 60_000 - 2]


def test_every_row_and_view_has_negatives_of_its_own_whatever_is_in_its_batch() -> None:
    student = random_outputs(0)
    objective = crd(student, student)
    drawn = objective._drawn(views([1, 3, 1], [0, 0, 1], [0, 1, 0]), FakeAsk(student, student))
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(objective._drawn(views([5, 1], [0, 1], [0, 0]), FakeAsk(student, student))[1], drawn[2])


# ---- memory


def test_of_several_views_the_base_row_is_remembered() -> None:
    student, teacher = precise_outputs(0), precise_outputs(1)
    objective = crd(student, teacher)
    own, _ = projected(objective, student, teacher)
    before = objective.of_students.numpy().copy()
    called(objective, student, teacher, views([4, 0, 2, 4, 2, 4], [0, 0, 0, 1, 1, 2], [0, 1, 2, 0, 2, 0]))
    after, rows = objective.of_students.numpy(), [4, 0, 2]
    assert np.allclose(after[rows], unit(0.5 * before[rows] + 0.5 * own[:3]))
    others = [k for k in range(12) if k not in rows]
    assert np.array_equal(after[others], before[others])


def test_a_checkpoint_holds_memories_and_normalisers_but_not_the_labels() -> None:
    student, teacher = random_outputs(0), random_outputs(1)
    objective = crd(student, teacher)
    assert objective.normalisers.tolist() == [-1, -1]
    called(objective, student, teacher, batch_of([0] * 6))
    assert bool((objective.normalisers > 0).all())
    learned = {f"project_{who}.{part}" for who in ("student", "teacher") for part in ("weight", "bias")}
    assert set(objective.state_dict()) == {"of_students", "of_teachers", "normalisers", *learned}
    other = crd(student, teacher)
    other.load_state_dict(objective.state_dict())
    batch = views([4, 0, 2, 4, 2, 4], [0, 0, 0, 1, 1, 2], [0, 1, 2, 0, 2, 0])
    for _ in range(2):
        assert called(other, student, teacher, batch) == called(objective, student, teacher, batch)


def test_gradients_are_those_of_a_memory_that_stays() -> None:
    """What is written after the loss does not reach its gradient."""
    student, teacher, batch = precise_outputs(0), precise_outputs(1), batch_of([0] * 6, torch.float64)
    objective = crd(student, teacher)
    still = crd(student, teacher, momentum=1.0)  # beyond its range: memories keep their direction
    memory = functional.normalize(objective.of_students, dim=1), functional.normalize(objective.of_teachers, dim=1)
    gradients = []
    for each in (objective, still):
        each.of_students.copy_(memory[0])
        each.of_teachers.copy_(memory[1])
        called(each, student, teacher, batch)["crd"].backward()
        gradients.append(each.project_student.weight.grad)
    torch.testing.assert_close(*gradients)


# ---- what it refuses


def test_crd_needs_classes() -> None:
    with pytest.raises(RecipeError, match="need 2 classes or more, got 1 in 5 rows; use"):
        CRD().know(Samples(torch.zeros(5, dtype=torch.int64)))
    with pytest.raises(RecipeError, match=r"'crd' needs one class per sample, labels have shape \(4, 4\); use kd"):
        CRD().know(Samples(torch.zeros(5, 4, 4, dtype=torch.int64)))


def test_crd_needs_somebody_to_ask() -> None:
    student = random_outputs(0)
    with pytest.raises(RecipeError, match="'crd' asks for rows of its own.*train it in"):
        crd(student, student)(student, student, batch_of([0] * 6))


def test_samples_may_have_any_number_per_class() -> None:
    student = random_outputs(0, n=3)
    objective = CRD(negatives=16)
    objective.know(Samples(torch.tensor([5, 5, 1])))
    objective.build(Shapes(5, 7), Shapes(5, 7))
    batch = batch_of([5, 5, 1])
    drawn = objective._drawn(batch, FakeAsk(student, student))
    assert set(drawn[0].tolist()) == {2} and set(drawn[2].tolist()) == {0, 1}
    assert number(called(objective, student, student, batch)["crd"]) > 0
