"""The sampler's model, and the small decisions under it: rungs, standings, controls, costs."""

from __future__ import annotations

import random
from pathlib import Path

import optuna
import pytest
from worlds import RUNGS, SPACE, TEACHER, Run, budget, cost_of, failing

from autokd.constraints import Limits
from autokd.engine import sampler
from autokd.engine.controls import final_recipes, final_seeds
from autokd.engine.cost import makespan, relative_cost
from autokd.engine.rungs import at_rung, leader, next_rung, promotable, rungs_for
from autokd.engine.sampler import MODEL_MOST, MODEL_PAYS, Sampler
from autokd.history import History, Trial
from autokd.recipe import Recipe

KD = Recipe.from_dict(
    {"student": {"family": "mlp", "width": 8}, "terms": [{"objective": "kd", "weight": 2.0, "temperature": 3.0}]}
)


def trial(name: str, state: str = "paused", to: int = 2, params: int = 10, **values: float) -> Trial:
    """A search trial with values such as e2=0.7: 0.7 at epoch 2."""
    found = Trial(name, "search", KD, {}, "prior", 0, params, 1, 0.0, state=state, to=to)  # type: ignore[arg-type]
    found.values = {int(epoch[1:]): (value, 0.0) for epoch, value in values.items()}
    found.epoch = max(found.values, default=0)
    return found


def history(*trials: Trial) -> History:
    return History(rungs=RUNGS, trials={each.id: each for each in trials})


# ---- rungs


@pytest.mark.parametrize("longest", range(1, 200))
def test_rungs_rise_to_the_longest(longest: int) -> None:
    rungs = rungs_for(longest)
    assert rungs[0] >= 1 and rungs[-1] == longest and list(rungs) == sorted(set(rungs)) and len(rungs) <= 3
    assert next_rung(rungs, 0) == rungs[0] and next_rung(rungs, longest) is None


def test_failed_trials_count_in_the_rung_but_are_never_promoted() -> None:
    good = [trial("a", e2=0.9), trial("b", e2=0.8), trial("c", e2=0.7)]
    heading = [trial(f"f{n}", state="failed") for n in range(3)]
    assert promotable(history(*good)) is good[0]
    good[0].epoch, good[0].to = 2, 6
    good[0].state = "running"
    assert promotable(history(*good)) is None
    assert promotable(history(*good, *heading)) is good[1], "six came to the rung, so that two go on"
    good[0].state = "failed"
    assert promotable(history(*good, *heading)) is good[1], "one that failed further up is passed over"


def test_the_highest_rung_is_looked_at_first_and_ties_go_to_the_smaller() -> None:
    low = [trial("a", e2=0.9), trial("b", e2=0.9, params=5), trial("c", e2=0.1)]
    high = [trial(f"h{n}", e2=0.5, e6=0.6 + n / 10, to=6) for n in range(3)]
    assert promotable(history(*low, *high)) is high[2]
    assert promotable(history(*low)) is low[1]
    assert at_rung(history(*low, *high), 6) == high[::-1]
    assert leader(history(*low, *high)) is high[2]


def test_a_trial_cut_off_between_rungs_counts_where_it_has_been() -> None:
    cut = trial("a", e2=0.9, e4=0.95, to=6)
    others = [trial("b", e2=0.5), trial("c", e2=0.4)]
    found = history(cut, *others)
    assert promotable(found) is None, "the best third is the one that was cut off"
    assert leader(found) is cut
    assert leader(history(trial("d", e1=0.3), trial("e", e1=0.4))).id == "e"  # type: ignore[union-attr]
    assert leader(history(trial("f", state="failed", e2=0.9))) is None


# ---- the model


def searched(tmp_path: Path, trials: int = 60, **world: object) -> tuple[History, Sampler]:
    run = Run(tmp_path, budget("trials", trials), world=world)()
    return run.history, run.engine.sampler


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_model_sees_one_rung_with_failures_worst(tmp_path: Path) -> None:
    found, its_sampler = searched(tmp_path, fail=failing(0.25))
    new = trial("new", state="running")
    new.point = dict(found.trials["t0020"].point)
    found.trials["new"] = new
    failed = [each for each in found.in_role("search") if each.state == "failed"]
    for rung in RUNGS[:2]:
        here = at_rung(found, rung)
        here[0].state = "running"  # sent on: it keeps its rank and is not imputed
        *known, imputed = its_sampler._study(found, rung, seed=0).trials
        expected = [its_sampler._as_optuna(each.point, None).params for each in (*here, *failed, new)]
        assert [each.params for each in (*known, imputed)] == expected
        values = [each.value for each in known]
        assert values == sorted(values, reverse=True) and min(values[: len(here)]) > 0
        assert failed and values[len(here) :] == [0.0] * len(failed)
        assert imputed.state == optuna.trial.TrialState.RUNNING


def test_the_model_is_fitted_to_the_highest_rung_with_enough_trials(tmp_path: Path) -> None:
    found, its_sampler = searched(tmp_path)
    counts = {rung: len(at_rung(found, rung)) for rung in RUNGS}
    chosen = its_sampler._model_rung(found)
    enough = min(len(SPACE.fields), 20) + 1
    assert chosen == max((rung for rung in RUNGS if counts[rung] >= enough), default=None) is not None
    assert Sampler(SPACE, Limits(), cost_of, 0)._model_rung(History(rungs=RUNGS)) is None


def test_points_that_are_replayed_to_the_model_keep_their_conditions(tmp_path: Path) -> None:
    found, its_sampler = searched(tmp_path, trials=30)
    for each in found.in_role("search"):
        frozen = its_sampler._as_optuna(each.point, 0.5)
        active = {entry.name for entry in SPACE.active(each.point) if entry.searched}
        assert set(frozen.params) == active and all(frozen.params[name] == each.point[name] for name in active)


def test_a_long_history_is_cut_to_the_best_and_the_newest() -> None:
    trials = [trial(f"t{n}", e2=n / 1000) for n in range(500)]
    for number, each in enumerate(trials):
        each.started = float(number)
    reached = at_rung(history(*trials), 2)
    kept = sampler._best_and_newest(reached)
    assert len(kept) == MODEL_MOST and kept[: MODEL_MOST // 2] == reached[: MODEL_MOST // 2]
    assert sampler._best_and_newest(reached[:50]) == reached[:50]


def test_optuna_is_asked_for_most_recipes_once_there_is_a_model(tmp_path: Path) -> None:
    found, _ = searched(tmp_path, trials=100)
    sources = [each.source for each in found.in_role("search")][40:]
    assert 0.5 < sources.count("model") / len(sources) < 0.95


# ---- controls and costs


def test_a_copied_recipe_has_an_id_of_its_own() -> None:
    before = KD.id
    control = KD.without_distillation()
    assert control.id != before and control.id == Recipe.from_json(control.to_json()).id
    assert hash(control) == hash(Recipe.from_json(control.to_json())) and KD.id == before


def test_finals_hold_each_recipe_once() -> None:
    assert list(final_recipes(KD)) == ["winner", "no_kd", "default_kd"]
    assert list(final_recipes(KD.with_default_kd())) == ["winner", "no_kd"]
    assert list(final_recipes(KD.without_distillation())) == ["winner", "default_kd"]
    assert len(set(final_seeds(7))) == 3 and 7 not in final_seeds(7)


def test_makespan_of_trainings_on_lanes() -> None:
    assert makespan([1.0] * 9, lanes=1) == 9
    assert makespan([1.0] * 9, lanes=8) == 2, "a ninth training waits for a lane"
    assert makespan([3.0, 1.0, 1.0, 1.0], lanes=2) == 3
    assert makespan([2.0], lanes=2, busy=[5.0]) == 5 and makespan([2.0, 2.0], lanes=2, busy=[5.0]) == 5
    assert makespan([], lanes=3) == 0


def test_relative_cost_counts_rows_peers_and_teacher() -> None:
    student = cost_of(KD.student)
    plain = relative_cost(KD.without_distillation(), student, TEACHER)
    assert plain == 3 * student.flops
    assert relative_cost(KD, student, TEACHER) == plain + TEACHER.flops
    peers = KD.model_copy(update={"peers": KD.peers.model_copy(update={"count": 2})})
    assert relative_cost(peers, student, TEACHER) == 3 * plain + TEACHER.flops
    augmented = KD.model_copy(update={"augment": KD.augment.model_copy(update={"policy": "jda", "rho": 0.5})})
    assert relative_cost(augmented, student, TEACHER) == 2 * (plain + TEACHER.flops)


def test_the_model_is_not_asked_where_trials_cost_less_than_it_does() -> None:
    cheap, dear = (History(rungs=(1, 3)) for _ in range(2))
    draw = random.Random(0)
    for number in range(60):
        point = SPACE.quantile([draw.random() for _ in SPACE.fields])
        for history, seconds in ((cheap, 0.5 * MODEL_PAYS), (dear, 2 * MODEL_PAYS)):
            trial = Trial(f"t{number}", "search", SPACE.recipe(point), point, "prior", 0, 1, 1, float(number))
            trial.values, trial.epoch, trial.seconds, trial.state = {1: (draw.random(), 0.0)}, 1, seconds, "paused"
            history.trials[trial.id] = trial
    ours = Sampler(SPACE, Limits(), cost_of, seed=0)
    assert ours._model_rung(dear) == 1 and ours._model_rung(cheap) is None
