"""What a search is after: the metric alone, or the metric against what a student costs; and who is chosen from a front.

A goal is the metric ("accuracy": the more, the better) or a measure of cost ("params", "flops", "bytes", "memory", "latency_ms": the
less, the better). With several goals there is no best student but a front: those than which none is better in every goal. Who is
taken from it is a preference: a goal, "knee", or limits such as "params<=20k".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import ge
from typing import TypeVar

from autokd.constraints import MEASURES, read_limit
from autokd.errors import GoalError, InputError, nearest
from autokd.history import History, Trial

COSTS = (*MEASURES, "latency_ms")
KNEE = "knee"
EXAMPLES = "write for example 'accuracy', 'knee', 'params<=20k' or 'latency_ms<=5, bytes<=64kB'"

Member = TypeVar("Member")


@dataclass(frozen=True)
class Offer:
    """What one student of a front offers."""

    value: float
    costs: Mapping[str, float]


def parse_goals(goals: Sequence[str] | None, metric: str) -> tuple[str, ...]:
    """The goals of a search, the metric first; only the metric if nothing is said. Raises GoalError."""
    if goals is None:
        return (metric,)
    if isinstance(goals, str) or not all(isinstance(goal, str) for goal in goals):
        raise GoalError(f"goals must be a list of names, got {goals!r:.60}; write for example ['{metric}', 'params']")
    for goal in goals:
        if goal not in (metric, *COSTS):
            raise GoalError(f"unknown goal '{goal}'; {nearest(goal, (metric, *COSTS))}")
    if metric not in goals or len(set(goals)) < len(goals):
        raise GoalError(f"goals must name '{metric}' once and each cost once at most, got {', '.join(goals) or 'none'}")
    return (metric, *(goal for goal in goals if goal != metric))


def goals_of(history: History) -> tuple[str, ...]:
    """The costs that stand beside the metric; none where the metric is all."""
    return tuple(history.head.get("goals") or ())[1:]


def costs_of(trial: Trial) -> dict[str, float]:
    """What is known of a trial's cost, by measure."""
    known = {name: float(getattr(trial, name) or 0) for name in COSTS}
    return {name: amount for name, amount in known.items() if amount}


def aims(trial: Trial, rung: int, costs: Sequence[str]) -> tuple[float, ...]:
    """Where a trial stands at a rung: value, then each cost's negative; more is better in all of them."""
    return (trial.values[rung][0], *(-(getattr(trial, name) or math.inf) for name in costs))


def front(points: Sequence[tuple[float, ...]]) -> list[int]:
    """Indices of the points that no other dominates: at least as good in all, better in one. More is better; equals stay."""
    found: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: points[index], reverse=True):
        point = points[index]
        if not any(points[i] != point and all(map(ge, points[i], point)) for i in found):
            found.append(index)
    return found


# ---- preferences


def check_preference(prefer: str | None, metric: str) -> str | None:
    """The preference if it can be read. Raises GoalError."""
    if prefer is not None and prefer not in (KNEE, metric, *COSTS):
        _limits(prefer)
    return prefer


def choose(members: Sequence[Member], offer: Callable[[Member], Offer], prefer: str, goals: Sequence[str]) -> Member:
    """Who of a front is preferred: the best in one goal, the knee, or the best by the metric within limits.

    Raises GoalError for a preference that cannot be read or that nobody satisfies, with the front in words.
    """
    if prefer == KNEE:
        return _knee(members, offer, goals)
    if prefer == goals[0]:
        return max(members, key=lambda member: offer(member).value)
    if prefer in COSTS:
        return min(members, key=lambda member: (offer(member).costs.get(prefer, math.inf), -offer(member).value))
    limits = _limits(prefer)
    within = [m for m in members if all(offer(m).costs.get(name, math.inf) <= most for name, most in limits.items())]
    if not within:
        shown = front_words([offer(member) for member in members], goals)
        raise GoalError(f"no student of the front satisfies {prefer}; choose another limit. The front: {shown}")
    return max(within, key=lambda member: offer(member).value)


def front_words(offers: Sequence[Offer], goals: Sequence[str]) -> str:
    """A front on one line, the best by the metric first: "accuracy 0.982 params 40,300; …"."""
    best_first = sorted(offers, key=lambda each: -each.value)
    shown = [
        " ".join(
            [f"{goals[0]} {each.value:.4g}", *(f"{name} {each.costs.get(name, math.nan):,.5g}" for name in goals[1:])]
        )
        for each in best_first
    ]
    return "; ".join(shown)


def _knee(members: Sequence[Member], offer: Callable[[Member], Offer], goals: Sequence[str]) -> Member:
    """The one nearest to having the best of every goal, each goal from 0 (best on the front) to 1, costs by their logarithm."""
    offers = [offer(member) for member in members]
    columns = [[-each.value for each in offers]]
    columns += [[math.log(each.costs.get(name, math.inf)) for each in offers] for name in goals[1:]]
    scaled = [[(x - min(column)) / ((max(column) - min(column)) or 1.0) for x in column] for column in columns]
    far = [math.hypot(*place) for place in zip(*scaled, strict=True)]
    return members[far.index(min(far))]


def _limits(prefer: str) -> dict[str, float]:
    """Read "params<=20k, latency_ms<=5"."""
    found = {}
    for part in prefer.split(",") if isinstance(prefer, str) else [prefer]:
        match = re.fullmatch(r"\s*(\w+)\s*<=?\s*(.+?)\s*", str(part))
        if match is None:
            raise GoalError(f"a preference must be a goal, 'knee' or limits, got {str(prefer)[:60]!r}; {EXAMPLES}")
        if match[1] not in COSTS:
            raise GoalError(f"unknown cost '{match[1]}' in the preference {prefer!r}; {nearest(match[1], COSTS)}")
        try:
            found[match[1]] = read_limit(match[1], match[2], of_teacher=0)
        except InputError as error:
            raise GoalError(f"the preference {prefer!r} cannot be read: {error}; {EXAMPLES}") from None
    return found
