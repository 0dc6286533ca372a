"""Losses on heads: reference numbers, identities, and which rows count. The battery has what holds for every loss."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from losses import batch_of, built, headed, number, permuted, random_outputs, reference, rotated, rows, shapes, total
from torch import Tensor
from torch.nn import functional

from autokd.errors import RecipeError
from autokd.objectives import OBJECTIVES
from autokd.objectives.staged import (
    channel_gap,
    class_probabilities,
    joint_labels,
    kept_rows,
    ranks,
    review_pairs,
    similarities,
    similarity_gap,
)
from autokd.protocols import Batch, Outputs, Shapes

LABELS = [0, 1, 2, 3, 4, 0]


def staged(name: str, student: Outputs, teacher: Outputs, batch: Batch, **fields: float | str) -> dict[str, float]:
    terms = built(name, student, teacher, **fields)(student, teacher, batch)
    return {key: number(term) for key, term in terms.items()}


def of_one_stage() -> tuple[Outputs, Outputs, Batch]:
    """The closed inputs with a teacher's map of three channels, as the student's."""
    student, teacher, batch = reference()
    return student, headed(replace(teacher, stages=(teacher.stages[0][:, :3],))), batch


# ---- mtkd_ssr


def test_scd_reference_numbers() -> None:
    student, teacher, batch = of_one_stage()
    gap = staged("mtkd_ssr", student, teacher, batch)
    assert gap["scd"] == pytest.approx(0.30827366675636353, rel=1e-9)  # mtkd_ssr.scd_gap
    assert sorted(gap) == ["scd", "srd"], "one stage has no heads and nothing to review"
    cwd = staged("mtkd_ssr", student, teacher, batch, scd="cwd", lambda_c=1.0)
    assert cwd["scd"] == pytest.approx(0.019963483317889937, rel=1e-9)  # mtkd_ssr.cwd.T4


def test_with_one_stage_and_no_channels_it_is_kd() -> None:
    student, teacher, batch = of_one_stage()
    for temperature in (1.0, 4.0):
        mine = staged("mtkd_ssr", student, teacher, batch, lambda_c=0.0, temperature=temperature)
        kd = staged("kd", student, teacher, batch, temperature=temperature)
        assert sum(mine.values()) == kd["kd"]


def test_channels_that_differ_are_led_to_the_teachers_by_a_learned_map() -> None:
    student, teacher, batch = reference()
    objective = built("mtkd_ssr", student, teacher)
    assert [tuple(p.shape) for p in objective.parameters()] == [(5, 3), (5,)]
    matrix, offset = objective.parameters()
    expected = student.stages[0].mean((2, 3)) @ matrix.T + offset - teacher.stages[0].mean((2, 3))
    assert number(objective(student, teacher, batch)["scd"]) == pytest.approx(
        number(expected.square().mean()), rel=1e-12
    )


def test_cwd_does_not_see_a_constant_added_to_a_channel_gap_does() -> None:
    student, teacher, batch = of_one_stage()
    shift = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)[:, None, None]
    moved = replace(student, stages=(student.stages[0] + shift,))
    for scd, same in (("cwd", True), ("gap", False)):
        one, two = (staged("mtkd_ssr", s, teacher, batch, scd=scd)["scd"] for s in (student, moved))
        assert (one == pytest.approx(two, rel=1e-9)) == same
    assert number(channel_gap(student.stages[0], student.stages[0], 2.0)) == 0


def test_review_without_a_teacher_is_the_label_and_logit_part_of_byot() -> None:
    student, teacher, batch = random_outputs(0), random_outputs(1), batch_of(LABELS)
    objective = built("mtkd_ssr", student, teacher, lambda_c=0.0, lambda_r=0.0, lambda_x=1.0, review="deepest")
    heads = [head(stage) for head, stage in zip(objective.heads, student.stages, strict=False)]  # type: ignore[arg-type]
    assert len(heads) == 2
    labels = torch.stack([functional.cross_entropy(each, batch.y) for each in heads]).sum()
    deepest = (student.logits / 4).softmax(1)
    soft = [16 * functional.kl_div((each / 4).log_softmax(1), deepest, reduction="batchmean") for each in heads]
    terms = objective(student, teacher, batch)
    assert number(terms["scd"]) == number(terms["srd"]) == 0
    assert number(total(terms)) == pytest.approx(number(labels + torch.stack(soft).sum()), rel=1e-5)


def test_heads_of_the_teacher_are_compared_at_their_stages() -> None:
    student, teacher, batch = random_outputs(0), random_outputs(1), batch_of(LABELS)
    objective = built("mtkd_ssr", student, teacher, lambda_c=0.0, lambda_h=0.0, lambda_x=0.0)
    own = [*(h(s) for h, s in zip(objective.heads, student.stages, strict=False)), student.logits]  # type: ignore[arg-type]
    told = [*teacher.aux["stage"], teacher.logits]
    each = [
        16 * functional.kl_div((a / 4).log_softmax(1), (b / 4).softmax(1), reduction="batchmean")
        for a, b in zip(own, told, strict=True)
    ]
    assert number(total(objective(student, teacher, batch))) == pytest.approx(number(torch.stack(each).sum()), rel=1e-5)


def test_the_one_that_teaches_in_a_review_is_a_constant() -> None:
    student, teacher, batch = random_outputs(0), random_outputs(1), batch_of(LABELS)
    student.logits.requires_grad_()
    for review, reached in (("deepest", False), ("adjacent", False), ("shallow", True), ("all", True)):
        terms = built("mtkd_ssr", student, teacher, review=review)(student, teacher, batch)
        (gradient,) = torch.autograd.grad(terms["xreview"], student.logits, allow_unused=True)
        assert (gradient is not None) == reached


def test_pairs_of_a_review() -> None:
    assert review_pairs(3, "shallow") == ((0, 1), (1, 2))
    assert review_pairs(4, "deepest") == ((3, 0), (3, 1), (3, 2))
    assert review_pairs(3, "all") == ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))
    assert {review_pairs(1, each) for each in ("adjacent", "deepest", "shallow", "all")} == {()}


def test_last_two_stages() -> None:
    student, teacher = random_outputs(0), random_outputs(1)
    objective = built("mtkd_ssr", student, teacher, stages="last2")
    first = student.stages[0].clone().requires_grad_()
    watched = replace(student, stages=(first, *student.stages[1:]))
    terms = objective(watched, teacher, batch_of(LABELS))
    assert torch.autograd.grad(total(terms), first, allow_unused=True) == (None,)
    assert len(objective.heads) == 1 and sorted(terms) == ["hce", "scd", "srd", "xreview"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "read"),
    [
        ({}, {"logits", "aux.stage", "aux.pooled"}),
        ({"scd": "cwd"}, {"logits", "aux.stage", "stages"}),
    ],
)
def test_what_is_read_of_the_teacher(fields: dict[str, str], read: set[str]) -> None:
    student, teacher = shapes(random_outputs(0)), shapes(random_outputs(1))
    assert OBJECTIVES["mtkd_ssr"](**fields).of_teacher(student, teacher) == read
    one = replace(student, stages=student.stages[-1:])
    assert OBJECTIVES["mtkd_ssr"](**fields).of_teacher(one, teacher) == read - {"aux.stage"}
    told = random_outputs(1)
    objective, heard = built("mtkd_ssr", random_outputs(0), told, **fields), told.only(frozenset(read))
    assert objective(random_outputs(0), heard, batch_of(LABELS)) == objective(random_outputs(0), told, batch_of(LABELS))


@pytest.mark.parametrize("name", ["mtkd_ssr", "hsakd", "sskd"])
def test_a_teacher_without_heads_is_refused(name: str) -> None:
    plain = Shapes(5, 7, ((4, 6, 6), (8, 3, 3)))
    with pytest.raises(
        RecipeError, match=rf"'{name}' needs heads of kind .*autokd.search and autokd.distill train them"
    ):
        OBJECTIVES[name]().build(plain, plain)


# ---- hsakd


def test_class_probabilities_are_summed_over_rotations() -> None:
    joint = torch.sin(torch.arange(8, dtype=torch.float64) * 0.9 + 0.3)[None]
    assert class_probabilities(joint)[0].tolist() == pytest.approx(
        [0.7246476769779122, 0.275352323022088], rel=1e-9
    )  # hsakd.class_prob
    summed = joint.unflatten(1, (2, 4)).sum(2)[0]
    assert summed.tolist() == pytest.approx(
        [2.231888667337307, -1.9230749471040742], rel=1e-9
    )  # hsakd.summed_logits: no distribution


def test_joint_labels_count_rotations_within_a_class() -> None:
    batch = rotated(batch_of([1] * 4 + [3] * 4))
    assert joint_labels(batch).tolist() == [4, 5, 6, 7, 12, 13, 14, 15]


def test_hsakd_is_kd_between_joint_heads() -> None:
    student, teacher, batch = random_outputs(0, n=8), random_outputs(1, n=8), rotated(batch_of([1] * 4 + [3] * 4))
    objective = built("hsakd", student, teacher)
    own = [head(stage) for head, stage in zip(objective.heads, student.stages, strict=True)]  # type: ignore[arg-type]
    assert [tuple(each.shape) for each in own] == [(8, 20)] * 3
    each = [
        staged("kd", replace(student, logits=a), replace(teacher, logits=b), batch, temperature=3.0)["kd"]
        for a, b in zip(own, teacher.aux["joint"], strict=True)
    ]
    assert number(objective(student, teacher, batch)["hsakd"]) == pytest.approx(sum(each), rel=1e-5)


# ---- sskd


def projections() -> tuple[Tensor, Tensor, Batch]:
    """Two images of four views, D = 3: sin(.7r + 1.1d) of the student, cos(.5r − .8d + .1) of the teacher."""
    r, d = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(3, dtype=torch.float64)
    return torch.sin(0.7 * r + 1.1 * d), torch.cos(0.5 * r - 0.8 * d + 0.1), rotated(batch_of([0] * 8))


def test_sskd_similarity_is_the_reference_one() -> None:
    student, teacher, batch = projections()
    found = similarity_gap(student, teacher, batch, 0.5)
    assert number(found) == pytest.approx(0.06168482277387144, rel=1e-9)  # sskd.ss.T0.5
    rank = ranks(similarities(teacher, batch), batch.parent, 4 * batch.index + batch.view, batch.view == 0)
    assert int((rank[batch.view != 0] > 0).sum()) == 1  # sskd.teacher_wrong_of_6


def test_sskd_similarities_do_not_depend_on_the_order_of_rows() -> None:
    student, teacher, batch = projections()
    order = torch.tensor([6, 3, 0, 7, 5, 1, 4, 2])
    for ratio in (0.0, 0.5, 1.0):
        straight = similarity_gap(student, teacher, batch, 0.5, ratio)
        moved = similarity_gap(student[order], teacher[order], permuted(batch, order), 0.5, ratio)
        assert number(moved) == pytest.approx(number(straight), rel=1e-12)


def test_a_rank_counts_who_comes_first_in_a_stable_sort() -> None:
    scores = torch.tensor([[3.0, 1.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    true, order, every = torch.tensor([2, 1, 0]), torch.arange(4), torch.ones(4, dtype=torch.bool)
    assert ranks(scores, true, order, every).tolist() == [1, 1, 3]
    assert ranks(scores, true, order, torch.tensor([False, True, True, True])).tolist() == [0, 0, 3]
    sorted_ = scores.argsort(dim=1, descending=True, stable=True)
    assert ranks(scores, true, order, every).tolist() == [int((sorted_[k] == t).nonzero()) for k, t in enumerate(true)]


@pytest.mark.parametrize(
    ("ratio", "kept"),
    [(0.0, [1, 4]), (0.5, [0, 1, 4]), (0.75, [0, 1, 4, 5]), (1.0, [0, 1, 2, 4, 5])],
)
def test_rows_that_are_right_are_kept_and_the_best_of_the_others(ratio: float, kept: list[int]) -> None:
    """Right: 1, 4. Wrong: 0 and 5 of rank 2, 2 of rank 5; 3 does not count, though it is right."""
    rank, among = torch.tensor([2, 0, 5, 0, 0, 2]), torch.tensor([True, True, True, False, True, True])
    mask = kept_rows(rank, among, torch.arange(6), ratio)
    assert mask.nonzero()[:, 0].tolist() == kept
    assert math.floor(ratio * 3) == len(kept) - 2


def test_sskd_parts_are_means_over_their_rows() -> None:
    student, teacher = random_outputs(0, n=8), random_outputs(1, n=8)
    batch = rotated(batch_of([1] * 4 + [3] * 4))
    found = staged("sskd", student, teacher, batch)
    for part, weight, chosen in (("kd", 0.9, batch.view == 0), ("tf", 2.7, batch.view != 0)):
        kept = chosen.nonzero()[:, 0]
        alone = staged("kd", rows(student, kept), rows(teacher, kept), permuted_free(batch, kept))
        assert found[part] == pytest.approx(weight * alone["kd"], rel=1e-5)
    only = staged("sskd", student, teacher, batch, transformed_ratio=0.0)
    right = (teacher.logits.argmax(1) == batch.y) & (batch.view != 0)
    assert (only["tf"] == 0) == (not bool(right.any()))


def permuted_free(batch: Batch, kept: Tensor) -> Batch:
    """Some rows, as a batch of their own."""
    return batch_of(batch.y[kept].tolist())


def test_identical_projections_have_no_gap() -> None:
    student, _, batch = projections()
    assert number(similarity_gap(2 * student, student, batch, 0.5)) == pytest.approx(0, abs=1e-12)
