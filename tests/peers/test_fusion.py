"""ffcl against reference numbers, and where it is dml."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import (
    built,
    drawn,
    everything,
    fused_logits,
    number,
    numbers,
    reached,
    rows_of,
    two,
    two_logits,
    with_gradient,
)
from torch import Tensor, nn
from torch.nn import functional

from autokd.errors import RecipeError
from autokd.objectives.features import AT
from autokd.objectives.own import virtual_teacher
from autokd.peers import SYSTEMS
from autokd.peers.fusion import correct_response
from autokd.protocols import Shapes

Y = [1, 0, 4, 2]
BATCH = rows_of(Y, torch.float64)


class Said(nn.Module):
    """A fusion whose logits are known."""

    def forward(self, *maps: Tensor) -> Tensor:
        return fused_logits()


def test_reference_numbers() -> None:
    system = built("ffcl", two())
    system.head = Said()
    parts = numbers(everything(system(two(), BATCH, 3.0)))
    mutual = parts["0.fused"] + parts["1.fused"] + parts["fusion_ensemble"]
    assert mutual == pytest.approx(0.6998761365834949, rel=1e-9)  # ffcl.mkd.T3
    own = sum(float(functional.cross_entropy(logits, BATCH.y)) for logits in two_logits())
    assert own + parts["fusion_ce"] == pytest.approx(5.6164413844628305, rel=1e-9)  # ffcl.three_ce
    responses = [0.9270757013067956, 1.1128122184406397]  # cls.dml
    assert [parts["0.response"], parts["1.response"]] == pytest.approx(responses, rel=1e-9)
    assert parts["0.positive"] == pytest.approx(0.1 * 0.5364516503718426, rel=1e-9)  # tfkd_reg.mean_over_rows


def test_the_ramp_weighs_what_fusion_teaches_and_is_taught() -> None:
    system = built("ffcl", two())
    full = numbers(everything(system(two(), BATCH, 3.0)))
    system.begin_epoch([], 40 / 300)
    half = numbers(everything(system(two(), BATCH, 3.0)))
    ramped = {"0.fused", "1.fused", "fusion_ensemble"}
    for name in full:
        factor = 0.2865047968601901 if name in ramped else 1.0
        assert half[name] == pytest.approx(factor * full[name], rel=1e-7)


def test_what_it_is_without_fusion_and_positive_knowledge() -> None:
    plain = built("ffcl", two(), fusion="off", gamma=0.0)(two(), BATCH, 4.0)
    dml = SYSTEMS["dml"]()(two(), BATCH, 1.0)
    assert not plain.shared and not list(SYSTEMS["ffcl"](fusion="off").parameters())
    for parts, expected in zip(plain.own, dml.own, strict=True):
        assert numbers(parts) == {"response": number(expected["peers"]), "positive": 0.0}


def test_positive_knowledge_gives_the_label_most() -> None:
    logits, _ = two_logits()
    sure = virtual_teacher(logits, BATCH.y, 1.0, 0.02)  # one class has all: cross-entropy with the label
    assert float(sure) == pytest.approx(float(functional.cross_entropy(logits, BATCH.y)), rel=1e-9)
    virtual = torch.full((4, 5), 0.0025, dtype=torch.float64)
    virtual[torch.arange(4), BATCH.y] = 0.99
    leaf = (virtual / 20).requires_grad_()
    (gradient,) = torch.autograd.grad(virtual_teacher(leaf, BATCH.y, 0.99, 20.0), leaf)
    assert float(gradient.abs().max()) < 1e-15, "nothing is left to learn where it is reached"


def test_responses_of_rows_that_are_right() -> None:
    own, other = two_logits()
    right = other.argmax(1) == BATCH.y
    assert 0 < int(right.sum()) < 4
    rows = [
        float(functional.kl_div(own[k].log_softmax(0), other[k].softmax(0), reduction="sum"))
        for k in range(4)
        if right[k]
    ]
    assert float(correct_response(own, other, BATCH.y)) == pytest.approx(sum(rows) / len(rows), rel=1e-9)
    leaf = own.clone().requires_grad_()
    none = correct_response(leaf, other, (other.argmax(1) + 1) % 5)
    (gradient,) = torch.autograd.grad(none, leaf)
    assert float(none.detach()) == 0 and not bool(gradient.any())


def test_correct_only_has_no_virtual_teacher() -> None:
    mutual = built("ffcl", two(), positive="correct_only")(two(), BATCH, 3.0)
    assert set(mutual.own[0]) == {"response", "fused"}
    expected = correct_response(*two_logits(), BATCH.y)
    assert number(mutual.own[0]["response"]) == pytest.approx(float(expected), rel=1e-12)


def test_feature_exchange_is_attention_transfer_between_peers() -> None:
    parts = numbers(everything(built("ffcl", two(), beta_f=3.0)(two(), BATCH, 3.0)))
    assert parts["0.feature"] == parts["1.feature"] == pytest.approx(3 * 0.010437171674937221, rel=1e-9)  # at
    outputs = drawn(2)
    parts = numbers(everything(built("ffcl", outputs, beta_f=1.0)(outputs, rows_of([0, 1, 2, 3, 4, 0]), 3.0)))
    expected = number(AT()(outputs[0], outputs[1], BATCH)["at"])
    assert parts["0.feature"] == pytest.approx(expected, rel=1e-6)


def test_what_fusion_learns_reaches_both_networks_through_their_maps() -> None:
    outputs, leaves = with_gradient(drawn(2))
    shared = built("ffcl", outputs)(outputs, rows_of([0, 1, 2, 3, 4, 0]), 3.0).shared
    last = [[own[-1]] for own in leaves]
    for part in shared.values():
        assert reached(part, leaves) == [True, True] and reached(part, last) == [True, True]
        assert reached(part, [[leaf for leaf in own[:-1]] for own in leaves]) == [False, False], "not by their logits"


@pytest.mark.parametrize(("fusion", "parameters"), [("depthwise", 8), ("pointwise", 5), ("add", 5)])
def test_ways_to_fuse(fusion: str, parameters: int) -> None:
    shapes = [Shapes(5, 7, ((4, 6, 6), (9, 3, 3)))] * 2
    system = SYSTEMS["ffcl"](fusion=fusion)
    system.build(shapes)
    assert len(list(system.parameters())) == parameters
    maps = torch.randn(2, 6, 9, 3, 3)
    assert system.head is not None and system.head(maps).shape == (6, 5)
    assert system.head.classify.in_features == 9  # type: ignore[union-attr]


def test_three_networks_are_fused_as_two_are() -> None:
    """Equal networks: the exchanges, means over partners, are those of two, and the ensemble is what each says."""
    outputs = drawn(1) * 3
    for fields in ({}, {"fusion": "add"}, {"positive": "correct_only"}, {"beta_f": 3.0}):
        two, three = (
            built("ffcl", outputs[:count], **fields)(outputs[:count], rows_of([0, 1, 2, 3, 4, 0]), 3.0)
            for count in (2, 3)
        )
        for part in set(two.own[0]) - {"fused"}:
            assert float(three.own[2][part]) == pytest.approx(float(two.own[0][part]), rel=1e-5)
        assert len(three.own) == 3 and set(three.shared) == {"fusion_ce", "fusion_ensemble"}


def test_larger_maps_are_pooled() -> None:
    system = SYSTEMS["ffcl"]()
    system.build([Shapes(5, 7, ((4, 6, 6),)), Shapes(5, 7, ((6, 3, 3),))])
    assert system.head is not None
    large, small = torch.randn(2, 4, 6, 6), torch.randn(2, 6, 3, 3)
    pooled = large.unflatten(2, (3, 2)).unflatten(4, (3, 2)).mean((3, 5))
    torch.testing.assert_close(system.head([large, small]), system.head([pooled, small]))


@pytest.mark.parametrize(
    ("fields", "stages", "message"),
    [
        ({"fusion": "add"}, [(4, 3, 3), (6, 3, 3)], "maps of equal width, got 4, 6; use pointwise"),
    ],
)
def test_what_cannot_be_fused_is_refused(
    fields: dict[str, Any], stages: list[tuple[int, int, int]], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        SYSTEMS["ffcl"](**fields).build([Shapes(5, 7, (stage,)) for stage in stages])
