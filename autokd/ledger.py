"""The ledger: append-only JSON lines, one per event, flushed as they happen. The truth; all else is rebuilt from it.

Every line has  n (position), time (seconds since 1970), elapsed (seconds this search has spent, over all sessions) and event.
The events, and what they carry:

    search    search_id, name, seed, budget, space, goals, prefer, constraints, probe, warm_start, rungs, lanes, executor, teacher, data, plan, versions
    session   pid, budget, lanes; a process begins to work on the search (the first, or after a resume)
    start     trial, role, recipe, point, source, seed, to, params, flops, bytes, memory, group
    resume    trial, to
    probe     trial, architecture, latency_ms, feasible; measured before the first epoch. A trial that is not feasible is not trained
    rung      trial, epoch, value, tiebreak, metrics, seconds, history[{epoch, seconds, recording, loss, terms, metrics}], checkpoint,
              precision, and notes where something was done otherwise than planned
    retry     trial, message; a worker died, the trial goes on from its last rung
    fail      trial, reason ("nan" | "chance" | "exception" | "worker"), message
    finals    winner (trial), seeds, front (others that are retrained, with several goals); the search phase is over
    test      role, trial, value; the test split is read, once
    finish    reason

Roles of a trial: "search", and in the finals "winner", "no_kd", "default_kd", and after them "ablation", the winner with one thing
changed, which its source names. A process that is killed leaves at most one torn line at the end; it is cut off when the ledger is opened again. Any other unreadable line is named and passed over.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autokd.errors import LedgerError

Event = dict[str, Any]
REQUIRED: dict[str, tuple[str, ...]] = {  # what the fold in history.py reads; a line without it is passed over
    "search": ("rungs", "budget", "seed"),
    "session": ("budget",),
    "start": ("trial", "role", "recipe", "point", "source", "seed", "to", "params", "flops"),
    "resume": ("trial", "to"),
    "probe": ("trial", "architecture", "latency_ms", "feasible"),
    "rung": ("trial", "epoch", "value", "tiebreak", "metrics", "seconds", "history", "checkpoint"),
    "retry": ("trial", "message"),
    "fail": ("trial", "reason", "message"),
    "finals": ("winner", "seeds"),
    "test": ("role", "trial", "value"),
    "finish": ("reason",),
}
EVENTS = tuple(REQUIRED)


class Ledger:
    """An open ledger. `events` holds every readable event; `problems` names the lines that were not."""

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self.events: list[Event] = []
        self.problems: list[str] = []
        self._listeners: list[Callable[[Event], None]] = []
        self._clock = clock
        self._read()
        self._before = self.events[-1]["elapsed"] if self.events else 0.0
        self._opened = clock()
        try:
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (kept open)
        except OSError as error:
            raise LedgerError(
                f"the ledger must be writable, {self.path}: {error.strerror}; choose another run_dir"
            ) from None

    @property
    def elapsed(self) -> float:
        """Seconds spent on this search so far: earlier sessions up to their last event, plus this one."""
        return self._before + self._clock() - self._opened

    def append(self, event: str, **fields: Any) -> Event:
        """Write one event and hand it to the listeners. Returns it as it will be read back."""
        if event not in EVENTS:
            raise ValueError(f"unknown event {event!r}")
        missing = [name for name in REQUIRED[event] if name not in fields]
        if missing:
            raise ValueError(f"a '{event}' event needs {', '.join(missing)}")
        line = {"n": len(self.events), "time": self._clock(), "elapsed": self.elapsed, "event": event, **fields}
        text = json.dumps(line, allow_nan=False)
        self._file.write(text + "\n")
        self._file.flush()
        line = json.loads(text)
        self.events.append(line)
        for listener in self._listeners:
            listener(line)
        return line

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with every event appended from now on."""
        self._listeners.append(listener)

    def close(self) -> None:
        self._file.close()

    # ---- reading

    def _read(self) -> None:
        self.events, self.problems, whole = read_events(self.path)
        if whole is not None:
            with open(self.path, "r+b") as file:
                file.truncate(whole)


def read_events(path: str | Path) -> tuple[list[Event], list[str], int | None]:
    """Events, the lines that could not be read, and where to cut if the last line is torn (else None). Writes nothing."""
    path = Path(path)
    if not path.exists():
        return [], [], None
    raw = path.read_bytes()
    cut = raw.rfind(b"\n") + 1
    events, problems = [], []
    for number, line in enumerate(raw[:cut].splitlines(), start=1):
        event = _parse(line)
        if event is None:
            problems.append(f"{path}:{number}: not an event, passed over: {line[:60].decode('utf-8', 'replace')!r}")
        else:
            events.append(event)
    if cut < len(raw):
        problems.append(f"{path}: the last line was torn ({len(raw) - cut} bytes) and is dropped")
    return events, problems, cut if cut < len(raw) else None


def lives(pid: Any) -> bool:
    """Whether such a process, the writer of a session, lives on this machine."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _parse(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, numbers of thousands of digits, endless nesting
        return None
    if not isinstance(event, dict) or event.get("event") not in EVENTS:
        return None
    elapsed = event.get("elapsed")
    timed = isinstance(elapsed, int | float) and math.isfinite(elapsed)
    return event if timed and all(name in event for name in REQUIRED[event["event"]]) else None
