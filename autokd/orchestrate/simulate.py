"""The executor without training: a table or a formula stands in for the core, a virtual clock for the time. For testing the engine.

The director, the engine and the ledger are those of a real search. Given the same seed, a simulated search is the same to the letter.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autokd.engine.engine import Finish, Wait
from autokd.errors import TrialFailure
from autokd.orchestrate.director import Director
from autokd.orders import Order, Report


class Clock:
    """Virtual seconds; give it to the Ledger and the Director."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SimulatedFailure(TrialFailure):
    """A failure that knows how long its lane was busy."""

    def __init__(self, reason: str, message: str, seconds: float = 0.0) -> None:
        super().__init__(reason, message)
        self.seconds = seconds


def run_simulated(director: Director, clock: Clock, lanes: int, train: Callable[[Order], Report]) -> str:
    """Run a search on `lanes` virtual lanes. `train` answers an order at once and says in `seconds` how long it would have
    taken, or raises TrialFailure. Returns the reason the search finished.
    """
    busy: list[tuple[float, int, Order, Report | TrialFailure]] = []
    finish: Finish | None = None
    count = 0
    while True:
        while len(busy) < lanes and finish is None:
            order = director.next()
            if isinstance(order, Finish):
                finish = order
            elif isinstance(order, Wait):
                break
            else:
                count += 1
                result = _try(train, order)
                heapq.heappush(busy, (clock.now + _seconds(result), count, order, result))
        if not busy:
            if finish is None:
                raise RuntimeError("the engine waits although nothing runs")
            return finish.reason
        clock.now, _, order, result = heapq.heappop(busy)
        if isinstance(result, Report):
            director.report(result)
        else:
            director.failed(order.trial, result)


def _try(train: Callable[[Order], Report], order: Order) -> Report | TrialFailure:
    try:
        return train(order)
    except TrialFailure as failure:
        return failure


def _seconds(result: Report | TrialFailure) -> float:
    return result.seconds if isinstance(result, Report | SimulatedFailure) else 0.0


# ---- trainings that are looked up


@dataclass(frozen=True)
class Training:
    """How a whole training goes: the validation value after each epoch, NaN from where it diverged, and seconds an epoch."""

    values: Sequence[float]
    seconds: float = 1.0


@dataclass(frozen=True)
class Faults:
    """What goes wrong on the way. Shares are of the orders, drawn from the seed, the trial and where it goes on."""

    failures: float = 0.0  # end somewhere on the way
    deaths: float = 0.0  # lose their worker at the end, and are done once more; a deadline cuts that short too
    stragglers: float = 0.0
    slowdown: float = 10.0  # times as long takes a straggler
    seed: int = 0

    def draw(self, order: Order) -> tuple[float | None, int, float]:
        """Where it fails, as a share of its epochs (None: nowhere); how often its worker dies; how many times as long it takes."""
        rng = random.Random(f"faults/{self.seed}/{order.trial}/{order.start}")
        fails, dies, slow, where = (rng.random() for _ in range(4))
        late = self.slowdown if slow < self.stragglers else 1.0
        return (where if fails < self.failures else None), int(dies < self.deaths), late


class LookUp:
    """Answers orders from trainings that are known from end to end."""

    def __init__(
        self, known: Callable[[Order], Training], clock: Clock, faults: Faults | None = None, metric: str = "accuracy"
    ) -> None:
        self.known, self.clock, self.faults, self.metric = known, clock, faults or Faults(), metric
        self.epochs = 0  # trained so far, those of failures too
        self.seconds = 0.0  # for which lanes were busy

    def __call__(self, order: Order) -> Report:
        """Raises SimulatedFailure where the training diverges, or where it was made to fail."""
        training = self.known(order)
        fails, deaths, late = self.faults.draw(order)
        each = training.seconds * late
        last = self._last_epoch(order, each * (1 + deaths))
        if fails is not None:
            last = order.start + math.ceil(fails * (last - order.start))
        for epoch in range(order.start + 1, last + 1):
            if not math.isfinite(training.values[epoch - 1]):
                raise self._failure("nan", "the loss is not finite", epoch - order.start, each)
        if fails is not None:
            raise self._failure("exception", "made to fail", last - order.start, each)
        return self._report(order, training, last, each * (1 + deaths), deaths)

    def _last_epoch(self, order: Order, each: float) -> int:
        """The one ordered, or the one in which the deadline passes."""
        if order.deadline is None:
            return order.to
        fits = math.ceil((order.deadline - self.clock.now) / each)
        return min(order.to, order.start + max(1, fits))

    def _failure(self, reason: str, message: str, epochs: int, each: float) -> SimulatedFailure:
        self._count(epochs, each)
        return SimulatedFailure(reason, f"{message} after {epochs} epochs", epochs * each)

    def _report(self, order: Order, training: Training, last: int, each: float, deaths: int) -> Report:
        rows = [
            {"epoch": epoch, "seconds": each, "metrics": {self.metric: float(training.values[epoch - 1])}}
            for epoch in range(order.start + 1, last + 1)
        ]
        self._count(len(rows), each)
        value = float(training.values[last - 1])
        seconds, checkpoint = each * len(rows), f"{order.trial}.safetensors"
        return Report(
            order.trial, last, value, value, {self.metric: value}, seconds, rows, checkpoint, "table", retries=deaths
        )

    def _count(self, epochs: int, each: float) -> None:
        self.epochs += epochs
        self.seconds += epochs * each
