"""The end of a search, with real checkpoints: who is measured on the test split, and what is saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import KD, images, network, recipe

from autokd.core.core import TrainingCore
from autokd.core.device import Setting
from autokd.delivery import ABOUT, RECIPE, WEIGHTS, deliver, load_delivered
from autokd.errors import RunFolderError, TrialFailure
from autokd.gain import control_recipe
from autokd.history import History
from autokd.ledger import Ledger
from autokd.orders import Order
from autokd.recipe import Recipe
from autokd.result import Result
from autokd.run_folder import RunFolder
from autokd.teacher import Teacher, evaluate

BUDGET = {"kind": "trials", "amount": 1.0}
STUDENT = recipe("mlp", width=8, terms=({**KD, "weight": 2.0},))


class Search:
    """A search of one trial, written by hand and trained for real."""

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder.create(path, "x")
        self.ledger = Ledger(self.folder.ledger)
        self.teacher = Teacher(network("mlp", width=32), images())
        self.core = TrainingCore(self.teacher.data, self.teacher.module, self.folder.checkpoints, Setting())
        self.ledger.append("search", rungs=[1, 2], budget=BUDGET, seed=0)
        self.ledger.append("session", budget=BUDGET, pid=0, lanes=1)

    def train(
        self, name: str, of: Recipe, role: str = "search", seed: int = 0, to: int = 2, fails: bool = False
    ) -> None:
        told = {"role": role, "recipe": of.to_dict(), "point": {}, "source": "x", "seed": seed, "to": to}
        group = None if role == "search" else "t1"
        self.ledger.append("start", trial=name, params=9, flops=99, group=group, **told)
        if fails:
            self.ledger.append("fail", trial=name, reason="nan", message=str(TrialFailure("nan", "no number")))
            return
        report = self.core.advance(Order(trial=name, recipe=of, seed=seed, to=to, total=2))
        self.ledger.append("rung", **{**vars(report), "trial": name})

    def finals(self, of: Recipe, roles: tuple[str, ...] = ("winner", "no_kd"), fails: tuple[str, ...] = ()) -> None:
        self.ledger.append("finals", winner="t1", seeds=[1000, 1001])
        for seed in (1000, 1001):
            for role in roles:
                its = of if role == "winner" else control_recipe(role, of)
                self.train(f"t1-{role}-{seed}", its, role, seed, fails=role in fails)

    def deliver(self) -> object:
        history = History.replay(self.ledger.events)
        return deliver(history, self.folder, self.ledger, self.teacher)

    @property
    def tests(self) -> list[tuple[str, str | None]]:
        return [(event["role"], event["trial"]) for event in self.ledger.events if event["event"] == "test"]


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    monkeypatch.setattr("autokd.teacher.cpu_count", lambda: 1)
    return Search(tmp_path / "run")


def test_the_best_seed_is_saved_and_everyone_is_tested_once(search: Search) -> None:
    search.train("t1", STUDENT, to=1)
    search.finals(STUDENT)
    search.deliver()
    finals = [(role, f"t1-{role}-{seed}") for role in ("winner", "no_kd") for seed in (1000, 1001)]
    assert search.tests == [("teacher", None), *finals]
    saved = load_delivered(search.folder.student)
    values = {trial.id: trial.values[2] for trial in History.replay(search.ledger.events).finals("winner")}
    assert saved.about["trial"] == max(values, key=lambda name: values[name])
    test = evaluate(saved.module, search.teacher.data, search.teacher.data.test, "classification")["accuracy"]
    told = {event["trial"]: event["value"] for event in search.ledger.events if event["event"] == "test"}
    assert told[saved.about["trial"]] == pytest.approx(test)
    assert saved.recipe == STUDENT and not saved.module.training
    search.deliver()
    assert len(search.tests) == 5, "the test split was read again"


def test_a_control_that_is_the_winner_is_shown_as_the_winner(search: Search) -> None:
    default = STUDENT.with_default_kd()
    search.train("t1", default, to=1)
    search.finals(default)
    search.deliver()
    result = Result(search.folder.path)
    rows = {row.role: row for row in result.rows()}
    assert list(rows) == ["teacher", "winner", "no_kd", "default_kd"]
    assert rows["default_kd"].label == "same architecture, default KD (the winner is this recipe)"
    for name in ("values", "tests", "seeds", "params", "epochs"):
        assert getattr(rows["default_kd"], name) == getattr(rows["winner"], name)
    assert result.gain("default_kd") is None and result.gain("no_kd") is not None
    assert {gain.control for gain in result.gains()} == {"no_kd"}
    assert "(the winner is this recipe)" in json.dumps(result.to_dict())


def test_without_finals_the_leader_is_delivered(search: Search) -> None:
    search.train("t1", STUDENT, to=1)
    search.deliver()
    assert search.tests == [("teacher", None), ("winner", "t1")]
    assert load_delivered(search.folder.student).about["trial"] == "t1"


def test_a_winner_whose_retraining_failed_is_delivered_as_the_search_left_it(search: Search) -> None:
    search.train("t1", STUDENT, to=1)
    search.finals(STUDENT, fails=("winner",))
    search.deliver()
    assert search.tests == [("teacher", None), ("winner", "t1"), ("no_kd", "t1-no_kd-1000"), ("no_kd", "t1-no_kd-1001")]
    row = next(row for row in Result(search.folder.path).rows() if row.role == "winner")
    assert row.label == "best student of the search" and len(row.tests) == 1


def test_nothing_is_delivered_if_nothing_succeeded(search: Search) -> None:
    search.train("t1", STUDENT, fails=True)
    assert search.deliver() is None
    assert search.tests == [] and not search.folder.student.exists()
    with pytest.raises(RunFolderError, match="holds no student.*autokd.resume"):
        load_delivered(search.folder.student)


def test_the_saved_student_needs_nothing_else(search: Search) -> None:
    search.train("t1", STUDENT, to=1)
    search.deliver()
    folder = search.folder.student
    assert {file.name for file in folder.iterdir()} == {WEIGHTS, RECIPE, ABOUT}
    about = json.loads((folder / ABOUT).read_text())
    assert about["input_shape"] == [1, 8, 8] and about["input"] == "uint8 images divided by 255"
    rows = torch.tensor(search.teacher.data.test.x).float() / 255
    with torch.no_grad():
        assert load_delivered(folder).module(rows).shape == (len(rows), 3)
    (folder / WEIGHTS).write_bytes(b"torn")
    with pytest.raises(RunFolderError, match="holds no student"):
        load_delivered(folder)
