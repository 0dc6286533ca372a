"""Limits on a student that are known before it is trained: parameters and FLOPs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from autokd.errors import ConstraintError, nearest

MEASURES = ("params", "flops")
SUFFIX = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
LARGEST = 1e18
DEFAULT = {"params": "teacher/10"}  # printed in every plan


@dataclass(frozen=True)
class Cost:
    """What a network costs, from its architecture alone. `flops` counts 2 per multiply-accumulate, one sample."""

    params: int
    flops: int


@dataclass(frozen=True)
class Limits:
    """Largest allowed cost; None is no limit."""

    params: float | None = None
    flops: float | None = None

    def allow(self, cost: Cost) -> bool:
        within_params = self.params is None or cost.params <= self.params
        return within_params and (self.flops is None or cost.flops <= self.flops)

    def to_dict(self) -> dict[str, float | None]:
        return {"params": self.params, "flops": self.flops}


def parse_limits(constraints: Mapping[str, object] | None, teacher: Cost) -> Limits:
    """Read {"params": 50_000 | "50k" | "teacher/10", "flops": …}; None means a tenth of the teacher's parameters.

    Raises ConstraintError for unknown measures and unreadable or non-positive limits.
    """
    if not isinstance(constraints, Mapping | None):
        raise ConstraintError(f"constraints must be a mapping such as {{'params': '50k'}}, got {constraints!r:.60}")
    values: dict[str, float] = {}
    for name, limit in (DEFAULT if constraints is None else constraints).items():
        if name not in MEASURES:
            raise ConstraintError(f"unknown constraint '{name}'; {nearest(name, MEASURES)}")
        values[name] = _limit(name, limit, getattr(teacher, name))
    return Limits(**values)


def _limit(name: str, limit: object, of_teacher: int) -> float:
    rule = f"constraint '{name}' must be a positive number, '50k' or 'teacher/10', got {_shown(limit)}"
    if isinstance(limit, int | float) and not isinstance(limit, bool):
        value = float(limit) if abs(limit) < LARGEST else math.inf
    elif match := re.fullmatch(r"teacher\s*/\s*(\d+(?:\.\d+)?)", str(limit).strip()):
        value = of_teacher / float(match[1]) if float(match[1]) else 0.0
    elif match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)", str(limit).strip().lower()):
        value = float(match[1]) * SUFFIX[match[2]]
    else:
        raise ConstraintError(rule)
    if not of_teacher and "teacher" in str(limit):
        raise ConstraintError(f"constraint '{name}' is {limit!r}, but the teacher has no {name}; give a number")
    if not 0 < value < LARGEST:
        raise ConstraintError(rule)
    return value


def _shown(limit: object) -> str:
    try:
        return f"{limit!r:.60}"
    except ValueError:  # an integer of too many digits to print
        return "a very large number"
