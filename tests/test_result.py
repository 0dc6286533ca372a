"""Result against ledgers whose answers are known."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from ledgers import RUNGS, Sketch, recipe_of, write_search

from autokd.errors import InputError, RunFolderError
from autokd.finals import leader, standing
from autokd.gain import paired_gain, t_quantile
from autokd.history import History, Trial
from autokd.recipe import Recipe
from autokd.result import Result

RECIPE = Recipe.from_dict(
    {"student": {"family": "resnet", "width": 4}, "terms": [{"objective": "kd", "weight": 1.0, "temperature": 2.0}]}
)
OTHER = Recipe.from_dict({"student": {"family": "mlp", "width": 8}, "ce_weight": 0.5})


def finals(folder: Path, winner: list[float], no_kd: list[float], epochs: int = RUNGS[-1]) -> Sketch:
    """A search of one trial, then its finals with these validation values; test values are lower by 0.01."""
    sketch = Sketch(folder)
    sketch.start("t0", RECIPE)
    sketch.rung("t0", RUNGS[-1], 0, value=0.9)
    sketch.ledger.append("finals", winner="t0", seeds=[1, 2, 3])
    sketch.test("teacher", None, 0.95)
    for role, recipe, values in (("winner", RECIPE, winner), ("no_kd", RECIPE.without_distillation(), no_kd)):
        for seed, value in enumerate(values, start=1):
            sketch.start(f"{role}{seed}", recipe, role=role, seed=seed)
            sketch.rung(f"{role}{seed}", RUNGS[-1] if role == "winner" else epochs, 0, value=value)
            sketch.test(role, f"{role}{seed}", value - 0.01)
    return sketch


def test_finals_give_means_over_seeds(tmp_path: Path) -> None:
    finals(tmp_path, [0.90, 0.92, 0.94], [0.88, 0.89, 0.90])
    best = Result(tmp_path).best
    assert best is not None
    assert best.value_mean == pytest.approx(0.92)
    assert best.value_sd == pytest.approx(0.02)
    assert best.test_mean == pytest.approx(0.91)
    assert (best.n, best.trial, best.recipe) == (3, "t0", RECIPE)
    assert best.params == int(900 * 4**1.5)
    assert best.size_ratio == pytest.approx(716_000 / best.params)


def test_rows_hold_teacher_winner_and_controls(tmp_path: Path) -> None:
    rows = Result(write_search(tmp_path, trials=30)).rows()
    assert [row.role for row in rows] == ["teacher", "winner", "no_kd", "default_kd"]
    assert rows[0].value_mean == 0.991 and rows[0].test_mean == 0.992 and rows[0].value_sd is None
    assert {row.params for row in rows[1:]} == {rows[1].params}
    assert all(row.epochs == RUNGS[-1] and row.seeds == (101, 102, 103) for row in rows[1:])


def test_gain_is_paired_by_seed(tmp_path: Path) -> None:
    finals(tmp_path, [0.90, 0.93, 0.91], [0.88, 0.90, 0.89])
    gain = Result(tmp_path).gain("no_kd", "validation")
    assert gain is not None
    assert gain.mean == pytest.approx(0.07 / 3)
    assert gain.sd == pytest.approx(math.sqrt(1 / 3) / 100)
    assert gain.larger_than_noise is True  # 0.0233 > 4.30 * 0.00577 / sqrt(3) = 0.0143
    assert gain.low == pytest.approx(0.00899, abs=1e-4)
    test = Result(tmp_path).gain("no_kd")
    assert test is not None and test.split == "test" and test.mean == pytest.approx(gain.mean)


def test_gain_within_noise_says_so(tmp_path: Path) -> None:
    finals(tmp_path, [0.90, 0.93, 0.91], [0.91, 0.90, 0.91])
    gain = Result(tmp_path).gain("no_kd")
    assert gain is not None and gain.larger_than_noise is False
    assert "within the noise" in gain.sentence()


def test_gain_that_is_a_loss_is_said_plainly(tmp_path: Path) -> None:
    finals(tmp_path, [0.88, 0.90, 0.89], [0.90, 0.93, 0.91])
    gain = Result(tmp_path).gain("no_kd")
    assert gain is not None and gain.larger_than_noise is True
    assert gain.sentence().startswith("-2.33 ± 0.58 points")
    assert "did worse" in gain.sentence()


def test_gain_of_one_seed_claims_nothing(tmp_path: Path) -> None:
    finals(tmp_path, [0.90], [0.88, 0.90])
    gain = Result(tmp_path).gain("no_kd")
    assert gain is not None and (gain.n, gain.sd, gain.larger_than_noise) == (1, None, None)
    assert "one seed cannot say" in gain.sentence()


def test_gain_needs_equal_epochs(tmp_path: Path) -> None:
    finals(tmp_path, [0.90, 0.91], [0.80, 0.81], epochs=RUNGS[0])
    result = Result(tmp_path)
    assert result.gain("no_kd") is None
    assert result.gains() == []
    assert [row.epochs for row in result.rows()] == [None, RUNGS[-1], RUNGS[0]]


def test_equal_differences_do_not_estimate_noise() -> None:
    gain = paired_gain("no_kd", "test", [0.01, 0.01, 0.01])
    assert gain is not None and gain.larger_than_noise is None and "cannot be estimated" in gain.sentence()
    nothing = paired_gain("no_kd", "test", [0.0, 0.0])
    assert nothing is not None and nothing.larger_than_noise is False


def test_importance_and_ablation_are_read_off_the_ledger(tmp_path: Path) -> None:
    result = Result(write_search(tmp_path, trials=60, ablation=True))
    found = result.importance()
    assert found is not None and found is result.importance() and found.fields[0].name == "optim.lr"
    assert [(entry.change, entry.n) for entry in result.ablation()] == [("without kd", 3), ("optim.lr=0.03", 1)]
    told = json.loads(json.dumps(result.to_dict()))
    assert told["importance"]["rung"] == found.rung and told["ablation"][0]["n"] == 3
    assert result.best is not None and result.best.n == 3, "changed recipes are not the winner's"
    assert result.best.test_mean == Result(write_search(tmp_path / "without", trials=60)).best.test_mean  # type: ignore[union-attr]


def test_a_young_search_has_neither(tmp_path: Path) -> None:
    result = Result(write_search(tmp_path, trials=6, finals=False, finish=False))
    assert result.importance() is None and result.ablation() == []
    assert result.to_dict()["importance"] is None


def test_unknown_control_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'default_kd'"):
        Result(write_search(tmp_path, trials=6)).gain("defaultkd")


def test_t_quantiles_agree_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for degrees in (1, 2, 5, 10, 11, 15, 40, 200):
        assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=2e-3)


def test_without_finals_the_highest_rung_wins(tmp_path: Path) -> None:
    sketch = Sketch(tmp_path)
    for name, epoch, value in (("low", 1, 0.99), ("high", 3, 0.80), ("better", 3, 0.85)):
        sketch.start(name, RECIPE)
        sketch.rung(name, epoch, 0, value=value)
    best = Result(tmp_path).best
    assert best is not None
    assert (best.trial, best.value_mean, best.value_sd, best.n, best.test_mean) == ("better", 0.85, None, 1, None)
    assert [row.label for row in Result(tmp_path).rows()] == ["teacher", "best student of the search"]


def test_failed_trials_never_win(tmp_path: Path) -> None:
    sketch = Sketch(tmp_path)
    sketch.start("good", RECIPE)
    sketch.rung("good", 1, 0, value=0.5)
    sketch.start("bad", OTHER)
    sketch.rung("bad", 3, 0, value=0.9)
    sketch.fail("bad", "nan")
    result = Result(tmp_path)
    assert result.best is not None and result.best.trial == "good"
    assert result.failures == {"nan": 1}


def test_only_failures(tmp_path: Path) -> None:
    sketch = Sketch(tmp_path)
    sketch.start("a", RECIPE)
    sketch.fail("a", "chance")
    result = Result(tmp_path)
    assert result.best is None and result.recipe is None
    assert [row.role for row in result.rows()] == ["teacher"]
    assert result.headline() == "no student yet: 1 trials started, 1 failed"
    assert json.loads(json.dumps(result.to_dict()))["best"] is None
    assert math.isnan(result.leaderboard()["value"][0])


def test_finals_of_an_earlier_winner_are_left_out(tmp_path: Path) -> None:
    sketch = finals(tmp_path, [0.90, 0.91], [0.80, 0.81])
    sketch.start("t9", OTHER)
    sketch.rung("t9", RUNGS[-1], 0, value=0.97)
    sketch.ledger.append("finals", winner="t9", seeds=[4])
    sketch.start("winner4", OTHER, role="winner", seed=4)
    sketch.rung("winner4", RUNGS[-1], 0, value=0.96)
    result = Result(tmp_path)
    assert result.recipe == OTHER
    assert [row.role for row in result.rows()] == ["teacher", "winner"]
    assert result.rows()[1].values == (0.96,)


def test_ties_go_to_the_tiebreak_then_to_the_smaller(tmp_path: Path) -> None:
    trial = Trial("a", "search", RECIPE, {}, "prior", 0, 100, 100, 0.0, epoch=3, values={3: (0.9, -0.2)})
    calmer = replace(trial, id="b", values={3: (0.9, -0.1)})
    smaller = replace(calmer, id="c", params=50)
    assert leader([trial, calmer, smaller]) is smaller
    assert standing(trial) < standing(calmer) < standing(smaller)
    assert leader([]) is None


def test_leaderboard_has_every_trial_and_recipe_value(tmp_path: Path) -> None:
    result = Result(write_search(tmp_path, trials=30))
    frame = result.leaderboard()
    assert len(frame) == len(result.history.trials)
    assert {"trial", "role", "state", "source", "epoch", "value", "params", "flops", "seconds", "reason"} <= set(frame)
    assert {"student.family", "student.width", "optim.lr", "terms.kd.temperature", "ce_weight"} <= set(frame)
    ranked = [(row.epoch, row.value) for row in frame.itertuples() if not math.isnan(row.value)]
    assert ranked == sorted(ranked, reverse=True)
    assert frame["epoch"].is_monotonic_decreasing
    assert frame["recipe"].str.fullmatch("[0-9a-f]{10}").all()


def test_leaderboard_of_nothing_has_columns(tmp_path: Path) -> None:
    Sketch(tmp_path)
    assert list(Result(tmp_path).leaderboard().columns)[:3] == ["trial", "role", "state"]


def test_states(tmp_path: Path) -> None:
    assert Result(write_search(tmp_path / "done", trials=3)).state == "finished"
    Sketch(tmp_path / "alive", pid=os.getpid())
    assert Result(tmp_path / "alive").state == "running"
    Sketch(tmp_path / "dead", pid=2**30)
    assert Result(tmp_path / "dead").state == "interrupted"


def test_summary_is_json_and_complete(tmp_path: Path) -> None:
    result = Result(write_search(tmp_path, trials=30))
    summary = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert summary["rows"][1]["n"] == 3 and summary["rows"][1]["test_sd"] > 0
    assert Recipe.from_dict(summary["best"]["recipe"]) == result.recipe
    assert len(summary["gains"]) == 4 and summary["teacher"]["test"] == 0.992
    assert "smaller than the teacher" in result.headline() and "test accuracy" in result.headline()
    assert result.headline() in repr(result)


def test_reading_writes_nothing(tmp_path: Path) -> None:
    path = write_search(tmp_path, trials=3) / "ledger.jsonl"
    with path.open("ab") as file:
        file.write(b'{"event": "rung", "tr')
    before = path.read_bytes()
    result = Result(tmp_path)
    assert path.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["ledger.jsonl"]
    assert len(result.problems) == 1 and "torn" in result.problems[0]


def test_no_ledger_and_empty_ledger(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="must hold ledger.jsonl.*give the folder"):
        Result(tmp_path)
    (tmp_path / "ledger.jsonl").write_text("rubbish\n")
    with pytest.raises(RunFolderError, match="must begin with a search, got 0 events"):
        Result(tmp_path)


def test_a_winner_whose_values_were_lost_is_passed_over(tmp_path: Path) -> None:
    sketch = Sketch(tmp_path)
    sketch.start("t0", RECIPE)
    sketch.start("t1", recipe_of(sketch.random))
    sketch.rung("t1", 1, 0)
    sketch.ledger.append("finals", winner="t0", seeds=[1])
    best = Result(tmp_path).best
    assert best is not None and best.n == 1 and best.recipe == History.replay(sketch.ledger.events).trials["t1"].recipe
