"""A new search begins: lanes are opened and measure, the plan is made and printed, and the run folder gets its first line."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from autokd import __version__
from autokd.budget import Budget
from autokd.core.calibration import FOLDER, hand_on
from autokd.core.materials import Materials, Measured
from autokd.core.payload import TapePlan
from autokd.engine.engine import Engine
from autokd.heads import kinds_for
from autokd.ledger import Ledger
from autokd.plan import Plan, make_plan, typical_cost
from autokd.progress import plan_table
from autokd.run_folder import RunFolder
from autokd.session import Lanes, Session, Settings, open_lanes
from autokd.stage0 import GIVEN, made_ready, stages0_of
from autokd.taping import TapePlace, cohort_size, tape_plan
from autokd.teacher import Teacher


@dataclass(frozen=True)
class Asked:
    """What the user asked for, checked."""

    teacher: Teacher
    budget: Budget
    engine: Engine
    wanted: Mapping[str, Any]  # goals, preference, latency probe and earlier searches, as the ledger's head holds them
    tape: TapePlace | None
    device: str
    epochs: int | None
    run_dir: str | Path | None
    name: str | None
    executor: str
    lanes: int | None
    ray_address: str | None
    tracking_uri: str | None  # with its secrets; None for no tracking
    shown_uri: str | None
    verbose: bool


def begin(asked: Asked, stack: ExitStack) -> Session:
    """A session of work on a search that is in the ledger. Raises InputError, ClusterError, before there is a folder."""
    teacher, engine = asked.teacher, asked.engine
    first = engine.sampler.first_recipe()
    space = engine.sampler.space
    modules = made_ready(teacher, stages0_of(space), space.objectives, asked.device, asked.verbose)
    materials = Materials(teacher.data, modules)
    lanes = stack.enter_context(
        open_lanes(asked.executor, asked.ray_address, asked.lanes, materials, asked.device, _expected_cohort(asked))
    )
    typical = typical_cost(engine.sampler, teacher.cost, asked.tape is not None)  # while the lanes load
    measured = lanes.measure(first, count_lanes=asked.lanes is None)
    if measured.lanes is not None:
        lanes = lanes.with_lanes(measured.lanes.lanes)
    engine.lanes = lanes.lanes
    folder = RunFolder.create(asked.run_dir, asked.name or teacher.data.name)
    stack.callback(folder.close)
    ledger = Ledger(folder.ledger)
    stack.callback(ledger.close)
    plan, taped = _planned(asked, lanes, measured, typical)
    hand_on(
        folder.checkpoints / FOLDER,
        measured.setting,
        first,
        measured.found,
        seconds=plan.rungs[-1] * measured.epoch_seconds,
    )
    engine.taped = taped is not None
    settings = Settings(
        asked.executor,
        measured.setting,
        asked.tracking_uri is not None,
        asked.shown_uri,
        asked.ray_address,
        taped,
        cohort_size(engine.sampler.space, taped),
        engine.ablation.when,
    )
    head = _head(asked, asked.name or folder.path.name, plan, settings)
    ledger.append("search", **head)
    if teacher.can_be_saved:
        teacher.save(folder.teacher)
    if asked.verbose:
        Console().print(plan_table(head["plan"], head))
    return Session(teacher, folder, ledger, engine, asked.budget, settings, lanes, asked.tracking_uri, asked.verbose)


def _expected_cohort(asked: Asked) -> int:
    """With the tape of a training as long as the space says: before anything is measured, the best guess."""
    space = asked.engine.sampler.space
    taped, _ = tape_plan(asked.teacher, space.objectives, asked.epochs or space.epochs, asked.tape)
    return cohort_size(space, taped)


def _planned(asked: Asked, lanes: Lanes, measured: Measured, typical: float) -> tuple[Plan, TapePlan | None]:
    """What the budget buys, and what is recorded for it."""
    teacher, space = asked.teacher, asked.engine.sampler.space
    counted = [] if measured.lanes is None else [f"on each GPU {measured.lanes.reason}"]
    heads = [f"the teacher has heads trained for this search: {kind}" for kind in sorted(kinds_for(space.objectives))]
    others = [name for name in stages0_of(space) if name != GIVEN]
    heads += [f"some students are taught by the teacher made ready otherwise: stage0 {name}" for name in others]
    plan = make_plan(
        asked.budget,
        space.epochs,
        lanes.lanes,
        measured.epoch_seconds,
        teacher.value,
        measured.setting,
        asked.epochs,
        [*teacher.data.notes, *measured.notes, *counted, *heads],
        measured.teacher_seconds,
        taped=asked.tape is not None,
        typical=typical,
    )
    taped, told = tape_plan(teacher, space.objectives, plan.rungs[-1], asked.tape)
    return replace(plan, tape=str(told), notes=(*plan.notes, *told.notes)), taped


def _head(asked: Asked, name: str, plan: Plan, settings: Settings) -> dict[str, Any]:
    """What the ledger says of the search as a whole."""
    teacher, sampler = asked.teacher, asked.engine.sampler
    return {
        "search_id": f"{name}-{os.urandom(4).hex()}",
        "name": name,
        "seed": asked.engine.seed,
        "budget": asked.budget.to_dict(),
        "space": sampler.space.to_dict(),
        "constraints": sampler.limits.to_dict(),
        "rungs": list(plan.rungs),
        "lanes": plan.lanes,
        "executor": settings.executor,
        "settings": settings.to_dict(),
        "metric": teacher.task.metric,
        "teacher": {
            "name": teacher.name,
            "params": teacher.cost.params,
            "flops": teacher.cost.flops,
            "bytes": teacher.cost.bytes,
            "memory": teacher.cost.memory,
            "value": teacher.value,
            "value_loss": teacher.metrics["loss"],
            "fingerprint": teacher.fingerprint,
        },
        "data": teacher.data.describe(),
        "plan": plan.to_dict(),
        "versions": {"autokd": __version__, "torch": torch.__version__, "python": platform.python_version()},
        **asked.wanted,
    }
