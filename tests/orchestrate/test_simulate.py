"""The executor of virtual time: several lanes, and time that passes as trainings end."""

from __future__ import annotations

from pathlib import Path

import pytest
from worlds import RUNGS, Run, budget

from autokd.orchestrate.simulate import Clock


def test_a_clock_passes_only_when_told() -> None:
    clock = Clock()
    assert clock() == clock() == 0.0
    clock.now = 5.0
    assert clock() == 5.0


@pytest.mark.parametrize("lanes", [1, 2, 8])
def test_lanes_work_at_the_same_time(tmp_path: Path, lanes: int) -> None:
    run = Run(tmp_path, budget("trials", 24), lanes=lanes)()
    busy, most = 0, 0
    for event in run.events:
        busy += {"start": 1, "resume": 1, "rung": -1}.get(event["event"], 0)
        most = max(most, busy)
    assert busy == 0 and most == lanes
    worked = sum(trial.seconds for trial in run.history.trials.values())
    assert worked / lanes <= run.clock.now * (1 + 1e-9) <= worked * (1 + 2e-9)
    assert [event["time"] for event in run.events] == sorted(event["time"] for event in run.events)


def test_every_search_trains_what_it_reports(tmp_path: Path) -> None:
    run = Run(tmp_path, budget("trials", 12))()
    trained = sum(order.to - order.start for order in run.trainer.orders)
    assert trained == run.history.epochs
    assert all(trial.epoch in RUNGS for trial in run.history.trials.values())
