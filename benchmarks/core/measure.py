"""Repeated, interleaved measurement, each kind of thread setting in a process of its own.

A *variant* is a way to train; it is made once, in a process that waits on its *seat* until it is told to go, so that nothing but the variant
being measured computes, and the number of threads of one cannot leak into another. Repetitions go round: A B C, A B C, …, so that a
machine that slows down slows all of them. A variant with two seats is two lanes: both begin at the same moment, and its cost is that of
the images of both over the time from the first start to the last end.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, set_start_method
from typing import Any

import torch
from rich.progress import Progress

Repetition = Callable[[], int]  # does its work once; returns how many images it went through
Make = Callable[[], Repetition]  # must be picklable; called in the process of the seat
LEAD = 0.05  # seconds between the order to go and the common start of two lanes


class Absent(Exception):
    """What cannot be measured here, and why."""


@dataclass(frozen=True)
class Seat:
    """A process, with so many of torch's threads."""

    name: str
    threads: int


@dataclass(frozen=True)
class Variant:
    """Something to measure: made by `make` on every one of its seats."""

    name: str
    make: Make
    seats: tuple[Seat, ...]


@dataclass(frozen=True)
class Measured:
    """What came out: seconds per 1,000 images, one number for each repetition; none if the variant is absent."""

    name: str
    costs: tuple[float, ...] = ()
    images: int = 0  # of one repetition
    absent: str | None = None


def measure(variants: Sequence[Variant], repetitions: int, progress: Progress) -> dict[str, Measured]:
    """Make every variant, go round once to warm up, then `repetitions` times. A variant that raises Absent is passed over."""
    with _seats(variants) as pools:
        absent = _make_all(variants, pools, progress)
        present = [variant for variant in variants if variant.name not in absent]
        task = progress.add_task("first round", total=len(present))
        weights = {}
        for variant in present:
            progress.update(task, description=f"first round: {variant.name}")
            images, seconds = _once(variant, pools)
            weights[variant.name] = seconds
            progress.advance(task)
        progress.update(task, description="first round")
        timings = _rounds(present, repetitions, pools, weights, progress)
    found = {name: Measured(name, absent=why) for name, why in absent.items()}
    for name, timed in timings.items():
        costs = tuple(1000 * seconds / images for images, seconds in timed)
        found[name] = Measured(name, costs, timed[0][0])
    return {variant.name: found[variant.name] for variant in variants}


def apart(function: Callable[..., Any], *arguments: Any, threads: int = 0) -> Any:
    """The function's value, computed in a fresh process that ends with it. `threads` of torch, 0 for as many as cores."""
    with fresh_process(threads) as pool:
        return pool.submit(function, *arguments).result()


def fresh_process(threads: int, count: int = 1) -> ProcessPoolExecutor:
    """A pool of processes begun afresh: forked ones would inherit threads and memory. `threads` of torch in each, 0 for as many as cores."""
    return ProcessPoolExecutor(count, get_context("spawn"), initializer=_begin, initargs=(threads or cores(),))


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- on this side


@contextmanager
def _seats(variants: Sequence[Variant]) -> Iterator[dict[Seat, ProcessPoolExecutor]]:
    with ExitStack() as stack:
        seats = dict.fromkeys(seat for variant in variants for seat in variant.seats)
        yield {seat: stack.enter_context(fresh_process(seat.threads)) for seat in seats}


def _make_all(
    variants: Sequence[Variant], pools: dict[Seat, ProcessPoolExecutor], progress: Progress
) -> dict[str, str]:
    """Reasons of those that are absent."""
    absent = {}
    task = progress.add_task("preparing", total=len(variants))
    for variant in variants:
        progress.update(task, description=f"preparing: {variant.name}")
        try:
            for seat in variant.seats:
                pools[seat].submit(_make, variant.name, variant.make).result()
        except Absent as why:
            absent[variant.name] = str(why)
        progress.advance(task)
    progress.update(task, description="preparing")
    return absent


def _rounds(
    variants: Sequence[Variant],
    repetitions: int,
    pools: dict[Seat, ProcessPoolExecutor],
    weights: dict[str, float],
    progress: Progress,
) -> dict[str, list[tuple[int, float]]]:
    """(images, seconds) of every repetition; `weights` are expected seconds, for the time left."""
    timings: dict[str, list[tuple[int, float]]] = {variant.name: [] for variant in variants}
    task = progress.add_task("measuring", total=repetitions * sum(weights.values()))
    for turn in range(repetitions):
        for variant in variants:
            progress.update(task, description=f"round {turn + 1} of {repetitions}: {variant.name}")
            timings[variant.name].append(_once(variant, pools))
            progress.advance(task, weights[variant.name])
    progress.update(task, description="measuring")
    return timings


def _once(variant: Variant, pools: dict[Seat, ProcessPoolExecutor]) -> tuple[int, float]:
    """Images of all lanes, and the seconds from the first start to the last end."""
    start = time.monotonic() + LEAD
    lanes = [pools[seat].submit(_go, variant.name, start) for seat in variant.seats]
    done = [lane.result() for lane in lanes]
    return sum(images for images, _, _ in done), max(end for _, _, end in done) - min(begun for _, begun, _ in done)


# ---- in the process of a seat

_made: dict[str, Repetition] = {}  # of this process: what has been prepared, by the variant's name


def _begin(threads: int) -> None:
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))  # Ctrl-C reaches all processes: leave without a traceback
    set_start_method(None, force=True)  # loaders start their workers as in any script
    torch.set_num_threads(threads)


def _make(name: str, make: Make) -> None:
    _made[name] = make()


def _go(name: str, start: float) -> tuple[int, float, float]:
    """Images, and start and end on the clock that all processes of a machine share."""
    gc.collect()
    time.sleep(max(0.0, start - time.monotonic()))
    begun = time.monotonic()
    images = _made[name]()
    return images, begun, time.monotonic()
