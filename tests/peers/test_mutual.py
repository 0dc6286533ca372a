"""Mutual learning against reference numbers, and whom its gradient reaches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autokd.peers.mutual import mutual_loss, peer_losses

torch.set_num_threads(1)


def pair() -> tuple[Tensor, Tensor]:
    i, j = torch.arange(4.0, dtype=torch.float64)[:, None], torch.arange(5.0, dtype=torch.float64)
    return 2 * torch.sin(1.3 * i + 0.7 * j), 3 * torch.cos(0.9 * i - 0.4 * j + 0.2)


def test_reference_numbers() -> None:
    losses = peer_losses(pair())
    # cls.dml.student_from_teacher__teacher_from_student
    assert [float(loss) for loss in losses] == pytest.approx([0.9270757013067956, 1.1128122184406397], rel=1e-9)
    warm = mutual_loss(pair()[0], [pair()[1]], 4.0)
    assert float(warm) == pytest.approx(1.3139174630566062, rel=1e-9)  # cls.kd.T4


def test_several_partners_are_averaged() -> None:
    first, second = pair()
    third = 0.5 * (first + second) + torch.arange(5.0)
    both = float(mutual_loss(first, [second, third], 2.0))
    assert both == pytest.approx(
        (float(mutual_loss(first, [second], 2.0)) + float(mutual_loss(first, [third], 2.0))) / 2
    )
    losses = peer_losses([first, second, third], 2.0)
    assert [float(loss) for loss in losses] == pytest.approx(
        [both, float(mutual_loss(second, [first, third], 2.0)), float(mutual_loss(third, [first, second], 2.0))]
    )


def test_gradient_stays_with_its_network() -> None:
    logits = [tensor.clone().requires_grad_() for tensor in (*pair(), pair()[0] + 1.5 * pair()[1])]
    for own, loss in enumerate(peer_losses(logits)):
        gradients = torch.autograd.grad(loss, logits, allow_unused=True)
        assert [gradient is not None for gradient in gradients] == [k == own for k in range(3)]
    alone = [torch.autograd.grad(loss, own)[0] for loss, own in zip(peer_losses(logits), logits, strict=True)]
    torch.stack(peer_losses(logits)).sum().backward()  # one backward for all is the same
    for leaf, expected in zip(logits, alone, strict=True):
        torch.testing.assert_close(leaf.grad, expected)


def test_equal_networks_have_nothing_to_teach() -> None:
    own = pair()[0].clone().requires_grad_()
    loss = mutual_loss(own, [pair()[0], pair()[0]], 3.0)
    (gradient,) = torch.autograd.grad(loss, own)
    assert float(loss.detach()) == 0 and float(gradient.abs().max()) < 1e-15


def test_a_network_alone_learns_nothing_from_peers() -> None:
    (loss,) = peer_losses([pair()[0]])
    assert loss.shape == () and float(loss) == 0


def test_confident_networks_stay_finite() -> None:
    one = (50 * pair()[0].sign()).float().requires_grad_()
    loss = mutual_loss(one, [50 * pair()[1].sign().float()], 0.5)
    (gradient,) = torch.autograd.grad(loss, one)
    assert bool(loss.isfinite()) and bool(gradient.isfinite().all())
