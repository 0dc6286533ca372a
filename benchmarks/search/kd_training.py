"""One training of the KD table, in the process of a lane: the product's own core, an epoch at a time, on a tape all lanes share."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from autokd.core.core import TrainingCore
from autokd.core.device import Setting
from autokd.core.loop import failure_of, train_epoch
from autokd.core.payload import TapePlan
from autokd.core.run import Run
from autokd.engine.cost import relative_cost
from autokd.errors import TrialFailure
from autokd.recipe import Recipe
from autokd.scope import CostOf
from benchmarks.search.kd_problems import problem

TAPE_LIMIT = 8 * 10**9  # bytes
TAPED = frozenset({"logits", "embedding", "attention"})  # all that the objectives of the space read
SETTING = Setting()  # one CPU thread, float32: the same arithmetic in every training


class Place(NamedTuple):
    """Where images are read and the tape is kept."""

    data: Path
    work: Path


class Job(NamedTuple):
    """One training: the recipe's number in the table, on one problem, with one seed."""

    problem: str
    number: int
    recipe: Recipe
    seed: int


def describe(name: str, place: Place) -> dict[str, Any]:
    """The problem as the table tells of it; fits its teacher if nobody has."""
    core, (data, teacher) = _core(name, place), problem(name, place.data)
    return {
        "name": name,
        "rows": len(data.train.y),
        "validation_rows": len(data.val.y),
        "input_shape": list(data.input_shape),
        "chance": core.chance,
        "data": data.fingerprint,
        "teacher": {
            "accuracy": teacher.value,
            "rows": len(teacher.data.train.y),
            "params": teacher.cost.params,
            "flops": teacher.cost.flops,
            "fingerprint": teacher.fingerprint,
            "about": {key: teacher.about[key] for key in ("family", "spec", "epochs", "seed")},
        },
    }


def price(name: str, recipes: list[Recipe], place: Place) -> list[tuple[int, int, float]]:
    """Of each recipe: the student's parameters and FLOPs per image, and the FLOPs of an epoch of its training."""
    data, teacher = problem(name, place.data)
    cost_of, prices = CostOf(data), []
    for recipe in recipes:
        student = cost_of(recipe.student)
        epoch = relative_cost(recipe, student, teacher.cost, taped=True) * len(data.train.y)
        prices.append((student.params, student.flops, epoch))
    return prices


def train(job: Job, epochs: int, place: Place) -> dict[str, Any]:
    """Accuracy, loss and seconds (of the processor) of every epoch that ended with numbers, and why there are no more."""
    core = _core(job.problem, place)
    history: list[dict[str, Any]] = []
    seconds: list[float] = []
    failure: TrialFailure | None = None
    try:
        run = core.new(job.recipe, job.seed, core.setting)
    except Exception as error:  # as in the core: a recipe that cannot be built is a scored outcome
        failure = failure_of(error)
    else:
        failure = _to_the_end(core, run, epochs, seconds)
        history = run.history
        run.close()
    return {
        "problem": job.problem,
        "recipe": job.recipe.id,
        "number": job.number,
        "seed": job.seed,
        "accuracy": [log["metrics"]["accuracy"] for log in history],
        "loss": [log["metrics"]["loss"] for log in history],
        "seconds": seconds[: len(history)],
        "failed": None if failure is None else {"reason": failure.reason, "message": str(failure)},
    }


def _to_the_end(core: TrainingCore, run: Run, epochs: int, seconds: list[float]) -> TrialFailure | None:
    """Why the run ended early, or None. `seconds` are the processor's, which other work on the machine does not lengthen much."""
    with core.setting.on_its_threads():
        while run.epoch < epochs:
            begun = time.process_time()
            log = train_epoch([run], core.rows, core.teaching, core.task, epochs, epochs)[0]
            if isinstance(log, TrialFailure):
                return log
            seconds.append(round(time.process_time() - begun, 4))
    return None


@lru_cache
def _core(name: str, place: Place) -> TrainingCore:
    """One per process and problem."""
    data, teacher = problem(name, place.data)
    tape = TapePlan(str(place.work / "tape"), TAPE_LIMIT, TAPED, name)
    return TrainingCore(data, teacher.module, place.work / "checkpoints", SETTING, tape=tape)
