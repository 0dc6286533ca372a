"""The shared steps of a lane: one for each structure of trials, the most recently used ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from threading import Lock
from weakref import WeakValueDictionary

from autokd.core.data import Resident, Rows
from autokd.core.dials import structure
from autokd.core.held import Buffers, Held, form_of
from autokd.core.recording import Capture
from autokd.core.replay import Replay
from autokd.core.run import Run
from autokd.core.shared import SharedStep, obstacle
from autokd.protocols import TeacherSignal

MOST = 8  # structures of a lane; each takes the weights, optimiser state and activations of a trial


class Pool:
    """At most `most` shared steps, recorded by `capture`. One thread at a time, on the stream of `capture`."""

    def __init__(self, capture: Capture, most: int = MOST) -> None:
        self._capture, self._most = capture, most
        self._steps: OrderedDict[Hashable, SharedStep] = OrderedDict()
        self._refused: dict[Hashable, str] = {}  # structures that cannot be recorded, and why
        self._buffers: Buffers = WeakValueDictionary()  # of tapes; they go with the last step that reads them

    def __len__(self) -> int:
        return len(self._steps)

    def step_for(self, runs: Sequence[Run], rows: Rows, signal: TeacherSignal | None) -> SharedStep | None:
        """What can train the next epoch of these runs; None where nothing can, and then each run's `fed_because` says why."""
        why, found = obstacle(runs, rows, signal), None
        if not why and isinstance(rows, Resident):
            key = _key(runs[0], signal)
            why = self._refusal(key)
            found = None if why else self._found(key) or self._added(key, runs[0], rows, signal)
        for run in runs:
            run.fed_because = why
        return found

    def close(self) -> None:
        """Free everything."""
        while self._steps:
            self._steps.popitem()[1].close()

    def _refusal(self, key: Hashable) -> str:
        """Why a structure is not shared. One that turned out to be impossible to record gives its memory back here."""
        if key in self._steps and self._steps[key].note:
            step = self._steps.pop(key)
            self._refused[key] = step.note
            step.close()
        return self._refused.get(key, "")

    def _found(self, key: Hashable) -> SharedStep | None:
        if key in self._steps:
            self._steps.move_to_end(key)
        return self._steps.get(key)

    def _added(self, key: Hashable, run: Run, rows: Resident, signal: TeacherSignal | None) -> SharedStep:
        while len(self._steps) >= self._most:
            self._steps.popitem(last=False)[1].close()
        held = Held(signal, run.setting.device, self._buffers) if isinstance(signal, Replay) else None
        self._steps[key] = SharedStep(run.place(), rows, held, self._capture)
        return self._steps[key]


class Pools:
    """A pool for each lane of a core, made when the lane first works."""

    def __init__(self, capture: Callable[[], Capture], most: int = MOST) -> None:
        self._capture, self._most, self._lock = capture, most, Lock()
        self._pools: dict[Hashable, Pool] = {}

    def of(self, lane: Hashable) -> Pool:
        """Of the lane on this stream, which is the calling thread's current one."""
        with self._lock:
            if lane not in self._pools:
                self._pools[lane] = self.new()
            return self._pools[lane]

    def new(self) -> Pool:
        """One that belongs to whoever asks, on the calling thread's current stream."""
        return Pool(self._capture(), self._most)

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._pools.values())

    def close(self) -> None:
        """Once no lane works any more."""
        for pool in self:
            pool.close()


def _key(run: Run, signal: TeacherSignal | None) -> Hashable:
    """Equal for trials that one recording can serve."""
    return structure(run.recipe), run.setting, form_of(signal) if isinstance(signal, Replay) else None
