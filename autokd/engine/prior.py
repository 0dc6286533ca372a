"""What earlier searches say: their best recipes are tried early, and TPE is told their ranks, the less the more is known here.

The two best earlier recipes follow the default KD recipe, and three more if one of them beats it at the first rung. How they do there, among all
that came to it and were not chosen by the model, is the trust in the rest: at the median or below it is none, so that a misleading prior
costs two short trials. Observations told to TPE fade as own ones come in. The processes of surrogate.py learn from the recipes that are
tried, and are told nothing: a process of earlier ranks as the first one's mean was measured and did not help (LOG.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

from autokd.engine.rungs import at_rung
from autokd.history import History
from autokd.recipe import Recipe
from autokd.rules import Value
from autokd.space import Space
from autokd.space_fields import Field, Point
from autokd.space_names import split

SOURCE = "warm start: "  # how the sources of such trials begin
BEST = 5  # earlier recipes that are tried
FEWEST = 2  # of them at the first rung, before there is any trust
TOLD = 30  # earlier observations the model is told when it knows nothing else
HALF = 10  # own observations that halve their number
LEAST_KEPT = 0.5  # share of a recipe's searched values that the present space must take


@dataclass(frozen=True)
class Observation:
    """An earlier trial as a point of the present space; `rank` from 0 (worst of its search) to 1; `weight` by how alike the tasks are."""

    point: Point
    rank: float
    weight: float
    name: str

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Prior:
    """The observations that a search's head holds, the most promising first."""

    observations: tuple[Observation, ...] = ()

    @classmethod
    def of(cls, history: History) -> Prior:
        kept = (history.head.get("warm_start") or {}).get("observations") or ()
        return cls(tuple(Observation(**each) for each in kept))

    def more(self, history: History) -> tuple[Observation, ...]:
        """Earlier recipes to try now: the first two after the first trial, the others once one of those has beaten it."""
        tried = history.in_role("search")
        begun = sum(trial.source.startswith(SOURCE) for trial in tried)
        if not tried or begun >= BEST or (begun >= FEWEST and not self._promising(history)):
            return ()
        return self.observations[:BEST]

    def _promising(self, history: History) -> bool:
        """Whether an earlier recipe stands before the search's first trial at the first rung."""
        first = history.in_role("search")[0]
        for trial in at_rung(history, history.rungs[0]):
            if trial is first:
                return False
            if trial.source.startswith(SOURCE):
                return first.state == "failed" or history.rungs[0] in first.values
        return False

    def trust(self, history: History) -> float:
        """0 to 1: how far above the median the earlier recipes stand at the first rung, among those that no model has chosen."""
        found = at_rung(history, history.rungs[0]) if self.observations and history.rungs else []
        reached = [trial for trial in found if trial.source != "model"]
        places = [place for place, trial in enumerate(reached) if trial.source.startswith(SOURCE)]
        if len(places) < FEWEST:
            return 0.0
        return max(0.0, 1 - 2 * mean(places) / (len(reached) - 1))

    def told(self, history: History, own: int) -> list[tuple[Point, float]]:
        """Points and values, ranks drawn towards the middle, to stand beside `own` observations whose ranks go from 0 to 1."""
        trust = self.trust(history)
        count = int(trust * TOLD * HALF / (HALF + own))
        return [(each.point, 0.5 + trust * each.weight * (each.rank - 0.5)) for each in self._spread(count)]

    def _spread(self, count: int) -> list[Observation]:
        """So many observations, evenly from the best to the worst."""
        if count >= len(self.observations):
            return list(self.observations)
        step = (len(self.observations) - 1) / max(1, count - 1)
        return [self.observations[round(index * step)] for index in range(count)]


def point_of(recipe: Recipe, space: Space) -> tuple[Point, float]:
    """The point of the space nearest to a recipe of another space, and the share of the searched values it could take over.

    Fields that the space lacks are dropped, those that the recipe lacks take their defaults, numbers out of range the nearest bound.
    """
    flat, point = recipe.flat(), Point()
    kept = searched = 0
    for field in space.fields:
        if not field.active(point):
            continue
        value = _value(field, flat, recipe)
        fits = value is not None and field.misfit(value) is None
        point[field.name] = field.canonical(value) if fits and value is not None else _nearest(field, value)
        searched += field.searched
        kept += field.searched and fits
    return point, kept / max(1, searched)


def _value(field: Field, flat: Mapping[str, Value], recipe: Recipe) -> Value | None:
    """What the recipe says about a field of a space; None if nothing."""
    section, owner, name = split(field.name)
    if section == "select":
        offered = [term.objective for term in recipe.terms if term.objective in field.choices]
        return offered[0] if offered else "none"
    if section == "student" and owner:
        return flat.get(f"student.{name}") if owner == recipe.student.family else None
    if section == "peers" and owner:
        return flat.get(f"peers.{name}") if owner == recipe.peers.system else None
    return flat.get(field.name)


def _nearest(field: Field, value: Value | None) -> Value:
    """A number drawn into the field's range and onto its grid; else the field's default."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if field.kind == "choice" or not number or not isinstance(value, int | float):
        return field.default()
    inside = min(max(value, field.low), field.high)
    if field.kind == "float":
        return float(inside)
    return int(field.low) + field.step * round((inside - field.low) / field.step)
