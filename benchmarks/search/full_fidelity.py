"""Baselines that train whatever they train to the end, and two that spend the budget by a plan.

All begin with what the space publishes, as a user would by `enqueue_trial`, so that no method is given more than another.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from benchmarks.search.replay import BudgetSpent, Replay, Trial
from benchmarks.search.tables import Point, draw

if TYPE_CHECKING:
    import optuna

REDRAWS = 100  # of a point that was tried already, before it is taken again


def random_search(replay: Replay) -> None:
    """Random points, none twice."""
    for point in new_points(replay, random.Random(f"random/{replay.seed}")):
        replay.full(point)


def one_epoch_then_top_k(replay: Replay) -> None:
    """Half of the budget on one epoch each, the other half on the best of them (Egele et al., 2023)."""
    points = new_points(replay, random.Random(f"one epoch/{replay.seed}"))
    seen: list[Trial] = []
    while replay.spent < replay.budget / 2:
        trial = Trial(next(points))
        if replay.advance(trial, 1) is not None:
            seen.append(trial)
    if replay.table.epochs == 1:  # then those were full trainings
        raise BudgetSpent
    for trial in sorted(seen, key=lambda trial: trial.values[1], reverse=True):
        replay.advance(trial, replay.table.epochs)


def architecture_first(replay: Replay) -> None:
    """Half of the budget on random architectures with default settings, then random settings of the best one.

    Where a space has no architectures there is no first half, where it has nothing else no second.
    """
    table = replay.table
    rng = random.Random(f"architecture first/{replay.seed}")
    names = {field.name for field in table.space.fields if field.searched}
    stages = [names & table.architecture, names - table.architecture]
    best = table.space.prior_point()
    if not all(stages):
        random_search(replay)
    value = -float("inf")
    for share, stage in zip((0.5, 1.0), stages, strict=True):
        centre = best
        points = _unseen(lambda: table.space.complete(_exchanged(centre, draw(table.space, rng), stage)))  # noqa: B023
        while replay.spent < share * replay.budget:
            point = next(points)
            found = replay.full(point)
            if found is not None and found > value:
                best, value = point, found


def _exchanged(centre: Point, other: Point, names: set[str]) -> Point:
    """The centre, with these fields as in the other point."""
    return {name: value for name, value in centre.items() if name not in names} | {
        name: value for name, value in other.items() if name in names
    }


def new_points(replay: Replay, rng: random.Random) -> Iterator[Point]:
    """What the space publishes, then random points."""
    published = iter([point for _, point in replay.table.space.first])
    return _unseen(lambda: next(published, None) or draw(replay.table.space, rng))


def _unseen(propose: Callable[[], Point]) -> Iterator[Point]:
    """Proposals without repetitions, as long as that is possible."""
    seen: set[tuple[object, ...]] = set()
    while True:
        for _ in range(REDRAWS):
            point = propose()
            if tuple(point.items()) not in seen:
                break
        seen.add(tuple(point.items()))
        yield point


# ---- Optuna


def optuna_tpe(replay: Replay) -> None:
    """Optuna's default sampler."""
    import optuna

    _with_optuna(replay, optuna.samplers.TPESampler(seed=replay.seed))


def optuna_gp(replay: Replay) -> None:
    """Optuna's Gaussian process."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental
        sampler = optuna.samplers.GPSampler(seed=replay.seed, deterministic_objective=replay.table.seeds == 1)
    _with_optuna(replay, sampler)


def _with_optuna(replay: Replay, sampler: optuna.samplers.BaseSampler) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    space = replay.table.space
    for _, point in space.first:
        study.enqueue_trial({field.name: point[field.name] for field in space.active(point) if field.searched})
    worst: float | None = None
    while True:
        trial = study.ask()
        value = replay.full(space.suggest(trial))
        worst = value if worst is None else worst if value is None else min(value, worst)
        told = (
            worst if value is None else value
        )  # a careful user's answer: told FAIL, samplers go there again and again
        study.tell(trial, told, state=optuna.trial.TrialState.FAIL if told is None else None)
