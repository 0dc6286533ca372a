"""Goals, preferences and fronts: what may be written, who is chosen, what a user reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fronts import searched
from test_report import Reader
from worlds import RUNGS, Run, budget

from autokd.errors import GoalError, RunFolderError
from autokd.goals import Offer, check_preference, choose, front, parse_goals
from autokd.ledger import Ledger
from autokd.outcome import SearchResult
from autokd.progress import result_table
from autokd.report import write_report
from autokd.result import Result
from autokd.tracking.runs import SEARCH, Runs

FRONT = [
    Offer(0.95, {"params": 90_000.0, "latency_ms": 9.0}),
    Offer(0.94, {"params": 20_000.0, "latency_ms": 2.0}),
    Offer(0.80, {"params": 1_000.0, "latency_ms": 1.0}),
]
GOALS = ("accuracy", "params")


def chosen(prefer: str) -> Offer:
    return choose(FRONT, lambda offer: offer, prefer, GOALS)


# ---- what may be written


def test_goals_are_read_with_the_metric_first() -> None:
    assert parse_goals(None, "accuracy") == ("accuracy",) == parse_goals(["accuracy"], "accuracy")
    assert parse_goals(["params", "accuracy", "latency_ms"], "accuracy") == ("accuracy", "params", "latency_ms")


@pytest.mark.parametrize(
    "goals, said",
    [
        ("accuracy,params", r"goals must be a list of names, got 'accuracy,params'; write for example"),
        ([1, 2], r"goals must be a list of names, got \[1, 2\]"),
        (["accuracy", "parms"], r"unknown goal 'parms'; did you mean 'params'"),
        (["params"], r"goals must name 'accuracy' once and each cost once at most, got params"),
        (["accuracy", "params", "params"], r"each cost once at most, got accuracy, params, params"),
        ([], r"goals must name 'accuracy' once .* got none"),
    ],
)
def test_other_goals_give_one_clear_line(goals: Any, said: str) -> None:
    with pytest.raises(GoalError, match=said):
        parse_goals(goals, "accuracy")


@pytest.mark.parametrize(
    "prefer, said",
    [
        ("acuracy", "a preference must be a goal, 'knee' or limits, got 'acuracy'; write for example"),
        ("params>=3", "a preference must be"),
        ("width<=3", "unknown cost 'width' in the preference"),
        ("params<=many", "constraint 'params' must be a positive number"),
        ("params<=teacher/10", "the teacher has no params; give a number"),
        ("", "a preference must be"),
        (7, "a preference must be"),
    ],
)
def test_other_preferences_give_one_clear_line(prefer: Any, said: str) -> None:
    with pytest.raises(GoalError, match=said):
        check_preference(prefer, "accuracy")


# ---- who is chosen


def test_whom_a_preference_takes() -> None:
    values = {prefer: chosen(prefer).value for prefer in ("accuracy", "knee", "params", "latency_ms", "params<=20k")}
    assert values == {"accuracy": 0.95, "knee": 0.94, "params": 0.80, "latency_ms": 0.80, "params<=20k": 0.94}
    assert chosen("params < 50k, latency_ms<=1.5").value == 0.80


def test_a_preference_nobody_satisfies_lists_the_front() -> None:
    with pytest.raises(
        GoalError, match=r"no student of the front satisfies params<=500; .* accuracy 0.95 params 90,000; accuracy 0.94"
    ):
        chosen("params<=500")


def test_a_front_of_equals_keeps_them() -> None:
    assert sorted(front([(1.0, 2.0), (2.0, 1.0), (1.0, 2.0), (1.0, 1.0)])) == [0, 1, 2]
    assert front([]) == []


# ---- what a user reads


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return searched(tmp_path_factory.mktemp("run"), budget("epochs", 900))


@pytest.fixture(scope="module")
def result(run: Run) -> Result:
    return Result(run.folder)


def test_the_front_has_nobody_dominated_and_its_retrainings(result: Result) -> None:
    found = result.pareto()
    assert len(found) > 3
    values, sizes = [m.value for m in found], [m.costs["params"] for m in found]
    assert values == sorted(values, reverse=True) and sizes == sorted(sizes, reverse=True)
    others = [
        t for t in result.history.in_role("search") if RUNGS[-1] in t.values and t.id not in {m.trial for m in found}
    ]
    assert others and all(
        any(m.value >= t.values[RUNGS[-1]][0] and m.costs["params"] <= t.params for m in found) for t in others
    )
    retrained = {member.trial: member.n for member in found}
    assert retrained[result.history.winner or ""] == 3 and sum(retrained.values()) > 3
    member = next(m for m in found if m.n == 1)
    assert member.value_mean == member.values[0] != member.value and member.value_sd is None


def test_the_best_needs_a_preference(result: Result) -> None:
    with pytest.raises(
        GoalError, match=r"there is no best student without a preference: use result.choose\('knee'\)"
    ) as caught:
        _ = result.best
    assert str(caught.value).count("; accuracy ") == len(result.pareto()) - 1
    smallest = result.choose("params")
    assert smallest.costs["params"] == min(member.costs["params"] for member in result.pareto())
    assert result.choose("params<=1k").costs["params"] <= 1000
    assert result.headline().startswith(f"a front of {len(result.pareto())} students: ")
    assert len(json.loads(json.dumps(result.to_dict()))["front"]) == len(result.pareto())


def test_a_stated_preference_is_the_best(tmp_path: Path) -> None:
    result = Result(searched(tmp_path, budget("trials", 30), prefer="knee").folder)
    assert result.best is not None and result.best.trial == result.history.winner
    assert result.headline().startswith("a student of ")


def test_one_goal_has_no_front(tmp_path: Path) -> None:
    result = Result(searched(tmp_path, budget("trials", 12), goals=("accuracy",)).folder)
    assert result.pareto() == [] and result.best is not None
    with pytest.raises(GoalError, match="a preference needs a front, and there is none"):
        result.choose("knee")


def test_a_student_that_was_not_retrained_is_not_there(result: Result) -> None:
    left_out = next(member for member in result.pareto() if not member.n)
    with pytest.raises(RunFolderError, match=f"{left_out.trial} was not retrained within the budget; give it more"):
        SearchResult(result.run_dir).student(prefer=f"params<={left_out.costs['params']}")


def test_the_page_and_the_terminal_show_the_front(result: Result, tmp_path: Path) -> None:
    reader = Reader(write_report(result, tmp_path).read_text(encoding="utf-8"))
    assert "The front" in reader.text and "No preference was stated" in reader.text
    assert 'id="chart-front"' in (tmp_path / "index.html").read_text(encoding="utf-8")
    kept = json.loads((tmp_path / "front.json").read_text())
    assert [member["trial"] for member in kept] == [member.trial for member in result.pareto()]
    from rich.console import Console

    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(result_table(result))
    said = console.export_text()
    assert all(member.trial in said for member in result.pareto())


def test_mlflow_is_told_goals_and_front(result: Result) -> None:
    runs = Runs()
    for event in Ledger(result.run_dir / "ledger.jsonl").events:
        runs.add(event)
    told = runs.news[SEARCH]
    assert told.params["goals"] == '["accuracy", "params"]'
    assert told.tags["autokd.front"].split(", ") == list(result.history.front)
