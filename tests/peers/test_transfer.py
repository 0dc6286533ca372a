"""ckd_mkt: relations, responses, earlier selves, and when they are taken."""

from __future__ import annotations

import math

import pytest
import torch
from networks import (
    built,
    drawn,
    everything,
    modules,
    number,
    numbers,
    rows_of,
    two,
    two_embeddings,
    two_logits,
)
from torch import Tensor, nn

from autokd.errors import RecipeError
from autokd.peers import SYSTEMS
from autokd.peers.base import PeerSystem
from autokd.peers.mutual import mutual_loss
from autokd.protocols import Outputs, Shapes

Y = [1, 0, 4, 2]
BATCH = rows_of(Y, torch.float64)
RKD = {"distance": 0.004598506353938929, "angle": 0.0014105072539018324}  # rkd.distance, rkd.angle


def begun(networks: list[nn.Module], progress: float, **fields: float | str) -> PeerSystem:
    """A new system for these networks, at this place of a training."""
    system = SYSTEMS["ckd_mkt"](**fields)
    system.build([Shapes(5, 7)] * len(networks))
    system.adopt(networks)
    system.train()
    system.begin_epoch(networks, progress)
    return system


def train_somehow(networks: list[nn.Module]) -> None:
    """Change every weight and statistic."""
    for network in networks:
        network.train()(torch.randn(8, 4, generator=torch.Generator().manual_seed(3)))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.5).add_(0.1)


def weights(networks: list[nn.Module]) -> list[Tensor]:
    return [tensor.clone() for network in networks for tensor in network.state_dict().values()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ---- losses


def test_reference_numbers() -> None:
    parts = numbers(everything(built("ckd_mkt", two(), beta=0.5, w_rel=3.0, beta1=4.0, beta2=2.0)(two(), BATCH, 3.0)))
    for k, response in enumerate((0.9270757013067956, 1.1128122184406397)):  # cls.dml
        assert parts[f"{k}.distance"] == pytest.approx(0.5 * 3 * RKD["distance"], rel=1e-9)
        assert parts[f"{k}.angle"] == pytest.approx(0.5 * 3 * 4 * RKD["angle"], rel=1e-9)
        assert parts[f"{k}.response"] == pytest.approx(0.5 * 2 * response, rel=1e-9)


def test_where_it_is_mutual_learning() -> None:
    outputs = drawn(3, dtype=torch.float64)
    batch = rows_of([0, 1, 2, 3, 4, 0], torch.float64)
    system = built("ckd_mkt", outputs, w_rel=0.0, gamma=0.0, beta=0.5, beta2=2.0, first=0.0)
    assert not list(system.parameters())
    dml = SYSTEMS["dml"]()(outputs, batch, 1.0)
    for parts, expected in zip(system(outputs, batch, 5.0).own, dml.own, strict=True):
        assert numbers(parts) == {"distance": 0.0, "angle": 0.0, "response": number(expected["peers"])}


@pytest.mark.parametrize("t2", [True, False])
def test_where_it_is_distillation_from_the_own_earlier_self(t2: bool) -> None:
    system = built("ckd_mkt", two(), beta=0.0, t2=t2)
    parts = system(two(), BATCH, 3.0).own
    for own, logits, earlier in zip(parts, two_logits(), system.selves, strict=True):  # type: ignore[arg-type]
        assert isinstance(earlier, nn.Module)
        said = earlier(BATCH.x).float()
        weight = 0.9 if t2 else 0.1  # mutual_loss is multiplied by T²
        assert sum(numbers(own).values()) == pytest.approx(weight * float(mutual_loss(logits, [said], 3.0)), rel=1e-9)


def test_relations_do_not_change_with_the_embedding_turned_scaled_and_shifted() -> None:
    first, _ = two_embeddings()
    turn = torch.eye(6, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]], dtype=torch.float64)
    moved = 2.5 * first @ turn.T + 0.3 * torch.arange(6, dtype=torch.float64)
    logits, _ = two_logits()
    parts = built("ckd_mkt", two())([Outputs(logits, first), Outputs(logits, moved)], BATCH, 3.0).own[0]
    assert number(parts["distance"]) < 1e-20 and number(parts["angle"]) < 1e-20


def test_several_partners_are_averaged() -> None:
    outputs, batch = drawn(3, dtype=torch.float64), rows_of([0, 1, 2, 3, 4, 0], torch.float64)
    all_three = numbers(dict(built("ckd_mkt", outputs)(outputs, batch, 3.0).own[0]))
    pairs = [
        numbers(dict(built("ckd_mkt", outputs[:2])([outputs[0], each], batch, 3.0).own[0])) for each in outputs[1:]
    ]
    for name in ("distance", "angle", "response"):
        assert all_three[name] == pytest.approx((pairs[0][name] + pairs[1][name]) / 2, rel=1e-9)


def test_logits_can_be_related() -> None:
    bare = [Outputs(each.logits) for each in two()]
    as_embeddings = [Outputs(each.logits, each.logits) for each in two()]
    system = built("ckd_mkt", two(), relation="logits", first=0.0, gamma=0.0)
    other = built("ckd_mkt", two(), first=0.0, gamma=0.0)
    found, expected = system(bare, BATCH, 3.0), other(as_embeddings, BATCH, 3.0)
    assert numbers(everything(found)) == numbers(everything(expected))
    with pytest.raises(RecipeError, match="needs embeddings"):
        other(bare, BATCH, 3.0)


def test_networks_without_an_embedding_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"relates embeddings, the student's has width 0; set its relation to logits"):
        SYSTEMS["ckd_mkt"]().build([Shapes(5, 0)] * 2)
    SYSTEMS["ckd_mkt"](relation="logits").build([Shapes(5, 0)] * 2)


# ---- two stages


def test_before_the_second_stage_networks_learn_alone() -> None:
    networks, outputs = modules(2), drawn(2)
    system = begun(networks, 0.24)
    parts = everything(system(outputs, rows_of([0, 1, 2, 3, 4, 0]), 3.0))
    assert numbers(parts) == dict.fromkeys(parts, 0.0)
    system.begin_epoch(networks, 0.25)
    assert all(value > 0 for value in numbers(everything(system(outputs, rows_of([0, 1, 2, 3, 4, 0]), 3.0))).values())


def test_until_the_second_stage_the_labels_may_count_in_full() -> None:
    networks, outputs, batch = modules(2), drawn(2), rows_of([0, 1, 2, 3, 4, 0])
    system = begun(networks, 0.24, alone=0.9)
    for own, parts in zip(outputs, system(outputs, batch, 3.0).own, strict=True):
        expected = 0.9 * float(nn.functional.cross_entropy(own.logits, batch.y))
        assert float(parts["ce"]) == pytest.approx(expected) and sum(map(float, parts.values())) == pytest.approx(
            expected
        )
    system.begin_epoch(networks, 0.25)
    assert [float(parts["ce"]) for parts in system(outputs, batch, 3.0).own] == [0.0, 0.0]


def test_selves_are_taken_once_and_stay() -> None:
    networks = modules(2)
    system = begun(networks, 0.0)
    train_somehow(networks)
    taken = weights(networks)
    system.begin_epoch(networks, 0.3)
    selves = list(system.selves)  # type: ignore[arg-type]
    assert equal(weights(selves), taken) and equal(weights(networks), taken), "networks go on"
    train_somehow(networks)
    system.train()
    system.begin_epoch(networks, 0.6)
    assert equal(weights(selves), taken)
    assert not any(part.training for each in selves for part in each.modules()), "also in a system that trains"
    assert not any(parameter.requires_grad for parameter in system.parameters())


def test_networks_can_begin_again() -> None:
    networks = modules(2)
    initial = weights(networks)
    system = begun(networks, 0.0, init="scratch")
    train_somehow(networks)
    taken = weights(networks)
    places = [tensor.data_ptr() for network in networks for tensor in network.parameters()]
    system.begin_epoch(networks, 0.3)
    assert equal(weights(networks), initial) and equal(weights(list(system.selves)), taken)  # type: ignore[arg-type]
    assert places == [tensor.data_ptr() for network in networks for tensor in network.parameters()], "in place"
    train_somehow(networks)
    going_on = weights(networks)
    system.begin_epoch(networks, 0.6)
    assert equal(weights(networks), going_on), "once"


def test_a_restored_system_knows_what_it_was() -> None:
    networks = modules(2)
    system = begun(networks, 0.5)
    train_somehow(networks)
    other = begun(modules(2), 0.0)
    other.load_state_dict(system.state_dict())
    other.begin_epoch(networks, 0.75)
    assert equal(weights([system]), weights([other])), "its selves are not taken anew"


def test_selves_carry_no_hooks_of_the_networks() -> None:
    networks, calls = modules(2), []
    networks[0][0].register_forward_hook(lambda *_: calls.append(1))  # type: ignore[index]
    system = begun(networks, 0.5)
    outputs = drawn(2)
    system(outputs, rows_of([0, 1, 2, 3, 4, 0]), 3.0)
    assert not calls


def test_without_a_first_stage_there_is_no_earlier_self() -> None:
    with pytest.raises(RecipeError, match=r"gamma must be 0 where first is 0.*got 0.9; set it to 0, or first"):
        SYSTEMS["ckd_mkt"](first=0.0)
    outputs = drawn(2)
    system = built("ckd_mkt", outputs, first=0.0, gamma=0.0)
    assert set(system(outputs, rows_of([0, 1, 2, 3, 4, 0]), 3.0).own[0]) == {"distance", "angle", "response"}
