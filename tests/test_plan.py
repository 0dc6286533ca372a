"""Plans: what is promised before a search must be affordable."""

from __future__ import annotations

import json
from typing import Any

import pytest

from autokd.arguments import vocabulary
from autokd.budget import Budget
from autokd.constraints import Cost, Limits
from autokd.core.device import Setting
from autokd.engine.cost import makespan
from autokd.engine.engine import FINAL_MOST, SAFETY
from autokd.engine.sampler import Sampler
from autokd.history import History
from autokd.plan import (
    SHORTEST,
    START_SECONDS,
    VISIT_SECONDS,
    Plan,
    final_trainings,
    make_plan,
    typical_cost,
)
from autokd.space import Space


def plan(budget: str, longest: int = 60, lanes: int = 2, epoch_seconds: float = 0.2, **more: object) -> Plan:
    return make_plan(Budget.parse(budget), longest, lanes, epoch_seconds, 0.9, Setting(), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("lanes", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("seconds", [60, 600, 7200])
def test_the_finals_fit_into_their_share_of_the_time(lanes: int, seconds: int) -> None:
    found = plan(f"{seconds}s", lanes=lanes, longest=10_000)
    assert found.rungs[-1] > SHORTEST
    assert found.final_seconds <= 0.2 * seconds + 1e-9
    assert found.full_training_seconds <= 0.08 * seconds, "or costlier recipes could not be retrained in time"
    assert found.final_seconds == pytest.approx(
        makespan(final_trainings(0.0, True), lanes) * found.full_training_seconds
    )
    assert found.search_seconds == 0.8 * seconds


def test_a_training_is_no_longer_than_the_space_says_and_not_longer_with_more_lanes_than_the_budget_pays() -> None:
    assert plan("10h").rungs == (2, 7, 20, 60)
    assert plan("10h", epochs=9).rungs == (1, 3, 9)
    assert plan("90s", lanes=8).rungs[-1] >= plan("90s", lanes=1).rungs[-1]


def test_trainings_are_shorter_where_the_space_holds_dearer_recipes_than_usual() -> None:
    usual, dear = (plan("10m", longest=10_000, lanes=8, typical=typical) for typical in (1.0, 4.8))
    assert usual.rungs[-1] == plan("10m", longest=10_000, lanes=8, typical=1.6).rungs[-1]
    assert dear.rungs[-1] == pytest.approx(usual.rungs[-1] / 3, abs=1)


def test_a_very_short_budget_is_told() -> None:
    short = plan("2s")
    assert short.rungs[-1] == SHORTEST and "the finals may exceed it" in short.notes[-1]
    assert not plan("10m").notes
    assert plan("2s", longest=1).rungs == (1,), "the space's own length is never exceeded"
    assert not plan("10h", longest=2).notes


def test_expected_trials() -> None:
    assert plan("33 trials").expected_trials == 33 and plan("33 trials").search_seconds is None
    found = plan("4500 epochs")
    # one in three goes on at every rung; nine finals leave the rest
    each = 2 + 5 / 3 + 13 / 9 + 40 / 27
    assert found.rungs == (2, 7, 20, 60) and found.expected_trials == int((4500 - 9 * 60) / each)
    assert plan("1h", lanes=2).expected_trials > 1.4 * plan("1h", lanes=1).expected_trials
    assert plan("1 epoch").expected_trials == plan("3s").expected_trials == 1


def test_expected_trials_are_of_what_a_lane_really_has() -> None:
    found = plan("1h", lanes=1, epoch_seconds=1.0)
    each = 1.0 * (2 + 5 / 3 + 13 / 9 + 40 / 27) + VISIT_SECONDS * (1 + 1 / 3 + 1 / 9 + 1 / 27)
    kept = FINAL_MOST * 3600
    assert SAFETY * found.final_seconds < kept and found.rungs == (2, 7, 20, 60)
    assert found.expected_trials == int((3600 - SAFETY * found.final_seconds - START_SECONDS) / each)
    dear = plan("1h", lanes=1, epoch_seconds=1.0, typical=3.0)
    assert dear.expected_trials == pytest.approx((3600 - kept - START_SECONDS) / (3 * each), rel=0.05)
    assert dear.rungs == found.rungs and dear.epoch_seconds == found.epoch_seconds == 1.0, "of the reference recipe"


def sampler(**ranges: Any) -> Sampler:
    """Of a space whose student is one multilayer perceptron, from a published recipe with batches of 64."""
    return Sampler(Space.parse(SPACE.format(**ranges), vocabulary()), Limits(), lambda _: Cost(100, 1000), seed=0)


SPACE = """\
version: 1
task: classification
epochs: {{max: 3}}
fields:
  student.family: {{choice: [mlp]}}
  student.mlp.width: 8
  student.mlp.depth: 1
  ce_weight: {{choice: [0.1, 0.5, 1.0]}}
  optim.batch: {batch}
  peers.count: {peers}
first:
  - {{name: plain, set: {{optim.batch: 64, peers.count: 0}}}}
"""


def test_the_typical_recipe_is_what_the_space_holds_and_not_its_first() -> None:
    teacher = Cost(1000, 10_000)
    assert typical_cost(sampler(batch="{choice: [64]}", peers="{choice: [0]}"), teacher, True) == pytest.approx(1.0)
    small = typical_cost(sampler(batch="{choice: [16, 64]}", peers="{choice: [0]}"), teacher, True)
    assert 1.2 < small < 2.4, "four times the steps in half of the recipes, the same FLOPs"
    peers = typical_cost(sampler(batch="{choice: [64]}", peers="{choice: [0, 2]}"), teacher, True)
    assert 1.5 < peers < 2.6, "three networks in half of them"


def test_taking_a_sample_changes_nothing_for_the_search() -> None:
    """Of a space so small that the sample exhausts it."""
    of = sampler(batch="{choice: [64]}", peers="{choice: [0, 1]}")
    before = of.propose(History())
    found = of.sample(1000)
    assert len({each.recipe.id for each in found}) == len(found) < 1000
    assert of.propose(History()) == before and not of._exhausted


def test_an_epoch_budget_pays_for_its_finals() -> None:
    assert 9 * plan("400 epochs").rungs[-1] <= 0.2 * 400 + 9


def test_a_plan_is_json() -> None:
    found = plan("10m", notes=["from the data"])
    again = json.loads(json.dumps(found.to_dict()))
    assert again["notes"] == ["from the data"] and tuple(again["rungs"]) == found.rungs
    assert again["precision"] == "students fp32, teacher fp32"


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_a_teacher_is_paid_once_a_seed_on_a_tape_and_in_every_training_without(lanes: int) -> None:
    taped, live = (
        plan("10m", lanes=lanes, longest=10_000, teacher_seconds=0.6, taped=taped) for taped in (True, False)
    )
    for found in (taped, live):
        assert found.final_seconds <= 0.2 * 600 + 1e-9
    assert taped.rungs[-1] > live.rungs[-1] and taped.expected_trials > live.expected_trials
    assert taped.recording_seconds == pytest.approx(0.6 * taped.rungs[-1]) and live.recording_seconds == 0
    assert final_trainings(3.0, True) == (4, 1, 1) * 3 and final_trainings(3.0, False) == (4, 1, 4) * 3
