"""More budget for a finished search, and budgets that end while trials run: nothing is lost, repeated or overspent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fronts import searched
from worlds import RUNGS, Run, budget, failing, judge

from autokd.ledger import Event
from autokd.orders import Order

KINDS = pytest.mark.parametrize(
    "kind, first, more", [("trials", 12, 30), ("epochs", 300, 420), ("seconds", 12.0, 40.0)]
)
FINALS = ("winner", "no_kd", "default_kd")


def begun(events: list[Event], *roles: str) -> list[Event]:
    return [event for event in events if event["event"] == "start" and event["role"] in roles]


def with_favourite(run: Run) -> Run:
    """The same search, in a world where the first recipe is the best there is."""
    train, favourite = run.trainer, run.engine.sampler.first_recipe()

    def loves(order: Order) -> object:
        report = train(order)
        return replace(report, value=report.value + 1) if order.recipe == favourite else report

    run.trainer = loves  # type: ignore[assignment]
    return run


@KINDS
@pytest.mark.parametrize("lanes", [1, 3])
def test_more_budget_goes_on_where_the_search_was(
    tmp_path: Path, kind: str, first: float, more: float, lanes: int
) -> None:
    before = Run(tmp_path, budget(kind, first), lanes=lanes, world={"fail": failing(0.1)})()
    known = len(before.events)
    after = Run(tmp_path, budget(kind, first + more), lanes=lanes, world={"fail": failing(0.1)})()
    judge(after.events)
    assert len(begun(after.events[known:], "search")) > 3
    if kind == "epochs":
        lost = sum(trial.to - trial.epoch for trial in after.history.trials.values() if trial.state == "failed")
        assert after.history.epochs + lost <= first + more
    if kind == "seconds":
        slowest = max(after.trainer.epoch_seconds(trial.recipe) for trial in after.history.trials.values())
        assert after.history.elapsed <= first + more + slowest


@KINDS
def test_finals_are_not_repeated_for_the_same_winner(tmp_path: Path, kind: str, first: float, more: float) -> None:
    before = with_favourite(Run(tmp_path, budget(kind, first)))()
    finals = begun(before.events, *FINALS)
    after = with_favourite(Run(tmp_path, budget(kind, first + more)))()
    assert after.history.winner == before.history.winner == "t0001"
    assert len(begun(after.events, "search")) > len(begun(before.events, "search"))
    done = sum(trial.state == "complete" for trial in before.history.finals("winner"))
    again = begun(after.events[len(before.events) :], *FINALS)
    assert len(again) == (0 if done == 3 else 2 * (3 - done)), "the default KD control is the winner itself"
    assert len(begun(after.events, *FINALS)) == len(finals) + len(again)


def test_what_is_kept_for_finals_that_are_done_goes_to_the_search(tmp_path: Path) -> None:
    """Of 720 epochs, three seeds' worth would be 108; two seeds' is 72."""
    with_favourite(Run(tmp_path, budget("epochs", 300)))()
    after = with_favourite(Run(tmp_path, budget("epochs", 720)))()
    left = 720 - after.history.epochs
    assert 0 <= left < 72 + RUNGS[-1]


@KINDS
def test_a_new_winner_is_retrained(tmp_path: Path, kind: str, first: float, more: float) -> None:
    before = Run(tmp_path, budget(kind, first))()
    after = Run(tmp_path, budget(kind, first + 4 * more))()
    assert after.history.winner != before.history.winner, "this world has better recipes further on"
    assert len(after.history.finals("winner")) >= 1
    assert {trial.group for trial in after.history.in_role("winner")} == {before.history.winner, after.history.winner}


def test_again_and_again_is_as_good_as_at_once(tmp_path: Path) -> None:
    """On one lane the very same trials; on more, who reports first is chance."""
    folder = tmp_path / "steps"
    folder.mkdir()
    for amount in (10, 20, 30, 40):
        steps = Run(folder, budget("trials", amount), lanes=1)()
        judge(steps.events)
    (tmp_path / "once").mkdir()
    once = Run(tmp_path / "once", budget("trials", 40), lanes=1)()
    ends = [{t.id: (t.recipe.id, t.values) for t in each.history.in_role("search")} for each in (steps, once)]
    assert len(ends[0]) == 40 and ends[0] == ends[1]


def test_a_front_is_extended_without_retraining_its_members_again(tmp_path: Path) -> None:
    before = searched(tmp_path, budget("trials", 16))
    after = searched(tmp_path, budget("trials", 32))
    trained = [(trial.group, trial.seed) for trial in after.history.in_role("winner")]
    assert len(trained) == len(set(trained)) > len(before.history.in_role("winner"))


# ---- budgets that end while trials run


@KINDS
@pytest.mark.parametrize("lanes", [1, 6])
def test_a_budget_that_ends_leaves_nothing_running_and_nothing_lost(
    tmp_path: Path, kind: str, first: float, more: float, lanes: int
) -> None:
    run = Run(tmp_path, budget(kind, first), lanes=lanes, world={"fail": failing(0.2)})()
    assert not run.history.running
    sent = sum(event["event"] in ("start", "resume") for event in run.events)
    answered = sum(event["event"] in ("rung", "fail") for event in run.events)
    assert sent == answered == len(run.trainer.orders)
    finals = next(n for n, event in enumerate(run.events) if event["event"] == "finals")
    assert not begun(run.events[finals:], "search")
    if kind == "trials":
        assert len(begun(run.events, "search")) == first


def test_trials_cut_off_by_the_deadline_go_on_first(tmp_path: Path) -> None:
    before = Run(tmp_path, budget("seconds", 12.0), lanes=4, world={"seconds": 0.3})()
    cut = {
        trial.id: trial.epoch for trial in before.history.in_role("search") if trial.values and trial.epoch not in RUNGS
    }
    assert cut, "nobody was in the middle of a rung"
    after = Run(tmp_path, budget("seconds", 40.0), lanes=4, world={"seconds": 0.3})()
    orders = after.trainer.orders[: len(cut)]
    assert {order.trial: order.start for order in orders} == cut
    judge(after.events)
