"""What losses are said to cost, and whether they hear the teacher, is what they do."""

from __future__ import annotations

import pytest

from autokd.engine.passes import PASSES, of_term
from autokd.objectives import OBJECTIVES
from autokd.recipe import TermSpec


@pytest.mark.parametrize("name", OBJECTIVES)
def test_those_that_listen_are_known(name: str) -> None:
    assert of_term(TermSpec(objective=name, weight=1.0)).listens == OBJECTIVES[name].listens


def test_no_other_losses_are_named() -> None:
    assert PASSES.keys() <= OBJECTIVES.keys()
