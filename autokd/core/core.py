"""The training core: one per device. Holds the data, the teacher and its tape once and trains the trials it is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from autokd.core import checkpoint
from autokd.core.asking import Beside
from autokd.core.calibration import CHOICE, FOLDER, Calibrator, timed_steps
from autokd.core.data import Resident, Rows, steps, to_float
from autokd.core.device import Setting, give_freed_memory_back, has_fused_norm, keep_freed_memory, time_of
from autokd.core.graphs import CudaCapture
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
from autokd.core.loop import failure_of, train_epoch, validate
from autokd.core.payload import TapePlan
from autokd.core.pool import Pool, Pools
from autokd.core.rehearsing import fed_step, lane_step
from autokd.core.run import Run
from autokd.core.streamed import Streamed
from autokd.core.teaching import Teaching
from autokd.core.teachings import Teachers, Teachings
from autokd.data import Data
from autokd.errors import CheckpointError, Infeasible, InputError, TrialFailure
from autokd.orders import Order, Report
from autokd.recipe import Recipe
from autokd.students import resolve
from autokd.tasks import TASKS

MEMORY_KEPT = 10.0  # seconds for which freed memory stays with the process, at least
SETTLED = 3  # epochs after which a student at chance has failed; before, it is merely last in its rung
CALIBRATION_STEPS = 8  # of a first student
MOST_LANES, LANE_STEPS = 16, 50  # of one GPU, and steps of each while they are counted


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
        teachers: Teachers,
        folder: str | Path,
        setting: Setting,
        task: str = "classification",
        tape: TapePlan | None = None,
        calibrated: bool = False,
    ) -> None:
        """With `calibrated`, `setting` is where measuring starts, and each student shape gets its own."""
        keep_freed_memory()
        setting = replace(setting, fused_norm=setting.fused_norm and has_fused_norm(setting.device))
        self.setting, self.folder = setting, Path(folder)
        self.rows: Rows = Resident(data, setting.device) if data.source is None else Streamed(data, setting.device)
        self.task = TASKS[task]
        self.example = to_float(torch.as_tensor(data.train.x[:2])).to(setting.device)
        self.chance = self.task.chance(self.rows.val_y)
        self.teachings = Teachings(teachers, self.rows, self.example, setting, tape)
        measured = Calibrator(setting, self.step_seconds, self.folder / FOLDER)
        self._calibrator = measured if calibrated else None
        self.pools = Pools(partial(CudaCapture, setting.device)) if setting.on_gpu else None  # of recorded steps
        self._told: set[str] = set()  # notes that a report has carried
        self._gave_back = time.monotonic()

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
        with self.setting.on_its_threads(), lane_stream(self.setting.device) as stream:
            pool = None if self.pools is None else self.pools.of(stream)
            trainings = [self._open(order) for order in orders]
            for together in self._in_step(trainings):
                self._train(together, pool)
            answers = [self._close(training) for training in trainings]
        self._give_memory_back()
        return answers

    def _give_memory_back(self) -> None:
        """Not after every trial: short ones soon want again what they had."""
        if time.monotonic() - self._gave_back > MEMORY_KEPT:
            give_freed_memory_back()
            self._gave_back = time.monotonic()

    @property
    def teaching(self) -> Teaching | None:
        """Of the teacher as it was given."""
        return self.teachings.given

    def close(self) -> None:
        """Take the hooks off the teachers, end what reads in the background. The core cannot be used afterwards."""
        if self.pools is not None:
            self.pools.close()
        self.rows.close()
        self.teachings.close()

    def checkpoint_path(self, trial: str) -> Path:
        return self.folder / f"{trial}.safetensors"

    def setting_for(self, recipe: Recipe, steps_left: int) -> Setting:
        """How this student is run: measured, remembered, or what the core was given."""
        return self.setting if self._calibrator is None else self._calibrator.setting_for(recipe, steps_left)

    # ---- measuring

    def seconds_per_epoch(self, recipe: Recipe, seed: int) -> float:
        """Of training on a tape, from some steps, and one validation. Raises InputError if it cannot be trained."""
        with self.trying(recipe):
            each = median(self.step_seconds(recipe, self.setting, CALIBRATION_STEPS, seed))
            return self.epoch_of(recipe, self.setting, each)

    def epoch_of(self, recipe: Recipe, setting: Setting, step: float) -> float:
        """Seconds of an epoch whose steps take `step` each, with one validation, which is measured."""
        run = self.new(recipe, 0, setting)
        validation = time_of(lambda: validate(run, self.rows, self.task), repeats=1)
        run.close()
        return step * steps(len(self.rows), recipe.optim.batch) + validation

    @contextmanager
    def trying(self, recipe: Recipe) -> Iterator[None]:
        """A first student, tried before a search begins. Raises InputError for whatever a user's own model or loss raises."""
        try:
            with self.setting.on_its_threads():
                yield
        except InputError:
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InputError(
                f"the first student, '{recipe.student.family}', cannot be trained on {self.rows.data.name}: {told}; mend or leave it out"
            ) from error

    def step_seconds(self, recipe: Recipe, setting: Setting, most: int, seed: int = 0) -> list[float]:
        """Of each of `most` steps but the first, of a student trained from scratch on a tape, its batches included."""
        run = self.new(recipe, seed, setting)
        seconds = timed_steps(fed_step(run, self.rows, self.teachings.shapes, most), most, setting.device)
        run.close()
        return seconds

    def count_lanes(self, recipe: Recipe, most: int = MOST_LANES) -> LaneCount:
        """How many trials like this one the device trains at a time, by memory and throughput."""

        def lane() -> Callable[[], None]:
            run = self.new(recipe, 0, self.setting)
            pool = None if self.pools is None else self.pools.new()
            return lane_step(run, self.rows, self.teachings.shapes, LANE_STEPS, pool)

        def some_steps() -> None:
            step = lane()
            for _ in range(FIRST_STEPS):
                step()

        device = self.setting.device
        with self.setting.on_its_threads():
            each = memory_of(device, some_steps)
            return probe(lambda n: concurrent_throughput(lane, n, LANE_STEPS, device), each, memory_free(device), most)

    # ---- inside

    def _train(self, together: list[_Training], pool: Pool | None) -> None:
        """Epoch by epoch; who is done, late or failed leaves."""
        while together := [each for each in together if each.unfinished]:
            runs = [each.run for each in together if each.run is not None]
            until = max(each.order.to for each in together)
            try:
                first = together[0].order
                taught_by = self.teachings.of(first.recipe)
                logs = train_epoch(runs, self.rows, taught_by, self.task, first.total, until, pool)
            except Exception as error:  # of the data set or the teacher, which are the user's own: all of them fail
                logs = [failure_of(error) for _ in together]
            for each, told in zip(together, logs, strict=True):
                each.failure = told if isinstance(told, TrialFailure) else None

    def _in_step(self, trainings: Sequence[_Training]) -> list[list[_Training]]:
        """Those at the same epoch train together; one that lost its checkpoint starts again alone.

        Trials that the tape serves do not mix with those that need the teacher live: it would change what they hear, by rounding.
        """
        groups: dict[tuple[int, str, bool], list[_Training]] = {}
        for training in trainings:
            run = training.run
            if run is not None:
                teaching = self.teachings.of(run.recipe)
                on_tape = teaching is None or teaching.has_on_tape(run.of_teacher)
                groups.setdefault((run.epoch, run.recipe.stage0, on_tape), []).append(training)
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
        teaching = self.teachings.of(recipe)
        beside = Beside(self.rows, None if teaching is None else teaching.live)
        return Run(recipe, seed, self.rows.data, self.task, self.teachings.shapes, self.example, setting, beside=beside)

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
        """What teachers and calibration had to say since the last report."""
        said = [*self.teachings.notes, *(self._calibrator.notes if self._calibrator else ())]
        new = tuple(note for note in said if note not in self._told)
        self._told.update(new)
        return new
