"""The executor without training: a function stands in for the core and a virtual clock for the time. For testing the engine."""

from __future__ import annotations

import heapq
from collections.abc import Callable

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
                seconds = result.seconds if isinstance(result, Report) else 0.0
                heapq.heappush(busy, (clock.now + seconds, count, order, result))
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
