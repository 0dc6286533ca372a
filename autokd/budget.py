"""What a search may spend: seconds, trials or epochs, read from "30m", "200 trials" or "5000 epochs".

A budget prints so that it parses back to itself: `Budget.parse(str(budget)) == budget`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, Literal, cast

from autokd.errors import BudgetError

Kind = Literal["seconds", "trials", "epochs"]

KINDS: tuple[Kind, ...] = ("seconds", "trials", "epochs")
SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}  # from long to short, the order in which they may be combined
EXAMPLES = "write for example '90s', '1h30m', '2d', '200 trials' or '5000 epochs'"

_NUMBER = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_DURATION = re.compile(
    rf"(?:{_NUMBER}\s*d(?:ays?)?)?\s*(?:{_NUMBER}\s*h(?:ours?)?)?\s*"
    rf"(?:{_NUMBER}\s*m(?:in(?:utes?)?)?)?\s*(?:{_NUMBER}\s*s(?:ec(?:onds?)?)?)?"
)
_COUNT = re.compile(r"([0-9]+)\s*(trial|epoch)s?")


@dataclass(frozen=True)
class Budget:
    """`amount` seconds, trials or epochs; finite, positive, and whole unless it is seconds. Raises BudgetError."""

    kind: Kind
    amount: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BudgetError(f"a budget's kind must be one of {', '.join(KINDS)}, got {self.kind!r}; {EXAMPLES}")
        amount = _number(self.amount)
        if amount is None or not math.isfinite(amount) or amount <= 0:
            raise BudgetError(f"a budget must be positive and finite, got {_shown(self.amount)}; {EXAMPLES}")
        if self.kind != "seconds" and amount != math.floor(amount):
            raise BudgetError(f"a budget of {self.kind} must be a whole number, got {self.amount!r}; {EXAMPLES}")
        object.__setattr__(self, "amount", amount)

    @classmethod
    def parse(cls, value: str | int | float | timedelta | Budget) -> Budget:
        """Read what a user wrote. Bare numbers are refused: nobody can know their unit. Raises BudgetError."""
        if isinstance(value, Budget):
            return value
        if isinstance(value, timedelta):
            return cls("seconds", value.total_seconds())
        if isinstance(value, str):
            return _parse_text(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise BudgetError(f"a budget must have a unit, got {_shown(value)}; {EXAMPLES}")
        raise BudgetError(f"a budget must be text or a timedelta, got {type(value).__name__}; {EXAMPLES}")

    def __str__(self) -> str:
        if self.kind != "seconds":
            return f"{int(self.amount)} {self.kind.removesuffix('s') if self.amount == 1 else self.kind}"
        if self.amount != math.floor(self.amount) or self.amount >= 2**53:
            return f"{Decimal(repr(self.amount)):f}s"  # repr's digits without its exponent: parses back exactly
        parts, rest = [], int(self.amount)
        for unit, size in SECONDS.items():
            count, rest = divmod(rest, size)
            parts += [f"{count}{unit}"] if count else []
        return "".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: `Budget.from_dict(budget.to_dict()) == budget`."""
        return {"kind": self.kind, "amount": self.amount}

    @classmethod
    def from_dict(cls, data: object) -> Budget:
        """The inverse of `to_dict`. Raises BudgetError."""
        if not isinstance(data, Mapping) or set(data) != {"kind", "amount"}:
            raise BudgetError(f"a stored budget must hold 'kind' and 'amount', got {_shown(data)}; {EXAMPLES}")
        return cls(data["kind"], data["amount"])


def _parse_text(text: str) -> Budget:
    plain = text.strip().lower()
    count = _COUNT.fullmatch(plain)
    if count is not None:
        return Budget(cast(Kind, count[2] + "s"), _digits(count[1]))
    duration = _DURATION.fullmatch(plain)
    if duration is not None and plain:
        found = zip(duration.groups(), SECONDS.values(), strict=True)
        return Budget("seconds", math.fsum(float(number) * size for number, size in found if number))
    if re.fullmatch(rf"[-+]?{_NUMBER}", plain):
        raise BudgetError(f"a budget must have a unit, got {_shown(text)}; {EXAMPLES}")
    raise BudgetError(f"a budget must be a positive number and a unit, got {_shown(text)}; {EXAMPLES}")


def _digits(text: str) -> float:
    return float(text)  # never int(): Python refuses to convert thousands of digits


def _number(value: object) -> float | None:
    """`value` as a float, infinite where it is too large for one; None if it is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _shown(value: object) -> str:
    """At most 60 characters of `value`, on one line."""
    try:
        text = repr(value)
    except ValueError:  # an integer of too many digits to print
        return f"a very large {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
