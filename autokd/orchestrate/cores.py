"""The processes in which lanes train, as Ray actors. They start and load what training needs while the driver does other things.

Imported without torch and without Ray Tune: a Tune trial needs no torch, and a core no Tune.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayTaskError

from autokd.errors import AutokdError, ClusterError, TrialFailure
from autokd.orchestrate.cluster import Cluster
from autokd.orchestrate.director import MOST_RETRIES
from autokd.orders import Core, Order, Report
from autokd.recipe import Recipe

WAITING_CPU = 0.01  # CPUs a Tune trial takes while its core works
RESTART_SECONDS = 120.0  # how long a dead core may take to come back
GPU_ORDERS = 64  # orders the core of a GPU may hold: sixteen lanes of four trials


class Materials(Protocol):
    """What cores are made of; crosses processes once."""

    def warm_up(self, device: str) -> None:
        """Load whatever the first step of training would."""

    def measure(self, recipe: Recipe, device: str, count_lanes: bool) -> Any:
        """What a search plans with."""


class Builder(Protocol):
    """Makes a core of the materials in the process that is to run it; crosses processes once."""

    @property
    def cohort(self) -> int:
        """Trials on one lane."""

    def build(self, materials: Any) -> Core: ...


class Cores:
    """One core actor per lane on CPUs, one per GPU with all lanes of that GPU; restarted by Ray when they die."""

    def __init__(self, cluster: Cluster, materials: Materials, device: str, cohort: int = 1) -> None:
        """Returns at once. `cohort`: the trials each lane is expected to have at a time."""
        self._cluster, self._device = cluster, device
        self.materials = [ray.put(materials)]  # in a list: handed on as a reference, fetched by each core once
        self._start(GPU_ORDERS if cluster.gpus else cohort)

    def measure(self, recipe: Recipe, count_lanes: bool) -> Any:
        """What one lane measures while all others are warm and idle, so that nothing but it is timed. Raises ClusterError."""
        try:
            ray.get(self._warming)
            return ray.get(self._actors[0].measure.remote(self.materials, recipe, self._device, count_lanes))
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, AutokdError):
                raise type(cause)(str(cause)) from None
            raise ClusterError(f"a lane cannot take this data and teacher: {_line(cause)}") from error
        except RayActorError as error:
            raise ClusterError(f"a lane died before anything was trained: {_line(error)}") from error

    def places(self, lanes: int, cohort: int) -> list[Any]:
        """The actor of each place in which a trial can train: `cohort` on every lane."""
        count = self._cluster.gpus or self._cluster.lanes
        each = -(-lanes * cohort // count)
        if each > self._at_once or (each < self._at_once and not self._cluster.gpus):
            self.close()  # they were started for another number: on a CPU a thread more costs speed, one less a trial
            self._start(each)
        return [self._actors[place % count] for place in range(lanes * cohort)]

    def close(self) -> None:
        while self._actors:
            ray.kill(self._actors.pop())

    def _start(self, at_once: int) -> None:
        self._at_once, gpus = at_once, self._cluster.gpus
        remote = ray.remote(_CoreActor).options(
            num_cpus=0 if gpus else 1 - WAITING_CPU * at_once,
            num_gpus=1 if gpus else 0,
            max_restarts=-1,
            max_concurrency=at_once,
            scheduling_strategy="SPREAD",
        )
        path = [each or os.getcwd() for each in sys.path]
        self._actors: list[Any] = [remote.remote(path) for _ in range(gpus or self._cluster.lanes)]
        self._warming = [actor.warm_up.remote(self.materials, self._device) for actor in self._actors]


@contextmanager
def started(cluster: Cluster, materials: Materials, device: str, cohort: int = 1) -> Iterator[Cores]:
    """Cores that are ended afterwards."""
    cores = Cores(cluster, materials, device, cohort)
    try:
        yield cores
    finally:
        cores.close()


def advance(core: Any, materials: list[Any], builder: list[Any], folder: str, order: Order) -> Report:
    """The core's answer; if the core dies, what its successor answers. Raises TrialFailure."""
    for attempt in range(MOST_RETRIES + 1):
        try:
            report: Report = ray.get(core.advance.remote(materials, builder, folder, order))
            return replace(report, retries=report.retries + attempt)
        except RayTaskError as error:
            raise _cause(error) from None
        except RayActorError:
            _wait_for_restart(core)
    raise TrialFailure("worker", f"the core of this lane died {MOST_RETRIES + 1} times while training this trial")


# ---- inside


class _CoreActor:
    """A training core in a process of its own, opened with the first order and again after a restart."""

    def __init__(self, path: list[str]) -> None:
        """`path` is the driver's sys.path: Ray hands on its script's folder only, and not what was added later.

        Materials come with each call: Ray warns of references among the arguments of an actor that it may restart.
        """
        sys.path.extend(each for each in path if each not in sys.path)
        self._materials: Materials | None = None
        self._core: Core | None = None
        self._opening = Lock()  # several trials may be at work on one core

    def warm_up(self, materials: list[Any], device: str) -> None:
        with self._opening:
            self._unpacked(materials).warm_up(device)

    def measure(self, materials: list[Any], recipe: Recipe, device: str, count_lanes: bool) -> Any:
        with self._opening:
            return self._unpacked(materials).measure(recipe, device, count_lanes)

    def advance(self, materials: list[Any], builder: list[Any], folder: str, order: Order) -> Report:
        with self._opening:
            if self._core is None:
                if not Path(folder).is_dir():
                    raise ClusterError(f"every node must see the run folder, {folder}; use a run_dir on shared storage")
                made: Builder = ray.get(builder[0])
                self._core = made.build(self._unpacked(materials))
        return self._core.advance(order)

    def ready(self) -> int:
        return os.getpid()

    def _unpacked(self, materials: list[Any]) -> Materials:
        """Fetched once, which imports torch."""
        if self._materials is None:
            self._materials = ray.get(materials[0])
        return self._materials


def _wait_for_restart(core: Any) -> None:
    """Until Ray has brought the core back. Raises RayActorError if it does not come back in time."""
    begun = time.monotonic()
    while True:
        try:
            ray.get(core.ready.remote())
            return
        except RayActorError:
            if time.monotonic() - begun > RESTART_SECONDS:
                raise
            time.sleep(0.2)


def _cause(error: RayTaskError) -> Exception:
    """What the core raised, as it raised it."""
    cause = error.cause if isinstance(error.cause, Exception) else error
    if isinstance(cause, AutokdError):
        return cause if isinstance(cause, TrialFailure) else type(cause)(str(cause))
    return TrialFailure("exception", _line(cause))


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
