"""Our side of the comparison: the product's own training core, called as a search calls it, an epoch at a time."""

from __future__ import annotations

import resource
import sys
import tempfile
from itertools import count
from pathlib import Path

import torch
from torch import Tensor, nn

from autokd.core.core import Blueprint, TrainingCore, calibrate
from autokd.core.device import Setting, candidates, has_fused_norm
from autokd.core.live import BLOCK, LiveTeacher
from autokd.core.loop import feed, signal_of
from autokd.core.payload import TapePlan
from autokd.data import Data
from autokd.orders import Order
from autokd.recipe import Recipe
from autokd.taping import TapePlace, tape_plan
from autokd.teacher import Teacher
from benchmarks.core import images, pairs
from benchmarks.core.images import Source
from benchmarks.core.measure import Repetition
from benchmarks.core.pairs import Pair

LIMIT = 4 * 10**9  # bytes of a tape
LOGITS = frozenset({"logits"})


def calibrated(pair: Pair, source: Source) -> tuple[Setting, str]:
    """The setting of one lane for this pair's recipe of distillation, as a search measures it, and in words."""
    data, teacher = _problem(pair, source)
    with tempfile.TemporaryDirectory() as scratch:
        base = calibrate(data, teacher, pairs.kd(pair), "cpu", Path(scratch)).setting
        core = TrainingCore(data, teacher, scratch, base, calibrated=True)
        setting = core.setting_for(pairs.kd(pair), steps_left=10**6)
        core.close()
    return setting, f"student {setting}; teacher {setting.teacher_precision}"


def training(recipe: Recipe, pair: Pair, source: Source, setting: Setting, tape: Path | None) -> Repetition:
    """An epoch of one trial without its validation; with a `tape`, recorded before the first one."""
    core = _core(pair, source, setting, tape)
    run = core.new(recipe, 0, setting)

    def epoch() -> int:
        with setting.on_its_threads():
            run.begin_epoch()
            signal = signal_of([run], core.teaching, 1)
            for batch, taught in feed(run, core.rows, signal):
                run.train(batch, taught, 0.5)
        return len(core.rows)

    return epoch


def recording(recipe: Recipe, pair: Pair, source: Source, setting: Setting, folder: Path) -> Repetition:
    """One segment of base views: another epoch each time, as in a search."""
    core, epochs = _core(pair, source, setting, folder), count()

    def record() -> int:
        with setting.on_its_threads():
            epoch = next(epochs)
            core.teaching.epoch(LOGITS, recipe.augment, 0, epoch, epoch + 1)  # type: ignore[union-attr]
        return len(core.rows)

    return record


def teacher_forward(recipe: Recipe, pair: Pair, source: Source, setting: Setting) -> Repetition:
    """The same rows through the same teacher in the same precision, layout and blocks; views made before, nothing kept."""
    data, module = _problem(pair, source)
    rows = torch.tensor(data.train.x).float().div_(255).contiguous(memory_format=setting.memory_format)
    live = LiveTeacher(module, rows[:2], setting)
    blocks: tuple[Tensor, ...] = rows.split(BLOCK["cpu"])

    def forward() -> int:
        with setting.on_its_threads(), torch.no_grad(), setting.autocast(teacher=True):
            for block in blocks:
                live.module(block)
        return len(rows)

    return forward


def footprint(recipe: Recipe, pair: Pair, source: Source, setting: Setting, folder: Path) -> tuple[int, int]:
    """Peak resident bytes of this process after two epochs on tape, and the bytes of the tape's segment."""
    epoch = training(recipe, pair, source, setting, folder)
    for _ in range(2):
        epoch()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def blueprint(teacher: Teacher, recipes: list[Recipe], folder: Path, epochs: int) -> Blueprint:
    """What a search hands to its lanes, calibrated on the first recipe, with a tape that holds nothing yet."""
    measured = calibrate(teacher.data, teacher.module, recipes[0], "cpu", folder)
    objectives = sorted({term.objective for recipe in recipes for term in recipe.terms})
    tape, _ = tape_plan(teacher, objectives, epochs, TapePlace(folder / "tape", LIMIT))
    return Blueprint(teacher.data, teacher.module, str(folder / "checkpoints"), measured.setting, tape=tape)


def precisions() -> tuple[str, ...]:
    """What calibration may choose on this machine."""
    return candidates("cpu")


def accuracy(recipe: Recipe, seed: int, precision: str, teacher: Teacher, epochs: int) -> float:
    """Validation accuracy of a whole training on tape, student and teacher in this precision; float32 with torch's operators alone."""
    fused = precision != "fp32" and has_fused_norm("cpu")
    setting = Setting(precision=precision, teacher_precision=precision, fused_norm=fused)
    with tempfile.TemporaryDirectory() as scratch:
        tape, _ = tape_plan(teacher, ["kd"], epochs, TapePlace(Path(scratch) / "tape", LIMIT))
        core = TrainingCore(teacher.data, teacher.module, scratch, setting, tape=tape)
        report = core.advance(Order(trial="t", recipe=recipe, seed=seed, to=epochs, total=epochs))
        core.close()
    return report.value


# ---- inside


def _problem(pair: Pair, source: Source) -> tuple[Data, nn.Module]:
    found = images.load(source)
    return images.as_data(found), pairs.teacher(pair, found, normalises=True)


def _core(pair: Pair, source: Source, setting: Setting, tape: Path | None) -> TrainingCore:
    data, module = _problem(pair, source)
    plan = None if tape is None else TapePlan(str(tape), LIMIT, LOGITS)
    return TrainingCore(data, module, "", setting, tape=plan)
