"""Points as rows: there and back, with conditions, for any space."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spaces import SMALL, VOCABULARY, space_texts

from autokd.engine.encoding import INACTIVE, Encoding
from autokd.space import Space

SPACE = Space.parse(SMALL, VOCABULARY)


@settings(max_examples=60, deadline=None)
@given(text=space_texts(), seed=st.integers(0, 9))
def test_a_point_survives_the_way_there_and_back(text: str, seed: int) -> None:
    space = Space.parse(text, VOCABULARY)
    encoding, draw = Encoding(space), random.Random(seed)
    point = space.quantile([draw.random() for _ in space.fields])
    back = encoding.point(encoding.row(point))
    assert list(back) == list(point)
    for name, value in point.items():
        assert back[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value)


@settings(max_examples=60, deadline=None)
@given(text=space_texts(), seed=st.integers(0, 9))
def test_rows_that_are_drawn_or_varied_are_points(text: str, seed: int) -> None:
    """`settle` agrees with the space on what exists, which it never asks."""
    space = Space.parse(text, VOCABULARY)
    encoding, rng = Encoding(space), np.random.default_rng(seed)
    drawn = encoding.draw(rng, 8)
    for row in (*drawn, *encoding.vary(rng, drawn, 0.2)):
        point = encoding.point(row)
        assert point == space.complete(point)
        assert encoding.row(point) == pytest.approx(row, abs=1e-9)


def test_what_does_not_exist_makes_no_difference() -> None:
    encoding = Encoding(SPACE)
    raw = np.random.default_rng(0).random((2, len(encoding.fields)))
    raw[1] = raw[0]
    family, width = encoding.column["student.family"], encoding.column["student.mlp.width"]
    raw[:, family] = 0.0  # resnet
    raw[1, width] = 0.9
    settled = encoding.settle(raw)
    assert (settled[0] == settled[1]).all() and settled[0, width] == INACTIVE


def test_priors_are_drawn_as_the_space_draws_them() -> None:
    encoding, draw = Encoding(SPACE), random.Random(0)
    ours = encoding.draw(np.random.default_rng(0), 4000)
    theirs = encoding.rows([SPACE.quantile([draw.random() for _ in SPACE.fields], prior=True) for _ in range(4000)])
    for place, entry in enumerate(encoding.fields):
        if entry.kind == "choice":
            shares = [[np.mean(rows[:, place] == k) for k in range(len(entry.choices))] for rows in (ours, theirs)]
            assert shares[0] == pytest.approx(shares[1], abs=0.05)
        else:
            assert ours[:, place].mean() == pytest.approx(theirs[:, place].mean(), abs=0.03)
            assert ours[:, place].std() == pytest.approx(theirs[:, place].std(), abs=0.03)
