"""Steps of a new trial, for measuring what they cost: as its epochs would make them on a tape, which need not be there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle

from autokd.core.data import Rows, order
from autokd.core.live import Rehearsal, rehearsed_tape
from autokd.core.loop import feed
from autokd.core.pool import Pool
from autokd.core.run import Run
from autokd.protocols import Batch, Outputs, Shapes

HALFWAY = 0.5  # of the training: where the dials stand


def fed_step(run: Run, rows: Rows, teacher: Shapes | None, most: int) -> Callable[[], None]:
    """Makes the next step of `run` each time it is called, over and over its first `most` batches."""
    signal = Rehearsal(teacher, run.of_teacher, run.setting.device) if teacher and run.listens else None

    def again_and_again() -> Iterator[tuple[Batch, Outputs | None]]:
        while True:
            yield from feed(run, rows, signal, most)

    run.begin_epoch()
    batches = again_and_again()
    return lambda: run.train(*next(batches), HALFWAY)


def lane_step(run: Run, rows: Rows, teacher: Shapes | None, most: int, pool: Pool | None) -> Callable[[], None]:
    """The same by whole recorded steps, where a lane with such a `pool` would make these."""
    tape = None
    if teacher is not None and run.listens:
        tape = rehearsed_tape(teacher, run.of_teacher, len(rows), run.setting.device)
    shared = None if pool is None else pool.step_for([run], rows, tape)
    if shared is None:
        return fed_step(run, rows, teacher, most)
    run.begin_epoch()
    batches = order(len(rows), run.recipe.optim.batch, run.seed, run.epoch, run.setting.device)[:most]
    alike = [index for index in batches if len(index) == len(batches[0])]  # one recording, made before the clock runs
    steps = shared.steps(run, tape, cycle(alike), lambda _: HALFWAY)
    return lambda: next(steps)
