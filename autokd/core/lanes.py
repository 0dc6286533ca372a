"""Several trials at once in one process: whose turn it is, a CUDA stream for each, and how many are worth having.

The number of lanes is measured, not guessed: `probe` doubles it while a doubling pays and memory holds, and takes the
fewest that are about as fast as any.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SHARE = 0.8  # of the free memory that lanes may fill; the rest is for caches and for what other processes take
FIRST_STEPS = 8  # of a lane, not timed: a trial's own and a graph's warm-up, its recording, its first replay
STATUS, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux


# ---- how many


@dataclass(frozen=True)
class LaneCount:
    """The outcome of a probe."""

    lanes: int
    reason: str  # one line
    measured: Mapping[int, float]  # steps per second of all lanes together, by their number


def probe(
    throughput: Callable[[int], float], bytes_per_lane: int, bytes_free: int, most: int = 16, gain: float = 1.05
) -> LaneCount:
    """How many lanes to run, at least 1: the fewest within the factor `gain` of the fastest that was measured.

    `throughput` says how many steps per second so many lanes do together. Measured are 1, 2, 4, … until a doubling
    gains less than `gain`, the lanes would fill more than 80 % of `bytes_free` (`bytes_per_lane` 0: unknown, no limit),
    or there are `most`; then the numbers between the last too slow and the first fast enough, by bisection. Lanes that
    run out of memory (torch.OutOfMemoryError) end it as well, unless it is the first.
    """
    fitting = int(SHARE * bytes_free / bytes_per_lane) if bytes_per_lane else most
    ceiling = max(1, min(most, fitting))
    measured: dict[int, float] = {}
    stop = _double(throughput, measured, ceiling, gain)
    if not stop and ceiling < most:
        stop = f"memory: {bytes_per_lane / 1e6:,.0f} MB each, {SHARE:.0%} of {bytes_free / 1e6:,.0f} MB free"
    lanes = _bisect(throughput, measured, gain)
    reason = f"{lanes} lane{'s' if lanes > 1 else ''}; {stop or 'no more were asked for'}"
    return LaneCount(lanes, reason, dict(sorted(measured.items())))


def _double(throughput: Callable[[int], float], measured: dict[int, float], ceiling: int, gain: float) -> str:
    """Fill `measured` with 1, 2, 4, … up to the ceiling; why it ended before, or ""."""
    lanes = 1
    while True:
        try:
            measured[lanes] = throughput(lanes)
        except torch.OutOfMemoryError:
            if lanes == 1:
                raise
            return f"{lanes} ran out of memory"
        fewer = max((n for n in measured if n < lanes), default=0)
        if fewer and measured[lanes] < gain * measured[fewer]:
            return f"{lanes} do {measured[lanes] / measured[fewer]:.2f} times the work of {fewer}"
        if lanes == ceiling:
            return ""
        lanes = min(2 * lanes, ceiling)


def _bisect(throughput: Callable[[int], float], measured: dict[int, float], gain: float) -> int:
    """The fewest lanes within `gain` of the fastest, measuring numbers between those known."""
    while True:
        enough = min(n for n, rate in measured.items() if rate * gain >= max(measured.values()))
        fewer = max((n for n in measured if n < enough), default=0)
        if enough - fewer <= 1 or not fewer:
            return enough
        between = (fewer + enough) // 2
        measured[between] = throughput(between)


def concurrent_throughput(
    step_of_lane: Callable[[], Callable[[], None]],
    lanes: int,
    steps: int,
    device: str,
    first_steps: int = FIRST_STEPS,
) -> float:
    """Steps per second of `lanes` threads together, each on a stream of its own.

    Every thread calls `step_of_lane` for its step, does `first_steps` of them, waits for the others, and does `steps`
    that are timed. If a thread raises, the others are let go and the first exception is raised here.
    """
    together = threading.Barrier(lanes)

    def lane() -> tuple[float, float]:
        try:
            with lane_stream(device) as stream:
                step = step_of_lane()
                for _ in range(first_steps):
                    step()
                if stream is not None:
                    stream.synchronize()
                together.wait()
                begun = time.perf_counter()
                for _ in range(steps):
                    step()
            return begun, time.perf_counter()
        except BaseException:
            together.abort()
            raise

    with ThreadPoolExecutor(lanes, thread_name_prefix="lane") as pool:
        done = [pool.submit(lane) for _ in range(lanes)]
    errors = [error for each in done if (error := each.exception()) is not None]
    if errors:
        raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
    spans = [each.result() for each in done]
    return lanes * steps / (max(ended for _, ended in spans) - min(begun for begun, _ in spans))


# ---- memory


def memory_of(device: str, build_and_step: Callable[[], None]) -> int:
    """Bytes that one lane takes at its peak: what `build_and_step` adds while it runs.

    On CUDA what the allocator takes from the device, graphs' pools included; nothing else may run meanwhile. On a CPU
    the growth of the resident set, 0 where the system does not tell.
    """
    if not device.startswith("cuda"):
        return _resident_growth(build_and_step)
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    build_and_step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_reserved(device) - before


def memory_free(device: str) -> int:
    """Bytes of a CUDA device that nobody has taken; 0 for a CPU, whose lanes are limited by its cores."""
    if not device.startswith("cuda"):
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def _resident_growth(work: Callable[[], None]) -> int:
    before, peak = _resident("VmRSS"), "VmRSS"
    with suppress(OSError):  # where it is not allowed, memory given back before the end goes unseen
        RESET_PEAK.write_text("5")  # the high-water mark falls to what is resident now
        peak = "VmHWM"
    work()
    return max(0, _resident(peak) - before)


def _resident(which: str) -> int:
    """A line of /proc/self/status in bytes."""
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(which):
                return int(line.split()[1]) * 1024
    return 0


# ---- streams


class Streams:
    """CUDA streams that are not in use, by device; as many are made as were ever lent at once.

    Torch itself has 32 and then gives them out a second time: a lane that shared another's would be recorded into its
    graph.
    """

    def __init__(self, make: Callable[[str], Any]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._free: dict[str, list[Any]] = {}

    @contextmanager
    def lent(self, device: str) -> Iterator[Any]:
        with self._lock:
            free = self._free.setdefault(device, [])
            stream = free.pop() if free else self._make(device)
        try:
            yield stream
        finally:
            with self._lock:
                free.append(stream)


STREAMS = Streams(torch.cuda.Stream)


@contextmanager
def lane_stream(device: str) -> Iterator[torch.cuda.Stream | None]:
    """The calling thread works on a CUDA stream of its own inside; on a CPU nothing happens and None is given.

    It begins after what the thread's stream did before; on leaving, its work has been done.
    """
    if not device.startswith("cuda"):
        yield None
        return
    with STREAMS.lent(device) as stream:
        stream.wait_stream(torch.cuda.current_stream(device))
        try:
            with torch.cuda.stream(stream):
                yield stream
        finally:
            stream.synchronize()


# ---- turns


class Turns:
    """Any number of threads together, or one alone; who waits to be alone goes first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = self._waiting = 0
        self._alone = False

    @contextmanager
    def together(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not (self._alone or self._waiting))
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not (self._alone or self._inside))
            finally:
                self._waiting -= 1
            self._alone = True
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()


TURNS = Turns()  # of this process: steps together, a capture alone; torch.cuda.graph allows one, and nothing beside it
