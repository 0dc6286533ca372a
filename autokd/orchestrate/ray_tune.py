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
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import ray
from ray import tune
from ray.exceptions import RayActorError, RayTaskError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from autokd.engine.engine import Finish, Wait
from autokd.errors import AutokdError, ClusterError, TrialFailure
from autokd.orchestrate.cluster import Cluster
from autokd.orchestrate.director import MOST_RETRIES, Director
from autokd.orders import Core, Order, Report

WAITING_CPU = 0.01  # CPUs a Tune trial takes while its core works
VALUE = "value"  # the metric shown to Tune
CORE_RESTART_SECONDS = 120.0  # how long a dead core may take to come back


class Builder(Protocol):
    """Makes a core in the process that is to run it; crosses processes."""

    def build(self) -> Core: ...


def run_ray(director: Director, builder: Builder, cluster: Cluster, folder: Path, cohort: int = 1) -> str:
    """Run a search to its end on the cluster's lanes, `cohort` trials on each. Returns the reason it finished."""
    cores = _Cores(builder, cluster, folder, cohort)
    searcher = EngineSearcher(director, cores)
    scheduler = EngineScheduler(searcher)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(cluster.lanes * cohort)
    with tempfile.TemporaryDirectory(prefix="autokd-tune-", dir=None if cluster.ours else folder) as scratch:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(LaneTrainable, cores=(cores.handles, cores.builder)), {"CPU": WAITING_CPU}
            ),
            tune_config=tune.TuneConfig(
                search_alg=searcher, scheduler=scheduler, num_samples=-1, reuse_actors=True, metric=VALUE, mode="max"
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
            cores.close()
    if searcher.failure is not None:
        raise searcher.failure
    if searcher.finish is None:
        raise ClusterError(
            "Ray Tune ended before the search did; the ledger is kept: continue with autokd.resume(run_dir)"
        )
    return searcher.finish.reason


# ---- the lanes' cores


class _CoreActor:
    """A training core in a process of its own, opened with the first order and again after a restart."""

    def __init__(self, folder: str, path: list[str]) -> None:
        """`path` is the driver's sys.path: Ray hands on its script's folder only, and not what was added later."""
        sys.path.extend(each for each in path if each not in sys.path)
        self._core: Core | None = None
        self._opening = Lock()  # several trials may be at work on one core
        if not Path(folder).is_dir():
            raise ClusterError(f"every node must see the run folder, {folder}; use a run_dir on shared storage")

    def advance(self, builder: list[Any], order: Order) -> Report:
        with self._opening:
            if self._core is None:
                made: Builder = ray.get(builder[0])
                self._core = made.build()
        return self._core.advance(order)

    def ready(self) -> int:
        return os.getpid()


class _Cores:
    """One core actor per lane on CPUs, one per GPU with all lanes of that GPU; restarted by Ray when they die."""

    def __init__(self, builder: Builder, cluster: Cluster, folder: Path, cohort: int = 1) -> None:
        self.builder = [ray.put(builder)]  # in a list: handed on as a reference, fetched by the core once
        count, places = cluster.gpus or cluster.lanes, cluster.lanes * cohort
        each = -(-places // count)
        remote = ray.remote(_CoreActor).options(
            num_cpus=0 if cluster.gpus else 1 - WAITING_CPU * each,
            num_gpus=1 if cluster.gpus else 0,
            max_restarts=-1,
            max_concurrency=each,
            scheduling_strategy="SPREAD",
        )
        path = [each or os.getcwd() for each in sys.path]
        actors: list[Any] = [remote.remote(str(folder), path) for _ in range(count)]
        self.handles = [actors[place % count] for place in range(places)]
        self.free = list(range(places))
        self._actors = actors

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)


class LaneTrainable(tune.Trainable):
    """A Tune trial: hands its order to the core of its lane and waits. One step is one rung. Imports no torch."""

    def setup(self, config: dict[str, Any], cores: tuple[list[Any], list[Any]] = ([], [])) -> None:
        self._cores, self._builder = cores

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True

    def step(self) -> dict[str, Any]:
        order: Order = self.config["order"]
        try:
            report = _advance(self._cores[self.config["lane"]], self._builder, order)
        except TrialFailure as failure:
            return {"failure": failure, VALUE: 0.0}
        return {"report": report, VALUE: report.value}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {"trial": self.config["order"].trial}  # the core's own checkpoint lies in the run folder

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing to load: the core goes on from its own checkpoint."""


def _advance(core: Any, builder: list[Any], order: Order) -> Report:
    """The core's answer; if the core dies, what its successor answers. Raises TrialFailure."""
    for attempt in range(MOST_RETRIES + 1):
        try:
            report: Report = ray.get(core.advance.remote(builder, order))
            return replace(report, retries=report.retries + attempt)
        except RayTaskError as error:
            raise _cause(error) from None
        except RayActorError:
            _wait_for_restart(core)
    raise TrialFailure("worker", f"the core of this lane died {MOST_RETRIES + 1} times while training this trial")


def _wait_for_restart(core: Any) -> None:
    """Until Ray has brought the core back. Raises RayActorError if it does not come back in time."""
    begun = time.monotonic()
    while True:
        try:
            ray.get(core.ready.remote())
            return
        except RayActorError:
            if time.monotonic() - begun > CORE_RESTART_SECONDS:
                raise
            time.sleep(0.2)


def _cause(error: RayTaskError) -> Exception:
    """What the core raised, as it raised it."""
    cause = error.cause if isinstance(error.cause, Exception) else error
    if isinstance(cause, AutokdError):
        return cause if isinstance(cause, TrialFailure) else type(cause)(str(cause))
    return TrialFailure("exception", str(cause).splitlines()[0])


# ---- adapters over the engine


class _NotForPickle:
    """Tune pickles its parts for a restore that autokd never does; what they hold stays here."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class EngineSearcher(_NotForPickle, Searcher):
    """New trials for Tune, asked from the director one at a time and only while a lane is free."""

    def __init__(self, director: Director, cores: _Cores) -> None:
        super().__init__(metric=VALUE, mode="max")
        self.director, self.cores = director, cores
        self.finish: Finish | None = None
        self.failure: AutokdError | None = None  # ends the search
        self.tune_trials: dict[str, TuneTrial] = {}  # by autokd's trial name: those Tune holds paused
        self.to_resume: list[TuneTrial] = []
        self.lanes: dict[str, int] = {}  # autokd trial -> its lane

    def suggest(self, trial_id: str) -> Any:
        while self.cores.free and not self.over:
            decision = self._ask()
            if isinstance(decision, Finish):
                self.finish = decision
            if isinstance(decision, Wait | Finish):
                break
            lane = self.cores.free.pop(0)
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
            self.cores.free.append(lane)

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
