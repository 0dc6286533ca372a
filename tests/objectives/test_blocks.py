"""Numbers and identities of the building blocks: z-scores of logits, cos, nst, vid, reviewkd, sp, pkt.

Those without a reference number are compared with their definition, written out in NumPy.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from losses import batch_of, built, everything_finite, number, random_outputs, reference, total, with_gradient
from torch import Tensor, nn

from autokd.errors import RecipeError
from autokd.objectives import OBJECTIVES
from autokd.objectives.features import selectivity_gap
from autokd.objectives.logits import kl_rows, standardised
from autokd.objectives.review import BatchScale, Gates, context_gap
from autokd.protocols import Outputs, Shapes

LABELS = [0, 1, 2, 3, 4, 0]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turned(x: Tensor, seed: int = 0) -> Tensor:
    """Rows turned by one rotation."""
    return x @ torch.linalg.qr(drawn(x.shape[1], x.shape[1], seed=seed))[0]


def as_map(x: Tensor) -> Outputs:
    """Rows as stage maps of one position."""
    return Outputs(x, x, (x[:, :, None, None],))


def compared(name: str, student: Outputs, teacher: Outputs, labels: list[int], **fields: float | str) -> float:
    return number(total(built(name, student, teacher, **fields)(student, teacher, batch_of(labels))))


# ---- z-scores of logits


def test_standardised_kd_is_kd_of_z_scores() -> None:
    student, teacher, batch = reference()

    def z_scores(x: np.ndarray) -> Tensor:
        return torch.from_numpy((x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True))

    expected = 4 * kl_rows(z_scores(student.logits.numpy()), z_scores(teacher.logits.numpy()), 2.0).mean()
    terms = built("kd", student, teacher, temperature=2.0, standardise=True)(student, teacher, batch)
    assert number(terms["kd"]) == pytest.approx(number(expected), rel=1e-6)
    assert standardised(student.logits).mean(1).abs().max() < 1e-12
    assert standardised(student.logits).square().mean(1).tolist() == pytest.approx([1] * 4, rel=1e-6)


@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_z_scores_ignore_gain_and_offset_of_each_row(name: str) -> None:
    student, teacher, _ = reference()
    gain, offset = torch.tensor([[0.5], [1], [3], [20]]), torch.tensor([[-4.0], [0], [2], [9]])
    moved = Outputs(gain * teacher.logits + offset, teacher.embedding, teacher.stages)
    assert compared(name, moved, teacher, [1, 0, 4, 2], standardise=True) < 1e-12
    assert compared(name, moved, teacher, [1, 0, 4, 2]) > 0.1
    assert compared(name, student, teacher, [1, 0, 4, 2], standardise=True) == pytest.approx(
        compared(name, student, moved, [1, 0, 4, 2], standardise=True), rel=1e-6
    )


@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_z_scores_of_constant_and_of_loud_rows_are_finite(name: str) -> None:
    student, leaves = with_gradient(random_outputs(0))
    logits = torch.stack([0 * leaves[0][0], leaves[0][1], *(6e4 * leaves[0][2:].sign())])
    student, teacher = Outputs(logits, leaves[1], student.stages), random_outputs(1)
    terms = built(name, student, teacher, standardise=True)(student, teacher, batch_of(LABELS))
    assert everything_finite(terms, leaves)


@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_two_classes_have_no_z_scores_worth_comparing(name: str) -> None:
    two = Shapes(2, 7)
    OBJECTIVES[name]().build(two, two)
    with pytest.raises(RecipeError, match=rf"'{name}': standardise needs at least 3 classes, got 2; leave it at false"):
        OBJECTIVES[name](standardise=True).build(two, two)


# ---- cos


def test_cos_is_zero_for_parallel_rows_alone() -> None:
    student, teacher, _ = reference()
    gain = torch.tensor([[0.1], [1], [7], [300]])
    parallel = Outputs(gain * teacher.logits, teacher.embedding, teacher.stages)
    assert compared("cos", parallel, teacher, LABELS[:4]) == pytest.approx(0, abs=1e-12)
    opposite = Outputs(-gain * teacher.logits, teacher.embedding, teacher.stages)
    assert compared("cos", opposite, teacher, LABELS[:4]) == pytest.approx(2)
    assert compared("cos", Outputs(0 * teacher.logits, teacher.embedding), teacher, LABELS[:4]) == 1
    s, t = student.logits.numpy(), teacher.logits.numpy()
    cosines = (s * t).sum(1) / np.linalg.norm(s, axis=1) / np.linalg.norm(t, axis=1)
    assert compared("cos", student, teacher, LABELS[:4]) == pytest.approx(1 - cosines.mean(), rel=1e-12)


# ---- nst


def mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Of the channels of two maps of one row, channel by channel."""
    own, other = ([channel.ravel() / np.linalg.norm(channel) for channel in maps] for maps in (a, b))

    def alike(x: list[np.ndarray], y: list[np.ndarray]) -> float:
        return float(np.mean([[(p @ q) ** 2 for q in y] for p in x]))

    return alike(own, own) + alike(other, other) - 2 * alike(own, other)


@pytest.mark.parametrize("side", [2, 4], ids=["fewer positions than channels", "more positions than channels"])
def test_nst_is_the_discrepancy_of_channels(side: int) -> None:
    student, teacher = drawn(3, 4, side, side), drawn(3, 6, side, side, seed=1)
    expected = [mmd(a, b) for a, b in zip(student.numpy(), teacher.numpy(), strict=True)]
    assert selectivity_gap(student, teacher).tolist() == pytest.approx(expected, rel=1e-9)


def test_nst_sums_over_stages_and_leaves_out_those_of_one_position() -> None:
    student, teacher = random_outputs(0), random_outputs(1)
    expected = sum(
        np.mean([mmd(a, b) for a, b in zip(own.double().numpy(), other.double().numpy(), strict=True)])
        for own, other in zip(student.stages[:2], teacher.stages[:2], strict=True)
    )
    assert compared("nst", student, teacher, LABELS) == pytest.approx(expected, rel=1e-5)


def test_nst_ignores_order_scale_and_repetition_of_channels() -> None:
    student, teacher = drawn(3, 4, 3, 3), drawn(3, 6, 3, 3, seed=1)
    plain = selectivity_gap(student, teacher)
    gains = torch.tensor([2.0, 0.1, 30, 1])[:, None, None]
    torch.testing.assert_close(selectivity_gap((gains * student)[:, [2, 0, 3, 1]], teacher), plain)
    torch.testing.assert_close(selectivity_gap(student, teacher.repeat(1, 3, 1, 1)), plain)
    assert selectivity_gap(student, student.repeat(1, 2, 1, 1)).abs().max() < 1e-12
    assert bool((selectivity_gap(student, teacher.flip(3)) != plain).all())


def test_nst_of_channels_that_are_never_active_is_finite() -> None:
    student, leaves = with_gradient(random_outputs(0))
    dead = [stage * (torch.arange(stage.shape[1]) > 1)[:, None, None] for stage in student.stages]
    student, teacher = Outputs(student.logits, student.embedding, tuple(dead)), random_outputs(1)
    assert everything_finite(built("nst", student, teacher)(student, teacher, batch_of(LABELS)), leaves)


# ---- vid


def test_vid_is_the_likelihood_of_the_teachers_map() -> None:
    student, teacher, batch = reference()
    objective = built("vid", student, teacher)
    weights = [part.weight.detach()[:, :, 0, 0].numpy() for part in objective.means[0] if isinstance(part, nn.Conv2d)]
    guess = student.stages[0].numpy()
    for number_of_layer, weight in enumerate(weights):
        guess = np.einsum("nchw,dc->ndhw", np.maximum(guess, 0) if number_of_layer else guess, weight)
    error = (teacher.stages[0].numpy() - guess) ** 2
    assert number(objective(student, teacher, batch)["vid"]) == pytest.approx(
        0.5 * (error / 5 + np.log(5)).mean(), rel=1e-6
    )
    nn.init.constant_(objective.spreads[0], -1.0)
    variance = np.log1p(np.exp(-1.0)) + 1e-5
    assert number(objective(student, teacher, batch)["vid"]) == pytest.approx(
        0.5 * (error / variance + np.log(variance)).mean(), rel=1e-6
    )


def test_vids_variances_come_to_the_mean_squared_errors() -> None:
    student, teacher, batch = reference()
    objective = built("vid", student, teacher)
    for parameter in objective.means.parameters():
        nn.init.zeros_(parameter)
    errors = teacher.stages[0].square().mean((0, 2, 3))
    objective.spreads[0].data = (errors - 1e-5).expm1().log()
    objective(student, teacher, batch)["vid"].backward()
    assert objective.spreads[0].grad.abs().max() < 1e-12


def test_vid_has_a_regressor_for_each_stage_of_the_student() -> None:
    student, teacher = random_outputs(0), random_outputs(1, width=9)
    objective = built("vid", student, teacher)
    assert [(mean[0].in_channels, mean[-1].out_channels) for mean in objective.means] == [(4, 4), (7, 9), (7, 9)]
    assert [len(spread) for spread in objective.spreads] == [4, 9, 9]


# ---- reviewkd


@pytest.mark.parametrize(
    ("side", "levels"),
    [(12, [12, 4, 2, 1]), (8, [8, 4, 2, 1]), (6, [6, 4, 2, 1]), (4, [4, 2, 1]), (3, [3, 2, 1]), (2, [2, 1]), (1, [1])],
)
def test_context_is_compared_at_full_size_and_after_pooling(side: int, levels: list[int]) -> None:
    a, b = drawn(2, 3, side, side), drawn(2, 3, side, side, seed=1)
    gaps = [
        (nn.functional.adaptive_avg_pool2d(a, level) - nn.functional.adaptive_avg_pool2d(b, level)).square().mean()
        for level in levels
    ]
    weights = torch.tensor([1, 0.5, 0.25, 0.125][: len(levels)])
    expected = (weights * torch.stack(gaps)).sum() / weights.sum()
    torch.testing.assert_close(context_gap(a, b), expected, check_dtype=False)


def test_contexts_of_unequal_maps_are_compared_at_the_smaller_size() -> None:
    a, b = drawn(2, 3, 8, 8), drawn(2, 3, 4, 4, seed=1)
    pooled = a.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    torch.testing.assert_close(context_gap(a, b), context_gap(pooled, b))
    torch.testing.assert_close(context_gap(b, a), context_gap(b, pooled))


def test_deep_maps_are_reviewed_by_shallow_ones_as_far_as_the_gates_let_them() -> None:
    student, teacher = random_outputs(0), random_outputs(1)
    objective = built("reviewkd", student, teacher)
    assert objective.pairs == ((3, 3), (2, 2), (1, 1), (0, 0))
    maps = [student.embedding[:, :, None, None], *reversed(student.stages)]  # type: ignore[index]

    def shallowest(embedding: Tensor) -> Tensor:
        deeper, guess = objective.fusions[0](embedding, None)
        for fusion, stage in zip(objective.fusions[1:], maps[1:], strict=True):
            deeper, guess = fusion(stage, deeper)
        return guess

    assert shallowest(maps[0]).shape == teacher.stages[0].shape
    assert not torch.allclose(shallowest(maps[0]), shallowest(maps[0].flip(0)))
    objective.fusions[1].gates.here.bias.data = torch.tensor([100.0, -100.0])
    torch.testing.assert_close(shallowest(maps[0]), shallowest(maps[0].flip(0)))


def test_gates_are_a_convolution_of_both_maps() -> None:
    gates, x, deeper = Gates(3), drawn(2, 3, 4, 4).float(), drawn(2, 3, 2, 2, seed=1).float()
    both = torch.cat([x, deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)], 1)
    weight = torch.cat([gates.here.weight, gates.deeper.weight], 1)
    shares = nn.functional.conv2d(both, weight, gates.here.bias).sigmoid()
    torch.testing.assert_close(gates(x, deeper), shares[:, :1] * both[:, :3] + shares[:, 1:] * both[:, 3:])


def test_batch_scale_is_batch_norm_without_memory() -> None:
    x, scale = drawn(4, 3, 2, 2).float(), BatchScale(3)
    nn.init.normal_(scale.weight), nn.init.normal_(scale.bias)
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    norm.load_state_dict(scale.state_dict())
    torch.testing.assert_close(scale(x), norm(x))
    torch.testing.assert_close(scale.eval()(x), norm(x))
    assert scale(x[:1, :, :1, :1]).flatten().tolist() == pytest.approx(scale.bias.tolist())  # one value has no spread


# ---- sp


def test_sp_reference_number() -> None:
    student, teacher, _ = reference()
    own, other = as_map(student.embedding), as_map(teacher.embedding)  # type: ignore[arg-type]
    assert compared("sp", own, other, LABELS[:4]) == pytest.approx(0.15084155183557985, rel=1e-9)  # sp
    assert compared("sp", own.float(), other.float(), LABELS[:4]) == pytest.approx(0.15084155183557985, rel=1e-5)


def test_sp_ignores_rotation_and_scale_and_one_row() -> None:
    x = drawn(5, 7)
    assert compared("sp", as_map(3 * turned(x)), as_map(x), LABELS[:5]) < 1e-12
    assert compared("sp", as_map(x + 1), as_map(x), LABELS[:5]) > 1e-4
    assert compared("sp", as_map(x[:1]), as_map(drawn(1, 9)), [0]) == 0


def test_sp_compares_the_last_maps_flattened() -> None:
    student, teacher = random_outputs(0), random_outputs(1)
    student, teacher = (Outputs(o.logits, o.embedding, o.stages[:2]) for o in (student, teacher))
    flat = [as_map(o.stages[1].flatten(1)) for o in (student, teacher)]
    assert compared("sp", student, teacher, LABELS) == pytest.approx(compared("sp", *flat, LABELS), rel=1e-6)


# ---- pkt


def test_pkt_ignores_rotation_and_the_scale_of_each_row() -> None:
    x, gains = drawn(5, 7), torch.tensor([[0.1], [1], [2], [30], [5]])
    assert compared("pkt", as_map(gains * turned(x)), as_map(x), LABELS[:5]) < 1e-10
    assert compared("pkt", as_map(x + 1), as_map(x), LABELS[:5]) > 1e-4
    assert compared("pkt", as_map(x[:1]), as_map(drawn(1, 9)), [0]) == 0


def test_pkt_of_opposite_rows_is_finite() -> None:
    x = drawn(1, 7).float()
    student, leaves = with_gradient(as_map(torch.cat([x, -x, x])))
    teacher = as_map(drawn(3, 7).float())
    assert everything_finite(built("pkt", student, teacher)(student, teacher, batch_of([0, 1, 2])), leaves)
