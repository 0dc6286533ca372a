"""The director: decisions become events and orders, answers become events, and nothing else keeps state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from worlds import RUNGS, Run, budget

from autokd.engine.engine import Finish, Wait
from autokd.errors import TrialFailure
from autokd.history import History
from autokd.orders import Order, Report


def opened(folder: Path, kind: str = "trials", amount: float = 5) -> Run:
    """A search with its ledger begun and nothing ordered."""
    run = Run(folder, budget(kind, amount))
    run.ledger.append("search", rungs=list(RUNGS), budget=run.budget, seed=0)
    run.ledger.append("session", pid=0, budget=run.budget, lanes=2)
    return run


def ordered(run: Run) -> Order:
    order = run.director.next()
    assert isinstance(order, Order)
    return order


def answer(order: Order, value: float = 0.5, **more: Any) -> Report:
    rows = [
        {"epoch": epoch, "seconds": 1.0, "metrics": {"accuracy": value}}
        for epoch in range(order.start + 1, order.to + 1)
    ]
    return Report(order.trial, order.to, value, -value, {"accuracy": value}, 2.0, rows, "file", "fp32", **more)


def test_an_order_says_what_the_ledger_says(tmp_path: Path) -> None:
    run = opened(tmp_path)
    order = ordered(run)
    event = run.events[-1]
    assert (event["event"], event["trial"], event["to"], event["seed"]) == ("start", order.trial, order.to, order.seed)
    assert order.recipe.to_dict() == event["recipe"]
    assert (order.start, order.to, order.total, order.deadline) == (0, RUNGS[0], RUNGS[-1], None)
    run.director.report(answer(order))
    assert run.history.trials[order.trial].value == 0.5 and run.events[-1]["checkpoint"] == "file"


def test_a_deadline_is_told_in_the_executors_clock(tmp_path: Path) -> None:
    run = opened(tmp_path, "seconds", 100.0)
    run.clock.now = 10.0
    order = ordered(run)
    assert order.deadline == pytest.approx(80.0), "a fifth is kept for the finals"
    run.director.report(answer(order))
    run.clock.now = 30.0
    assert ordered(run).deadline == pytest.approx(100 - run.engine.reserve(run.history))


def test_a_promoted_trial_starts_from_where_the_ledger_knows_it(tmp_path: Path) -> None:
    run = opened(tmp_path, amount=9)
    for value in (0.5, 0.9, 0.7, 0.6, 0.4, 0.3):  # as many as a first promotion waits for
        run.director.report(answer(ordered(run), value))
    order = ordered(run)
    assert (order.trial, order.start, order.to) == ("t0002", RUNGS[0], RUNGS[1])
    assert run.events[-1]["event"] == "resume"


def test_finals_begin_in_the_ledger_and_have_no_deadline(tmp_path: Path) -> None:
    run = opened(tmp_path, amount=1)
    order = ordered(run)
    assert isinstance(run.director.next(), Wait)
    run.director.report(answer(order))
    final = ordered(run)
    assert [event["event"] for event in run.events[-2:]] == ["finals", "start"]
    assert (final.trial, final.to, final.deadline) == ("t0001-winner-1000", RUNGS[-1], None)
    assert final.seed == 1000


@pytest.mark.parametrize(
    "failure, reason, message",
    [
        (TrialFailure("nan", "the loss\nis gone"), "nan", "the loss"),
        (OSError("the worker\ndied"), "worker", "the worker"),
        (ValueError(""), "worker", "ValueError"),
        (TrialFailure("exception", "x" * 900), "exception", "x" * 500),
    ],
)
def test_failures_are_one_line_with_a_reason(tmp_path: Path, failure: Exception, reason: str, message: str) -> None:
    run = opened(tmp_path)
    order = ordered(run)
    run.director.failed(order.trial, failure)
    assert (run.events[-1]["reason"], run.events[-1]["message"]) == (reason, message)
    assert run.history.trials[order.trial].state == "failed"


def test_a_lost_checkpoint_is_told_before_the_report(tmp_path: Path) -> None:
    run = opened(tmp_path)
    order = ordered(run)
    run.director.report(answer(order, retries=1))
    assert [event["event"] for event in run.events[-2:]] == ["retry", "rung"]
    assert run.history.trials[order.trial].retries == 1


def test_the_ledger_alone_gives_the_same_state(tmp_path: Path) -> None:
    run = Run(tmp_path, budget("trials", 12), lanes=2)()
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert lines == run.events
    assert History.replay(lines) == run.history


def test_a_finished_search_says_so_again(tmp_path: Path) -> None:
    run = Run(tmp_path, budget("trials", 3))()
    assert run.director.next() == Finish("all done")
