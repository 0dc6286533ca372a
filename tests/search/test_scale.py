"""Many lanes, workers that die, trials that fail and stragglers: nothing hangs, nothing is lost, and lanes are of use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from made_up import MadeUp

from autokd.budget import Budget
from autokd.ledger import Event, Ledger
from autokd.orchestrate.simulate import Faults
from benchmarks.search import scale, speed
from benchmarks.search.ours import Simulation

FAULTS = Faults(failures=0.05, deaths=0.05, stragglers=0.05, slowdown=5.0)


class Quick(MadeUp):
    """Epochs of a millisecond: recipes are drawn, since asking a model would take longer than the trial."""

    def epoch_seconds(self, point: object) -> float:
        return 0.001


def simulated(folder: Path, lanes: int, trials: int, faults: Faults = FAULTS) -> Simulation:
    folder.mkdir(exist_ok=True)
    simulation = Simulation(Quick(), 0, Budget("trials", trials), folder, lanes, faults=faults)
    simulation.run()
    return simulation


@pytest.mark.parametrize(("lanes", "trials"), [(64, 640), (1000, 1500)])
def test_no_trial_is_lost_on_many_lanes(tmp_path: Path, lanes: int, trials: int) -> None:
    simulation = simulated(tmp_path, lanes, trials)
    history = simulation.director.history
    assert len(history.trials) == trials
    assert {trial.state for trial in history.trials.values()} == {"complete", "paused", "failed"}
    events = Ledger(tmp_path / "ledger.jsonl").events
    assert answers(events) == {}
    assert sum(event["event"] == "retry" for event in events) > 0.02 * trials
    assert sum(trial.reason == "exception" for trial in history.trials.values()) > 0.02 * trials
    assert busiest(events) == lanes


def answers(events: list[Event]) -> dict[str, int]:
    """Trials that were not answered exactly once for each time they were sent out."""
    left: dict[str, int] = {}
    for event in events:
        change = {"start": 1, "resume": 1, "rung": -1, "fail": -1}.get(event["event"], 0)
        if change:
            left[event["trial"]] = left.get(event["trial"], 0) + change
            assert left[event["trial"]] in (0, 1)
    return {trial: count for trial, count in left.items() if count}


def busiest(events: list[Event]) -> int:
    """The most trials that ever ran at the same time."""
    busy = most = 0
    for event in events:
        busy += {"start": 1, "resume": 1, "rung": -1, "fail": -1}.get(event["event"], 0)
        most = max(most, busy)
    return most


def test_lanes_are_of_use_in_spite_of_stragglers(tmp_path: Path) -> None:
    one, many = (simulated(tmp_path / str(lanes), lanes, 320) for lanes in (1, 16))
    work = [sum(trial.seconds for trial in s.director.history.trials.values()) for s in (one, many)]
    speed_up = (one.clock.now / work[0]) / (many.clock.now / work[1])
    assert speed_up > 0.8 * 16


def test_a_simulated_search_is_the_same_to_the_letter(tmp_path: Path) -> None:
    first, again = (simulated(tmp_path / name, 16, 100) for name in ("first", "again"))
    assert first.ledger.events == again.ledger.events


def test_speed_is_told_of_proposals_that_are_answered() -> None:
    said = speed.report(MadeUp(), sizes=(60,))
    assert re.search(r"\| 60 \| \d+ \(\d+ to \d+\) \| \d\.\d\d \|", said)


def test_scale_is_told_for_both_kinds_of_budget() -> None:
    found = scale.scaled(MadeUp(), lanes=8, budget=Budget("seconds", 0.2))
    assert found.lost == 0 and found.trials > 80
    assert 0.9 * 8 < found.speed_up <= 8.01, "with a deadline nobody waits for stragglers"
    assert scale.report(MadeUp(), ((2, 20),)).count("| 2 |") == 2
