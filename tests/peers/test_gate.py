"""one: the gate, its loss, the ramp."""

from __future__ import annotations

import math

import pytest
import torch
from networks import built, drawn, everything, number, numbers, reached, rows_of, two, two_logits, with_gradient
from torch.nn import functional

from autokd.peers.base import risen
from autokd.peers.mutual import mutual_loss

Y = [1, 0, 4, 2]


def test_the_ramp_of_its_source() -> None:
    """Epochs 0, 40 and 80 of 300, with a ramp of 80: ffcl.ramp.0_40_80_of_80."""
    found = [risen(epoch / 300, 80 / 300) for epoch in (0, 40, 80, 299)]
    assert found == pytest.approx([0.006737946999085467, 0.2865047968601901, 1.0, 1.0], rel=1e-9)
    assert risen(0.0, 0.0) == 1.0


def test_the_ramp_weighs_what_networks_learn_of_the_mixture_alone() -> None:
    outputs, batch = two(), rows_of(Y, torch.float64)
    system = built("one", outputs)
    full = numbers(everything(system(outputs, batch, 3.0)))
    system.begin_epoch([], 40 / 300)
    half = numbers(everything(system(outputs, batch, 3.0)))
    assert half["0.ensemble"] == pytest.approx(0.2865047968601901 * full["0.ensemble"], rel=1e-7)
    assert half["gate_ce"] == full["gate_ce"]


def test_an_even_gate_mixes_the_mean() -> None:
    outputs, batch = two(), rows_of(Y, torch.float64)
    system = built("one", outputs)
    for parameter in system.parameters():
        torch.nn.init.zeros_(parameter)
    mutual, mean = system(outputs, batch, 3.0), sum(two_logits()) / 2
    assert isinstance(mean, torch.Tensor)
    for parts, own in zip(mutual.own, two_logits(), strict=True):
        assert number(parts["ensemble"]) == pytest.approx(number(mutual_loss(own, [mean], 3.0)), rel=1e-12)
    assert number(mutual.shared["gate_ce"]) == pytest.approx(number(functional.cross_entropy(mean, batch.y)), rel=1e-12)


def test_the_gate_reads_the_last_stage_but_one_of_the_student_row_by_row() -> None:
    outputs, batch = drawn(3, dtype=torch.float64), rows_of([0, 1, 2, 3, 4, 0], torch.float64)
    system = built("one", outputs)
    linear, norm = system.gate[0], system.gate[1]  # type: ignore[index]
    x = linear(outputs[0].stages[-2].mean((2, 3)))
    x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() * norm.weight + norm.bias
    gate = torch.softmax(torch.relu(x), 1)
    assert gate.shape == (6, 3) and number(gate.std(0).min()) > 0
    mixture = sum(gate[:, k : k + 1] * each.logits for k, each in enumerate(outputs))
    assert isinstance(mixture, torch.Tensor)
    found = number(system(outputs, batch, 1.0).shared["gate_ce"])
    assert found == pytest.approx(number(functional.cross_entropy(mixture, batch.y)), rel=1e-9)


def test_the_loss_of_the_mixture_reaches_every_network() -> None:
    outputs, leaves = with_gradient(drawn(3))
    mutual = built("one", outputs)(outputs, rows_of([0, 1, 2, 3, 4, 0]), 3.0)
    assert reached(mutual.shared["gate_ce"], leaves) == [True, True, True]
    assert math.isfinite(number(mutual.shared["gate_ce"]))
