"""One epoch of a trial, or of a cohort of trials that are fed the same batches, top to bottom.

Read this file first: data, views, teacher and steps meet here and nowhere else. `step.py` is what happens to one batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from autokd.core.data import Rows, batch_of, order, steps, to_float
from autokd.core.optim import learning_rate
from autokd.core.pool import Pool
from autokd.core.replay import Replay
from autokd.core.run import Run
from autokd.core.shared import SharedStep
from autokd.core.teaching import Teaching
from autokd.errors import TrialFailure
from autokd.protocols import Batch, Outputs, Task, TeacherSignal

MEASURED = 3  # first batches on which terms are measured, where their weights count in units of that

Log = dict[str, Any]


def train_epoch(
    runs: Sequence[Run],
    rows: Rows,
    teaching: Teaching | None,
    task: Task,
    total: int,
    until: int = 0,
    pool: Pool | None = None,
) -> list[Log | TrialFailure]:
    """Train one epoch of every run and validate. The runs share seed, views, batch size and epoch; the teacher runs once for all.

    `total` is the number of epochs the schedules are laid out for, `until` the number these runs are sure to train. A log holds
    epoch, seconds, recording, lr, loss, terms and metrics. What goes wrong in one run is its own failure and not the others'.
    With a `pool` whole steps are recorded and replayed, as far as they can be.
    """
    leader, failures = runs[0], dict[int, TrialFailure]()
    begun = time.perf_counter()
    signal = signal_of(runs, teaching, until)
    recording, begun = time.perf_counter() - begun, time.perf_counter()
    shared = None if pool is None else pool.step_for(runs, rows, signal)
    count = steps(len(rows), leader.recipe.optim.batch)

    def progress(number: int) -> float:
        return (leader.epoch + number / count) / total

    for run in runs:
        if run.epoch == 0:
            run.measure_terms(feed(run, rows, signal, most=MEASURED))
        run.begin_epoch(progress(0))

    done = 0 if shared is None else _train_shared(leader, shared, rows, signal, progress, failures)
    for number, (batch, taught) in enumerate(feed(leader, rows, signal, first=done), start=done):
        if len(failures) == len(runs):
            break
        for position, run in enumerate(runs):
            if position not in failures:
                try:
                    with run.own_noise(alone=len(runs) == 1):
                        run.train(batch, None if taught is None else taught.only(run.of_teacher), progress(number))
                except Exception as error:  # whatever a user's own model or loss raises ends this run, not the others
                    failures[position] = failure_of(error)

    seconds = (time.perf_counter() - begun) / len(runs)
    return [
        failures[position] if position in failures else _log(run, rows, task, total, count, seconds, recording)
        for position, run in enumerate(runs)
    ]


def _train_shared(
    run: Run,
    shared: SharedStep,
    rows: Rows,
    signal: TeacherSignal | None,
    progress: Callable[[int], float],
    failures: dict[int, TrialFailure],
) -> int:
    """How many steps of the run's epoch were made; the rest is to be fed."""
    batches = order(len(rows), run.recipe.optim.batch, run.seed, run.epoch, run.setting.device)
    try:
        done = shared.train(run, signal, batches, progress)
    except Exception as error:  # as in `train_epoch`
        failures[0] = failure_of(error)
        return len(batches)
    run.fed_because = shared.note
    return done


def signal_of(runs: Sequence[Run], teaching: Teaching | None, until: int) -> TeacherSignal | None:
    """The teacher of this epoch for all of them, None where no run listens."""
    listening = [run for run in runs if run.listens]
    if teaching is None or not listening:
        return None
    needs = frozenset[str]().union(*(run.of_teacher for run in listening))
    leader = runs[0]
    return teaching.epoch(needs, leader.recipe.augment, leader.seed, leader.epoch, until)


def feed(
    run: Run, rows: Rows, signal: TeacherSignal | None, most: int | None = None, first: int = 0
) -> Iterator[tuple[Batch, Outputs | None]]:
    """The batches of the run's next epoch with what the teacher says of them, from number `first` on and below `most`."""
    batches = order(len(rows), run.recipe.optim.batch, run.seed, run.epoch, run.setting.device)[first:most]
    recorded = signal.made if isinstance(signal, Replay) else None
    for index, picked in zip(batches, rows.fetch(batches), strict=True):
        batch = batch_of(rows.data, picked, index, run.recipe.augment, run.seed, run.epoch, recorded)
        yield batch, None if signal is None else signal.outputs(batch)


def failure_of(error: Exception) -> TrialFailure:
    """The same as a scored failure."""
    if isinstance(error, TrialFailure):
        return error
    told = str(error).strip().splitlines()
    failure = TrialFailure("exception", f"{type(error).__name__}: {told[0] if told else ''}")
    failure.__cause__ = error
    return failure


def validate(run: Run, rows: Rows, task: Task) -> dict[str, float]:
    """Metrics of the plain student on the validation split."""
    run.student.eval()

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad(), run.setting.autocast():
            return run.taps[0](x).logits.float()

    return task.evaluate(forward, to_float(rows.val_x), rows.val_y)


def _log(
    run: Run, rows: Rows, task: Task, total: int, count: int, seconds: float, recording: float
) -> Log | TrialFailure:
    """Once an epoch: is it still a number, and how good is the student?"""
    begun = time.perf_counter()
    try:
        metrics = validate(run, rows, task)
    except Exception as error:  # as above
        return failure_of(error)
    sums = run.step.sums
    if not all(map(math.isfinite, (*sums.values(), *metrics.values()))):
        told = f"the loss was no longer a number in epoch {run.epoch + 1}; lower optim.lr or the term weights"
        return TrialFailure("nan", told)
    run.epoch += 1
    terms = {name: total_of_term / count for name, total_of_term in sums.items() if name != "all"}
    log = {
        "epoch": run.epoch,
        "lr": learning_rate(run.recipe.optim, (run.epoch - 1) / total),
        "loss": sum(terms.values()),
        "terms": terms,
        "metrics": metrics,
        "seconds": seconds + time.perf_counter() - begun,
        "recording": recording,
    }
    run.history.append(log)
    return log
