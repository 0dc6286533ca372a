"""Earlier searches read back: from run folders, ledgers and MLflow; and what is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from fronts import searched
from worlds import SPACE, Run, budget, failing

from autokd.errors import WarmStartError
from autokd.ledger import Ledger
from autokd.tracking import Tracker
from autokd.warm_start import check_sources, earlier_searches, likeness

TASK = {
    "data": {"classes": 10, "sizes": {"train": 1150}, "input_shape": [1, 8, 8]},
    "teacher": {"flops": 14_500_000},
    "space": {"name": SPACE.name},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return searched(
        tmp_path_factory.mktemp("earlier"), budget("trials", 24), ("accuracy",), world={"fail": failing(0.3)}
    )


def test_a_run_folder_and_its_ledger_say_the_same(run: Run) -> None:
    told = earlier_searches(run.folder, SPACE, TASK, None)
    assert told == earlier_searches([str(run.folder / "ledger.jsonl")], SPACE, TASK, None)
    assert json.loads(json.dumps(told)) == told
    (source,) = told["sources"]
    assert source["name"] == "digits" and 20 <= source["trials"] <= 24
    ranks = [each["rank"] for each in told["observations"]]
    assert ranks == sorted(ranks, reverse=True) and ranks[0] == 1.0 and ranks[-1] == 0.0


def test_ranks_are_by_how_far_and_how_good(run: Run) -> None:
    told = earlier_searches(run.folder, SPACE, TASK, None)["observations"]
    trials = {f"{trial.id} of digits": trial for trial in run.history.in_role("search")}
    stood = [
        (t.state != "failed", t.epoch, t.values[t.epoch]) for t in (trials[each["name"]] for each in told) if t.values
    ]
    assert [key for key in stood if key[0]] == sorted((key for key in stood if key[0]), reverse=True)
    assert {each["rank"] for each in told if trials[each["name"]].state == "failed"} == {0.0}
    assert all(SPACE.complete(each["point"]) == each["point"] for each in told)


def test_several_are_weighed_and_mixed(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    lines = (run.folder / "ledger.jsonl").read_text().splitlines()
    head = json.loads(lines[0])
    head["name"], head["data"]["classes"] = "hundred", 1000
    other.mkdir()
    (other / "ledger.jsonl").write_text("\n".join([json.dumps(head), *lines[1:]]) + "\n")
    told = earlier_searches([other, run.folder], SPACE, TASK, None)
    weights = {each["name"]: each["weight"] for each in told["sources"]}
    assert weights["hundred"] < 0.5 * weights["digits"]
    assert told["observations"][0]["name"].endswith("of digits")


def test_likeness_falls_with_every_difference() -> None:
    assert likeness(TASK, TASK) == 1.0
    changed = [
        {**TASK, "space": {"name": "vectors"}},
        {**TASK, "teacher": {"flops": 145_000_000}},
        *(
            {**TASK, "data": {**TASK["data"], **new}}
            for new in ({"classes": 100}, {"sizes": {"train": 50_000}}, {"input_shape": [3, 32, 32]})
        ),  # type: ignore[dict-item]
    ]
    assert all(0 < likeness(each, TASK) < 0.8 for each in changed)
    assert likeness({}, TASK) == pytest.approx(0.35)


# ---- what is refused


@pytest.mark.parametrize(
    "write, said",
    [
        (None, "an earlier search must have a ledger, .* does not exist; name a run folder"),
        ("hello\n", "must be a ledger of autokd, got no search in it"),
        (
            '{"event": "search", "elapsed": 0, "rungs": 7, "budget": {}, "seed": 0}\n',
            "must be a ledger of autokd, got one that cannot be read",
        ),
        (
            '{"event": "search", "elapsed": 0, "rungs": [1, 3], "budget": {}, "seed": 0}\n',
            "has none for '<text>'; leave it out",
        ),
    ],
)
def test_what_is_no_search_gives_one_clear_line(tmp_path: Path, write: str | None, said: str) -> None:
    if write is not None:
        (tmp_path / "ledger.jsonl").write_text(write)
    with pytest.raises(WarmStartError, match=said) as caught:
        earlier_searches(tmp_path, SPACE, TASK, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sources", [[], "", [""], [7]])
def test_what_names_nothing_is_refused(sources: Any) -> None:
    with pytest.raises(WarmStartError, match="warm_start must name earlier searches, got"):
        earlier_searches(sources, SPACE, TASK, None)


def test_absent_folders_are_said_before_a_teacher_is_trained() -> None:
    with pytest.raises(WarmStartError, match="does not exist"):
        check_sources(["nowhere"])
    check_sources(["mlflow:whatever"])


# ---- MLflow


@pytest.mark.timeout(120)
def test_an_experiment_says_what_its_ledger_says(run: Run, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "ledger.jsonl").write_bytes((run.folder / "ledger.jsonl").read_bytes())
    ledger = Ledger(folder / "ledger.jsonl", clock=time.time)
    tracker = Tracker(uri, folder, ledger)
    tracker.start()
    tracker.finish()
    ledger.close()
    told = earlier_searches("mlflow:digits", SPACE, TASK, uri)
    expected = earlier_searches(folder, SPACE, TASK, None)
    assert [(e["point"], e["rank"], e["weight"]) for e in told["observations"]] == [
        (e["point"], e["rank"], e["weight"]) for e in expected["observations"]
    ]
    with pytest.raises(WarmStartError, match="has no experiment 'digts'; see `autokd ui`"):
        earlier_searches("mlflow:digts", SPACE, TASK, uri)
