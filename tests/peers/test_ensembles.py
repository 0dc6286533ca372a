"""kdcl: what the ensembles are."""

from __future__ import annotations

import pytest
import torch
from networks import drawn, number, rows_of, two, two_logits
from torch.nn import functional

from autokd.peers import SYSTEMS
from autokd.peers.ensembles import ensemble
from autokd.peers.mutual import mutual_loss

Y = torch.tensor([1, 0, 4, 2])


def test_the_mean() -> None:
    first, second = two_logits()
    torch.testing.assert_close(ensemble([first, second], Y, "mean"), (first + second) / 2)


def test_the_best_is_the_network_with_the_smallest_cross_entropy_over_the_batch() -> None:
    first, second = two_logits()
    right = 9 * functional.one_hot(Y, 5).double()
    assert torch.equal(ensemble([first, right, second], Y, "best"), right)
    once = right.clone()
    once[1:] = -right[1:]  # best on one row alone
    surprises = [float(functional.cross_entropy(each, Y)) for each in (first, second, once)]
    found = ensemble([first, second, once], Y, "best")
    assert torch.equal(found, [first, second, once][surprises.index(min(surprises))]) and not torch.equal(found, once)


def test_the_smallest_logits_beside_the_labels() -> None:
    first = torch.tensor([[2.0, 1.0, -1.0]])
    second = torch.tensor([[3.0, 3.0, 1.0]])
    found = ensemble([first, second], torch.tensor([0]), "min_logit")
    assert found.tolist() == [[0.0, -1.0, -3.0]]
    each = [outputs.logits for outputs in drawn(4, n=20)]
    y = torch.arange(20) % 5
    smallest = functional.cross_entropy(ensemble(each, y, "min_logit"), y, reduction="none")
    assert all(bool((smallest <= functional.cross_entropy(z, y, reduction="none") + 1e-6).all()) for z in each)


@pytest.mark.parametrize("how", ["mean", "best", "min_logit"])
def test_every_network_learns_from_the_same_ensemble(how: str) -> None:
    batch = rows_of(Y.tolist(), torch.float64)
    mutual = SYSTEMS["kdcl"](ensemble=how)(two(), batch, 2.0)
    target = ensemble(two_logits(), Y, how)
    for parts, own in zip(mutual.own, two_logits(), strict=True):
        assert number(parts["ensemble"]) == number(mutual_loss(own, [target], 2.0))
    assert not mutual.shared


def test_the_best_network_learns_nothing() -> None:
    mutual = SYSTEMS["kdcl"](ensemble="best")(two(), rows_of(Y.tolist(), torch.float64), 2.0)
    found = sorted(number(parts["ensemble"]) for parts in mutual.own)
    assert found[0] == 0 and found[1] > 0.1
