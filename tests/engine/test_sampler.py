"""What is proposed: the same for the same ledger, within the space, cheap before dear, good before bad."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import numpy as np
import optuna
import pytest
from spaces import VOCABULARY
from worlds import RUNGS, SPACE, Run, budget, cost_of, failing

from autokd.constraints import Limits
from autokd.engine.cost import CostModel, thrift
from autokd.engine.rungs import at_rung, failed_towards
from autokd.engine.sampler import MODEL_PAYS, Sampler
from autokd.engine.surrogate import scores, surrogate
from autokd.engine.tpe import Tpe
from autokd.history import History, Trial
from autokd.rules import Value
from autokd.space import Space

Point = dict[str, Value]
FLAT = """\
version: 1
about: two numbers, of which the optimum is known
task: classification
epochs: {max: 9}
fields:
  student.family: mlp
  student.mlp.width: {int: [8, 256], log: true}
  optim.lr: {float: [1e-4, 1], log: true}
"""


def told(
    space: Space,
    value: Callable[[Point], float],
    count: int,
    seconds: Callable[[Point], float] = lambda point: 1.0,
    seed: int = 0,
) -> History:
    """A history of random trials at the first rung, half of the time spent."""
    draw, found = random.Random(seed), History(rungs=RUNGS, budget=budget("seconds", 2.0), elapsed=1.0)
    for number in range(count):
        point = space.quantile([draw.random() for _ in space.fields])
        trial = Trial(
            f"t{number:04d}", "search", space.recipe(point), point, "prior", 0, 1, 1, float(number), state="paused"
        )
        trial.values, trial.epoch, trial.to, trial.seconds = {2: (value(point), 0.0)}, 2, 2, 2 * seconds(point)
        found.trials[trial.id] = trial
    return found


def proposed(sampler: Sampler, history: History, count: int) -> list[Point]:
    """What the model proposes, one after the other, none of them answered."""
    points = []
    while len(points) < count:
        found = sampler.propose(history)
        name = f"t{len(history.trials):04d}"
        history.trials[name] = Trial(name, "search", found.recipe, found.point, found.source, 0, 1, 1, 999.0, to=2)
        points += [found.point] if found.source == "model" else []
    return points


# ---- scores


def test_scores_are_places_on_one_scale_over_all_rungs(tmp_path: Path) -> None:
    found = Run(tmp_path, budget("trials", 40), world={"fail": failing(0.25)})().history
    below: dict[str, float] = {}
    for rung in RUNGS:
        scored = scores(found, rung, below)
        order = [trial.id for trial in at_rung(found, rung)]
        assert [scored[name] for name in order] == sorted((scored[name] for name in order), reverse=True)
        failed = failed_towards(found, rung)
        assert all(scored[trial.id] < min(scored[name] for name in order) for trial in failed)
        if below:
            assert sorted(scored[name] for name in order) == pytest.approx(sorted(below[name] for name in order))
        below = scored
    assert failed_towards(found, RUNGS[0]) and len(below) >= 2


def test_scores_look_at_the_order_alone() -> None:
    history = told(SPACE, lambda point: float(len(str(point)) % 7), 20)
    before = scores(history, 2, {})
    for trial in history.trials.values():
        trial.values[2] = (-1e18 if trial.values[2][0] == 0 else np.exp(trial.values[2][0]), 0.0)
    assert scores(history, 2, {}) == before
    assert len(set(before.values())) == len({trial.values[2] for trial in history.trials.values()}), (
        "ties share a score"
    )


def test_a_trial_that_skipped_a_rung_is_scored_between_those_it_ended_between() -> None:
    history = told(SPACE, lambda point: hash_free(point), 9)
    trials = list(history.trials.values())
    for place, trial in enumerate(trials[:4]):
        trial.values[6] = (float(place), 0.0)
    below = scores(history, 2, {})
    late = trials[8]
    late.values = {6: (1.5, 0.0)}
    below.pop(late.id)
    scored = scores(history, 6, below)
    assert scored[trials[1].id] < scored[late.id] < scored[trials[2].id]


def test_there_is_a_model_where_all_trials_skip_the_first_rung() -> None:
    history = told(SPACE, hash_free, 9)
    for trial in history.trials.values():
        trial.values = {6: trial.values[2]}
    believed = surrogate(history, Sampler(SPACE, Limits(), cost_of, 0).encoding)
    assert believed is not None and len(believed.processes) == 1 and len(believed.tried) == 9


def hash_free(point: Point) -> float:
    return sum(map(ord, str(point))) % 97


# ---- the model


def test_the_model_finds_the_top_of_a_hill() -> None:
    space = Space.parse(FLAT, VOCABULARY)

    def value(point: Point) -> float:
        return -((np.log10(point["optim.lr"]) + 2) ** 2) - (np.log2(point["student.mlp.width"]) - 6) ** 2

    near = [value(p) for p in proposed(Sampler(space, Limits(), cost_of, 0), told(space, value, 20), 12)]
    draw = random.Random(1)
    by_chance = [value(space.quantile([draw.random() for _ in space.fields])) for _ in range(200)]
    assert np.median(near) > np.quantile(by_chance, 0.95)


def test_of_two_equally_good_regions_the_cheap_one_is_asked_more() -> None:
    space = Space.parse(FLAT, VOCABULARY)

    def value(point: Point) -> float:
        return -min(abs(np.log10(point["optim.lr"]) + 1), abs(np.log10(point["optim.lr"]) + 3))

    def share_of_low(seconds: Callable[[Point], float]) -> float:
        found = proposed(Sampler(space, Limits(), cost_of, 0), told(space, value, 40, seconds), 30)
        return mean(point["optim.lr"] < 1e-2 for point in found)

    dear_below = share_of_low(lambda point: 20.0 if point["optim.lr"] < 1e-2 else 1.0)
    dear_above = share_of_low(lambda point: 1.0 if point["optim.lr"] < 1e-2 else 20.0)
    assert dear_below < 0.35 < 0.65 < dear_above


def test_cost_matters_less_as_time_runs_out_and_only_where_time_is_counted() -> None:
    history = History(budget=budget("seconds", 10.0), elapsed=2.0)
    assert thrift(history) == pytest.approx(0.8)
    history.elapsed = 12.0
    assert thrift(history) == 0.0
    assert thrift(History(budget=budget("epochs", 10.0))) == thrift(History()) == 0.0


def test_the_cost_model_learns_what_makes_a_trial_slow() -> None:
    def seconds(point: Point) -> float:
        return float(cost_of(SPACE.recipe(point).student).params) * (1 + int(point["peers.count"]))

    history, encoding = told(SPACE, hash_free, 60, seconds), Sampler(SPACE, Limits(), cost_of, 0).encoding
    model = CostModel.fitted(history, encoding)
    assert model is not None and CostModel.fitted(History(), encoding) is None
    new = [trial.point for trial in told(SPACE, hash_free, 100, seed=1).trials.values()]
    true = [np.log(seconds(point)) for point in new]
    assert np.corrcoef(model.log_cost(encoding.rows(new)), true)[0, 1] > 0.8


def test_running_trials_are_not_asked_for_again() -> None:
    space = Space.parse(FLAT, VOCABULARY)
    history = told(space, lambda point: -abs(np.log10(point["optim.lr"]) + 2), 30)
    sampler = Sampler(space, Limits(), cost_of, 0)
    before = surrogate(history, sampler.encoding)
    row = sampler.encoding.row(proposed(sampler, history, 1)[0])[None]
    after = surrogate(history, sampler.encoding)
    assert before is not None and after is not None
    assert after.predict(row)[1] < 0.85 * before.predict(row)[1]
    found = [sampler.space.recipe(point).id for point in proposed(sampler, history, 20)]
    assert len(set(found)) == 20


def test_no_recipe_is_proposed_twice_even_where_few_are_left(tmp_path: Path) -> None:
    few = FLAT.replace("{float: [1e-4, 1], log: true}", "{choice: [0.1, 0.01]}").replace("[8, 256]", "[8, 17]")
    run = Run(tmp_path, budget("trials", 50), space=Space.parse(few, VOCABULARY), limits=Limits(params=200))()
    ids = [trial.recipe.id for trial in run.history.in_role("search")]
    assert len(ids) == len(set(ids)) == 12, "six widths of at most 200 parameters, two rates"


def test_the_model_keeps_to_limits_that_few_satisfy(tmp_path: Path) -> None:
    run = Run(tmp_path, budget("trials", 25), limits=Limits(params=300))()
    tried = run.history.in_role("search")
    assert all(trial.params <= 300 for trial in tried)
    sources = [trial.source for trial in tried][8:]
    assert sources.count("model") > len(sources) / 2


def test_the_model_is_asked_for_most_recipes_but_not_for_all(tmp_path: Path) -> None:
    run = Run(tmp_path, budget("trials", 50))()
    sources = [each.source for each in run.history.in_role("search")][8:]
    assert 0.5 < sources.count("model") / len(sources) < 0.95


def test_the_model_is_not_asked_where_trials_cost_less_than_it_does() -> None:
    ours = Sampler(SPACE, Limits(), cost_of, seed=0)
    cheap = told(SPACE, hash_free, 30, lambda point: 0.25 * MODEL_PAYS)
    dear = told(SPACE, hash_free, 30, lambda point: MODEL_PAYS)
    assert ours._model_ready(dear) and not ours._model_ready(cheap)
    assert not ours._model_ready(History(rungs=RUNGS))


# ---- determinism


def test_proposals_are_a_function_of_the_ledger_in_any_process(tmp_path: Path) -> None:
    """Python hashes words differently in every process; a searcher that leans on it is not reproducible."""
    run = Run(tmp_path, budget("trials", 30), world={"fail": failing(0.2)})()
    assert any(trial.source == "model" for trial in run.history.in_role("search"))
    code = (
        "import sys, json; from pathlib import Path; from worlds import Run, budget, failing, SPACE\n"
        "run = Run(Path(sys.argv[1]), budget('trials', 30), world={'fail': failing(0.2)})\n"
        "found = []\n"
        "history = type(run.history)()\n"
        "for event in run.events:\n"
        "    if event['event'] == 'start' and event['role'] == 'search' and int(event['trial'][1:]) % 5 == 0:\n"
        "        found.append(run.engine.sampler.propose(history).point == event['point'])\n"
        "    history.add(event)\n"
        "print(json.dumps(found))"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": paths}
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [True] * 6


# ---- TPE


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_tpe_sees_one_rung_with_failures_worst(tmp_path: Path) -> None:
    found, tpe = Run(tmp_path, budget("trials", 40), world={"fail": failing(0.25)})().history, Tpe(SPACE)
    draw = random.Random(0)
    point = SPACE.quantile([draw.random() for _ in SPACE.fields])
    new = found.trials["new"] = Trial("new", "search", SPACE.recipe(point), point, "prior", 0, 1, 1, 0.0, to=2)
    failed = [each for each in found.in_role("search") if each.state == "failed"]
    for rung in RUNGS[:2]:
        here = at_rung(found, rung)
        here[0].state = "running"  # sent on: it keeps its rank and is not imputed
        *known, imputed = tpe.study(found, rung, seed=0).trials
        expected = [tpe.as_optuna(each.point, None).params for each in (*here, *failed, new)]
        assert [each.params for each in (*known, imputed)] == expected
        values = [each.value for each in known]
        assert values == sorted(values, reverse=True) and min(values[: len(here)]) > 0
        assert failed and values[len(here) :] == [0.0] * len(failed)
        assert imputed.state == optuna.trial.TrialState.RUNNING


def test_points_that_are_replayed_to_tpe_keep_their_conditions(tmp_path: Path) -> None:
    tpe = Tpe(SPACE)
    for each in Run(tmp_path, budget("trials", 30))().history.in_role("search"):
        frozen = tpe.as_optuna(each.point, 0.5)
        active = {entry.name for entry in SPACE.active(each.point) if entry.searched}
        assert set(frozen.params) == active and all(frozen.params[name] == each.point[name] for name in active)


def test_spaces_of_very_many_fields_are_left_to_tpe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autokd.engine.sampler.MOST_COLUMNS", 3)
    monkeypatch.setattr("autokd.engine.sampler.surrogate", None)
    sources = [trial.source for trial in Run(tmp_path, budget("trials", 30))().history.in_role("search")]
    assert "model" in sources
