"""Loss, metrics and chance of classification, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autokd.protocols import Batch, Outputs
from autokd.tasks import TASKS
from autokd.tasks.classification import ROWS, Classification

torch.set_num_threads(1)
TASK = Classification()


def batch(y: torch.Tensor) -> Batch:
    rows = torch.arange(len(y))
    return Batch(torch.zeros(len(y), 1), y, rows, torch.zeros_like(rows), rows)


def test_is_registered_under_its_name():
    assert isinstance(TASKS[TASK.name], Classification)


def test_loss_is_the_mean_cross_entropy_in_float32():
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    loss = TASK.loss(Outputs(logits), batch(torch.tensor([0, 1])))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-2)) + math.log(2)) / 2)
    loss.backward()


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 2 * ROWS["cpu"] + 3), classes=st.integers(2, 6), seed=st.integers(0, 99))
def test_evaluation_in_parts_equals_evaluation_at_once(rows, classes, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, classes))
    y = rng.integers(0, classes, rows)
    found = TASK.evaluate(lambda x: x, torch.from_numpy(logits).float(), torch.from_numpy(y))
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == y).mean())
    assert found["loss"] == pytest.approx(-log_p[np.arange(rows), y].mean(), rel=1e-4)
    assert TASK.metric in found


def test_uint8_is_divided_by_255_and_no_gradient_is_kept():
    seen: list[torch.Tensor] = []
    weight = torch.ones(1, requires_grad=True)

    def forward(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        out = x * weight
        assert not out.requires_grad
        return out

    x = torch.tensor([[0, 255], [51, 0]], dtype=torch.uint8)
    assert TASK.evaluate(forward, x, torch.tensor([1, 0]))["accuracy"] == 1
    torch.testing.assert_close(seen[0], torch.tensor([[0.0, 1.0], [0.2, 0.0]]))
    assert x.tolist() == [[0, 255], [51, 0]]


def test_nan_logits_give_nan_loss():
    assert math.isnan(TASK.evaluate(lambda x: x * math.nan, torch.ones(3, 2), torch.tensor([0, 1, 0]))["loss"])


@pytest.mark.parametrize(("labels", "share"), [([0, 1], 0.5), ([2, 2, 2, 0], 0.75), ([1], 1.0)])
def test_chance_is_the_share_of_the_most_frequent_class(labels, share):
    assert TASK.chance(torch.tensor(labels)) == share
