"""The examples run as they stand, with a budget of a trial or two."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from small import SMALL, one_thread, small_teacher

from autokd.teacher import Teacher

FOLDER = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_thread(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(Teacher, "fit", small_teacher)


def test_digits_quickstart(capsys: pytest.CaptureFixture[str]) -> None:
    result = importlib.import_module("digits_quickstart").main("1 trial", students=["mlp"], **SMALL)
    assert result.best is not None and result.best.n == 3
    said = capsys.readouterr().out
    assert "x smaller" in said and "against no distillation (3 paired seeds)" in said


def test_own_model_and_arrays(capsys: pytest.CaptureFixture[str]) -> None:
    example = importlib.import_module("own_model_and_arrays")
    result = example.main("2 trials", epochs_of_teacher=2, **SMALL)
    families = {trial.recipe.student.family for trial in result.history.trials.values()}
    assert "own_model_and_arrays:Depthwise" in families <= {"own_model_and_arrays:Depthwise", "plain"}
    assert all(trial.params <= 20_000 for trial in result.history.trials.values())
    assert "first test rows" in capsys.readouterr().out


def test_own_space(capsys: pytest.CaptureFixture[str]) -> None:
    result = importlib.import_module("own_space").main("2 trials", **SMALL)
    losses = [trial.recipe.terms[0].objective for trial in result.history.in_role("search")]
    assert losses == ["kd", "own_space:SquaredLogits"]
    assert result.failures == {}
    assert "squared logits" in capsys.readouterr().out


def test_every_example_is_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in FOLDER.glob("*.py")} <= tested
