"""What a user is told before students are trained: lines, and a bar while a teacher is in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


def say(verbose: bool, line: str) -> None:
    """One line for the user."""
    if verbose:
        Console().print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def fitting(verbose: bool, what: str = "training the teacher") -> Iterator[Callable[[int, int, float], None]]:
    """A progress bar for a teacher in training; shown only if one has to be trained."""
    columns = (
        TextColumn(what),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} epochs, {task.fields[value]}"),
    )
    progress = Progress(*columns, TimeRemainingColumn(), disable=not verbose)
    task = progress.add_task("teacher", total=None, value="")

    def on_epoch(epoch: int, epochs: int, value: float) -> None:
        progress.start()
        progress.update(task, completed=epoch, total=epochs, value=f"validation {value:.2%}")

    try:
        yield on_epoch
    finally:
        if progress.live.is_started:
            progress.stop()
