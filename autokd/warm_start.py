"""Earlier searches as a prior: run folders, ledgers, or an MLflow experiment, each weighed by how much its task is like the present one.

What is taken from them goes into the ledger's first line, so that a search goes on without them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autokd.engine.prior import LEAST_KEPT, Observation, point_of
from autokd.errors import RecipeError, WarmStartError
from autokd.history import History, Trial
from autokd.ledger import read_events
from autokd.recipe import Recipe
from autokd.space import Space
from autokd.teacher import Teacher

MLFLOW = "mlflow:"
LEDGER = "ledger.jsonl"
MOST = 100  # observations kept, over all sources
FEWEST = 2  # trials with a value that make a search worth reading
OTHER_SPACE = 0.7  # weight of a search in another space
EXAMPLE = "name a run folder, its ledger.jsonl, or 'mlflow:<experiment>'"

Standing = tuple[int, float]  # epochs, value: more is better


@dataclass(frozen=True)
class Past:
    """An earlier search: its task, and its recipes with how far they came; None where they failed."""

    name: str
    head: Mapping[str, Any]
    trials: tuple[tuple[str, Recipe, Standing | None], ...]


def earlier_searches(
    sources: str | Path | Sequence[str | Path], space: Space, head: Mapping[str, Any], tracking_uri: str | None
) -> dict[str, Any]:
    """What the head of a search keeps of earlier ones. `head` describes the present task as a ledger's head does.

    Raises WarmStartError for what is absent, no search, or without a trial that fits the space.
    """
    listed = [sources] if isinstance(sources, str | Path) else list(sources)
    if not listed:
        raise WarmStartError(f"warm_start must name earlier searches, got an empty list; {EXAMPLE}, or leave it out")
    found: list[Observation] = []
    kept: list[dict[str, Any]] = []
    for past in (each for source in listed for each in _read(source, tracking_uri)):
        weight = likeness(past.head, head)
        observations = observe(past, space, weight)
        if not observations:
            raise WarmStartError(
                f"an earlier search must have {FEWEST} trials or more that fit the space, {past.name} has none for "
                f"'{space.name}'; leave it out or choose its space"
            )
        kept.append({"name": past.name, "weight": round(weight, 4), "trials": len(observations)})
        found += observations
    found.sort(key=lambda each: (each.weight * (each.rank - 0.5), each.name), reverse=True)
    step = max(1.0, len(found) / MOST)
    chosen = [found[int(index * step)] for index in range(min(MOST, len(found)))]
    return {"sources": kept, "observations": [each.to_dict() for each in chosen]}


def check_sources(sources: Sequence[str | Path]) -> None:
    """Raise WarmStartError for a folder or ledger that is not there. MLflow is not asked."""
    for source in sources:
        if not str(source).startswith(MLFLOW):
            _path(source)


def task_of(teacher: Teacher, space: Space) -> dict[str, Any]:
    """What likeness of tasks is judged by, as in the head of a ledger."""
    return {"data": teacher.data.describe(), "teacher": {"flops": teacher.cost.flops}, "space": {"name": space.name}}


def observe(past: Past, space: Space, weight: float) -> list[Observation]:
    """Its trials as points of the space, ranked by how far they came and how good they were there; failures share the last place."""
    done = sorted({standing for _, _, standing in past.trials if standing is not None})
    if len(done) < FEWEST:
        return []
    found = []
    for name, recipe, standing in past.trials:
        point, share = point_of(recipe, space)
        try:
            space.recipe(point)
        except RecipeError:
            continue
        rank = 0.0 if standing is None else done.index(standing) / (len(done) - 1)
        if share >= LEAST_KEPT:
            found.append(Observation(point, round(rank, 4), round(weight * share, 4), f"{name} of {past.name}"))
    return found


def likeness(past: Mapping[str, Any], present: Mapping[str, Any]) -> float:
    """1 for the same task in the same space; less by every factor between classes, rows, channels, side and size of the teacher."""
    ours, theirs = _features(present), _features(past)
    shared = ours.keys() & theirs.keys()
    if not shared:
        return 0.5 * OTHER_SPACE
    distance = math.sqrt(sum((ours[name] - theirs[name]) ** 2 for name in shared))
    return math.exp(-distance) * (1.0 if _space_name(past) == _space_name(present) else OTHER_SPACE)


# ---- inside


def _features(head: Mapping[str, Any]) -> dict[str, float]:
    """Decimal logarithms of what is known about a task."""
    data, teacher = head.get("data") or {}, head.get("teacher") or {}
    shape = list(data.get("input_shape") or ())
    numbers = {
        "classes": data.get("classes"),
        "rows": (data.get("sizes") or {}).get("train"),
        "teacher": teacher.get("flops"),
    }
    numbers |= {"channels": shape[0] if shape else None, "side": max(shape[1:]) if len(shape) > 1 else None}
    return {
        name: math.log10(number) for name, number in numbers.items() if isinstance(number, int | float) and number > 0
    }


def _space_name(head: Mapping[str, Any]) -> object:
    space = head.get("space")
    return space.get("name") if isinstance(space, Mapping) else space


def _read(source: str | Path, tracking_uri: str | None) -> list[Past]:
    if isinstance(source, str) and source.startswith(MLFLOW):
        from autokd.tracking import past_searches

        experiment = source.removeprefix(MLFLOW)
        return [Past(name, head, trials) for name, head, trials in past_searches(experiment, tracking_uri)]
    return [_of_ledger(_path(source))]


def _path(source: str | Path) -> Path:
    """The ledger named, or of the run folder named. Raises WarmStartError."""
    if not isinstance(source, str | Path) or not str(source).strip():
        raise WarmStartError(f"warm_start must name earlier searches, got {source!r:.60}; {EXAMPLE}")
    path = Path(source)
    path = path / LEDGER if path.is_dir() else path
    if not path.is_file():
        raise WarmStartError(f"an earlier search must have a ledger, {path} does not exist; {EXAMPLE}")
    return path


def _of_ledger(path: Path) -> Past:
    try:
        history = History.replay(read_events(path)[0])
    except (RecipeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise WarmStartError(
            f"{path} must be a ledger of autokd, got one that cannot be read: {error!r:.80}; {EXAMPLE}"
        ) from None
    if not history.head:
        raise WarmStartError(f"{path} must be a ledger of autokd, got no search in it; {EXAMPLE}")
    trials = [
        (trial.id, trial.recipe, _standing(trial))
        for trial in history.in_role("search")
        if trial.values or trial.state == "failed"
    ]
    return Past(str(history.head.get("name") or path.parent.name), history.head, tuple(trials))


def _standing(trial: Trial) -> Standing | None:
    return None if trial.state == "failed" or not trial.values else (trial.epoch, trial.values[trial.epoch][0])
