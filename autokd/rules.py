"""Which names and values a recipe may use: said by the registries of families, objectives and systems of peers, and asked without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from autokd.errors import RecipeError, nearest

Value = bool | int | float | str


@dataclass(frozen=True)
class Rule:
    """What one field may hold: `kind` is "int", "float" or "choice"; bounds are inclusive."""

    kind: Literal["int", "float", "choice"]
    default: Value
    low: float | None = None
    high: float | None = None
    choices: tuple[Value, ...] = ()
    about: str = ""

    def broken_by(self, value: object) -> str | None:
        """The rule in words if `value` breaks it, else None."""
        if self.kind == "choice":
            known = any(value == c and isinstance(value, bool) == isinstance(c, bool) for c in self.choices)
            return None if known else f"one of {', '.join(map(str, self.choices))}"
        right_type = isinstance(value, int) or (self.kind == "float" and isinstance(value, float))
        if not right_type or isinstance(value, bool) or not isinstance(value, int | float):
            return f"{self.kind} in [{self.low}, {self.high}]"
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return None if low <= value <= high else f"{self.kind} in [{self.low}, {self.high}]"


class OpenRules(Mapping[str, Mapping[str, Rule]]):
    """Rules of the registered names, and of a user's own "module:attribute", looked up when asked for."""

    def __init__(self, known: Mapping[str, Mapping[str, Rule]], of_own: Callable[[str], Mapping[str, Rule]]) -> None:
        self._known, self._of_own = known, of_own

    def __getitem__(self, name: str) -> Mapping[str, Rule]:
        return self._of_own(name) if ":" in name and name not in self._known else self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def _mutual_learning_alone() -> dict[str, Mapping[str, Rule]]:
    return {"dml": {}}


def _never(objective: str) -> bool:
    return False


@dataclass(frozen=True)
class Vocabulary:
    """The names a recipe may use: student families, objectives and systems of peers, each with the rules of its fields."""

    families: Mapping[str, Mapping[str, Rule]] = field(default_factory=dict)
    objectives: Mapping[str, Mapping[str, Rule]] = field(default_factory=dict)
    systems: Mapping[str, Mapping[str, Rule]] = field(default_factory=_mutual_learning_alone)
    rotated: Callable[[str], bool] = _never  # whether an objective needs the views "rotations"


def check_fields(owner: str, values: Mapping[str, Value], rules: Mapping[str, Rule]) -> None:
    """Raise RecipeError for an unknown field or a value outside its range."""
    for name, value in values.items():
        if name not in rules:
            raise RecipeError(f"{owner} has no field {name!r}; {nearest(name, rules)}")
        rule = rules[name].broken_by(value)
        if rule is not None:
            raise RecipeError(f"{owner}: '{name}' must be {rule}, got {value!r}")
