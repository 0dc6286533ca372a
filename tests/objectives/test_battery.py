"""Every registered objective passes the same battery; then numbers and identities of single ones; test_blocks.py has the rest.

Reference numbers come from an independent NumPy program; the names after them are its names.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from losses import (
    FakeAsk,
    batch_of,
    built,
    called,
    everything_finite,
    headed,
    number,
    permuted,
    precise_outputs,
    random_outputs,
    reference,
    right,
    rotated,
    rows,
    total,
    with_gradient,
)
from torch import Tensor

from autokd.core.headed import HEADS, with_heads
from autokd.engine.passes import PASSES, Passes
from autokd.errors import RecipeError
from autokd.objectives import OBJECTIVES
from autokd.objectives.features import stage_pairs
from autokd.objectives.logits import decoupled_rows, kl_rows
from autokd.objectives.relations import relations
from autokd.protocols import Batch, Objective, Outputs, Samples, Shapes
from autokd.recipe import TermSpec

DOCS = Path(__file__).parents[2] / "docs"
METHODS = "\n".join(
    path.read_text(encoding="utf-8") for path in (DOCS / "methods.md", *(DOCS / "methods").glob("*.md"))
)
EVERY = pytest.mark.parametrize("name", OBJECTIVES)
LABELS = [0, 1, 2, 3, 4, 0]
KINDS = ["logits", "embedding", *["stages"] * 3]  # of the leaves of random outputs


# ---- the battery


@EVERY
class TestEveryObjective:
    def test_constructor_takes_its_fields_with_their_defaults_by_keyword(self, name: str) -> None:
        objective = OBJECTIVES[name]
        taken = inspect.signature(objective).parameters
        if objective.__init__ is Objective.__init__:
            assert not objective.fields
            return
        assert {field: rule.default for field, rule in objective.fields.items()} == {
            field: parameter.default for field, parameter in taken.items()
        }
        assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in taken.values())
        assert all(rule.broken_by(rule.default) is None and rule.about for rule in objective.fields.values())

    def test_declarations_are_sane(self, name: str) -> None:
        objective = OBJECTIVES[name]
        low, high = objective.weight_range
        assert objective.needs <= {"logits", "embedding", "stages"} and objective.needs
        assert 0 < low <= objective.default_weight <= high
        assert not set(objective.fields) & set(TermSpec.model_fields), "a term would take it for its own"

    def test_is_documented(self, name: str) -> None:
        assert re.search(rf"^##+ `{name}`", METHODS, re.MULTILINE)

    def test_needs_say_what_is_read(self, name: str) -> None:
        """Of the step's rows, or of those that it asks for."""
        student, teacher, other = (right(random_outputs(seed), LABELS) for seed in range(3))
        ask, (watched, _) = FakeAsk(student, teacher), with_gradient(student)
        terms = called(built(name, student, teacher), watched, teacher, step_of(name), ask=ask)
        gradients = torch.autograd.grad(total(terms), list(ask.network.parameters()), allow_unused=True)
        read = {kind for kind, gradient in zip(KINDS, gradients, strict=True) if gradient is not None}
        plain = numbers(name, student, teacher)
        for kind in set(KINDS):
            if numbers(name, replace(student, **{kind: getattr(other, kind)}), teacher) != plain:
                read.add(kind)
        assert read == OBJECTIVES[name].needs

    def test_terms_are_named_finite_non_negative_scalars(self, name: str) -> None:
        student, teacher = right(random_outputs(0), LABELS), right(random_outputs(1, width=9), LABELS)
        terms = called(built(name, student, teacher), student, teacher, step_of(name))
        assert terms
        assert all(term.shape == () and term.dtype == torch.float32 and number(term) > 0 for term in terms.values())

    def test_zero_and_finite_gradient_at_equality(self, name: str) -> None:
        teacher = right(random_outputs(3), LABELS)
        student, leaves = with_gradient(teacher)
        found = number(total(finite_terms(name, student, teacher, step_of(name), leaves)))
        if OBJECTIVES[name].divergence:
            assert found == pytest.approx(0, abs=2e-6)
        else:
            assert found > 1e-3

    def test_gradient_reaches_the_student_and_never_the_teacher(self, name: str) -> None:
        student, student_leaves = with_gradient(right(random_outputs(0), LABELS))
        teacher, teacher_leaves = with_gradient(right(random_outputs(1), LABELS))
        objective, ask = built(name, student, teacher), FakeAsk(student, teacher)
        total(called(objective, student, teacher.detach(), step_of(name), ask=ask)).backward()
        of_student = [*student_leaves, *ask.network.parameters()]
        of_teacher = [*teacher_leaves, *ask.frozen.parameters()]
        assert all(leaf.grad is None for leaf in of_teacher)
        assert sum(float(leaf.grad.abs().sum()) for leaf in of_student if leaf.grad is not None) > 0
        assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in learned(objective))

    @pytest.mark.parametrize("by", [0.0, 4.0], ids=["mostly wrong", "mostly right"])
    def test_order_of_rows_does_not_matter(self, name: str, by: float) -> None:
        student, teacher = precise_pair(by)
        batch, order = step_of(name, LABELS, torch.float64), torch.tensor([2, 0, 3, 5, 1, 4])
        moved = numbers(name, rows(student, order), rows(teacher, order), permuted(batch, order))
        assert moved == pytest.approx(numbers(name, student, teacher, batch), rel=1e-12)

    def test_pairing_of_rows_matters_to_those_that_listen_and_the_teacher_to_no_others(self, name: str) -> None:
        student, teacher = precise_pair()
        plain = sum(numbers(name, student, teacher).values())
        shuffled = sum(numbers(name, student, rows(teacher, torch.tensor([1, 2, 3, 4, 5, 0]))).values())
        assert (shuffled != pytest.approx(plain, rel=1e-5)) if OBJECTIVES[name].listens else (shuffled == plain)

    def test_row_weights(self, name: str) -> None:
        student, teacher = precise_pair()
        batch, objective = step_of(name, LABELS, torch.float64), OBJECTIVES[name]

        def weighed(*weights: float) -> float:
            given = torch.tensor(weights, dtype=torch.float64) if weights else None
            return sum(numbers(name, student, teacher, batch, given).values())

        plain = weighed()
        assert weighed(*[1] * 6) == pytest.approx(plain, rel=1e-12)
        factor = 2 if objective.row_weighted else 1
        assert weighed(*[2] * 6) == pytest.approx(factor * plain, rel=1e-12)
        if objective.row_weighted:
            kept = torch.tensor([0, 3, 4])
            few = step_of(name, [LABELS[k] for k in kept.tolist()], torch.float64)
            alone = sum(numbers(name, rows(student, kept), rows(teacher, kept), few).values())
            assert weighed(2, 0, 0, 2, 2, 0) == pytest.approx(alone, rel=1e-12)

    def test_dials_may_be_scalars_on_a_device(self, name: str) -> None:
        """Every float field is one: a search varies it, and trials that differ in it alone share a recorded step."""
        student, teacher = precise_pair()
        objective = built(name, student, teacher)
        assert objective.dials == {field for field, rule in objective.fields.items() if rule.kind == "float"}
        for field in objective.dials:
            setattr(objective, field, torch.tensor(getattr(objective, field), dtype=torch.float64))
        found = called(objective, student, teacher, step_of(name, LABELS, torch.float64))
        plain = numbers(name, student, teacher)
        assert {key: number(term) for key, term in found.items()} == pytest.approx(plain, rel=1e-12)

    @pytest.mark.parametrize("scale", [0.0, 1e-4, 50.0, 2e4])  # the largest number of half precision is 6.5e4
    def test_extreme_values_stay_finite(self, name: str, scale: float) -> None:
        loud = max(50.0, scale)
        student, leaves = with_gradient(random_outputs(0))
        student = Outputs(loud * leaves[0].sign(), scale * leaves[1], tuple(scale * leaf for leaf in leaves[2:]))
        student.logits.retain_grad()
        teacher = random_outputs(1, scale=scale)
        teacher = replace(teacher, logits=loud * teacher.logits.sign())
        fields = {"temperature": 0.5} if "temperature" in OBJECTIVES[name].fields else {}
        finite_terms(name, student, teacher, step_of(name), [student.logits, *leaves[1:]], **fields)

    @pytest.mark.parametrize(("n", "classes"), [(1, 5), (1, 2), (4, 2), (2, 3)])
    def test_small_batches_and_few_classes(self, name: str, n: int, classes: int) -> None:
        teacher = random_outputs(1, n=n, classes=classes)
        student, leaves = with_gradient(random_outputs(0, n=n, classes=classes))
        finite_terms(name, student, teacher, step_of(name, [k % classes for k in range(n)]), leaves)

    def test_a_batch_of_one_class(self, name: str) -> None:
        teacher = random_outputs(1)
        student, leaves = with_gradient(random_outputs(0))
        finite_terms(name, student, teacher, step_of(name, [2] * 6), leaves)

    @pytest.mark.parametrize("depth", [1, 2, 5])
    @pytest.mark.parametrize("deeper", ["student", "teacher"])
    def test_networks_of_another_depth_width_and_map_size(self, name: str, depth: int, deeper: str) -> None:
        draw = torch.Generator().manual_seed(depth)
        sides = [(9, 7), (8, 8), (4, 5), (2, 2), (1, 3)][:depth]
        maps = tuple(torch.randn(6, 3 + k, *side, generator=draw) for k, side in enumerate(sides))
        odd = Outputs(torch.randn(6, 5, generator=draw), torch.randn(6, 11, generator=draw), maps)
        other = random_outputs(0)
        other = Outputs(other.logits, other.embedding, other.stages[:2])
        student, teacher = (odd, other) if deeper == "student" else (other, odd)
        teacher = headed(right(teacher, LABELS))
        student, leaves = with_gradient(right(student, LABELS))
        try:
            built(name, student, teacher)
        except RecipeError as refusal:
            assert len(student.stages) == 1 and "the student has 1 stages" in str(refusal)
            return
        assert number(total(finite_terms(name, student, teacher, step_of(name), leaves))) > 0

    def test_state_survives_a_round_trip(self, name: str) -> None:
        student, teacher, batch = random_outputs(0), random_outputs(1, width=9), step_of(name)
        first = built(name, student, teacher)
        for parameter in first.parameters():
            torch.nn.init.normal_(parameter)
        for _ in range(2):  # the second time with what it remembers of the first
            second = built(name, student, teacher)
            second.load_state_dict(first.state_dict())
            assert called(first, student, teacher, batch) == called(second, student, teacher, batch)

    def test_stacked_students_equal_separate_ones(self, name: str) -> None:
        if OBJECTIVES[name].asks:
            pytest.skip("what its student says of other rows is not in what is stacked")
        students, teacher, batch = [random_outputs(0), random_outputs(2)], random_outputs(1), step_of(name)
        objective = built(name, students[0], teacher)

        def one(logits: Tensor, embedding: Tensor, *stages: Tensor) -> dict[str, Tensor]:
            return called(objective, Outputs(logits, embedding, stages), teacher, batch)

        parts = [(s.logits, s.embedding, *s.stages) for s in students]
        stacked = torch.func.vmap(one)(*(torch.stack(part) for part in zip(*parts, strict=True)))
        for position, student in enumerate(students):
            for key, term in called(objective, student, teacher, batch).items():
                torch.testing.assert_close(stacked[key][position], term, rtol=1e-5, atol=1e-7)

    def test_what_it_asks_for_is_in_its_cost(self, name: str) -> None:
        labels = [0, 1, 2, 3, 4, 0, 1, 2]
        student, teacher = right(random_outputs(0, n=8), labels), right(random_outputs(1, n=8), labels)
        ask, told = FakeAsk(student, teacher), PASSES.get(name, lambda given: Passes())({})
        called(built(name, student, teacher), student, teacher, step_of(name, labels), ask=ask)
        assert (ask.asked["student"], ask.asked["teacher"]) == (8 * told.student, 8 * told.teacher)
        assert told.listens == OBJECTIVES[name].listens


def step_of(name: str, labels: list[int] = LABELS, dtype: torch.dtype = torch.float32) -> Batch:
    """Rows such as an objective wants: images, or these and their rotations."""
    batch = batch_of(labels, dtype)
    return rotated(batch) if OBJECTIVES[name].rotations else batch


def precise_pair(by: float = 4.0) -> tuple[Outputs, Outputs]:
    """Student and teacher, whose logits of the labels are so much larger."""
    return right(precise_outputs(0), LABELS, by), right(precise_outputs(1), LABELS, by)


def numbers(
    name: str, student: Outputs, teacher: Outputs, batch: Batch | None = None, row_weight: Tensor | None = None
) -> dict[str, float]:
    """The terms of a new objective, which remembers nothing yet."""
    batch = step_of(name, LABELS, student.logits.dtype) if batch is None else batch
    terms = called(built(name, student, teacher), student, teacher, batch, row_weight)
    return {key: number(term) for key, term in terms.items()}


def finite_terms(
    name: str, student: Outputs, teacher: Outputs, batch: Batch, leaves: list[Tensor], **fields: float | str
) -> dict[str, Tensor]:
    """The terms of a new objective; they and all gradients of what learns are finite."""
    objective, ask = built(name, student, teacher, **fields), FakeAsk(student, teacher)
    terms = called(objective, student, teacher, batch, ask=ask)
    assert everything_finite(terms, [*leaves, *ask.network.parameters(), *learned(objective)])
    return terms


def learned(objective: Objective) -> list[Tensor]:
    """Its parameters, without those of networks that it keeps as they were."""
    return [parameter for parameter in objective.parameters() if parameter.requires_grad]


# ---- reference numbers

REFERENCE = [
    ("kd", {"temperature": 1.0}, {"kd": 0.9270757013067956}),  # cls.kd.T1
    ("kd", {"temperature": 4.0}, {"kd": 1.3139174630566062}),  # cls.kd.T4
    ("kd", {"temperature": 1000.0}, {"kd": 1.4151264397366876}),  # cls.kd.T1000
    ("dist", {}, {"inter": 1.1480400532748134, "intra": 0.9989922207300559}),  # the parts of dist.b1.g1.T1
    ("at", {}, {"at": 0.010437171674937221}),  # at
    (
        "rkd",
        {},
        {"distance": 25 * 0.004598506353938929, "angle": 50 * 0.0014105072539018324},
    ),  # rkd.distance, rkd.angle
    ("pkt", {}, {"pkt": 0.018993040121778527}),  # pkt
]


@pytest.mark.parametrize(("name", "fields", "expected"), REFERENCE)
def test_reference_numbers(name: str, fields: dict[str, float], expected: dict[str, float]) -> None:
    student, teacher, batch = reference()
    objective = built(name, student, teacher, **fields)
    terms = objective(student, teacher, batch)
    assert {key: number(term) for key, term in terms.items()} == pytest.approx(expected, rel=1e-9)
    if fields.get("temperature", 1) < 100:  # T² magnifies the rounding of float32
        terms = objective.float()(student.float(), teacher.float(), batch)
        assert {key: number(term) for key, term in terms.items()} == pytest.approx(expected, rel=1e-5)


def test_dkd_reference_numbers() -> None:
    student, teacher, batch = reference()
    objective = built("dkd", student, teacher, alpha=1.0, beta=8.0, temperature=4.0)
    expected = 10.103232637563345  # cls.dkd.a1.b8.T4
    assert number(total(objective(student, teacher, batch))) == pytest.approx(expected, rel=1e-9)
    assert number(total(objective(student.float(), teacher.float(), batch))) == pytest.approx(expected, rel=1e-5)
    assert set(objective(student, teacher, batch)) == {"tckd", "nckd"}


@pytest.mark.parametrize(
    ("temperature", "tckd", "nckd"),
    [
        (
            1.0,
            [1.6129388828134528, 0.055082785752327],
            [0.4621171572600098, 0.2582660974228071],
        ),  # task.tckd.T1, task.nckd.T1
        (4.0, [0.11852478086464766, 0.005248665728985011], [0.031088250442899062, 0.01747608357989483]),  # …T4
    ],
)
def test_dkd_parts_by_row(temperature: float, tckd: list[float], nckd: list[float]) -> None:
    student = torch.tensor([[1, 2, 3], [0.5, -1, 2]], dtype=torch.float64)
    teacher = torch.tensor([[3, 1, 0], [1, 1, 4]], dtype=torch.float64)
    target, rest = decoupled_rows(student, teacher, torch.tensor([0, 2]), temperature)
    assert target.tolist() == pytest.approx(tckd, rel=1e-9) and rest.tolist() == pytest.approx(nckd, rel=1e-9)


def test_dist_reference_total() -> None:
    student, teacher, batch = reference()
    assert number(total(built("dist", student, teacher)(student, teacher, batch))) == pytest.approx(
        2.1470322740048693, rel=1e-9
    )


# ---- identities


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_is_tckd_plus_the_rest_of_the_teacher_times_nckd(temperature: float) -> None:
    student, teacher, batch = reference()
    tckd, nckd = decoupled_rows(student.logits, teacher.logits, batch.y, temperature)
    rest = 1 - (teacher.logits / temperature).softmax(1).gather(1, batch.y[:, None])[:, 0]
    torch.testing.assert_close(
        tckd + rest * nckd, kl_rows(student.logits, teacher.logits, temperature), rtol=0, atol=1e-14
    )


def test_nckd_is_exactly_zero_for_two_classes() -> None:
    student, teacher = random_outputs(0, classes=2), random_outputs(1, classes=2)
    terms = built("dkd", student, teacher)(student, teacher, batch_of([0, 1, 0, 1, 0, 1]))
    assert number(terms["nckd"]) == 0
    assert number(terms["tckd"]) == pytest.approx(
        number(built("kd", student, teacher)(student, teacher, batch_of([0] * 6))["kd"]), rel=1e-4
    )


def test_kd_at_high_temperature_is_the_squared_distance_of_centred_logits() -> None:
    student, teacher, batch = reference()
    difference = teacher.logits - student.logits
    limit = (difference - difference.mean(1, keepdim=True)).square().sum(1).mean() / 10
    assert number(limit) == pytest.approx(1.415427131186128, rel=1e-12)  # cls.kd.limit
    at = {t: number(built("kd", student, teacher, temperature=t)(student, teacher, batch)["kd"]) for t in (1e3, 1e5)}
    assert abs(at[1e5] - number(limit)) < abs(at[1e3] - number(limit)) / 50


def test_dist_does_not_see_a_common_gain_and_offset_and_one_row_has_no_intra_part() -> None:
    student, teacher, batch = reference()
    one = torch.tensor([0])
    terms = built("dist", student, teacher)(rows(student, one), rows(teacher, one), batch_of([1]))
    assert number(terms["intra"]) == 0 and number(terms["inter"]) > 0
    hot = built("dist", student, teacher, temperature=2.0)(student, teacher, batch)
    halved = Outputs(student.logits / 2), Outputs(teacher.logits / 2)
    plain = built("dist", student, teacher)(*halved, batch)
    assert number(total(hot)) == pytest.approx(4 * number(total(plain)), rel=1e-12)  # T² is inside


def test_at_ignores_the_scale_of_maps_and_sums_over_stages() -> None:
    student, teacher = random_outputs(0), random_outputs(1)
    batch = batch_of([0] * 6)
    objective = built("at", student, teacher)
    louder = Outputs(student.logits, student.embedding, tuple(30 * stage for stage in student.stages))
    torch.testing.assert_close(objective(louder, teacher, batch), objective(student, teacher, batch))
    singles = 0.0
    for own, other in zip(student.stages[:2], teacher.stages[:2], strict=True):
        one = Outputs(student.logits, student.embedding, (own,)), Outputs(teacher.logits, teacher.embedding, (other,))
        singles += number(built("at", *one)(*one, batch)["at"])
    assert number(objective(student, teacher, batch)["at"]) == pytest.approx(singles, rel=1e-5)


def test_rkd_ignores_scale_shift_and_rotation_and_rows_beyond_its_limit() -> None:
    student, teacher, batch = reference()
    assert student.embedding is not None
    turn, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    moved = Outputs(student.logits, 2.5 * student.embedding @ turn + 3.0)
    same = Outputs(student.logits, student.embedding)
    assert number(total(built("rkd", student, student)(moved, same, batch))) < 1e-12
    many, more = random_outputs(0, n=140), random_outputs(1, n=140)
    first = torch.arange(64)
    objective = built("rkd", many, more)
    torch.testing.assert_close(
        objective(many, more, batch_of([0] * 140)), objective(rows(many, first), rows(more, first), batch_of([0] * 64))
    )


def test_rkd_takes_identical_rows_as_one_point() -> None:
    teacher = random_outputs(1)
    doubled = rows(random_outputs(0), torch.tensor([0, 0, 1, 2, 3, 3]))
    student, leaves = with_gradient(doubled)
    terms = built("rkd", student, teacher)(student, teacher, batch_of([0] * 6))
    assert everything_finite(terms, leaves)
    assert number(total(built("rkd", doubled, doubled)(student, doubled, batch_of([0] * 6)))) < 1e-6


def test_rounding_does_not_part_identical_rows() -> None:
    order = torch.tensor([0, 0, 1, 2, 3, 3])
    embedding = 30 * random_outputs(0, width=64).logits.repeat(1, 13)[order] + 5.0
    distances, angles = relations(embedding)
    assert float(distances[0, 1]) == 0 and float(distances[4, 5]) == 0 and float(distances[0, 2]) > 0.1
    assert not bool(angles[0, 1].any()) and not bool(angles[5, :, 4].any())


@pytest.mark.parametrize(("name", "term"), [("at", "at"), ("fitnet", "fitnet")])
@pytest.mark.parametrize("larger", ["student", "teacher", "each on one side"])
def test_of_two_maps_the_larger_is_pooled_to_the_smaller(name: str, term: str, larger: str) -> None:
    sizes = {"student": ((6, 4), (3, 2)), "teacher": ((3, 2), (6, 4)), "each on one side": ((6, 2), (3, 4))}[larger]
    maps = [torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(k)) for k, size in enumerate(sizes)]
    logits, batch = random_outputs(0, n=2), batch_of([0, 1])
    full = [Outputs(logits.logits, logits.embedding, (stage,)) for stage in maps]
    pooled = [stage.unflatten(2, (3, -1)).unflatten(4, (2, -1)).mean((3, 5)) for stage in maps]
    small = [Outputs(logits.logits, logits.embedding, (stage,)) for stage in pooled]
    expected = built(name, *small)(*small, batch)[term]
    torch.testing.assert_close(built(name, *full)(*full, batch)[term], expected)


@pytest.mark.parametrize("kind", ["relu", "linear"])
def test_fitnet_is_the_mean_squared_difference_after_its_regressor(kind: str) -> None:
    student, teacher, batch = reference()
    teacher = Outputs(teacher.logits, teacher.embedding, (teacher.stages[0][:, :3],))
    objective = built("fitnet", student, teacher, regressor=kind)
    scale, shift = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0.25, 0.0, -1.0])
    own = {"regressor.0.weight": torch.eye(3)[:, :, None, None], "regressor.1.weight": scale, "regressor.1.bias": shift}
    objective.load_state_dict(own)
    maps = student.stages[0].double().numpy()
    unit = (maps - maps.mean((0, 2, 3), keepdims=True)) / np.sqrt(maps.var((0, 2, 3), keepdims=True) + 1e-5)
    guess = scale.numpy()[:, None, None] * unit + shift.numpy()[:, None, None]
    guess = np.maximum(guess, 0) if kind == "relu" else guess
    expected = np.square(guess - teacher.stages[0].numpy()).mean()
    assert number(objective(student, teacher, batch)["fitnet"]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("stage", "pair"), [("first", (0, 1)), ("middle", (1, 3)), ("last", (2, 5))])
def test_fitnet_guides_the_stage_it_was_told_to(stage: str, pair: tuple[int, int]) -> None:
    student, teacher = random_outputs(0), random_outputs(1)
    deeper = Outputs(teacher.logits, teacher.embedding, tuple(s for s in teacher.stages for _ in range(2)))
    objective = built("fitnet", student, deeper, stage=stage)
    student, leaves = with_gradient(student)
    terms = objective(student, deeper, batch_of([0] * 6))
    gradients = torch.autograd.grad(total(terms), leaves[2:], allow_unused=True)
    assert [gradient is not None for gradient in gradients] == [k == pair[0] for k in range(3)]
    assert objective.pair == pair


@pytest.mark.parametrize(
    ("students", "teachers", "pairs"),
    [
        (3, 3, ((0, 0), (1, 1), (2, 2))),
        (3, 4, ((0, 0), (1, 2), (2, 3))),
        (4, 1, ((0, 0), (1, 0), (2, 0), (3, 0))),
        (1, 5, ((0, 4),)),
    ],
)
def test_stages_meet_at_equal_relative_depth(students: int, teachers: int, pairs: tuple[tuple[int, int], ...]) -> None:
    assert stage_pairs(students, teachers) == pairs


# ---- networks that cannot be compared


@pytest.mark.parametrize("name", [name for name, cls in OBJECTIVES.items() if "stages" in cls.needs])
def test_networks_without_stage_maps_are_refused(name: str) -> None:
    maps, none = Shapes(5, 7, ((4, 6, 6),)), Shapes(5, 7)
    with pytest.raises(RecipeError, match=rf"'{name}'.*student has 0 stages; use"):
        OBJECTIVES[name]().build(none, maps)
    if OBJECTIVES[name].listens:
        with pytest.raises(RecipeError, match=rf"'{name}'.*teacher has 0 stages; use"):
            OBJECTIVES[name]().build(maps, none)


@pytest.mark.parametrize("name", ["at", "nst"])
def test_maps_of_one_position_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"'{name}' needs maps of more than one position.*use"):
        OBJECTIVES[name]().build(Shapes(5, 7, ((4, 1, 1),)), Shapes(5, 7, ((4, 6, 6),)))


@pytest.mark.parametrize("name", [name for name, cls in OBJECTIVES.items() if "embedding" in cls.needs])
def test_networks_without_an_embedding_are_refused(name: str) -> None:
    stages = ((4, 6, 6),)
    with pytest.raises(RecipeError, match=rf"'{name}'.*student's has width 0; use"):
        OBJECTIVES[name]().build(Shapes(5, 0, stages), Shapes(5, 7, stages))
    with pytest.raises(RecipeError, match=rf"'{name}'.*teacher's has width 0; use"):
        OBJECTIVES[name]().build(Shapes(5, 7, stages), Shapes(5, 0, stages))
    objective, bare = OBJECTIVES[name](), Outputs(torch.zeros(2, 5), None, (torch.zeros(2, 4, 6, 6),))
    objective.know(Samples(torch.arange(9) % 5))
    objective.build(Shapes(5, 7, stages), with_heads(Shapes(5, 7, stages), HEADS))
    with pytest.raises(RecipeError, match=f"'{name}' needs embeddings"):
        called(objective, bare, bare, step_of(name, [0, 1]))
