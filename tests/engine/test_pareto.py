"""Several goals: the order of a rung, what the model is told, the finals of a front, and whether it beats chance."""

from __future__ import annotations

import math
import random
from pathlib import Path
from statistics import mean

import moocore
import numpy as np
import pytest
from fronts import searched
from hypothesis import given
from hypothesis import strategies as st
from worlds import RUNGS, SPACE, Run, World, budget, cost_of, failing, quality

from autokd.engine.pareto import fronts, in_order, scalarised
from autokd.engine.rungs import ETA, at_rung, leader, promotable
from autokd.engine.surrogate import scores
from autokd.goals import aims, front
from autokd.history import History, Trial
from autokd.orders import Order
from autokd.recipe import Recipe


def trial(name: str, value: float, params: int, rung: int = 2) -> Trial:
    recipe = Recipe.from_dict({"student": {"family": "mlp", "width": params}})
    made = Trial(name, "search", recipe, {}, "prior", 0, params, 1, started=0.0, state="paused", to=rung, epoch=rung)
    made.values[rung] = (value, 0.0)
    return made


def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and a != b


# ---- order


@given(
    st.integers(2, 4).flatmap(lambda goals: st.lists(st.tuples(*[st.integers(0, 5).map(float)] * goals), max_size=25))
)
def test_fronts_are_as_defined(points: list[tuple[float, ...]]) -> None:
    left, expected = set(range(len(points))), []
    while left:
        best = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        expected.append(best)
        left -= best
    assert [set(each) for each in fronts(points)] == expected
    assert set(front(points)) == (expected[0] if expected else set())


def test_a_rung_is_ordered_front_by_front_and_spread_out() -> None:
    on_front = [trial("best", 0.9, 1000), trial("near", 0.89, 990), trial("middle", 0.7, 400), trial("small", 0.5, 10)]
    behind = [trial("worse", 0.6, 500), trial("worst", 0.4, 900)]
    ordered = [each.id for each in in_order([*behind, *on_front], 2, ["params"], most=6)]
    assert ordered[:2] == ["best", "small"] and ordered[2] in ("near", "middle")
    assert ordered[4:] == ["worse", "worst"]
    assert [each.id for each in in_order([*behind, *on_front], 2, ["params"], most=3)] == ordered[:3]


def test_weighings_differ_by_key_and_reach_both_ends() -> None:
    trials = [trial(str(place), 0.5 + 0.04 * place, 10 + 90 * place) for place in range(10)]
    firsts = {scalarised(trials, 2, ["params"], key=str(key))[0].id for key in range(60)}
    assert {"0", "9"} <= firsts and len(firsts) >= 4
    again = [each.id for each in scalarised(trials, 2, ["params"], key="7")]
    assert again == [each.id for each in scalarised(trials, 2, ["params"], key="7")]


def test_a_dominated_trial_never_stands_before_its_better_in_any_weighing() -> None:
    trials = [trial("better", 0.8, 100), trial("worse", 0.7, 200), trial("other", 0.9, 900)]
    for key in range(40):
        ordered = [each.id for each in scalarised(trials, 2, ["params"], key=str(key))]
        assert ordered.index("better") < ordered.index("worse")


def test_equal_values_at_different_costs_are_no_twins() -> None:
    """Of six trials two may go on: one went on, and the other of the two best has its value with fewer parameters."""
    trials = [trial("ahead", 0.9, 900), trial("twin", 0.9, 900), trial("small", 0.9, 100)]
    trials += [trial(f"behind {n}", 0.1, 1000 + n) for n in range(4)]
    trials[0].to = 6
    trials[0].state = "running"
    for goals, expected in ((["accuracy"], None), (["accuracy", "params"], "small")):
        history = History(head={"goals": goals}, rungs=RUNGS, trials={each.id: each for each in trials})
        found = promotable(history)
        assert (found and found.id) == expected


def test_the_scores_that_processes_learn_follow_one_weighing() -> None:
    trials = [trial(str(place), 0.5 + 0.04 * place, 10 + 90 * place) for place in range(10)]
    history = History(head={"goals": ["accuracy", "params"]}, rungs=RUNGS, trials={each.id: each for each in trials})
    for key in map(str, range(10)):
        scored = scores(history, 2, {}, key)
        assert sorted(scored, key=lambda name: -scored[name]) == [
            each.id for each in scalarised(at_rung(history, 2), 2, ["params"], key)
        ]


# ---- searches


def _by_front(there: list[Trial], rung: int) -> list[set[str]]:
    """Trials of a rung front by front, by the definition."""
    at = {each.id: aims(each, rung, ["params"]) for each in there}
    left, found = set(at), []
    while left:
        found.append({name for name in left if not any(dominates(at[other], at[name]) for other in left)})
        left -= found[-1]
    return found


@pytest.mark.parametrize("lanes", [1, 3])
def test_only_the_first_third_in_pareto_order_is_promoted(tmp_path: Path, lanes: int) -> None:
    run = searched(tmp_path, budget("trials", 40), lanes=lanes, world={"fail": failing(0.2)})
    history = History()
    for event in run.events:
        if event["event"] == "resume" and event["trial"] in history.trials:
            of = history.trials[event["trial"]]
            if of.role == "search" and of.epoch in RUNGS and event["to"] != of.to:
                there = at_rung(history, of.epoch)
                failed = sum(
                    t.state == "failed" and (of.epoch in t.values or t.to == of.epoch)
                    for t in history.in_role("search")
                )
                ranks = {
                    each.id: number
                    for number, ids in enumerate(_by_front(there, of.epoch))
                    for each in there
                    if each.id in ids
                }
                better = sum(rank < ranks[of.id] for rank in (ranks[each.id] for each in there))
                assert better < (len(there) + failed) // ETA
        history.add(event)
    top = at_rung(history, RUNGS[-1])
    assert len(front([aims(each, RUNGS[-1], ["params"]) for each in top])) >= 3


def test_the_front_is_retrained_as_far_as_the_budget_goes(tmp_path: Path) -> None:
    plenty = searched(tmp_path / "plenty", budget("trials", 40)).history
    assert plenty.front and plenty.winner not in plenty.front
    assert all(len(plenty.finals("winner", of=name)) == 3 for name in plenty.front)
    assert len(plenty.finals("no_kd")) == 3, "controls are the winner's only"
    run = searched(tmp_path / "little", budget("epochs", 620))
    begun = [len(run.history.finals("winner", of=name)) for name in run.history.front]
    assert len(run.history.finals("winner")) == 3 and 0 < sum(begun) < 3 * len(begun)
    assert run.reason == "budget spent before all of the front were retrained" and run.history.epochs <= 620
    assert begun == sorted(begun, reverse=True), "seed by seed"
    timed = searched(tmp_path / "timed", budget("seconds", 40.0), world={"seconds": 0.05}).history
    assert timed.front and sum(len(timed.finals("winner", of=name)) for name in timed.front) > 0
    assert timed.elapsed <= 40 + 1


def test_a_broken_off_retraining_of_the_front_goes_on(tmp_path: Path) -> None:
    whole = searched(tmp_path / "whole", budget("trials", 24))
    lines = (tmp_path / "whole" / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    begun = max(n for n, event in enumerate(whole.events) if event["event"] == "start")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "ledger.jsonl").write_bytes(b"".join(lines[: begun + 1]))
    again = searched(tmp_path / "cut", budget("trials", 24))
    assert again.reason == "all done" and set(again.history.trials) == set(whole.history.trials)
    assert all(
        each.state == "complete" for name in again.history.front for each in again.history.finals("winner", of=name)
    )


@pytest.mark.parametrize("prefer", ["params", "knee", "params<=400"])
def test_the_preferred_one_gets_the_controls(tmp_path: Path, prefer: str) -> None:
    history = searched(tmp_path, budget("trials", 40), prefer=prefer).history
    top = at_rung(history, RUNGS[-1])
    winner, best = history.trials[history.winner or ""], top[0]
    members = [top[i] for i in front([aims(each, RUNGS[-1], ["params"]) for each in top])]
    assert winner in members and winner is not best
    if prefer == "params":
        assert winner.params == min(each.params for each in members)
    if prefer == "params<=400":
        assert winner.params <= 400 and winner is max(
            (each for each in members if each.params <= 400), key=lambda each: each.values[RUNGS[-1]]
        )


def test_a_preference_nobody_satisfies_leaves_the_most_accurate(tmp_path: Path) -> None:
    history = searched(tmp_path, budget("trials", 20), prefer="params<=1").history
    assert history.winner == at_rung(history, RUNGS[-1])[0].id


def test_one_goal_is_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    plain = Run(tmp_path / "plain", budget("trials", 24))()
    named = searched(tmp_path / "named", budget("trials", 24), goals=("accuracy",))
    assert [e["trial"] for e in plain.events if e["event"] == "start"] == [
        e["trial"] for e in named.events if e["event"] == "start"
    ]
    assert plain.history.winner == named.history.winner == leader(named.history).id and not named.history.front  # type: ignore[union-attr]


def test_two_searches_with_several_goals_and_one_seed_are_equal(tmp_path: Path) -> None:
    a, b = (searched(tmp_path / name, budget("trials", 30), lanes=3) for name in "ab")
    assert [e.get("recipe") for e in a.events] == [e.get("recipe") for e in b.events]


def hypervolume(recipes: list[Recipe]) -> float:
    """Of (noise-free value, log10 params) above value 0.6 and below 10^5 parameters."""
    at = [(-quality(recipe), math.log10(cost_of(recipe.student).params)) for recipe in recipes]
    return float(moocore.hypervolume(np.array(at), ref=[-0.6, 5.0]))


def found_by_chance(seed: int, trainings: int) -> float:
    draw, world = random.Random(seed), World(None)  # type: ignore[arg-type]
    recipes = [
        SPACE.recipe(SPACE.quantile([draw.random() for _ in SPACE.fields], prior=True)) for _ in range(trainings)
    ]
    values = [world(Order("t", each, seed, RUNGS[-1], RUNGS[-1])).value for each in recipes]
    at = [(value, -cost_of(each.student).params) for value, each in zip(values, recipes, strict=True)]
    return hypervolume([recipes[index] for index in front(at)])


@pytest.mark.timeout(120)
def test_the_front_dominates_that_of_random_search(tmp_path: Path) -> None:
    """At equal epochs, the finals' included; selected by noisy values, judged by noise-free ones."""
    ours, by_chance = [], []
    for seed in range(5):
        history = searched(tmp_path / str(seed), budget("epochs", 540), seed=seed).history
        top = at_rung(history, RUNGS[-1])
        found = front([aims(each, RUNGS[-1], ["params"]) for each in top])
        ours.append(hypervolume([top[index].recipe for index in found]))
        by_chance.append(found_by_chance(seed, 540 // RUNGS[-1]))
    gains = [a - b for a, b in zip(ours, by_chance, strict=True)]
    assert mean(gains) > 0.02 and sum(gain > 0 for gain in gains) >= 4, gains
