"""Losses that ask for rows of their own, in real epochs: finite, resumed to the last bit, with the teacher live and on tape."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resuming import assert_equal
from test_training import ALONE
from tiny import ROWS, core, images, order, passes_of, recipe, taped

import autokd.core.run
from autokd.core.core import TrainingCore
from autokd.core.device import Setting
from autokd.engine.passes import of_term
from autokd.errors import TrialFailure
from autokd.objectives import OBJECTIVES
from autokd.orders import Report
from autokd.recipe import TermSpec

NAMES = [name for name, each in OBJECTIVES.items() if each.asks]
ASKING = pytest.mark.parametrize("name", NAMES)
TAPED = pytest.mark.parametrize("on_tape", [False, True], ids=["live", "taped"])
FIELDS: dict[str, list[dict[str, Any]]] = {
    "triplet": [{"negatives": "random", "form": "pair"}, {"anchor": "student", "space": "probabilities"}],
    "msst": [{"mixer": "cutmix"}, {"mixer": "mixup3", "alpha": 0.4, "portion": 0.5}],
    "amkd": [{"steps": 2, "portion": 0.5, "positive": "student", "t2": False}],
}


def trained(folder: Path, tape: Path | None, term: dict[str, Any], *stops: int) -> list[Report]:
    """To each stop in turn by a core of its own, of a teacher that knows the images."""
    reports = []
    for start, to in zip((0, *stops), stops, strict=False):
        its_core = taped(folder, tape)
        reports.append(its_core.advance(order(recipe(terms=(term,), optim={"lr": 0.01}), to=to, start=start, total=2)))
        its_core.close()
    return reports


@TAPED
@ASKING
def test_a_resumed_trial_equals_an_uninterrupted_one(tmp_path: Path, name: str, on_tape: bool) -> None:
    tape = tmp_path / "tape" if on_tape else None
    [report] = trained(tmp_path / "whole", tape, ALONE[name], 2)
    trained(tmp_path / "paused", tape, ALONE[name], 1, 2)
    assert_equal(tmp_path / "paused", tmp_path / "whole")
    for row in report.history:
        parts = [value for key, value in row["terms"].items() if key != "ce"]
        assert all(map(math.isfinite, parts)) and sum(parts) > 0


@pytest.mark.parametrize(
    ("name", "fields"), [(name, each) for name, several in FIELDS.items() for each in several], ids=str
)
def test_other_forms_train(tmp_path: Path, name: str, fields: dict[str, Any]) -> None:
    [report] = trained(tmp_path, None, {**ALONE[name], **fields}, 2)
    assert all(math.isfinite(value) for row in report.history for value in row["terms"].values())


def test_every_network_of_a_trial_asks_for_itself(tmp_path: Path) -> None:
    of = recipe(terms=(ALONE["triplet"], ALONE["msst"], ALONE["amkd"]), peers={"count": 1}, augment={"policy": "jda"})
    report = core(tmp_path, images(60)).advance(order(of, to=1))
    assert all(math.isfinite(value) for value in report.history[0]["terms"].values())


@ASKING
def test_the_teacher_is_asked_as_often_as_its_cost_says(tmp_path: Path, name: str) -> None:
    its_core = taped(tmp_path, None)
    asked = passes_of(its_core)
    its_core.advance(order(recipe(terms=(ALONE[name],), optim={"lr": 0.01, "batch": 13})))  # three equal batches
    told = of_term(TermSpec.model_validate(ALONE[name]))
    live = ROWS * told.listens
    forward = {"amkd": 11 * 3 * int(0.25 * 13)}.get(name, told.teacher * ROWS)  # backward passes are no calls
    assert sum(rows for rows in asked if rows != len(its_core.example)) == live + forward


def test_who_asks_the_teacher_needs_one(tmp_path: Path) -> None:
    its_core = TrainingCore(images(60), None, tmp_path, Setting())
    with pytest.raises(TrialFailure, match="a loss asks the teacher about rows of its own, and there is none"):
        its_core.advance(order(recipe(terms=(ALONE["msst"],))))


def test_steps_that_ask_are_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may run the live teacher, which lanes share."""
    monkeypatch.setattr(autokd.core.run, "captured", lambda *_: "recorded")
    its_core = core(tmp_path, images(60))
    recorded = {
        name: its_core.new(recipe(terms=(ALONE[name],)), 0, its_core.setting).captured for name in ("kd", "triplet")
    }
    assert recorded == {"kd": "recorded", "triplet": None}


def test_negatives_are_other_ones_in_each_epoch(tmp_path: Path) -> None:
    its_core, seen = core(tmp_path, images(60)), list[list[int]]()
    run = its_core.new(recipe(terms=(ALONE["triplet"],)), 0, its_core.setting)
    [ask] = run._asks()
    objective, y = run.objectives[0][0], its_core.rows.y  # type: ignore[union-attr, attr-defined]
    index = torch.arange(len(y))
    for run.epoch in (0, 1, 0):
        ask.begin_epoch()
        seen.append(objective.by_class.other_class(y, ask.uniform(12, index, 0 * index)).tolist())  # type: ignore[union-attr]
    assert seen[0] == seen[2] != seen[1]
    assert all(y[other] != y[own] for own, other in enumerate(seen[0]))
