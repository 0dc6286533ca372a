"""What a lane is given before there is work for it: data and teacher. With them it warms up, measures, and opens its core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from autokd.core.calibration import Calibrator
from autokd.core.core import TrainingCore
from autokd.core.data import to_float
from autokd.core.device import Setting, candidates, fastest, has_fused_norm, time_of
from autokd.core.gathering import FIRST_PATIENCE, Gathering
from autokd.core.lanes import LaneCount
from autokd.core.live import LiveTeacher
from autokd.core.optim import optimiser
from autokd.core.payload import TapePlan
from autokd.core.teachings import Teachers, by_stage0
from autokd.data import Data
from autokd.orders import Core
from autokd.protocols import StudentFamily
from autokd.recipe import OptimSpec, Recipe
from autokd.students import GIVEN

TEACHER_ROWS, TEACHER_REPEATS = 64, 3  # of one pass of the teacher


@dataclass(frozen=True)
class Measured:
    """What this machine makes of a search's data, teacher and first recipe."""

    setting: Setting
    epoch_seconds: float  # of the first recipe, on a tape
    teacher_seconds: float  # of the teacher over all training rows, once
    found: Mapping[str, Any]  # of the first recipe, as a Calibrator remembers it
    notes: tuple[str, ...] = ()  # in words
    lanes: LaneCount | None = None  # of one GPU, where they were counted


@dataclass(frozen=True)
class Materials:
    """Crosses to each lane once, when the lane starts."""

    data: Data
    teachers: Teachers
    task: str = "classification"
    given: Mapping[str, StudentFamily] = field(default_factory=lambda: dict(GIVEN))  # families that are objects

    def warm_up(self, device: str) -> None:
        """Load what a first step of training would: an optimiser alone imports torch._dynamo, a second or two."""
        GIVEN.update(self.given)
        has_fused_norm(device)
        weight = nn.Parameter(torch.zeros(1, device=device))
        weight.sum().backward()
        optimiser([weight], OptimSpec(), device).step()

    def measure(self, recipe: Recipe, device: str, count_lanes: bool = False) -> Measured:
        """What a search plans with; on a GPU, if asked to, how many lanes it has. Raises InputError if it cannot be trained."""
        GIVEN.update(self.given)
        measured = calibrate(self.data, self.teachers, recipe, device, self.task)
        if not (count_lanes and measured.setting.on_gpu):
            return measured
        core = TrainingCore(self.data, self.teachers, Path(), measured.setting, self.task)
        try:
            return replace(measured, lanes=core.count_lanes(recipe))
        finally:
            core.close()


@dataclass(frozen=True)
class Blueprint:
    """How a search's cores are made of their materials. Crosses to each lane once, when the search begins."""

    folder: str
    setting: Setting
    tape: TapePlan | None = None
    cohort: int = 1  # trials that may share a live teacher
    lanes: int = 1  # of this core

    def build(self, materials: Materials) -> Core:
        GIVEN.update(materials.given)
        core = TrainingCore(
            materials.data, materials.teachers, self.folder, self.setting, materials.task, self.tape, calibrated=True
        )
        if self.cohort == 1:
            return core
        return Gathering(core, self.cohort, self.lanes, first_patience=FIRST_PATIENCE)


def calibrate(data: Data, teachers: Teachers, recipe: Recipe, device: str, task: str = "classification") -> Measured:
    """The setting in which this machine is fastest, measured on `recipe`, and what it costs. Raises InputError."""
    base = Setting(device, fused_norm=has_fused_norm(device))
    first = next(iter(by_stage0(teachers).values()), None)
    setting, teacher_seconds = _for_teacher(data, first, base)
    core = TrainingCore(data, teachers, Path(), setting, task)
    taken: dict[Setting, list[float]] = {}

    def steps_in(recipe: Recipe, setting: Setting, most: int) -> list[float]:
        taken[setting] = core.step_seconds(recipe, setting, most)
        return taken[setting]

    calibrator = Calibrator(setting, steps_in)
    try:
        with core.trying(recipe):
            chosen = calibrator.setting_for(recipe, steps_left=0)
            epoch_seconds = core.epoch_of(recipe, chosen, median(taken[chosen]))
    finally:
        core.close()
    return Measured(
        chosen, epoch_seconds, teacher_seconds, calibrator.found(recipe) or {}, notes=tuple(calibrator.notes)
    )


def _for_teacher(data: Data, teacher: nn.Module | None, setting: Setting) -> tuple[Setting, float]:
    """The setting with the precision in which the teacher is fastest, and its seconds over all training rows."""
    if teacher is None:
        return setting, 0.0
    passes = {
        name: _teacher_seconds(data, teacher, replace(setting, teacher_precision=name))
        for name in candidates(setting.device)
    }
    best = fastest(passes)
    return replace(setting, teacher_precision=best), passes[best] * len(data.train.y) / TEACHER_ROWS


def _teacher_seconds(data: Data, teacher: nn.Module, setting: Setting) -> float:
    """Of one forward pass over a batch, on the threads of a lane."""
    index = np.arange(TEACHER_ROWS) % len(data.train.y)
    rows = to_float(torch.as_tensor(data.train.x[index])).to(setting.device)
    live = LiveTeacher(teacher, rows[:2], setting)
    with setting.on_its_threads():
        seconds = time_of(lambda: live.outputs(rows), TEACHER_REPEATS)
    live.close()
    return seconds
