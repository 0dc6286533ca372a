"""One session of work on a search: the executor runs it to its end, then student, report and MLflow are finished."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from rich.console import Console

from autokd.budget import Budget
from autokd.core.device import Setting
from autokd.core.materials import Blueprint, Materials, Measured
from autokd.core.payload import TapePlan
from autokd.data import Data
from autokd.delivery import deliver, load_delivered
from autokd.engine.ablation import When
from autokd.engine.engine import Engine
from autokd.errors import InputError
from autokd.ledger import Ledger
from autokd.orchestrate.director import Director
from autokd.orchestrate.inline import run_inline
from autokd.outcome import SearchResult
from autokd.progress import Progress, result_table
from autokd.recipe import Recipe
from autokd.run_folder import RunFolder
from autokd.summary import why
from autokd.teacher import Teacher
from autokd.telling import say

if TYPE_CHECKING:
    from autokd.tracking import Tracker, TrackingSummary

HIDDEN = "***"  # what tracking.redact puts in place of a secret


@dataclass(frozen=True)
class Settings:
    """How a search is run; kept in the ledger for resume, without the secrets of the tracking URI."""

    executor: str
    setting: Setting
    tracking: bool
    tracking_uri: str | None
    ray_address: str | None
    tape: TapePlan | None = None
    cohort: int = 1
    ablation: When = False

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "tape": None if self.tape is None else self.tape.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Settings:
        tape = data.get("tape")
        known = {"setting": Setting(**data["setting"]), "tape": None if tape is None else TapePlan.from_dict(tape)}
        return cls(**{**data, **known})


class Lanes(Protocol):
    """What an executor runs on: it measures before a search, then runs it."""

    @property
    def lanes(self) -> int: ...

    def with_lanes(self, on_each_gpu: int) -> Lanes: ...

    def measure(self, recipe: Recipe, count_lanes: bool = False) -> Measured: ...

    def run(self, director: Director, builder: Blueprint, folder: Path) -> str: ...


@dataclass(frozen=True)
class OneLane:
    """The inline executor: this process."""

    materials: Materials
    device: str
    lanes: int = 1

    def with_lanes(self, on_each_gpu: int) -> Lanes:
        return self

    def measure(self, recipe: Recipe, count_lanes: bool = False) -> Measured:
        return self.materials.measure(recipe, self.device)

    def run(self, director: Director, builder: Blueprint, folder: Path) -> str:
        core = replace(builder, cohort=1).build(self.materials)
        try:
            return run_inline(director, core)
        finally:
            core.close()


@dataclass(frozen=True)
class Session:
    teacher: Teacher
    folder: RunFolder
    ledger: Ledger
    engine: Engine
    budget: Budget
    settings: Settings
    lanes: Lanes
    tracking_uri: str | None  # with its secrets
    verbose: bool = True


@contextmanager
def open_lanes(
    executor: str, address: str | None, lanes: int | None, materials: Materials, device: str, cohort: int = 1
) -> Iterator[Lanes]:
    """Lanes that are starting to load what they need. Raises ClusterError, before anything is trained, if there are none."""
    if executor == "inline":
        if address is not None:
            raise InputError("the inline executor has no cluster: leave out ray_address, or use executor='ray'")
        yield OneLane(materials, device)
        return
    from autokd.orchestrate.cluster import connect
    from autokd.orchestrate.cores import started

    with connect(address, lanes) as cluster, started(cluster, materials, device, cohort) as cores:
        from autokd.orchestrate.ray_tune import RayLanes  # only now: Ray Tune takes as long to load as the cores torch

        yield RayLanes(cluster, cores)


def work(session: Session) -> SearchResult:
    """Run the search to its end. Whatever happens, the ledger is complete and no MLflow run is left running."""
    with _tracked(session) as tracker:
        reason = _search(session, tracker)
        session.ledger.append("finish", reason=reason)
        result = SearchResult(session.folder.path)
        page = result.report()
        summary = None if tracker is None else _finish_tracking(tracker, result, session.teacher.data)
    if session.verbose:
        show(result, str(page), summary)
    return result


def show(result: SearchResult, page: str, summary: TrackingSummary | None) -> None:
    """The end of a search, on the terminal."""
    console = Console()
    console.print(result_table(result))
    for line in (
        result.headline(),
        *why(result),
        f"run folder  {result.run_dir}",
        f"report      {page}",
        *([] if summary is None else [str(summary), "            browse it with  autokd ui"]),
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


# ---- inside


def _search(session: Session, tracker: Tracker | None) -> str:
    """Search and finals, then the test split. Returns the reason the search finished."""
    ledger = session.ledger
    progress = Progress(
        list(ledger.events), verbose=int(session.verbose), status=lambda: "" if tracker is None else tracker.status
    )
    ledger.listen(progress.event)
    director = Director(session.engine, ledger)
    ledger.append("session", pid=os.getpid(), budget=session.budget.to_dict(), lanes=session.lanes.lanes)
    with progress:
        reason = _execute(session, director)
        deliver(director.history, session.folder, ledger, session.teacher)
    return reason


def _execute(session: Session, director: Director) -> str:
    settings, lanes = session.settings, session.lanes
    blueprint = Blueprint(
        str(session.folder.checkpoints),
        settings.setting,
        settings.tape,
        settings.cohort,
        lanes.lanes if settings.setting.on_gpu else 1,
    )
    return lanes.run(director, blueprint, session.folder.path)


@contextmanager
def _tracked(session: Session) -> Iterator[Tracker | None]:
    """A tracker at work. If the search is broken off, its runs are ended as KILLED and the way on is said."""
    if not session.settings.tracking:
        with _way_on(session):
            yield None
        return
    from autokd.tracking import Tracker

    tracker = Tracker(session.tracking_uri, session.folder.path, session.ledger)
    tracker.start()
    try:
        with _way_on(session):
            yield tracker
    except BaseException:
        tracker.finish(timeout=10)
        raise


@contextmanager
def _way_on(session: Session) -> Iterator[None]:
    try:
        yield
    except BaseException:
        say(session.verbose, f"broken off; nothing is lost: go on with  autokd resume {session.folder.path}")
        raise


def _finish_tracking(tracker: Tracker, result: SearchResult, data: Data) -> TrackingSummary:
    folder = RunFolder(result.run_dir).report
    if result.leading is None:
        return tracker.finish(artifacts=folder)
    rows = data.train.x[:2]
    example = rows.astype(np.float32) / np.float32(255 if rows.dtype == np.uint8 else 1)
    return tracker.finish(
        artifacts=folder, model=load_delivered(RunFolder(result.run_dir).student).module, example=example
    )
