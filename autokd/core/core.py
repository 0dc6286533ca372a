"""The training core: one per device. Holds the data, the teacher and its tape once and trains the trials it is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from autokd.core import checkpoint
from autokd.core.calibration import CHOICE, Calibrator, timed_steps
from autokd.core.data import Resident, Rows, steps, to_float
from autokd.core.device import Setting, candidates, fastest, keep_freed_memory, time_of
from autokd.core.gathering import Gathering
from autokd.core.lanes import (
    FIRST_STEPS,
    LaneCount,
    concurrent_throughput,
    lane_stream,
    memory_free,
    memory_of,
    probe,
)
from autokd.core.latency import probed_latency
from autokd.core.live import LiveTeacher, Rehearsal
from autokd.core.loop import failure_of, feed, train_epoch, validate
from autokd.core.payload import TapePlan
from autokd.core.run import Run
from autokd.core.streamed import Streamed
from autokd.core.teaching import Teaching
from autokd.data import Data
from autokd.errors import CheckpointError, Infeasible, InputError, TrialFailure
from autokd.orders import Core, Order, Report
from autokd.protocols import Batch, Outputs, StudentFamily, TeacherSignal
from autokd.recipe import Recipe
from autokd.students import GIVEN, resolve
from autokd.tasks import TASKS

SETTLED = 3  # epochs after which a student at chance has failed; before, it is merely last in its rung
CALIBRATION_ROWS, CALIBRATION_REPEATS = 64, 3  # of the teacher
CALIBRATION_STEPS = 8  # of the first student
MOST_LANES, LANE_STEPS = 16, 50  # of one GPU, and steps of each while they are counted


@dataclass(frozen=True)
class Blueprint:
    """Everything a core is made from. Crosses processes once per lane; `build` opens the core there."""

    data: Data
    teacher: nn.Module | None
    folder: str
    setting: Setting
    task: str = "classification"
    given: Mapping[str, StudentFamily] = field(default_factory=lambda: dict(GIVEN))  # families that are objects
    tape: TapePlan | None = None
    cohort: int = 1  # trials that may share a live teacher
    lanes: int = 1  # of this core

    def build(self) -> Core:
        GIVEN.update(self.given)
        core = TrainingCore(self.data, self.teacher, self.folder, self.setting, self.task, self.tape, calibrated=True)
        return Gathering(core, self.cohort, self.lanes) if self.cohort > 1 else core


@dataclass
class _Training:
    """An order at work."""

    order: Order
    run: Run | None = None
    retries: int = 0
    latency_ms: float | None = None
    failure: TrialFailure | CheckpointError | None = None

    @property
    def unfinished(self) -> bool:
        if self.failure is not None or self.run is None or self.run.epoch >= self.order.to:
            return False
        new = self.run.epoch > self.order.start
        return not (new and self.order.deadline is not None and time.time() >= self.order.deadline)


class TrainingCore:
    """Trains trials on one device, from checkpoint to checkpoint in `folder`."""

    def __init__(
        self,
        data: Data,
        teacher: nn.Module | None,
        folder: str | Path,
        setting: Setting,
        task: str = "classification",
        tape: TapePlan | None = None,
        calibrated: bool = False,
    ) -> None:
        """With `calibrated`, `setting` is where measuring starts, and each student shape gets its own."""
        keep_freed_memory()
        self.setting, self.folder = setting, Path(folder)
        self.rows: Rows = Resident(data, setting.device) if data.source is None else Streamed(data, setting.device)
        self.task = TASKS[task]
        self.example = to_float(torch.as_tensor(data.train.x[:2])).to(setting.device)
        self.chance = self.task.chance(self.rows.val_y)
        self.teaching = None
        if teacher is not None:
            with setting.on_its_threads():
                self.teaching = Teaching(LiveTeacher(teacher, self.example, setting), self.rows, tape)
        measured = Calibrator(setting, self.step_seconds, self.folder / "calibration")
        self._calibrator = measured if calibrated else None
        self._told: set[str] = set()  # notes that a report has carried

    def advance(self, order: Order) -> Report:
        """Train the order's trial to `order.to` epochs, or to the epoch in which its deadline passes.

        Goes on from the trial's checkpoint if that is sound, else from the beginning. Raises TrialFailure for NaN, chance level
        or any exception of a model, loss or data set; CheckpointError if the checkpoint cannot be written.
        """
        answer = self.advance_together([order])[0]
        if isinstance(answer, Report):
            return answer
        raise answer

    def advance_together(self, orders: Sequence[Order]) -> list[Report | TrialFailure | CheckpointError]:
        """The same for a cohort: trials that agree in seed, views, batch size and epochs, fed the same batches.

        The views are made once and a live teacher runs once for all of them, so that k trials cost T + k·S instead of k·(T + S).
        """
        with self.setting.on_its_threads(), lane_stream(self.setting.device):
            trainings = [self._open(order) for order in orders]
            for together in self._in_step(trainings):
                self._train(together)
            return [self._close(training) for training in trainings]

    def close(self) -> None:
        """Take the hooks off the teacher, end what reads in the background. The core cannot be used afterwards."""
        self.rows.close()
        if self.teaching is not None:
            self.teaching.close()

    def checkpoint_path(self, trial: str) -> Path:
        return self.folder / f"{trial}.safetensors"

    def setting_for(self, recipe: Recipe, steps_left: int) -> Setting:
        """How this student is run: measured, remembered, or what the core was given."""
        return self.setting if self._calibrator is None else self._calibrator.setting_for(recipe, steps_left)

    # ---- measuring

    def seconds_per_epoch(self, recipe: Recipe, seed: int) -> float:
        """Of training on a tape, from some steps, and one validation. Raises InputError if it cannot be trained."""
        try:
            with self.setting.on_its_threads():
                each = median(self.step_seconds(recipe, self.setting, CALIBRATION_STEPS, seed))
                run = self.new(recipe, seed, self.setting)
                validation = time_of(lambda: validate(run, self.rows, self.task), repeats=1)
        except InputError:
            raise
        except Exception as error:  # whatever a user's own model or loss raises, here before a search begins
            told = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InputError(
                f"the first student, '{recipe.student.family}', cannot be trained on {self.rows.data.name}: {told}; mend or leave it out"
            ) from error
        run.close()
        return each * steps(len(self.rows), recipe.optim.batch) + validation

    def step_seconds(self, recipe: Recipe, setting: Setting, most: int, seed: int = 0) -> list[float]:
        """Of each of `most` steps but the first, of a student trained from scratch on a tape, its batches included."""
        run = self.new(recipe, seed, setting)
        signal = self._rehearsal(run)
        run.begin_epoch()
        batches = self._again_and_again(run, signal, most)

        seconds = timed_steps(lambda: run.train(*next(batches), 0.5), most, setting.device)
        run.close()
        return seconds

    def _rehearsal(self, run: Run) -> Rehearsal | None:
        if self.teaching is None or not run.recipe.terms:
            return None
        return Rehearsal(self.teaching.shapes, run.of_teacher, run.setting.device)

    def _again_and_again(
        self, run: Run, signal: TeacherSignal | None, most: int
    ) -> Iterator[tuple[Batch, Outputs | None]]:
        while True:
            yield from feed(run, self.rows, signal, most)

    def count_lanes(self, recipe: Recipe, most: int = MOST_LANES) -> LaneCount:
        """How many trials like this one the device trains at a time, by memory and throughput."""

        def lane() -> Callable[[], None]:
            run = self.new(recipe, 0, self.setting)
            signal = self._rehearsal(run)
            run.begin_epoch()
            batches = self._again_and_again(run, signal, LANE_STEPS)
            return lambda: run.train(*next(batches), 0.5)

        def some_steps() -> None:
            step = lane()
            for _ in range(FIRST_STEPS):
                step()

        device = self.setting.device
        with self.setting.on_its_threads():
            each = memory_of(device, some_steps)
            return probe(lambda n: concurrent_throughput(lane, n, LANE_STEPS, device), each, memory_free(device), most)

    # ---- inside

    def _train(self, together: list[_Training]) -> None:
        """Epoch by epoch; who is done, late or failed leaves."""
        while together := [each for each in together if each.unfinished]:
            runs = [each.run for each in together if each.run is not None]
            until = max(each.order.to for each in together)
            try:
                logs = train_epoch(runs, self.rows, self.teaching, self.task, together[0].order.total, until)
            except Exception as error:  # of the data set or the teacher, which are the user's own: all of them fail
                logs = [failure_of(error) for _ in together]
            for each, told in zip(together, logs, strict=True):
                each.failure = told if isinstance(told, TrialFailure) else None

    def _in_step(self, trainings: Sequence[_Training]) -> list[list[_Training]]:
        """Those at the same epoch train together; one that lost its checkpoint starts again alone.

        Trials that the tape serves do not mix with those that need the teacher live: it would change what they hear, by rounding.
        """
        groups: dict[tuple[int, bool], list[_Training]] = {}
        for training in trainings:
            run = training.run
            if run is not None:
                on_tape = self.teaching is None or self.teaching.has_on_tape(run.of_teacher)
                groups.setdefault((run.epoch, on_tape), []).append(training)
        return list(groups.values())

    def _open(self, order: Order) -> _Training:
        """The trial's run, from its checkpoint or new, and 1 retry if a checkpoint was lost so that it starts again."""
        try:
            latency = self._probed(order)
            found, lost = self._found(order)
            run = self.new(order.recipe, order.seed, self._setting(order, found))
            if found is None:
                return _Training(order, run, int(lost), latency)
            try:
                run.restore(*found)
            except (
                KeyError,
                RuntimeError,
                ValueError,
            ):  # whole, but of another version of the user's own model or loss
                return _Training(order, self.new(order.recipe, order.seed, run.setting), 1, latency)
            return _Training(order, run, 0, latency)
        except Exception as error:  # whatever a user's own model or loss raises ends this trial, not the search
            return _Training(order, failure=failure_of(error))

    def _probed(self, order: Order) -> float | None:
        """Milliseconds in which the untrained student answers, if the order asks. Raises Infeasible if they are too many."""
        if order.probe is None:
            return None
        data, spec = self.rows.data, order.recipe.student

        def build() -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                return resolve(spec.family).build(spec.fields, data.input_shape, data.classes)

        folder = self.folder / "probes"
        found = probed_latency(spec.key, build, data.input_shape, order.probe, self.setting, folder)
        if not order.probe.allows(found):
            raise Infeasible(found, f"{spec.family} answers in {found:.3g} ms, wanted {order.probe}")
        return found

    def _found(self, order: Order) -> tuple[tuple[dict[str, Any], dict[str, Any]] | None, bool]:
        """The trial's checkpoint, and whether one is lost."""
        path = self.checkpoint_path(order.trial)
        if not path.exists():
            return None, order.start > 0
        try:
            tensors, meta = checkpoint.load(path)
        except CheckpointError:
            return None, True
        if (meta.get("recipe"), meta.get("seed")) != (order.recipe.to_dict(), order.seed):
            return None, True
        return (tensors, meta), False

    def _setting(self, order: Order, found: tuple[dict[str, Any], dict[str, Any]] | None) -> Setting:
        """As this trial began, so that a resumed trial equals one that was not interrupted; else measured."""
        kept = found[1].get("setting") if found else None
        if kept:
            return replace(self.setting, **{name: kept[name] for name in CHOICE})
        if self._calibrator is None:
            return self.setting
        return self._calibrator.setting_for(order.recipe, order.total * steps(len(self.rows), order.recipe.optim.batch))

    def new(self, recipe: Recipe, seed: int, setting: Setting) -> Run:
        """A trial at its beginning."""
        shapes = None if self.teaching is None else self.teaching.shapes
        return Run(recipe, seed, self.rows.data, self.task, shapes, self.example, setting)

    def _close(self, training: _Training) -> Report | TrialFailure | CheckpointError:
        """Checkpoint and report, or why there is none."""
        run, order = training.run, training.order
        if run is None or training.failure is not None:
            if run is not None:
                run.close()
            return training.failure or TrialFailure("exception", "the trial could not be opened")
        report = replace(self._report(order, run, training.retries), latency_ms=training.latency_ms)
        tensors, meta = run.state()
        kept = {name: asdict(run.setting)[name] for name in CHOICE}
        try:
            checkpoint.save(self.checkpoint_path(order.trial), tensors, {**meta, "setting": kept})
        except CheckpointError as error:
            return error
        finally:
            run.close()
        if report.value <= self.chance and run.epoch >= SETTLED:
            what = f"{self.task.metric} {report.value:.3f} is not above chance ({self.chance:.3f})"
            return TrialFailure("chance", f"{what} after {run.epoch} epochs")
        return report

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
            precision=str(run.setting),
            retries=retries,
            notes=(*self._new_notes(), *run.notes),
        )

    def _new_notes(self) -> tuple[str, ...]:
        """What teacher and calibration had to say since the last report."""
        said = [*(self.teaching.notes if self.teaching else ()), *(self._calibrator.notes if self._calibrator else ())]
        new = tuple(note for note in said if note not in self._told)
        self._told.update(new)
        return new


@dataclass(frozen=True)
class Measured:
    """What this machine makes of a search's data, teacher and first recipe."""

    setting: Setting
    epoch_seconds: float  # of the first recipe, on a tape
    teacher_seconds: float  # of the teacher over all training rows, once


def calibrate(data: Data, teacher: nn.Module | None, recipe: Recipe, device: str, folder: Path) -> Measured:
    """The setting in which this machine is fastest, measured on `recipe`, and what it costs."""
    setting, passes = Setting(device), {"fp32": 0.0}
    if teacher is not None:
        passes = {
            name: _teacher_seconds(data, teacher, replace(setting, teacher_precision=name))
            for name in candidates(device)
        }
        setting = replace(setting, teacher_precision=fastest(passes))
    epochs = {}
    for name in candidates(device):
        core = TrainingCore(data, teacher, folder, replace(setting, precision=name))
        epochs[name] = core.seconds_per_epoch(recipe, seed=0)
        core.close()
    chosen = fastest(epochs)
    taught = passes[setting.teacher_precision] * len(data.train.y) / CALIBRATION_ROWS
    return Measured(replace(setting, precision=chosen), epochs[chosen], taught)


def _teacher_seconds(data: Data, teacher: nn.Module, setting: Setting) -> float:
    """Of one forward pass over a batch, on the threads of a lane."""
    index = np.arange(CALIBRATION_ROWS) % len(data.train.y)
    rows = to_float(torch.as_tensor(data.train.x[index])).to(setting.device)
    live = LiveTeacher(teacher, rows[:2], setting)
    with setting.on_its_threads():
        seconds = time_of(lambda: live.outputs(rows), CALIBRATION_REPEATS)
    live.close()
    return seconds
