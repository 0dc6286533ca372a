"""Importance in worlds whose effects are known, and against Optuna's evaluator."""

from __future__ import annotations

import json
import random
import time
import warnings
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from spaces import SMALL, VOCABULARY

from autokd.history import History, Trial
from autokd.importance import ENOUGH, FEWEST, Importance, _Axis, importance
from autokd.rules import Value
from autokd.space import Space

SPACE = Space.parse(SMALL, VOCABULARY)
Effect = Callable[[Mapping[str, Value]], float]
LR = "optim.lr"
WORDS = {field.name for field in SPACE.fields if field.kind == "choice"}


def world(effect: Effect, trials: int = 100, seed: int = 0, rungs: tuple[int, ...] = (2, 6)) -> History:
    """Trials drawn from the whole space, each with the value its point has, and a little noise."""
    history, draw = History(head={"space": SPACE.to_dict()}, rungs=rungs), random.Random(seed)
    for number in range(trials):
        point = SPACE.quantile([draw.random() for _ in SPACE.fields])
        name = f"t{number:04d}"
        trial = Trial(name, "search", SPACE.recipe(point), point, "prior", 0, 100, 100, 0.0, state="stopped")
        trial.values, trial.epoch, trial.to = {2: (effect(point) + draw.gauss(0, 0.002), 0.0)}, 2, 2
        history.trials[name] = trial
    return history


def by_lr(point: Mapping[str, Value]) -> float:
    return -abs(np.log(float(point[LR]) / 0.06))


def dkd_beta(point: Mapping[str, Value]) -> float:
    """The loss decides, and within dkd its beta."""
    return float(point["terms.dkd.beta"]) / 8 + 1 if point["select.logits"] == "dkd" else 0.0


def found(history: History, seed: int = 0) -> Importance:
    result = importance(history, seed)
    assert result is not None
    return result


def test_the_field_that_decides_stands_out_and_the_others_do_not() -> None:
    result = found(world(by_lr))
    assert [entry.name for entry in result.above_noise] == [LR]
    first = result.fields[0]
    assert 0.4 < first.low < first.share < first.high <= 1.0
    assert (result.rung, result.trials, result.best) == (2, 100, 25) and len(result.fields) == 17
    assert result.sentence().startswith(
        "measured on the 100 trials that came to epoch 2, 25 of them the best: optim.lr ("
    )
    assert result.sentence().endswith("; 16 other fields cannot be told from noise")


def test_a_field_that_matters_in_its_branch_only_is_found_there() -> None:
    result = found(world(dkd_beta, trials=240))
    shares = {entry.name: entry for entry in result.fields}
    beta = shares["terms.dkd.beta"]
    assert {entry.name for entry in result.above_noise} == {"select.logits", "terms.dkd.beta"}
    assert beta.where == "select.logits = dkd" and 0 < beta.trials < 120
    assert beta.label == "terms.dkd.beta, where select.logits = dkd"
    assert not shares["terms.kd.temperature"].above_noise and shares["optim.lr"].where == ""


def test_a_field_is_not_credited_with_what_made_it_exist() -> None:
    """Every trial with dkd is better than every other, and dkd's beta does nothing."""
    result = found(world(lambda point: float(point["select.logits"] == "dkd"), trials=240))
    assert [entry.name for entry in result.above_noise] == ["select.logits"]


def test_pure_noise_is_called_noise() -> None:
    results = [found(world(lambda _: 0.0, trials=60, seed=seed)) for seed in range(8)]
    clear, fields = (sum(len(getattr(result, name)) for result in results) for name in ("above_noise", "fields"))
    assert clear / fields < 0.05, f"{clear} of {fields}"


def test_more_trials_give_a_narrower_interval() -> None:
    widths = [(f := found(world(by_lr, trials=n)).fields[0]).high - f.low for n in (40, 300)]
    assert widths[1] < 0.7 * widths[0]


def test_the_highest_rung_with_enough_trials_is_taken() -> None:
    history = world(by_lr)
    for number, trial in enumerate(history.trials.values()):
        if number < ENOUGH - 1:
            trial.values[6] = trial.values[2]
    assert found(history).rung == 2
    last = history.trials["t0099"]
    last.state, last.to = "failed", 6
    assert (found(history).rung, found(history).trials) == (
        6,
        ENOUGH,
    )  # a failure on the way there counts, as the worst


def test_failures_are_the_worst() -> None:
    """Only the learning rate says which trials fail."""
    history = world(lambda _: 0.0)
    for trial in history.trials.values():
        if float(trial.point[LR]) > 0.05:
            trial.state, trial.values = "failed", {}
    assert [entry.name for entry in found(history).above_noise] == [LR]


def test_too_few_trials_or_an_unknown_space_say_nothing() -> None:
    assert importance(world(by_lr, trials=FEWEST - 1)) is None
    assert importance(world(by_lr, trials=FEWEST)) is not None
    unknown = world(by_lr)
    unknown.head = {"space": {"path": "elsewhere.yaml"}}
    assert importance(unknown) is None and importance(History()) is None


def test_the_same_ledger_gives_the_same_numbers_as_json() -> None:
    history = world(by_lr, trials=40)
    assert found(history) == found(history) != found(history, seed=1)
    told = json.loads(json.dumps(found(history).to_dict()))
    assert told["fields"][0]["name"] == LR and told["fields"][0]["above_noise"] is True


def test_it_takes_less_than_two_seconds() -> None:
    history = world(by_lr, trials=300)
    begun = time.process_time()
    found(history)
    assert time.process_time() - begun < 2.0


def test_it_agrees_with_optuna_on_what_matters() -> None:
    """Its evaluator gives the explained variance; ours is divided by the whole variance of the indicator."""
    optuna = pytest.importorskip("optuna", minversion="5.0")
    history = world(dkd_beta, trials=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(direction="maximize")
        for trial in history.trials.values():
            study.add_trial(as_optuna(optuna, trial))
        theirs = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25).evaluate(study)
    numbers = [entry for entry in found(history).fields if entry.name not in WORDS]
    assert len(numbers) > 6 and numbers[0].name == max((e.name for e in numbers), key=theirs.__getitem__)
    for entry in numbers:
        assert entry.share == pytest.approx(theirs[entry.name] / (0.25 * 0.75), abs=0.05), entry.name


def test_no_share_exceeds_the_whole() -> None:
    """Few trials, of which the best lie close together: two densities of different widths would give a share above 1."""
    for seed in range(5):
        entry = found(world(by_lr, trials=30, seed=seed)).fields[0]
        assert entry.name == LR and 0 < entry.low <= entry.share <= entry.high <= 1


def as_optuna(optuna: object, trial: Trial) -> object:
    from autokd.engine.tpe import _Recorder

    recorder = _Recorder(trial.point)
    SPACE.suggest(recorder)
    value = trial.values[2][0]
    return optuna.trial.create_trial(params=recorder.params, distributions=recorder.distributions, value=value)  # type: ignore[attr-defined]


def test_words_are_counted_without_smoothing() -> None:
    trials = list(world(by_lr, trials=20).trials.values())
    axis = _Axis({"name": "select.logits", "choice": ["none", "kd", "dkd"]}, trials)
    density, _ = axis.densities(np.array([[6.0, 0.0, 3.0]]), np.array([[2.0, 0.0, 1.0]]))
    assert density[0] == pytest.approx([(6 + 1 / 3) / 10, (1 / 3) / 10, (3 + 1 / 3) / 10])
