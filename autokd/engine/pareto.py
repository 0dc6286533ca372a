"""Several goals: who stands before whom at a rung, and what the model is told.

A trial dominates another if it is at least as good in every goal and better in one. Trials are ordered front by front
(non-dominated sorting), and within a front so that every beginning of it is spread out: the best by the metric first, then
always the one farthest from those before it (the epsilon-net of MO-ASHA, Schmucker et al., 2021). Distances are of ranks, so that
neither units nor outliers matter. The model is fitted to one random scalarisation per proposal (ParEGO, Knowles, 2006).
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

from autokd.errors import GoalError
from autokd.goals import Offer, aims, choose, costs_of, front, goals_of
from autokd.history import History, Trial

AUGMENTED = 0.05  # share of the plain sum in the Chebyshev scalarisation, as in ParEGO

Aims = tuple[float, ...]  # more is better in all


def fronts(points: Sequence[Aims]) -> list[list[int]]:
    """Indices front by front: the first dominated by nobody, the second only by members of the first, and so on.

    Equal points share a front. Efficient non-dominated sort (Zhang et al., 2015): points in falling order, each put by bisection
    into the first front of which no member dominates it.
    """
    order = sorted(range(len(points)), key=lambda index: points[index], reverse=True)
    put = _TwoGoals() if points and len(points[0]) == 2 else _ManyGoals()
    found: list[list[int]] = []
    before: tuple[Aims, int] | None = None
    for index in order:
        place = before[1] if before and before[0] == points[index] else put.place(points[index])
        if place == len(found):
            found.append([])
        found[place].append(index)
        before = points[index], place
    return found


def in_order(trials: Sequence[Trial], rung: int, costs: Sequence[str], most: int) -> list[Trial]:
    """The first `most` trials of one rung in Pareto order: front by front. Ties go to the trial that began first.

    The first front is spread out, and so is the one of which only a part is taken; of those between all are taken, in any order.
    """
    by_age = sorted(trials, key=lambda trial: (trial.started, trial.id))
    points = [aims(trial, rung, costs) for trial in by_age]
    places, chosen = _ranks(points), list[int]()
    for each in fronts(points):
        left = most - len(chosen)
        if left <= 0:
            break
        chosen += each if chosen and len(each) <= left else _spread(each, places, left)
    return [by_age[index] for index in chosen]


def preferred(history: History, trials: Sequence[Trial], rung: int) -> Trial:
    """Who of one rung's front the search was told to prefer; the best by the metric if nothing was said, or nobody satisfies it."""
    costs, best_first = goals_of(history), sorted(trials, key=lambda trial: trial.values[rung], reverse=True)
    prefer = history.head.get("prefer")
    if prefer is None:
        return best_first[0]
    members = [best_first[index] for index in front([aims(trial, rung, costs) for trial in best_first])]
    try:
        return choose(
            members, lambda trial: Offer(trial.values[rung][0], costs_of(trial)), prefer, history.head["goals"]
        )
    except GoalError:
        return best_first[0]


def scalarised(trials: Sequence[Trial], rung: int, costs: Sequence[str], key: str) -> list[Trial]:
    """Trials of one rung, best first by one random weighing of the goals, which `key` decides."""
    draw = random.Random(key)
    weights = [-math.log(1 - draw.random()) for _ in range(1 + len(costs))]  # uniform on the simplex
    places = _ranks([aims(trial, rung, costs) for trial in trials])
    lost = (1 - places) * np.asarray(weights) / sum(weights)
    cost = lost.max(axis=1, initial=0.0) + AUGMENTED * lost.sum(axis=1)
    return [trials[index] for index in np.argsort(cost, kind="stable")]


# ---- inside


class _TwoGoals:
    """With two goals, the last member of a front alone tells whether any of it dominates what comes next."""

    def __init__(self) -> None:
        self._last: list[float] = []  # by front: the negative second goal of its last member, never falling

    def place(self, point: Aims) -> int:
        """The front that takes `point`, which equals nobody before it."""
        place = bisect_right(self._last, -point[1])
        self._last[place : place + 1] = [-point[1]]
        return place


class _ManyGoals:
    """Members of each front as rows of an array; the first goal is left out, as nobody before a point is worse in it."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []
        self._counts: list[int] = []

    def place(self, point: Aims) -> int:
        """The front that takes `point`, which equals nobody before it."""
        rest = np.array(point[1:])
        place = bisect_left(range(len(self._rows)), True, key=lambda front: not self._dominates(front, rest))
        if place == len(self._rows):
            self._rows.append(np.empty((16, len(rest))))
            self._counts.append(0)
        if self._counts[place] == len(self._rows[place]):
            self._rows[place] = np.concatenate([self._rows[place], np.empty_like(self._rows[place])])
        self._rows[place][self._counts[place]] = rest
        self._counts[place] += 1
        return place

    def _dominates(self, front: int, rest: np.ndarray) -> bool:
        return bool((self._rows[front][: self._counts[front]] >= rest).all(axis=1).any())


def _ranks(points: Sequence[Aims]) -> np.ndarray:
    """(points, goals): each goal's ranks from 0 (worst) to 1 (best); equal values share their mean rank."""
    from scipy.stats import rankdata

    if not points:
        return np.zeros((0, 1))
    arrays = np.asarray(points, dtype=float)
    return np.column_stack([(rankdata(column) - 1) / max(1, len(points) - 1) for column in arrays.T])


def _spread(members: Sequence[int], places: np.ndarray, most: int) -> list[int]:
    """At most so many members, from the best by the first goal on, each next one farthest from all before it."""
    left = sorted(members, key=lambda index: (-places[index][0], index))
    spread, gaps = [left[0]], np.linalg.norm(places[left] - places[left[0]], axis=1)
    gaps[0] = -1.0
    for _ in range(min(most, len(left)) - 1):
        chosen = int(gaps.argmax())
        spread.append(left[chosen])
        gaps = np.minimum(gaps, np.linalg.norm(places[left] - places[left[chosen]], axis=1))
        gaps[chosen] = -1.0
    return spread
