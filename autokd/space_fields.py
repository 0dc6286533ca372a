"""One field of a search space: what it may be, what is likely, when it exists.

A numeric field is seen through the unit interval: `value_at(t)` maps t in [0, 1] onto the range (its logarithm where
`log`), so that sampling, priors and middles are one-dimensional and the same for all kinds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any, Literal, Protocol

from autokd.errors import SpaceError, nearest
from autokd.rules import Value

Point = dict[str, Value]
Conditions = tuple[tuple[str, tuple[Value, ...]], ...]

LARGEST = 2**53  # numbers up to here are exact as int and as float
PRIOR_SHARE = 0.5  # of the samples drawn from a prior; the rest is uniform, so that a wrong prior costs a factor of two
SPREAD = 0.25  # default standard deviation of a numeric prior, as a share of the (log) range


class Suggests(Protocol):
    """What an Optuna trial offers; only this is asked of it."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Field:
    """A float or int in [low, high], or one of `choices`; a fixed value is a choice of one."""

    name: str
    kind: Literal["float", "int", "choice"]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: int = 1  # int only
    choices: tuple[Value, ...] = ()
    prior: Value | None = None
    spread: float = SPREAD
    when: Conditions = ()  # exists only where each of these fields exists and has one of these values
    line: int | None = field(default=None, compare=False)

    @property
    def searched(self) -> bool:
        """False for a fixed value."""
        return self.kind != "choice" or len(self.choices) > 1

    @property
    def fixed(self) -> Value | None:
        """The value, if there is nothing to search."""
        return None if self.searched else self.choices[0]

    def active(self, point: Mapping[str, Value]) -> bool:
        """Whether this field exists, given the fields before it."""
        return all(name in point and among(point[name], values) for name, values in self.when)

    def misfit(self, value: object) -> str | None:
        """The rule in words if the field cannot take `value`, else None."""
        if self.kind == "choice":
            return None if among(value, self.choices) else f"one of {', '.join(map(str, self.choices))}"
        wanted: tuple[type, ...] = (int,) if self.kind == "int" else (int, float)
        number = isinstance(value, wanted) and not isinstance(value, bool)
        if not number or not self.low <= value <= self.high:  # type: ignore[operator]
            return f"{self.kind} in [{self.low}, {self.high}]"
        on_grid = self.kind == "float" or (value - self.low) % self.step == 0  # type: ignore[operator]
        return None if on_grid else f"{self.low} plus a multiple of {self.step}"

    def canonical(self, value: Value) -> Value:
        """`value`, which must fit, in the type the field itself would give."""
        if self.kind == "choice":
            return next(choice for choice in self.choices if same(choice, value))
        return float(value) if self.kind == "float" else value

    def default(self) -> Value:
        """The prior, or what is in the middle: the first choice, the (geometric) mean."""
        if self.prior is not None:
            return self.canonical(self.prior)
        return self.choices[0] if self.kind == "choice" else self.value_at(0.5)

    def quantile(self, u: float, prior: bool = False) -> Value:
        """The value below which a share `u` of the distribution lies; uniform, or with `prior` drawn to the prior.

        A choice's prior has probability 1/2 and the others share the rest. A number's distribution is half uniform,
        half a normal around the prior, cut off at the bounds.
        """
        likely = self.prior if prior else None
        if self.kind == "choice":
            return self._choice_at(u, likely)
        return self.value_at(u if likely is None else _mixture_quantile(u, self.unit(float(likely)), self.spread))

    def suggest(self, trial: Suggests) -> Value:
        """Ask an Optuna-like trial; a fixed value is not asked for."""
        if not self.searched:
            return self.choices[0]
        if self.kind == "choice":
            value: Value = trial.suggest_categorical(self.name, list(self.choices))
            return value
        if self.kind == "int":
            low, high = int(self.low), int(self.high)
            return trial.suggest_int(self.name, low, high, step=self.step, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def to_dict(self) -> dict[str, Any]:
        """As in a space file, with its name; JSON."""
        out: dict[str, Any] = {"name": self.name}
        if not self.searched:
            out["fixed"] = self.choices[0]
        elif self.kind == "choice":
            out["choice"] = list(self.choices)
        else:
            out |= {self.kind: [self.low, self.high], "log": self.log, "spread": self.spread}
            out |= {"step": self.step} if self.kind == "int" else {}
        out |= {"prior": self.prior} if self.prior is not None and self.searched else {}
        out |= {"when": {name: list(values) for name, values in self.when}} if self.when else {}
        return out

    def with_choices(self, choices: Iterable[Value]) -> Field:
        """The same field with other choices; a prior that is no longer among them is dropped."""
        kept = tuple(choices)
        prior = self.prior if len(kept) > 1 and among(self.prior, kept) else None
        return replace(self, choices=kept, prior=prior)

    # ---- the unit interval

    def _choice_at(self, u: float, likely: Value | None) -> Value:
        count = len(self.choices)
        rest = (1 - PRIOR_SHARE) / (count - 1) if count > 1 else 1.0
        reached = 0.0
        for choice in self.choices:
            reached += 1 / count if likely is None else PRIOR_SHARE if same(choice, likely) else rest
            if u < reached:
                return choice
        return self.choices[-1]

    def _ends(self) -> tuple[float, float]:
        """Ends of the range, with an int's cells of equal width, in the scale that is sampled uniformly."""
        half = self.step / 2 if self.kind == "int" else 0.0
        low, high = self.low - half, self.high + half
        return (math.log(low), math.log(high)) if self.log else (low, high)

    def value_at(self, t: float) -> Value:
        low, high = self._ends()
        raw = low + t * (high - low)
        raw = math.exp(raw) if self.log else raw
        if self.kind == "int":
            steps = math.floor((raw - self.low) / self.step + 0.5)
            return min(max(int(self.low) + steps * self.step, int(self.low)), int(self.high))
        return min(max(raw, self.low), self.high)

    def unit(self, value: float) -> float:
        """Where in [0, 1] a number lies; `value_at` is the inverse."""
        low, high = self._ends()
        return ((math.log(value) if self.log else value) - low) / (high - low)


def same(a: object, b: object) -> bool:
    """Equal, and not merely because True == 1."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def among(value: object, values: Iterable[object]) -> bool:
    """Whether one of `values` is the same as `value`."""
    return any(same(value, other) for other in values)


def complete(fields: Sequence[Field], partial: Mapping[str, Value]) -> Point:
    """A whole point in the order of the fields: what exists there, missing values taking their defaults.

    Raises SpaceError for a field that is not in the space and for a value that an existing field cannot take.
    """
    unknown = set(partial) - {entry.name for entry in fields}
    if unknown:
        name = min(unknown, key=str)
        raise SpaceError(f"the space has no field {name!r}; {nearest(name, (entry.name for entry in fields))}")
    point: Point = {}
    for entry in fields:
        if not entry.active(point):
            continue
        rule = entry.misfit(partial[entry.name]) if entry.name in partial else None
        if rule is not None:
            raise SpaceError(f"{entry.name!r} must be {rule}, got {partial[entry.name]!r}; choose a value inside")
        point[entry.name] = entry.canonical(partial[entry.name]) if entry.name in partial else entry.default()
    return point


def _mixture_quantile(u: float, centre: float, spread: float) -> float:
    """Inverse, by bisection, of the distribution on [0, 1] that is half uniform, half a truncated normal."""
    normal = NormalDist(centre, spread)
    below, above = normal.cdf(0.0), normal.cdf(1.0)
    low, high = 0.0, 1.0
    for _ in range(50):  # the interval halves each time: 1e-15
        middle = (low + high) / 2
        share = PRIOR_SHARE * (normal.cdf(middle) - below) / (above - below) + (1 - PRIOR_SHARE) * middle
        low, high = (middle, high) if share <= u else (low, middle)
    return low
