"""The Ray executor: a search on the lanes of a cluster.

One recipe is one Tune trial, on reused actors; a Tune trial only waits while the training core of its lane, an actor of its own that holds
data and teacher, does the work. `EngineSearcher` asks the director for new recipes, `EngineScheduler` resumes the paused trials
it names, pauses and stops. The engine is the only one that decides, so neither holds any state of its own worth saving:
a killed search goes on from the ledger, not from Tune's pickles.

How Tune behaves here (Ray 2.60): paused trials count as live for Tune's limiter, so none is set and `suggest` answers None while
no lane is free; paused trials never end by themselves, so they are stopped when the director is done; a result that stops a trial
does not reach the searcher, so results are taken by the scheduler.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from autokd.engine.engine import Finish, Wait
from autokd.errors import AutokdError, ClusterError, TrialFailure
from autokd.orchestrate.cluster import Cluster
from autokd.orchestrate.cores import WAITING_CPU, Builder, Cores, advance
from autokd.orchestrate.director import MOST_RETRIES, Director
from autokd.orders import Order
from autokd.recipe import Recipe

VALUE = "value"  # the metric shown to Tune


@dataclass(frozen=True)
class RayLanes:
    """A cluster, and on it the cores in which its lanes train."""

    cluster: Cluster
    cores: Cores

    @property
    def lanes(self) -> int:
        return self.cluster.lanes

    def with_lanes(self, on_each_gpu: int) -> RayLanes:
        return replace(self, cluster=self.cluster.with_lanes(on_each_gpu))

    def measure(self, recipe: Recipe, count_lanes: bool = False) -> Any:
        """What the search is to be planned with. Raises InputError, ClusterError."""
        return self.cores.measure(recipe, count_lanes)

    def run(self, director: Director, builder: Builder, folder: Path) -> str:
        """Run a search to its end, with `builder.cohort` trials on each lane. Returns the reason it finished."""
        places = _Places(self.cores.places(self.lanes, builder.cohort))
        searcher = EngineSearcher(director, places)
        trial = tune.with_parameters(
            LaneTrainable, places=(places.actors, self.cores.materials, [ray.put(builder)], str(folder))
        )  # the reference in a list: handed on as such
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(len(places.actors))
        with tempfile.TemporaryDirectory(prefix="autokd-tune-", dir=None if self.cluster.ours else folder) as scratch:
            tuner = tune.Tuner(
                tune.with_resources(trial, {"CPU": WAITING_CPU}),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=EngineScheduler(searcher),
                    num_samples=-1,
                    reuse_actors=True,
                    metric=VALUE,
                    mode="max",
                ),
                run_config=tune.RunConfig(
                    storage_path=scratch,  # of Tune's own notes, which nobody reads; every node must see it
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=MOST_RETRIES),
                    callbacks=[_Workers(searcher)],
                    progress_reporter=_Silent(),
                ),
            )
            try:
                with _hushed():
                    tuner.fit()
            finally:
                self.cores.close()
        return searcher.reason()


# ---- the lanes


class _Places:
    """Where trials train: an actor for each, and which of them are free."""

    def __init__(self, actors: list[Any]) -> None:
        self.actors = actors
        self.free = list(range(len(actors)))


class LaneTrainable(tune.Trainable):
    """A Tune trial: hands its order to the core of its lane and waits. One step is one rung. Imports no torch."""

    def setup(
        self, config: dict[str, Any], places: tuple[list[Any], list[Any], list[Any], str] = ([], [], [], "")
    ) -> None:
        self._actors, self._materials, self._builder, self._folder = places

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True

    def step(self) -> dict[str, Any]:
        order: Order = self.config["order"]
        try:
            core = self._actors[self.config["lane"]]
            report = advance(core, self._materials, self._builder, self._folder, order)
        except TrialFailure as failure:
            return {"failure": failure, VALUE: 0.0}
        return {"report": report, VALUE: report.value}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {"trial": self.config["order"].trial}  # the core's own checkpoint lies in the run folder

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing to load: the core goes on from its own checkpoint."""


# ---- adapters over the engine


class _NotForPickle:
    """Tune pickles its parts for a restore that autokd never does; what they hold stays here."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class EngineSearcher(_NotForPickle, Searcher):
    """New trials for Tune, asked from the director one at a time and only while a lane is free."""

    def __init__(self, director: Director, places: _Places) -> None:
        super().__init__(metric=VALUE, mode="max")
        self.director, self.places = director, places
        self.finish: Finish | None = None
        self.failure: AutokdError | None = None  # ends the search
        self.tune_trials: dict[str, TuneTrial] = {}  # by autokd's trial name: those Tune holds paused
        self.to_resume: list[TuneTrial] = []
        self.lanes: dict[str, int] = {}  # autokd trial -> its lane

    def suggest(self, trial_id: str) -> Any:
        while self.places.free and not self.over:
            decision = self._ask()
            if isinstance(decision, Finish):
                self.finish = decision
            if isinstance(decision, Wait | Finish):
                break
            lane = self.places.free.pop(0)
            self.lanes[decision.trial] = lane
            config = {"order": decision, "lane": lane}
            paused = self.tune_trials.pop(decision.trial, None)
            if paused is None:
                return config
            paused.set_config(config)
            self.to_resume.append(paused)
        return Searcher.FINISHED if self.over else None

    @property
    def over(self) -> bool:
        return self.finish is not None or self.failure is not None

    def release(self, name: str) -> None:
        """The lane of this trial is free again."""
        lane = self.lanes.pop(name, None)
        if lane is not None:
            self.places.free.append(lane)

    def reason(self) -> str:
        """Why the search finished. Raises what ended it otherwise."""
        if self.failure is not None:
            raise self.failure
        if self.finish is None:
            raise ClusterError(
                "Ray Tune ended before the search did; the ledger is kept: continue with autokd.resume(run_dir)"
            )
        return self.finish.reason

    def _ask(self) -> Order | Wait | Finish:
        try:
            return self.director.next()
        except AutokdError as error:
            self.failure = error
            return Wait()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """The scheduler takes results: the one that stops a trial would not arrive here."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """As for results."""

    def save(self, checkpoint_path: str) -> None:
        """The ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """The ledger is the state."""


class EngineScheduler(_NotForPickle, TrialScheduler):
    """Passes results on, pauses trials below the top rung, and runs what the director asked for."""

    def __init__(self, searcher: EngineSearcher) -> None:
        super().__init__()
        self.searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        order: Order = trial.config["order"]
        self.searcher.release(order.trial)
        director = self.searcher.director
        if "failure" in result:
            director.failed(order.trial, result["failure"])
            return TrialScheduler.STOP
        director.report(result["report"])
        if director.history.trials[order.trial].state == "complete" or self.searcher.over:
            return TrialScheduler.STOP
        self.searcher.tune_trials[order.trial] = trial
        return TrialScheduler.PAUSE

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Called for workers that are replaced, too: see _Workers, which can tell."""

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        if self.searcher.over:
            self._stop_paused(tune_controller)
        while self.searcher.to_resume:
            trial = self.searcher.to_resume.pop(0)
            if trial.status == TuneTrial.PAUSED:
                return trial
            self.searcher.to_resume.append(trial)  # its pause is still being saved
            break
        return next((t for t in tune_controller.get_live_trials() if t.status == TuneTrial.PENDING), None)

    def _stop_paused(self, tune_controller: Any) -> None:
        for trial in list(tune_controller.get_live_trials()):
            if trial.status == TuneTrial.PAUSED:
                tune_controller.stop_trial(trial)

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Nothing to prepare."""

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        """Already known from on_trial_result."""

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Nothing is kept about a trial that leaves."""

    def debug_string(self) -> str:
        return "autokd engine"


class _Workers(_NotForPickle, tune.Callback):
    """Tells the ledger when a trial's worker died: replaced by Tune, or once too often."""

    def __init__(self, searcher: EngineSearcher) -> None:
        self.searcher = searcher

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        message = "the worker died; the trial goes on from its last rung"
        self.searcher.director.retried(trial.config["order"].trial, message)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        order: Order = trial.config["order"]
        self.searcher.release(order.trial)
        error = trial.get_pickled_error()
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, AutokdError) and not isinstance(cause, TrialFailure):
            self.searcher.failure = cause
        self.searcher.director.failed(order.trial, TrialFailure("worker", str(cause or "the worker died")))


class _Silent(tune.ProgressReporter):
    """autokd shows its own progress."""

    def should_report(self, trials: list[TuneTrial], done: bool = False) -> bool:
        return False

    def report(self, trials: list[TuneTrial], done: bool, *sys_info: str) -> None:
        """Never called."""


@contextmanager
def _hushed() -> Iterator[None]:
    """Tune's loggers at error level; they would break the live display."""
    loggers: list[tuple[logging.Logger, Callable[[int], None], int]] = []
    for name in ("ray.tune", "ray.air", "ray.train"):
        logger = logging.getLogger(name)
        loggers.append((logger, logger.setLevel, logger.level))
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for _, restore, level in loggers:
            restore(level)
