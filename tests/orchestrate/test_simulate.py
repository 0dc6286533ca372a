"""The executor of virtual time: several lanes, and time that passes as trainings end."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from worlds import RUNGS, SPACE, Run, budget

from autokd.orchestrate.simulate import Clock, Faults, LookUp, SimulatedFailure, Training
from autokd.orders import Order


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


# ---- trainings that are looked up

CURVE = [0.1 * epoch for epoch in range(1, 10)]


def order(to: int, start: int = 0, trial: str = "t0001", deadline: float | None = None) -> Order:
    recipe = SPACE.recipe(SPACE.prior_point())
    return Order(trial=trial, recipe=recipe, seed=0, to=to, total=9, start=start, deadline=deadline)


def test_looking_up_goes_on_where_the_trial_paused() -> None:
    look_up = LookUp(lambda _: Training(CURVE, seconds=2.0), Clock())
    first, then = look_up(order(3)), look_up(order(9, start=3))
    assert (first.epoch, first.value, first.seconds) == (3, CURVE[2], 6.0)
    assert (then.epoch, then.value, then.seconds) == (9, CURVE[8], 12.0)
    assert [row["epoch"] for row in first.history + then.history] == list(range(1, 10))
    assert look_up.epochs == 9


def test_looking_up_stops_in_the_epoch_of_the_deadline() -> None:
    clock = Clock()
    clock.now = 100.0
    look_up = LookUp(lambda _: Training(CURVE, seconds=2.0), clock)
    assert look_up(order(9, deadline=104.5)).epoch == 3
    assert look_up(order(9, start=5, deadline=90.0)).epoch == 6, "one epoch is always trained"


def test_a_training_that_diverges_fails_in_that_epoch() -> None:
    look_up = LookUp(lambda _: Training([0.1, 0.2, math.nan, math.nan], seconds=2.0), Clock())
    assert look_up(order(2)).value == 0.2
    with pytest.raises(SimulatedFailure) as caught:
        look_up(order(4, start=2))
    assert (caught.value.reason, caught.value.seconds, look_up.epochs) == ("nan", 2.0, 3)


def test_faults_come_as_often_as_asked_and_always_the_same() -> None:
    orders = [order(9, trial=f"t{number:04d}") for number in range(2000)]
    faults = Faults(failures=0.05, deaths=0.1, stragglers=0.2, slowdown=4.0, seed=1)
    draws = [faults.draw(each) for each in orders]
    assert draws == [faults.draw(each) for each in orders]
    assert sum(fails is not None for fails, _, _ in draws) == pytest.approx(100, abs=40)
    assert sum(deaths for _, deaths, _ in draws) == pytest.approx(200, abs=60)
    assert sum(late == 4.0 for _, _, late in draws) == pytest.approx(400, abs=80)
    assert draws != [Faults(failures=0.05, deaths=0.1, stragglers=0.2, slowdown=4.0, seed=2).draw(o) for o in orders]


def test_dead_workers_and_stragglers_take_their_time() -> None:
    dead = LookUp(lambda _: Training(CURVE), Clock(), Faults(deaths=1.0))(order(9))
    late = LookUp(lambda _: Training(CURVE), Clock(), Faults(stragglers=1.0, slowdown=5.0))(order(9))
    assert (dead.retries, dead.seconds, dead.value) == (1, 18.0, CURVE[8])
    assert (late.retries, late.seconds, late.value) == (0, 45.0, CURVE[8])


def test_a_training_that_is_done_once_more_is_cut_by_the_deadline_as_well() -> None:
    dead = LookUp(lambda _: Training(CURVE), Clock(), Faults(deaths=1.0))(order(9, deadline=7.0))
    assert (dead.epoch, dead.seconds) == (4, 8.0), "the epoch in which the deadline passes is finished"


def test_a_lane_is_busy_until_its_trial_fails(tmp_path: Path) -> None:
    run = Run(tmp_path, budget("trials", 20), lanes=1)
    run.trainer = LookUp(lambda _: Training([0.5] * 18, seconds=1.0), run.clock, Faults(failures=1.0))  # type: ignore[assignment]
    run()
    assert {trial.state for trial in run.history.trials.values()} == {"failed"}
    assert run.clock.now == run.trainer.epochs >= len(run.history.trials)
