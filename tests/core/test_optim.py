"""Optimisers and learning rates of a recipe."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from autokd.core.optim import learning_rate, optimiser
from autokd.recipe import OptimSpec


def test_a_restart_gives_both_parts_a_whole_schedule() -> None:
    spec = OptimSpec(lr=0.4, warmup=0.1, restart=0.25)
    whole = OptimSpec(lr=0.4, warmup=0.1)
    for share in (0.0, 0.05, 0.1, 0.5, 0.999):
        assert learning_rate(spec, 0.25 * share) == pytest.approx(learning_rate(whole, share))
        assert learning_rate(spec, 0.25 + 0.75 * share) == pytest.approx(learning_rate(whole, share))
    assert learning_rate(spec, 0.2499) < 1e-3 and learning_rate(spec, 0.25) == 0.0 and learning_rate(spec, 0.325) == 0.4


def test_steps_begin_anew_with_a_restart() -> None:
    spec = OptimSpec(lr=1.0, schedule="step", milestones="0.5", warmup=0, restart=0.5)
    found = [learning_rate(spec, progress) for progress in (0.0, 0.25, 0.5, 0.74, 0.75)]
    assert found == pytest.approx([1.0, 0.1, 1.0, 1.0, 0.1])


def test_a_cosine_without_restart() -> None:
    spec = OptimSpec(lr=1.0, warmup=0)
    assert learning_rate(spec, 0.25) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


@pytest.mark.parametrize(("nesterov", "moved"), [(True, -0.19 - 0.081), (False, -0.1 - 0.09)])
def test_momentum_with_and_without_nesterov(nesterov: bool, moved: float) -> None:
    """Two steps of rate 0.1 at gradients 1 and 0: heavy ball moves -0.1 and -0.09, Nesterov's -0.19 and -0.081."""
    weight = nn.Parameter(torch.zeros(1))
    made = optimiser([weight], OptimSpec(lr=0.1, weight_decay=0, nesterov=nesterov), "cpu")
    for gradient in (1.0, 0.0):
        weight.grad = torch.full((1,), gradient)
        made.step()
    assert float(weight) == pytest.approx(moved, rel=1e-5)
