"""How far each method came."""

from __future__ import annotations

from pathlib import Path

import pytest
from ledgers import RUNGS, Sketch

from autokd.recipe import Recipe
from autokd.result import Result


def recipe(*terms: str, **more: object) -> Recipe:
    losses = [{"objective": name, "weight": 1} for name in terms]
    return Recipe.from_dict({"student": {"family": "resnet", "width": 4}, "terms": losses, **more})


@pytest.fixture
def result(tmp_path: Path) -> Result:
    sketch = Sketch(tmp_path)
    sketch.start("a", recipe("kd", "rkd"))
    sketch.rung("a", 1, 0, value=0.6)
    sketch.start("a2", recipe("kd"))
    sketch.rung("a2", 1, 0, value=0.5)
    sketch.start("b", recipe("dkd", peers={"count": 1}))
    sketch.rung("b", 1, 0, value=0.4)
    sketch.rung("b", 3, 1, value=0.45)
    sketch.start("c", recipe())
    sketch.ledger.append("fail", trial="c", reason="nan", message="the loss was no longer a number")
    sketch.start("f", recipe("dist"), role="winner")
    sketch.rung("f", 1, 0, value=0.9)
    return Result(tmp_path)


def test_trials_are_counted_by_what_they_had(result: Result) -> None:
    """Of two losses each counts; final trials do not; a failed trial is beaten by all."""
    found = {(entry.part, entry.name): entry for entry in result.methods()}
    assert {name for part, name in found if part == "loss"} == {"kd", "rkd", "dkd", "no distillation"}
    kd, dkd, none = (found["loss", name] for name in ("kd", "dkd", "no distillation"))
    assert (kd.begun, kd.further, kd.done, kd.best) == (2, 0, 0, 0.6)
    assert (dkd.begun, dkd.further, dkd.best) == (1, 1, 0.45) and RUNGS[0] == 1
    assert kd.beats == pytest.approx((1 + 2 / 3) / 2) and dkd.beats == pytest.approx(1 / 3)
    assert none.beats == 0 and none.best is None and found["peers", "dml"].begun == 1
    assert list(found)[0] == ("loss", "kd") or list(found)[0] == ("loss", "rkd"), "what came farthest comes first"


def test_a_part_without_a_choice_is_left_out(result: Result) -> None:
    assert {entry.part for entry in result.methods()} == {"loss", "peers"}


def test_before_anything_was_measured(tmp_path: Path) -> None:
    sketch = Sketch(tmp_path)
    assert Result(tmp_path).methods() == []
    sketch.start("a", recipe("kd"))
    sketch.start("b", recipe())
    assert [(entry.begun, entry.beats, entry.best) for entry in Result(tmp_path).methods()] == [(1, None, None)] * 2
