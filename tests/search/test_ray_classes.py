"""Ray's classes driven without a cluster decide as a real Tuner lets them decide."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from made_up import MadeUp

from benchmarks.search import asha
from benchmarks.search.replay import BudgetSpent, Replay, Trial

HERE = Path(__file__).parent
TRIALS = 24


class Noted(Replay):
    """Keeps what was trained."""

    def __init__(self, table: MadeUp, budget: float) -> None:
        super().__init__(table, seed=4, budget=budget)
        self.trials: list[Trial] = []

    def advance(self, trial: Trial, to: int, leads: bool = True) -> float | None:
        if not trial.epoch:
            self.trials.append(trial)
        return super().advance(trial, to, leads)


def train(config: dict[str, Any]) -> None:
    from ray import tune

    for value in MadeUp().values(config["point"]):
        if value != value:
            raise FloatingPointError("the loss is not finite")
        tune.report({asha.METRIC: float(value)})


@pytest.fixture
def one_lane(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster of one core, whose workers find the made-up table."""
    import ray

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parents[1])]))
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.timeout(180)  # a cluster starts
def test_a_real_tuner_decides_the_same(tmp_path: Path, one_lane: None) -> None:
    from ray import tune

    replay = Noted(MadeUp(), budget=TRIALS)
    epochs = replay.table.epochs
    config = tune.TuneConfig(
        search_alg=asha.optuna_search(replay),
        scheduler=asha.sane_scheduler(epochs),
        num_samples=TRIALS,
        max_concurrent_trials=1,
        reuse_actors=True,
    )
    results = tune.Tuner(
        train, tune_config=config, run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0)
    ).fit()
    real = [(r.config["point"], (r.metrics or {}).get("training_iteration", 0), r.error is not None) for r in results]
    with suppress(BudgetSpent):
        asha.run(replay, asha.sane_scheduler(epochs), asha.optuna_search(replay))
    driven = [(t.point, t.epoch - t.failed, t.failed) for t in replay.trials[:TRIALS]]
    assert driven == real
    assert len({epoch for _, epoch, failed in real if not failed}) > 1, (
        "no trial was stopped early: nothing is compared"
    )
    assert any(failed for _, _, failed in real), "no training diverged"
