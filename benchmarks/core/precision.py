"""Whether bf16, where calibration chooses it, costs accuracy: the same recipe of distillation in bf16 and in float32, over seeds, on two data sets.

Runs are paired by seed: equal initial weights, views and order of batches. "No difference beyond noise" is that the 95 % interval of the mean
paired difference contains 0.
"""

from __future__ import annotations

from concurrent.futures import Future, as_completed
from statistics import mean, stdev

from rich.progress import Progress, TaskID

from autokd.recipe import Recipe
from benchmarks.core import pairs
from benchmarks.core.figures import Bar, Part, no_difference_bar
from benchmarks.core.images import Source, choose
from benchmarks.core.measure import Absent, apart, fresh_process
from benchmarks.core.options import Options
from benchmarks.core.ours import (
    accuracy,  # (Recipe, seed, "fp32" | "bf16" of student and teacher, Teacher, epochs) -> validation accuracy in [0, 1]
    precisions,  # () -> the precisions calibration may choose on this machine
)
from benchmarks.core.pairs import Pair
from benchmarks.core.search import teacher_of

PAIR = Pair("precision", 16, 8)
BATCH = 64
HELD = {"digits": 360, "fashion_mnist": 2_000}  # validation images: enough for a tenth of a point to be seen
TEACHER_EPOCHS = {"digits": 10, "fashion_mnist": 4}
LANES = 2
PRECISIONS = ("fp32", "bf16")


def run(options: Options, progress: Progress) -> Part:
    """Both precisions on both data sets; a data set that is not here is left out, with the reason."""
    part = Part(f"bf16 against float32, {options.seeds} seeds, the same recipe of distillation")
    offered = apart(precisions)
    rows: list[tuple[str, ...]] = []
    for name in HELD:
        claim = f"accuracy of bf16 against fp32, {name}"
        try:
            if "bf16" not in offered:
                raise Absent("this processor does not compute in bf16, so calibration never chooses it here")
            source = choose(name, options.precision_rows, options.folder, HELD[name])
        except Absent as why:
            part.bars.append(Bar(claim, "interval contains 0", str(why), None))
            continue
        found = _accuracies(source, options, progress)
        rows += [(name, each, *_summary(found[each])) for each in PRECISIONS]
        pairs_of = zip(found["bf16"], found["fp32"], strict=True)
        part.bars.append(no_difference_bar(claim, [low - full for low, full in pairs_of]))
        part.raw[name] = found
    part.tables = [(("data", "precision", "mean accuracy", "sd", "each seed"), rows)] if rows else []
    return part


def recipe() -> Recipe:
    """Distillation with a schedule that ends at zero, so that accuracies have settled."""
    plain = pairs.kd(PAIR)
    optim = plain.optim.model_copy(update={"batch": BATCH, "schedule": "cosine", "warmup": 0.05})
    return plain.model_copy(update={"optim": optim})


def _accuracies(source: Source, options: Options, progress: Progress) -> dict[str, list[float]]:
    """Validation accuracy by precision, seed after seed."""
    task = progress.add_task(f"precision: {source.name}", total=len(PRECISIONS) * options.seeds)
    teacher = apart(teacher_of, PAIR, source, TEACHER_EPOCHS[source.name])
    wanted = [(seed, precision) for seed in range(options.seeds) for precision in PRECISIONS]
    with fresh_process(threads=1, count=LANES) as pool:
        futures = {
            (seed, precision): pool.submit(accuracy, recipe(), seed, precision, teacher, options.precision_epochs)
            for seed, precision in wanted
        }
        _show(list(futures.values()), progress, task)
        return {
            precision: [futures[seed, precision].result() for seed in range(options.seeds)] for precision in PRECISIONS
        }


def _show(futures: list[Future[float]], progress: Progress, task: TaskID) -> None:
    for done in as_completed(futures):
        done.result()
        progress.advance(task)


def _summary(values: list[float]) -> tuple[str, str, str]:
    each = ", ".join(f"{100 * value:.1f}" for value in values)
    return f"{100 * mean(values):.2f} %", f"{100 * stdev(values):.2f}", each
