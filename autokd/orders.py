"""The seam between deciding and training: what an executor tells a core, and what the core answers. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

from autokd.probe import Probe
from autokd.recipe import Recipe


class _Sealed:
    """Never changed once made, so copies are the thing itself. Ray Tune copies and prints whatever passes through it."""

    trial: str

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.trial})"


@dataclass(frozen=True, repr=False)
class Order(_Sealed):
    """What an executor tells a core: train this trial up to `to` epochs."""

    trial: str
    recipe: Recipe
    seed: int
    to: int
    total: int  # epochs the schedule is laid out for
    start: int = 0  # epochs the ledger knows to be done
    deadline: float | None = None  # seconds since 1970; the core returns after the epoch in which it passes
    probe: Probe | None = None  # measure the untrained student first


@dataclass(frozen=True, repr=False)
class Report(_Sealed):
    """What a core answers. Plain numbers and words, so that it can cross processes."""

    trial: str
    epoch: int
    value: float
    tiebreak: float
    metrics: dict[str, float]
    seconds: float
    history: list[dict[str, Any]]  # one entry per epoch of this order: epoch, seconds, loss, terms, metrics
    checkpoint: str
    precision: str
    retries: int = 0
    latency_ms: float | None = None  # where the order asked for a probe
    notes: tuple[str, ...] = ()  # what had to be done otherwise than planned, in words, said once


class Core(Protocol):
    """Trains the trials it is given, on one device."""

    def advance(self, order: Order) -> Report:
        """Train to `order.to`, from the trial's checkpoint if there is one. Raises TrialFailure, Infeasible."""

    def close(self) -> None: ...
