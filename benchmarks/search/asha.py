"""Ray Tune's own classes, driven one trial at a time without a cluster: AsyncHyperBandScheduler, with OptunaSearch or random points.

The calls and their order are those of Ray's `_process_trial_result` on one lane; tests/search compares them with a real `Tuner`.
A training that diverges raises: Ray's scheduler then forgets the trial, and OptunaSearch tells its study FAIL.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

from autokd.space import Space
from benchmarks.search.full_fidelity import new_points
from benchmarks.search.replay import Replay, Trial
from benchmarks.search.tables import Point

if TYPE_CHECKING:
    from ray.tune.schedulers import AsyncHyperBandScheduler
    from ray.tune.search.optuna import OptunaSearch

METRIC = "value"
ETA = 3
SANE = 9  # of a full training, the first rung


class Searcher(Protocol):
    """Of Ray's Searcher, what is used here."""

    def suggest(self, trial_id: str) -> Any: ...

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None: ...

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None: ...


def asha_random(replay: Replay) -> None:
    """ASHA from a ninth of a full training, random points."""
    run(replay, sane_scheduler(replay.table.epochs), _Random(replay))


def optuna_asha_default(replay: Replay) -> None:
    """OptunaSearch and ASHA as they come: first rung after one epoch, a quarter goes on."""
    from ray.tune.schedulers import AsyncHyperBandScheduler

    scheduler = AsyncHyperBandScheduler(metric=METRIC, mode="max", max_t=replay.table.epochs)
    run(replay, scheduler, optuna_search(replay))


def optuna_asha_sane(replay: Replay) -> None:
    """OptunaSearch and ASHA from a ninth of a full training, a third goes on."""
    run(replay, sane_scheduler(replay.table.epochs), optuna_search(replay))


def sane_scheduler(epochs: int) -> AsyncHyperBandScheduler:
    from ray.tune.schedulers import AsyncHyperBandScheduler

    first = max(1, round(epochs / SANE))
    return AsyncHyperBandScheduler(metric=METRIC, mode="max", max_t=epochs, grace_period=first, reduction_factor=ETA)


def optuna_search(replay: Replay) -> OptunaSearch:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray.tune.search.optuna.optuna_search").setLevel(logging.ERROR)
    space = replay.table.space
    first = [{f.name: point[f.name] for f in space.active(point) if f.searched} for _, point in space.first]
    return OptunaSearch(_Asks(space), metric=METRIC, mode="max", seed=replay.seed, points_to_evaluate=first or None)


@dataclass(frozen=True)
class _Asks:
    """The space, define-by-run; Ray pickles it. The point travels whole, since Ray takes dotted names apart."""

    space: Space

    def __call__(self, trial: Any) -> dict[str, Any]:
        return {"point": self.space.suggest(trial)}


class _Random:
    """A searcher that learns nothing."""

    def __init__(self, replay: Replay) -> None:
        self._points: Iterator[Point] = new_points(replay, random.Random(f"asha/{replay.seed}"))

    def suggest(self, trial_id: str) -> dict[str, Any]:
        return {"point": next(self._points)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing to learn."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing to learn."""


def run(replay: Replay, scheduler: AsyncHyperBandScheduler, searcher: Searcher) -> None:
    """Trial after trial, until the budget is spent."""
    rungs = {float(milestone) for milestone, _ in scheduler._brackets[0]._rungs} | {float(replay.table.epochs)}
    number = 0
    while True:
        number += 1
        handle = SimpleNamespace(trial_id=f"{number:05d}")
        point = searcher.suggest(handle.trial_id)["point"]
        scheduler.on_trial_add(None, handle)
        _one_trial(replay, scheduler, searcher, handle, Trial(point), rungs)


def _one_trial(
    replay: Replay,
    scheduler: AsyncHyperBandScheduler,
    searcher: Searcher,
    handle: SimpleNamespace,
    trial: Trial,
    rungs: set[float],
) -> None:
    """Epoch by epoch; only at rungs does the trial count for who leads, as only there others are compared with it."""
    while True:
        value = replay.advance(trial, trial.epoch + 1, leads=trial.epoch + 1 in rungs)
        if value is None:
            scheduler.on_trial_remove(None, handle)
            searcher.on_trial_complete(handle.trial_id, error=True)
            return
        result = {METRIC: value, "training_iteration": trial.epoch}
        if scheduler.on_trial_result(None, handle, result) == "STOP":
            scheduler.on_trial_complete(None, handle, result)
            searcher.on_trial_complete(handle.trial_id, result)
            return
        searcher.on_trial_result(handle.trial_id, result)
