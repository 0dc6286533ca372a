"""Samples of other classes are drawn from all of them alike."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from autokd.augment.counters import uniform
from autokd.errors import RecipeError
from autokd.objectives.drawing import ByClass

SPLIT = torch.tensor([2, 0, 2, 4, 0, 2, 2, 4, 0, 2])  # classes 1 and 3 have no samples
DRAWS = 20_000


@pytest.mark.parametrize("label", [0, 2, 4, 1])
def test_every_sample_of_another_class_is_as_likely(label: int) -> None:
    random = uniform(0, 0, torch.arange(DRAWS))
    found = ByClass(SPLIT).other_class(torch.full((DRAWS,), label), random)
    counts = torch.bincount(found, minlength=len(SPLIT))
    others = label != SPLIT
    assert not counts[~others].any()
    assert stats.chisquare(counts[others].numpy()).pvalue > 1e-4


def test_the_largest_random_number_is_within_the_split() -> None:
    almost_one = torch.full((3,), 1 - 2.0**-24)
    for rows in (7, 4097, 60_000):
        y = torch.arange(rows) % 3
        found = ByClass(y).other_class(torch.arange(3), almost_one)
        assert bool((y[found] != torch.arange(3)).all())


def test_one_class_has_no_others() -> None:
    with pytest.raises(RecipeError, match="need 2 classes or more, got 1 in 4 rows; use"):
        ByClass(torch.full((4,), 3))


def test_it_is_made_anew_from_the_labels() -> None:
    assert not ByClass(SPLIT).state_dict()
