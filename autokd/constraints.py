"""Limits on a student. What it costs is known from its architecture: parameters, FLOPs, bytes of its weights, memory it runs in."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from autokd.errors import ConstraintError, InputError, nearest
from autokd.probe import LATENCY
from autokd.sizes import parse_size

MEASURES = ("params", "flops", "bytes", "memory")
SIZES = ("bytes", "memory")
SUFFIX = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
LARGEST = 1e18
DEFAULT = {"params": "teacher/10"}  # printed in every plan


@dataclass(frozen=True)
class Cost:
    """What a network costs, from its architecture alone. `flops` counts 2 per multiply-accumulate, one sample.

    `bytes` are those of its weights and buffers as delivered; `memory` is the most that its activations take at one time, of one
    sample, without gradients. Both are 0 where they were not counted.
    """

    params: int
    flops: int
    bytes: int = 0
    memory: int = 0


@dataclass(frozen=True)
class Limits:
    """Largest allowed cost; None is no limit."""

    params: float | None = None
    flops: float | None = None
    bytes: float | None = None
    memory: float | None = None

    def allow(self, cost: Cost) -> bool:
        return all(getattr(cost, name) <= limit for name, limit in self.set.items())

    @property
    def set(self) -> dict[str, float]:
        """The limits there are, by measure."""
        return {name: limit for name, limit in asdict(self).items() if limit is not None}

    def unmet_by(self, costs: Iterable[Cost]) -> str:
        """In words what is wanted, and the least that these networks offer."""
        costs, shown = list(costs), [name for name in MEASURES if name in ("params", "flops", *self.set)]
        wanted = " and ".join(f"{name} <= {limit:,.0f}" for name, limit in self.set.items())
        least = " and ".join(f"{min(getattr(cost, name) for cost in costs):,} {name}" for name in shown)
        return f"{wanted}; the smallest possible are {least}"

    def to_dict(self) -> dict[str, float | None]:
        return asdict(self)


def parse_limits(constraints: Mapping[str, object] | None, teacher: Cost) -> Limits:
    """Read {"params": 50_000 | "50k" | "teacher/10", "flops": …, "bytes": "64 kB", "memory": …}; None means a tenth of the
    teacher's parameters.

    Raises ConstraintError for unknown measures and unreadable or non-positive limits.
    """
    if not isinstance(constraints, Mapping | None):
        raise ConstraintError(f"constraints must be a mapping such as {{'params': '50k'}}, got {constraints!r:.60}")
    values: dict[str, float] = {}
    for name, limit in (DEFAULT if constraints is None else constraints).items():
        if name == LATENCY:  # measured, not computed: see probe.py
            continue
        if name not in MEASURES:
            raise ConstraintError(f"unknown constraint '{name}'; {nearest(name, (*MEASURES, LATENCY))}")
        values[name] = read_limit(name, limit, getattr(teacher, name))
    return Limits(**values)


def read_limit(name: str, limit: object, of_teacher: int) -> float:
    """A number, "50k", "64 kB" where it counts bytes, or "teacher/10". Raises ConstraintError."""
    rule = f"constraint '{name}' must be a positive number, '50k' or 'teacher/10', got {_shown(limit)}"
    if isinstance(limit, int | float) and not isinstance(limit, bool):
        value = float(limit) if abs(limit) < LARGEST else math.inf
    elif match := re.fullmatch(r"teacher\s*/\s*(\d+(?:\.\d+)?)", str(limit).strip()):
        value = of_teacher / float(match[1]) if float(match[1]) else 0.0
    elif match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)", str(limit).strip().lower()):
        value = float(match[1]) * SUFFIX[match[2]]
    else:
        value = _size(name, limit, rule)
    if not of_teacher and "teacher" in str(limit):
        raise ConstraintError(f"constraint '{name}' is {limit!r}, but the teacher has no {name}; give a number")
    if not 0 < value < LARGEST:
        raise ConstraintError(rule)
    return value


def _size(name: str, limit: object, rule: str) -> float:
    """Bytes of "64 kB", for what is counted in bytes. Raises ConstraintError."""
    if name not in SIZES or not isinstance(limit, str):
        raise ConstraintError(rule)
    try:
        return float(parse_size(limit))
    except InputError:
        raise ConstraintError(rule.replace("'50k'", "'64 kB'")) from None


def _shown(limit: object) -> str:
    try:
        return f"{limit!r:.60}"
    except ValueError:  # an integer of too many digits to print
        return "a very large number"
