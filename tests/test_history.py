"""History: the fold of a ledger, the same whether replayed or followed."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import RUNGS, write_search

from autokd.history import History
from autokd.ledger import Event, Ledger, read_events
from autokd.recipe import Recipe

RECIPE = Recipe.from_dict({"student": {"family": "resnet", "width": 4}})


def event(name: str, elapsed: float = 0.0, **fields: Any) -> Event:
    return {"n": 0, "time": 0.0, "elapsed": elapsed, "event": name, **fields}


def search() -> Event:
    return event("search", rungs=list(RUNGS), budget={"kind": "trials", "amount": 9.0}, seed=0)


def session(elapsed: float = 0.0) -> Event:
    return event("session", elapsed, budget={"kind": "trials", "amount": 9.0}, pid=1, lanes=1)


def start(trial: str, elapsed: float = 0.0, role: str = "search") -> Event:
    settings: dict[str, Any] = {
        "point": {},
        "source": "prior",
        "seed": 0,
        "to": RUNGS[0],
        "params": 9,
        "flops": 9,
        "group": "g",
    }
    return event("start", elapsed, trial=trial, role=role, recipe=RECIPE.to_dict(), **settings)


def rung(trial: str, epoch: int, value: float = 0.5, history: list[dict[str, Any]] | None = None) -> Event:
    report: dict[str, Any] = {
        "metrics": {"accuracy": value},
        "seconds": 2.0,
        "checkpoint": f"{trial}.ckpt",
        "precision": "float32",
    }
    return event("rung", trial=trial, epoch=epoch, value=value, tiebreak=-1.0, history=history or [], **report)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), at=st.floats(0, 1))
def test_replaying_equals_following(seed: int, at: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = write_search(tmp_path_factory.mktemp("search"), seed=seed)
    events = next(read_events(path)[0] for path in folder.rglob("*.jsonl"))
    cut = int(at * len(events))
    followed = History.replay(events[:cut])
    for one in events[cut:]:
        followed.add(one)
    assert followed == History.replay(events) == History.replay(json.loads(json.dumps(events)))
    assert followed.finished is not None and not followed.running


def test_a_listener_of_a_ledger_holds_what_the_file_says(tmp_path: Path) -> None:
    live = History()
    ledger = Ledger(tmp_path / "l")
    ledger.listen(live.add)
    for one in (search(), session(), start("a"), rung("a", 1), start("b"), rung("b", 1), rung("b", 3)):
        ledger.append(one["event"], **{key: one[key] for key in one.keys() - {"n", "time", "elapsed", "event"}})
    assert live == History.replay(read_events(tmp_path / "l")[0])
    assert {trial.id: trial.epoch for trial in live.trials.values()} == {"a": 1, "b": 3}


def test_a_trial_goes_from_rung_to_rung() -> None:
    history = History.replay([search(), session(), start("a", 3.0)])
    trial = history.trials["a"]
    assert (trial.state, trial.to, trial.started, trial.value) == ("running", 1, 3.0, None)
    history.add(rung("a", 1, 0.4, [{"epoch": 1}]))
    assert (trial.state, trial.epoch, trial.value) == ("paused", 1, 0.4)
    history.add(event("resume", trial="a", to=3))
    assert (trial.state, trial.to) == ("running", 3)
    history.add(rung("a", 3, 0.6, [{"epoch": 2}, {"epoch": 3}]))
    history.add(rung("a", 9, 0.5, [{"epoch": n} for n in range(4, 10)]))
    assert (trial.state, trial.value, trial.seconds, history.epochs) == ("complete", 0.5, 6.0, 9)
    assert [row["epoch"] for row in trial.curve] == list(range(1, 10))
    assert trial.values == {1: (0.4, -1.0), 3: (0.6, -1.0), 9: (0.5, -1.0)}


def test_a_rung_trained_twice_replaces_its_rows_and_its_epochs() -> None:
    history = History.replay([search(), start("a"), rung("a", 1, 0.4, [{"epoch": 1}])])
    for value in (0.5, 0.6):
        history.add(rung("a", 3, value, [{"epoch": 2, "v": value}, {"epoch": 3, "v": value}]))
    assert [row.get("v") for row in history.trials["a"].curve] == [None, 0.6, 0.6]
    assert history.epochs == 3


def test_a_new_session_pauses_what_was_running_or_stopped_and_nothing_else() -> None:
    history = History.replay([search(), session(), *(start(name) for name in "abcde")])
    history.add(rung("b", 1))
    history.add(rung("c", 9))
    history.add(event("fail", trial="d", reason="nan", message="loss"))
    history.add(session(5.0))
    states = {trial.id: trial.state for trial in history.trials.values()}
    assert states == {"a": "paused", "b": "paused", "c": "complete", "d": "failed", "e": "paused"}
    assert history.running == []


def test_finish_stops_what_could_go_on_and_a_session_opens_it_again() -> None:
    history = History.replay([search(), session(), start("a"), start("b"), rung("b", 1), start("c"), rung("c", 9)])
    history.add(event("finish", reason="budget spent"))
    assert {trial.id: trial.state for trial in history.trials.values()} == {
        "a": "stopped",
        "b": "stopped",
        "c": "complete",
    }
    assert history.finished == "budget spent"
    history.add(session())
    assert history.finished is None and history.trials["b"].state == "paused"


def test_failures_and_retries_are_kept_with_their_reason() -> None:
    history = History.replay([search(), start("a"), event("retry", trial="a", message="worker died")])
    assert (history.trials["a"].retries, history.trials["a"].state) == (1, "running")
    history.add(event("fail", trial="a", reason="worker", message="died three times"))
    trial = history.trials["a"]
    assert (trial.state, trial.reason, trial.message) == ("failed", "worker", "died three times")


def test_the_finals_name_a_winner_and_the_test_is_kept() -> None:
    history = History.replay([search(), start("a"), event("finals", winner="a", seeds=[1, 2])])
    history.add(start("w1", role="winner"))
    history.add(event("test", role="winner", trial="w1", value=0.9))
    assert (history.winner, history.final_seeds) == ("a", (1, 2))
    assert [trial.id for trial in history.in_role("winner")] == ["w1"] and not history.in_role("no_kd")
    assert history.tests[0]["value"] == 0.9


def test_events_of_a_trial_whose_start_was_lost_are_passed_over() -> None:
    lost = [
        rung("gone", 1),
        event("resume", 7.0, trial="gone", to=3),
        event("fail", trial="gone", reason="nan", message=""),
    ]
    history = History.replay([search(), *lost])
    assert history.trials == {} and history.epochs == 0 and history.elapsed == 7.0


def test_replays_ten_thousand_trials_in_two_seconds() -> None:
    events = [search(), session()]
    draw = random.Random(0)
    for number in range(10_000):
        name = str(number)
        events += [start(name), rung(name, 1, draw.random(), [{"epoch": 1}])]
    begun = time.process_time()
    history = History.replay(events)
    assert time.process_time() - begun < 2.0
    assert len(history.trials) == history.epochs == 10_000
