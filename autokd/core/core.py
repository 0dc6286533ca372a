"""The training core: one per device. Holds the data and the teacher once and trains the trials it is given."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from autokd.core import checkpoint
from autokd.core.data import Resident, to_float
from autokd.core.device import Setting, candidates, fastest, time_of
from autokd.core.loop import train_epoch, validate
from autokd.core.run import Run
from autokd.core.tape import LiveTeacher
from autokd.data import Data
from autokd.errors import CheckpointError, InputError, TrialFailure
from autokd.orders import Core, Order, Report
from autokd.protocols import Batch, StudentFamily
from autokd.recipe import Recipe
from autokd.students import GIVEN
from autokd.tasks import TASKS

SETTLED = 3  # epochs after which a student at chance has failed; before, it is merely last in its rung

CALIBRATION_ROWS = 128
WARM_UP_STEPS, CALIBRATION_STEPS = 3, 20


@dataclass(frozen=True)
class Blueprint:
    """Everything a core is made from. Crosses processes once per lane; `build` opens the core there."""

    data: Data
    teacher: nn.Module | None
    folder: str
    setting: Setting
    task: str = "classification"
    given: Mapping[str, StudentFamily] = field(default_factory=lambda: dict(GIVEN))  # families that are objects

    def build(self) -> Core:
        GIVEN.update(self.given)
        return TrainingCore(self.data, self.teacher, self.folder, self.setting, self.task)


class TrainingCore:
    """Trains trials on one device, one at a time, from checkpoint to checkpoint in `folder`."""

    def __init__(
        self,
        data: Data,
        teacher: nn.Module | None,
        folder: str | Path,
        setting: Setting,
        task: str = "classification",
    ) -> None:
        self.setting, self.folder = setting, Path(folder)
        self.data = Resident(data, setting.device)
        self.task = TASKS[task]
        self.example = to_float(self.data.x[:2])
        self.teacher = None if teacher is None else LiveTeacher(teacher, self.example, setting)
        self.chance = self.task.chance(self.data.val_y)

    def advance(self, order: Order) -> Report:
        """Train the order's trial to `order.to` epochs, or to the epoch in which its deadline passes.

        Goes on from the trial's checkpoint if that is sound, else from the beginning. Raises TrialFailure for NaN, chance level
        or any exception of a model, loss or data set; CheckpointError if the checkpoint cannot be written.
        """
        try:
            with self.setting.on_its_threads():
                return self._advance(order)
        except (CheckpointError, TrialFailure):
            raise
        except Exception as error:  # whatever a user's own model or loss raises ends this trial, not the search
            raise TrialFailure("exception", f"{type(error).__name__}: {error}".splitlines()[0]) from error

    def close(self) -> None:
        """Leave the teacher as it was given. The core cannot be used afterwards."""
        if self.teacher is not None:
            self.teacher.close()

    def checkpoint_path(self, trial: str) -> Path:
        return self.folder / f"{trial}.safetensors"

    def seconds_per_epoch(self, recipe: Recipe, seed: int) -> float:
        """Measured on some steps of training from scratch, after some to warm up. Raises InputError if it cannot be trained."""
        try:
            run = self._new(recipe, seed)
            with self.setting.on_its_threads():
                self._some_steps(run, WARM_UP_STEPS)
                steps, seconds = self._some_steps(run, CALIBRATION_STEPS)
                validation = time_of(lambda: validate(run, self.data, self.task, self.setting), repeats=1)
        except InputError:
            raise
        except Exception as error:  # whatever a user's own model or loss raises, here before a search begins
            told = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InputError(
                f"the first student, '{recipe.student.family}', cannot be trained on {self.data.data.name}: {told}; mend or leave it out"
            ) from error
        run.close()
        return (seconds - validation) * self.data.steps(recipe.optim.batch) / steps + validation

    def _some_steps(self, run: Run, most: int) -> tuple[int, float]:
        """Steps trained and the seconds they took, validation included."""
        begun = time.perf_counter()
        with suppress(TrialFailure):  # a loss that becomes NaN takes as long
            train_epoch(run, self.data, self.teacher, self.task, 1_000, self.setting, most)
        return min(most, self.data.steps(run.recipe.optim.batch)), time.perf_counter() - begun

    # ---- inside

    def _advance(self, order: Order) -> Report:
        run, retries = self._open(order)
        while run.epoch < order.to:
            self._epoch(run, order.total)
            if order.deadline is not None and time.time() >= order.deadline:
                break
        report = self._report(order, run, retries)
        checkpoint.save(self.checkpoint_path(order.trial), *run.state())
        run.close()
        if report.value <= self.chance and run.epoch >= SETTLED:
            what = f"{self.task.metric} {report.value:.3f} is not above chance ({self.chance:.3f})"
            raise TrialFailure("chance", f"{what} after {run.epoch} epochs")
        return report

    def _open(self, order: Order) -> tuple[Run, int]:
        """The trial's run, from its checkpoint or new, and 1 if a checkpoint was lost so that it starts again."""
        run = self._new(order.recipe, order.seed)
        path = self.checkpoint_path(order.trial)
        if not path.exists():
            return run, int(order.start > 0)
        try:
            tensors, meta = checkpoint.load(path)
        except CheckpointError:
            return run, 1
        if (meta.get("recipe"), meta.get("seed")) != (order.recipe.to_dict(), order.seed):
            return run, 1
        try:
            run.restore(tensors, meta)
        except (KeyError, RuntimeError, ValueError):  # whole, but of another version of the user's own model or loss
            return self._new(order.recipe, order.seed), 1
        return run, 0

    def _new(self, recipe: Recipe, seed: int) -> Run:
        shapes = None if self.teacher is None else self.teacher.shapes
        return Run(recipe, seed, self.data.data, shapes, self.example, self.setting)

    def _epoch(self, run: Run, total: int) -> None:
        train_epoch(run, self.data, self.teacher, self.task, total, self.setting)

    def _report(self, order: Order, run: Run, retries: int) -> Report:
        """Covers every epoch the ledger does not know yet, also those whose report was lost with a process."""
        history = [log for log in run.history if log["epoch"] > order.start]
        metrics = run.history[-1]["metrics"]
        return Report(
            trial=order.trial,
            epoch=run.epoch,
            value=metrics[self.task.metric],
            tiebreak=-metrics["loss"],
            metrics=metrics,
            seconds=sum(log["seconds"] for log in history),
            history=history,
            checkpoint=self.checkpoint_path(order.trial).name,
            precision=self.setting.precision,
            retries=retries,
        )


def calibrate(
    data: Data, teacher: nn.Module | None, recipe: Recipe, device: str, folder: Path
) -> tuple[Setting, float]:
    """The setting in which this machine is fastest, measured on `recipe`, and the seconds of one of its epochs."""
    setting = Setting(device)
    if teacher is not None:
        timings = {
            name: _teacher_seconds(data, teacher, replace(setting, teacher_precision=name))
            for name in candidates(device)
        }
        setting = replace(setting, teacher_precision=fastest(timings))
    epochs = {}
    for name in candidates(device):
        core = TrainingCore(data, teacher, folder, replace(setting, precision=name))
        epochs[name] = core.seconds_per_epoch(recipe, seed=0)
        core.close()
    chosen = fastest(epochs)
    return replace(setting, precision=chosen), epochs[chosen]


def _teacher_seconds(data: Data, teacher: nn.Module, setting: Setting) -> float:
    """Of one forward pass over a batch, on the threads of a lane."""
    rows = to_float(torch.tensor(data.train.x[:CALIBRATION_ROWS], device=setting.device))
    index = torch.arange(len(rows), device=setting.device)
    signal = LiveTeacher(teacher, rows[:2], setting)
    batch = Batch(x=rows, y=index, index=index, view=torch.zeros_like(index), parent=index)
    with setting.on_its_threads():
        seconds = time_of(lambda: signal.outputs(batch))
    signal.close()
    return seconds
