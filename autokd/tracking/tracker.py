"""The thread that mirrors a search into MLflow. No trouble here ever stops or slows a search.

The ledger is the spool: the thread looks at its events every few seconds and sends what is new. While the server cannot
be reached it tries again, ever more slowly; what is left when the search ends is delivered by `sync` or by a resume.
"""

from __future__ import annotations

import os
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from autokd.errors import TrackingError
from autokd.ledger import Event, read_events
from autokd.tracking.address import check, redact
from autokd.tracking.mirror import MODEL_FOLDER, Mirror, Unreachable, quiet, read_state, save_model
from autokd.tracking.runs import SEARCH

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

FLUSH_SECONDS = 5.0  # between deliveries: fewer, larger calls take less CPU from the lanes
BACKOFF_SECONDS = 10.0  # at most so long between attempts while the server cannot be reached

_PATIENCE = {  # while a tracker lives, unless the user has set them: we retry ourselves, and the terminal is ours
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Events(Protocol):
    """As much of a Ledger as a tracker needs."""

    @property
    def path(self) -> Path: ...

    @property
    def events(self) -> list[Event]: ...


@dataclass(frozen=True)
class TrackingSummary:
    """What MLflow holds after a delivery. `str()` is the sentence for the user."""

    uri: str  # secrets redacted; empty if tracking is off
    experiment_id: str | None = None
    parent_run_id: str | None = None
    runs: int = 0
    undelivered: int = 0  # events
    model: str | None = None  # "models:/name/version"
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.uri:
            return "MLflow: off"
        model = f", model {self.model}" if self.model else ""
        kept = (f"{self.undelivered} events undelivered",) if self.undelivered else ()
        return "; ".join((f"MLflow: {self.runs} runs in {self.uri}{model}", *kept, *self.problems))


class Tracker:
    """Delivers a ledger to MLflow while a search runs. Only the constructor raises: TrackingError, see `check`.

    uri None: where the search's runs already are, if it is being resumed; else as for `check`.
    It costs the thread that appends to the ledger nothing, not even a listener: the tracker's own looks at `events`.
    """

    def __init__(
        self,
        uri: str | None,
        run_dir: Path,
        ledger: Events,
        *,
        experiment: str | None = None,
        enabled: bool = True,
        every: float = FLUSH_SECONDS,
    ) -> None:
        self._ledger, self._every = ledger, every
        self._mirror = Mirror(_address(uri, Path(run_dir)), Path(run_dir), experiment) if enabled else None
        self._thread = threading.Thread(target=self._work, args=(self._mirror,), name="autokd-tracking", daemon=True)
        self._closing, self._abandoned = threading.Event(), threading.Event()
        self._trouble: tuple[float, str] | None = None  # since when (monotonic), and what
        self._problems: list[str] = []
        self._complete = False
        self._borrowed: list[str] = []  # environment variables that are ours

    @property
    def uri(self) -> str:
        """Secrets redacted; empty if tracking is off."""
        return redact(self._mirror.uri) if self._mirror else ""

    @property
    def status(self) -> str:
        """One sentence for the user."""
        if self._mirror is None:
            return "MLflow: off"
        if self._trouble is not None:
            seconds, why, left = time.monotonic() - self._trouble[0], self._trouble[1], self._left(self._mirror)
            return f"MLflow unreachable since {seconds:.0f} s ({why}): {left} events kept in the ledger, retrying"
        runs = len(self._mirror.known)
        return f"MLflow: {runs} runs in {self.uri}" if runs else f"MLflow: connecting to {self.uri}"

    def start(self) -> None:
        """Begin to deliver, earlier undelivered events first. Returns at once."""
        if self._mirror is None:
            return
        # here and in finish, not around each call: the environment must not change while other threads read it
        quiet()
        self._borrowed = [name for name in _PATIENCE if name not in os.environ]
        os.environ.update({name: _PATIENCE[name] for name in self._borrowed})
        self._thread.start()

    def finish(
        self,
        artifacts: Path | None = None,
        model: nn.Module | None = None,
        example: np.ndarray | None = None,
        timeout: float = 60,
        *,
        model_name: str | None = None,
    ) -> TrackingSummary:
        """Deliver the rest, upload the folder `artifacts` and the model, end every run; at most `timeout` seconds.

        `example` is a batch (N, ...) as the model takes it. The model is registered under `model_name`, else the
        name of the search. What could not be delivered stays in the run folder for `sync`. A server's trouble never
        raises.
        """
        if self._mirror is None:
            return TrackingSummary(uri="")
        self._keep(self._mirror, artifacts, model, example, model_name)
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        self._abandoned.set()
        for name in self._borrowed:
            os.environ.pop(name, None)
        self._borrowed = []
        return self._summary(self._mirror)

    # ---- the thread

    def _work(self, mirror: Mirror) -> None:
        """Deliver, wait, deliver; ever more slowly while the server cannot be reached; a last time when closing."""
        failures = 0
        try:
            while not self._abandoned.is_set():
                over = self._closing.is_set()
                failures = 0 if self._attempt(mirror, over) else failures + 1
                if over and not failures:
                    return
                wait = min(BACKOFF_SECONDS, 0.5 * 2.0 ** min(failures, 10)) if failures else self._every
                (self._abandoned if over else self._closing).wait(wait)
        finally:
            mirror.release()

    def _attempt(self, mirror: Mirror, over: bool) -> bool:
        try:
            if over or self._left(mirror):
                mirror.deliver(self._ledger.events, over)
            if over and SEARCH in mirror.known:
                mirror.finish(self._ledger.path)
        except Unreachable as error:
            mirror.disconnect()
            since = self._trouble[0] if self._trouble else time.monotonic()
            self._trouble = (since, str(error))
            return False
        self._trouble, self._complete = None, over
        return True

    # ---- small parts

    def _left(self, mirror: Mirror) -> int:
        return len(self._ledger.events) - mirror.cursor

    def _keep(
        self, mirror: Mirror, report: Path | None, model: nn.Module | None, example: np.ndarray | None, name: str | None
    ) -> None:
        """Note in the run folder what is to be uploaded, with the model: an outage now must not lose it."""
        head: Event = next((event for event in self._ledger.events if event["event"] == "search"), {})
        if report is not None:
            mirror.upload["report"] = str(Path(report).resolve())
        try:
            if model is not None and example is not None:
                save_model(model, example, mirror.run_dir / MODEL_FOLDER, head.get("versions", {}).get("autokd"))
                mirror.upload["model"] = re.sub(r"[/:]", "_", name or str(head.get("name") or "autokd"))
        except Unreachable as error:
            self._problems.append(f"the model was not registered: {error}")
        try:
            if mirror.upload:
                mirror.save()
        except OSError as error:
            self._problems.append(f"cannot write to {mirror.run_dir}: {error.strerror}")

    def _summary(self, mirror: Mirror) -> TrackingSummary:
        problems = [*self._problems, *(f"{mirror.runs.name(key)}: {why}" for key, why in mirror.refused.items())]
        if not self._complete:
            why = self._trouble[1] if self._trouble else "not done in time"
            problems.append(f"not complete ({why}), the rest by `autokd show --sync {mirror.run_dir}`")
        parent = mirror.known.get(SEARCH)
        return TrackingSummary(
            uri=self.uri,
            experiment_id=mirror.experiment_id,
            parent_run_id=parent.run_id if parent else None,
            runs=len(mirror.known),
            undelivered=self._left(mirror),
            model=mirror.model,
            problems=tuple(problems),
        )


@dataclass(frozen=True)
class _Read:
    """A ledger that is only read."""

    path: Path
    events: list[Event]


def sync(run_dir: Path, uri: str | None = None, timeout: float = 60) -> TrackingSummary:
    """Deliver what is left of a search that has ended or was killed, and end its runs. TrackingError on a bad URI.

    uri None: the search's own. While a living process delivers this folder nothing is done, and the summary says so.
    """
    path = Path(run_dir) / "ledger.jsonl"
    tracker = Tracker(uri, Path(run_dir), _Read(path, read_events(path)[0]))
    tracker.start()
    return tracker.finish(timeout=timeout)


def _address(uri: str | None, run_dir: Path) -> str:
    saved = read_state(run_dir).get("uri")
    if uri is None and saved and redact(os.environ.get("MLFLOW_TRACKING_URI", "")) != saved:
        if "***" in saved:
            raise TrackingError(f"the secrets of {saved} are not kept in the run folder; give the tracking URI again")
        uri = saved
    return check(uri)
