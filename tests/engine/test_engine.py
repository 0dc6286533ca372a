"""Whole simulated searches: what the engine must keep to, whatever the budget, the lanes and the accidents."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
from spaces import SMALL, VOCABULARY
from worlds import RUNGS, SPACE, TEACHER, Run, World, budget, cost_of, failing, judge, quality

from autokd.budget import Budget
from autokd.constraints import Limits
from autokd.core.device import Setting
from autokd.engine.engine import Engine, Start
from autokd.engine.rungs import promotable
from autokd.errors import ConstraintError, TrialFailure
from autokd.history import History, Trial
from autokd.ledger import Event
from autokd.orders import Order
from autokd.plan import make_plan
from autokd.recipe import Recipe
from autokd.space import Space

TRIALS = budget("trials", 40)


def starts(run: Run, role: str = "search") -> list[Event]:
    return [event for event in run.events if event["event"] == "start" and event["role"] == role]


def timeless(events: list[Event]) -> list[Event]:
    return [{name: value for name, value in event.items() if name not in ("time", "elapsed")} for event in events]


# ---- rungs


@pytest.mark.parametrize("lanes", [1, 2, 8])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_only_the_best_third_of_a_rung_is_promoted(tmp_path: Path, lanes: int, share: float) -> None:
    run = Run(tmp_path, TRIALS, lanes=lanes, world={"fail": failing(share)})()
    judge(run.events)
    assert len(starts(run)) == 40
    reached = [sum(rung in trial.values for trial in run.history.in_role("search")) for rung in RUNGS]
    assert reached[0] > reached[1] > reached[2] > 0
    assert (share > 0) == any(trial.state == "failed" for trial in run.history.in_role("search"))


def test_trials_are_promoted_before_new_ones_begin(tmp_path: Path) -> None:
    run = Run(tmp_path, TRIALS, lanes=3)()
    history = History()
    for event in run.events:
        if event["event"] == "start" and event["role"] == "search":
            assert promotable(history) is None, f"{event['trial']} began although {promotable(history)} could go on"
        history.add(event)


def test_a_trial_is_never_compared_across_rungs(tmp_path: Path) -> None:
    """Values that fall with every epoch: were they compared across rungs, nothing would ever be promoted or win."""
    run = Run(tmp_path, TRIALS)
    train = run.trainer

    def falling(order: Order) -> object:
        report = train(order)
        return replace(report, value=report.value - 2 * report.epoch)

    run.trainer = falling  # type: ignore[assignment]
    run()
    judge(run.events)
    winner = run.history.trials[run.history.winner or ""]
    assert winner.epoch == RUNGS[-1]


# ---- where recipes come from


def test_published_recipes_are_tried_first_and_in_order(tmp_path: Path) -> None:
    sources = [event["source"] for event in starts(Run(tmp_path, TRIALS)())]
    assert sources[:3] == ["published: KD (Hinton 2015)", "published: DKD (Zhao 2022)", "published: KD + AT"]
    assert sources[3:8] == ["quasi-random"] * 5
    assert set(sources[8:]) == {"model", "prior"}


@pytest.mark.parametrize("seed", range(6))
def test_every_recipe_is_within_the_limits(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    limits = Limits(params=10 ** draw.uniform(1.9, 4), flops=10 ** draw.uniform(3.6, 6))
    run = Run(tmp_path, budget("trials", 30), seed=seed, limits=limits)
    run.engine.sampler.check_satisfiable()
    for event in starts(run()):
        assert event["params"] <= (limits.params or 0) and event["flops"] <= (limits.flops or 0)
        assert cost_of(Recipe.from_dict(event["recipe"]).student).params == event["params"]


def test_limits_nobody_satisfies_name_the_smallest_student(tmp_path: Path) -> None:
    run = Run(tmp_path, TRIALS, limits=Limits(params=50))
    with pytest.raises(ConstraintError, match=r"params <= 50; the smallest possible are 74 params and 2,960 flops"):
        run.engine.sampler.check_satisfiable()
    with pytest.raises(ConstraintError, match="no new recipe within the limits"):
        run()


def test_the_smallest_student_is_found_where_only_it_is_allowed(tmp_path: Path) -> None:
    run = Run(tmp_path, budget("trials", 12), limits=Limits(params=74))()
    assert {event["params"] for event in starts(run)} == {74} and len(starts(run)) == 12


def test_a_space_with_choices_for_sizes_has_a_smallest_student() -> None:
    text = SMALL.replace("{int: [4, 64], log: true, prior: 16}", "{choice: [32, 4, 8]}").replace(
        "{int: [1, 9], step: 2}", "1"
    )
    engine = Engine(Space.parse(text, VOCABULARY), Limits(params=70), cost_of, TEACHER, 1, 0)
    with pytest.raises(ConstraintError, match="74 params"):
        engine.sampler.check_satisfiable()


def test_a_published_recipe_keeps_its_losses_when_its_student_is_too_large(tmp_path: Path) -> None:
    """Only small MLPs fit; they have no maps for attention transfer, so that recipe is left out rather than changed."""
    text = SMALL.replace(
        "{choice: [none, at], prior: none}", "{choice: [none, at], prior: none, when: {student.family: resnet}}"
    )
    lines = text.splitlines()
    hints, family = (
        next(i for i, line in enumerate(lines) if name in line) for name in ("select.hints:", "student.family: {")
    )
    lines.insert(hints, lines.pop(family))
    run = Run(
        tmp_path, budget("trials", 4), space=Space.parse("\n".join(lines), VOCABULARY), limits=Limits(params=120)
    )()
    assert [event["source"] for event in starts(run)] == [
        "published: KD (Hinton 2015)",
        "published: DKD (Zhao 2022)",
        "quasi-random",
        "quasi-random",
    ]


def test_a_space_that_is_used_up_ends_the_search(tmp_path: Path) -> None:
    text = """\
version: 1
task: classification
epochs: {max: 9}
fields:
  student.family: mlp
  student.mlp.width: {choice: [8, 16]}
  select.logits: {choice: [none, kd]}
  terms.kd.weight: {choice: [1, 2]}
"""
    run = Run(tmp_path, budget("trials", 40), space=Space.parse(text, VOCABULARY))()
    judge(run.events)
    assert len(starts(run)) == 6 and run.reason == "all done"


def test_two_searches_with_one_seed_are_equal(tmp_path: Path) -> None:
    ledgers = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        ledgers.append(Run(tmp_path / name, TRIALS, lanes=3, seed=5, world={"fail": failing(0.2)})().events)
    assert timeless(ledgers[0]) == timeless(ledgers[1])
    (tmp_path / "c").mkdir()
    assert timeless(Run(tmp_path / "c", TRIALS, lanes=3, seed=6)().events) != timeless(ledgers[0])


# ---- killed and resumed


@pytest.mark.parametrize("kind, amount", [("trials", 16), ("seconds", 12.0), ("epochs", 330)])
def test_a_search_killed_anywhere_goes_on_without_losing_or_repeating(tmp_path: Path, kind: str, amount: float) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    uncut = Run(whole, budget(kind, amount), world={"fail": failing(0.2)})()
    lines = (whole / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    cuts = sorted({*range(3, len(lines), 9), len(lines) - 1})
    for cut in cuts:
        folder = tmp_path / str(cut)
        folder.mkdir()
        kept = b"".join(lines[:cut])
        (folder / "ledger.jsonl").write_bytes(kept + lines[cut][: len(lines[cut]) // 2])  # and a torn line
        run = Run(folder, budget(kind, amount), world={"fail": failing(0.2)})()
        judge(run.events)
        assert (folder / "ledger.jsonl").read_bytes().startswith(kept)
        states = [trial.state for role in ("winner", "no_kd") for trial in run.history.finals(role)]
        assert set(states) == {"complete"} and len(states) >= 2
        if kind == "trials":
            assert run.reason == uncut.reason and len(starts(run)) == 16 and len(states) == 6


def test_a_trial_that_was_running_is_taken_up_again_first(tmp_path: Path) -> None:
    run = Run(tmp_path, TRIALS, lanes=2)()
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines(keepends=True)
    cut = next(i for i, event in enumerate(run.events) if event["event"] == "resume" and event["to"] == RUNGS[1]) + 1
    (tmp_path / "ledger.jsonl").write_text("".join(lines[:cut]))
    again = Run(tmp_path, TRIALS, lanes=2)
    running = {trial.id for trial in again.history.running}
    again()
    assert {order.trial for order in again.trainer.orders[: len(running)]} == running and len(running) == 2


# ---- budgets


@pytest.mark.parametrize("lanes", [1, 2, 8])
@pytest.mark.parametrize("seconds", [20.0, 50.0])
def test_a_search_keeps_to_its_time(tmp_path: Path, lanes: int, seconds: float) -> None:
    run = Run(tmp_path, budget("seconds", seconds), lanes=lanes, seed=lanes, limits=Limits(params=20_000))
    run.trainer.seconds = 0.04 * lanes
    each = run.trainer.epoch_seconds(run.engine.sampler.first_recipe())
    run.rungs = make_plan(Budget("seconds", seconds), 60, lanes, each, 0.9, Setting()).rungs
    judge(run().events)
    slowest = max(run.trainer.epoch_seconds(trial.recipe) for trial in run.history.trials.values())
    begun = next(event["elapsed"] for event in run.events if event["event"] == "finals")
    done = len(run.history.finals("winner"))
    assert run.clock.now <= seconds + slowest
    assert run.clock.now >= 0.8 * seconds and begun >= 0.5 * seconds, "time was left over"
    assert done == len(run.history.finals("no_kd")) == len(run.history.finals("default_kd")) > 0
    assert done == 3 or seconds == 20.0
    searched = [order for order in run.trainer.orders if "-" not in order.trial]
    assert all(order.deadline is not None and order.deadline < seconds for order in searched)
    assert all(order.deadline is None for order in run.trainer.orders if "-" in order.trial)


def test_a_costly_winner_gets_fewer_seeds_rather_than_more_time(tmp_path: Path) -> None:
    """Finals that are much longer than the share kept for them: complete pairs, and the rest is left out."""
    run = Run(tmp_path, budget("seconds", 12.0), lanes=1, rungs=(2, 6, 30), world={"seconds": 0.05})()
    done = len(run.history.finals("winner"))
    assert 1 <= done < 3
    assert run.reason == f"budget spent after {done} of 3 final seeds"
    assert len(run.history.finals("no_kd")) == len(run.history.finals("default_kd")) == done


@pytest.mark.parametrize("seconds", [0.001, 0.2])
def test_a_budget_too_short_for_anything_still_gives_a_student(tmp_path: Path, seconds: float) -> None:
    run = Run(tmp_path, budget("seconds", seconds), lanes=2)()
    assert len(run.history.finals("winner")) >= 1 and run.reason.startswith(("budget spent", "all done"))


@pytest.mark.parametrize("amount", [400, 900])
@pytest.mark.parametrize("lanes", [1, 4])
def test_a_search_keeps_to_its_epochs(tmp_path: Path, amount: int, lanes: int) -> None:
    run = Run(tmp_path, budget("epochs", amount), lanes=lanes, world={"fail": failing(0.2)})()
    judge(run.events)
    lost = sum(trial.to - trial.epoch for trial in run.history.trials.values() if trial.state == "failed")
    assert amount - RUNGS[-1] <= run.history.epochs + lost <= amount
    assert len(run.history.finals("winner")) == 3


# ---- finals


def test_finals_are_paired_by_seeds_the_search_never_used(tmp_path: Path) -> None:
    run = Run(tmp_path, TRIALS, seed=3)()
    winner = run.history.trials[run.history.winner or ""].recipe
    seeds = {role: [event["seed"] for event in starts(run, role)] for role in ("winner", "no_kd", "default_kd")}
    assert seeds["winner"] == seeds["no_kd"] == seeds["default_kd"] and len(set(seeds["winner"])) == 3
    assert not set(seeds["winner"]) & {event["seed"] for event in starts(run)}
    recipes = {role: {Recipe.from_dict(e["recipe"]) for e in starts(run, role)} for role in seeds}
    assert recipes["winner"] == {winner}
    assert recipes["no_kd"] == {winner.without_distillation()} and recipes["default_kd"] == {winner.with_default_kd()}
    assert {event["to"] for role in seeds for event in starts(run, role)} == {RUNGS[-1]}
    assert {order.start for order in run.trainer.orders if "-" in order.trial} == {0}


def test_a_control_that_is_the_winner_itself_is_not_trained_again(tmp_path: Path) -> None:
    default = SPACE.recipe(SPACE.first[0][1])
    assert default == default.with_default_kd() and default.id == default.with_default_kd().id
    run = Run(tmp_path, budget("trials", 3))
    train = run.trainer

    def loves_default_kd(order: Order) -> object:
        report = train(order)
        return replace(report, value=0.99) if order.recipe == default else report

    run.trainer = loves_default_kd  # type: ignore[assignment]
    run()
    assert run.reason == "all done" and run.history.winner == "t0001"
    assert [len(starts(run, role)) for role in ("winner", "no_kd", "default_kd")] == [3, 3, 0]


@pytest.mark.parametrize(("recording", "seeds"), [(0.5, 3), (12.0, 1)])
def test_a_tape_for_another_seed_costs_what_was_measured_not_its_flops(
    tmp_path: Path, recording: float, seeds: int
) -> None:
    """The teacher here has more than twenty times the FLOPs of these students, which says nothing about its seconds."""
    small = Limits(flops=TEACHER.flops // 20)
    world = {"taped": True, "seconds": 0.5}
    plan = {"recording_seconds": recording}
    run = Run(tmp_path, budget("seconds", 30.0), limits=small, taped=True, plan=plan, world=world)()
    winner = run.history.trials[run.history.winner or ""]
    assert TEACHER.flops >= 20 * winner.flops and len(run.history.finals("winner")) == seeds


def test_more_budget_reopens_the_search_and_new_finals_follow(tmp_path: Path) -> None:
    first = Run(tmp_path, budget("trials", 9))()
    before = len(first.events)
    again = Run(tmp_path, budget("trials", 40))()
    judge(again.events)
    assert len(starts(again)) == 40
    assert again.history.winner != first.history.winner, "this world has better recipes further on"
    assert len(again.history.finals("winner")) == 3 and len(again.history.in_role("winner")) == 6
    assert [event["event"] for event in again.events[before:]].count("finals") == 1
    assert not Run(tmp_path, budget("trials", 40))().trainer.orders, "a finished search has nothing left to do"


def test_more_time_reopens_the_search_too(tmp_path: Path) -> None:
    first = Run(tmp_path, budget("seconds", 10.0))()
    again = Run(tmp_path, budget("seconds", 30.0))()
    judge(again.events)
    costly = max(trial.seconds for trial in again.history.finals("winner"))  # of which one seed is always trained
    assert len(starts(again)) > len(starts(first)) and 24 <= again.history.elapsed <= max(30, 0.55 * 30 + costly + 5)


# ---- failures


@pytest.mark.parametrize("kind, amount", [("trials", 10), ("epochs", 400), ("seconds", 30.0)])
def test_a_search_in_which_everything_fails_ends_and_says_why(tmp_path: Path, kind: str, amount: float) -> None:
    def fail(order: Order) -> TrialFailure:
        return TrialFailure("exception", "RuntimeError: no kernel")

    run = Run(tmp_path, budget(kind, amount), world={"fail": fail})()
    assert run.reason == "no trial succeeded; the last: exception, RuntimeError: no kernel"
    assert run.history.winner is None and len(starts(run)) <= 25


def test_one_success_keeps_a_search_going(tmp_path: Path) -> None:
    def fail(order: Order) -> TrialFailure | None:
        return TrialFailure("nan", "nan") if order.trial not in ("t0020", "t0020-winner-1000") else None

    run = Run(tmp_path, budget("trials", 60), world={"fail": fail})()
    assert len(starts(run)) == 60 and run.history.winner == "t0020"
    assert {trial.state for trial in run.history.finals("winner")} == {"complete", "failed"}


# ---- is it any good, and is it quick


def random_search(seed: int, trainings: int) -> float:
    """The quality of the best of as many full trainings as the budget pays, drawn from the same priors."""
    draw, world = random.Random(seed), World(None)  # type: ignore[arg-type]
    best: tuple[float, float] = (0.0, 0.0)
    for _ in range(trainings):
        recipe = SPACE.recipe(SPACE.quantile([draw.random() for _ in SPACE.fields], prior=True))
        value = world(Order("t", recipe, seed, RUNGS[-1], RUNGS[-1])).value
        best = max(best, (value, quality(recipe)))
    return best[1]


def test_the_engine_beats_random_search(tmp_path: Path) -> None:
    found, by_chance = [], []
    for seed in range(10):
        (tmp_path / str(seed)).mkdir()
        run = Run(tmp_path / str(seed), budget("epochs", 540), seed=seed)()
        winner = run.history.trials[run.history.winner or ""]
        found.append(quality(winner.recipe))
        by_chance.append(random_search(seed, trainings=540 // RUNGS[-1]))
    assert mean(found) > mean(by_chance) + 0.002, f"{mean(found):.4f} against {mean(by_chance):.4f}"


def test_model_and_prior_are_asked_after_a_thousand_trials() -> None:
    history, draw = History(rungs=RUNGS, budget=budget("trials", 2000)), random.Random(0)
    for number in range(1000):
        point = SPACE.quantile([draw.random() for _ in SPACE.fields])
        recipe = SPACE.recipe(point)
        trial = Trial(f"t{number}", "search", recipe, point, "prior", 0, 100, 4000, float(number), state="stopped")
        trial.values = {rung: (quality(recipe), 0.0) for rung in RUNGS[: 1 + (number % 3 == 0) + (number % 9 == 0)]}
        trial.epoch, trial.seconds = max(trial.values), 10.0
        history.trials[trial.id] = trial
    engine = Engine(SPACE, Limits(), cost_of, TEACHER, 2, 0)
    sources = set()
    for _ in range(12):
        decision = engine.propose(history, 0.0)
        assert isinstance(decision, Start)
        sources.add(decision.source)
        history.trials[decision.trial] = Trial(
            decision.trial, "search", decision.recipe, decision.point, decision.source, 0, 1, 1, 2000.0, to=2
        )
    assert sources == {"model", "prior"}
