"""The engine with a prior: a recipe from the best decile of the table, from the worst, or none.

A prior is told as users tell it: as a published recipe, tried first, and as the `prior` of every field that exists in it.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from autokd.space import Space
from autokd.space_file import Published
from benchmarks.search.ours import autokd_engine
from benchmarks.search.replay import Replay
from benchmarks.search.tables import Point

DECILE = 0.1


def without_prior(replay: Replay) -> None:
    """The space without what it says is likely."""
    _search(replay, _without(replay.table.space))


def good_prior(replay: Replay) -> None:
    """Any recipe of the best decile but its best."""
    _search(replay, _with(replay.table.space, _of_decile(replay, best=True)))


def misleading_prior(replay: Replay) -> None:
    """Any recipe of the worst decile."""
    _search(replay, _with(replay.table.space, _of_decile(replay, best=False)))


def _search(replay: Replay, space: Space) -> None:
    """As ours, with another space over the same table."""
    table = copy.copy(replay.table)
    table.space = space
    other = Replay(table, replay.seed, replay.budget, replay.unit)
    autokd_engine(other)
    replay.trajectory = other.trajectory


def _of_decile(replay: Replay, best: bool) -> Point:
    points = replay.table.reference_points()
    finals, _ = replay.table.ends(points)
    order = np.argsort(-finals, kind="stable")
    count = max(2, round(DECILE * len(points)))
    chosen = order[1:count] if best else order[-count:]
    return points[random.Random(f"prior/{replay.seed}").choice(list(chosen))]


def _without(space: Space) -> Space:
    return replace(space, fields=tuple(replace(field, prior=None) for field in space.fields), published=())


def _with(space: Space, point: Point) -> Space:
    fields = tuple(replace(field, prior=point.get(field.name) if field.searched else None) for field in space.fields)
    settings = tuple((name, value) for name, value in point.items())
    return replace(space, fields=fields, published=(Published("prior", settings),))


PRIORS: dict[str, Callable[[Replay], None]] = {
    "autokd-no-prior": without_prior,
    "autokd-good-prior": good_prior,
    "autokd-misleading-prior": misleading_prior,
}
