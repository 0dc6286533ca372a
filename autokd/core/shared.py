"""A training step that begins at the indices of a batch, recorded once for all trials of one structure.

Everything from picking the rows to the update of the weights is in the recording. It owns its weights, optimiser state and buffers:
a trial's own are copied in at the beginning of an epoch and out at its end, so that trials may take turns epoch by epoch, and
nothing of one is left for the next. Seed and epoch, the epoch of the tape and the recipe's numbers are read from the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from autokd.augment.views import augmented_per_image
from autokd.core.data import Resident, Rows, batch_of
from autokd.core.graphs import WARM_UP, Graphed, rehearse
from autokd.core.held import MOST_HELD, Held, bytes_of
from autokd.core.lanes import TURNS
from autokd.core.recording import Capture
from autokd.core.replay import Replay
from autokd.core.run import Run
from autokd.core.step import Step
from autokd.protocols import TeacherSignal


class WholeStep:
    """From the indices of a batch to the update. All else that changes lies on the device, where `turn_to` puts it."""

    def __init__(self, rows: Resident, held: Held | None, device: str) -> None:
        self._rows, self._held = rows, held
        self._seed, self._epoch = torch.zeros(2, dtype=torch.int64, device=device).unbind()

    def turn_to(self, seed: int, epoch: int, signal: TeacherSignal | None) -> None:
        """Another epoch of views, and of the teacher on tape."""
        self._seed.fill_(seed)
        self._epoch.fill_(epoch)
        if self._held is not None and isinstance(signal, Replay):
            self._held.fill(signal)

    def __call__(self, step: Step, index: Tensor) -> None:
        rows, held = self._rows, self._held
        made = None if held is None else held.made
        batch = batch_of(rows.data, rows.pick(index), index, step.recipe.augment, self._seed, self._epoch, made)
        step(batch, None if held is None else held.outputs(batch))


class SharedStep:
    """Trains one trial at a time, an epoch at a time. `note` says why it runs unrecorded, or ""."""

    def __init__(self, own: Run, rows: Resident, held: Held | None, capture: Capture) -> None:
        """`own` must be a shared run of the structure; it belongs to this step from now on."""
        self._own, self._capture = own, capture
        self._whole = WholeStep(rows, held, own.setting.device)
        self._graphed = Graphed(partial(self._whole, own.step), capture, modules=list(own.parts))
        self._proven, self._unfit = False, ""
        own.parts.train()

    @property
    def note(self) -> str:
        return self._unfit or self._graphed.reason

    def train(
        self, run: Run, signal: TeacherSignal | None, batches: Iterable[Tensor], progress: Callable[[int], float]
    ) -> int:
        """Train the epoch that `run` has begun; how many of its steps were made. The rest, if any, cannot be made here.

        `progress` gives the place of a step in the whole training, in [0, 1]. Afterwards `run` is where it would be had it made
        these steps itself. Raises whatever the trial's own model or loss raises.
        """
        return sum(1 for _ in self.steps(run, signal, batches, progress))

    def steps(
        self, run: Run, signal: TeacherSignal | None, batches: Iterable[Tensor], progress: Callable[[int], float]
    ) -> Iterator[None]:
        """The same, a step at a time. Only after the last one is `run` where it should be."""
        numbered = enumerate(batches)
        self._whole.turn_to(run.seed, run.epoch, signal)
        if not self._proven:
            verdict = ""
            for number, index in islice(numbered, WARM_UP):
                verdict = self._prove(run, index, progress(number))
                yield
            self._proven, self._unfit = True, verdict
        if self._unfit:
            return
        self._own.take_over(run)
        for number, index in numbered:
            self._own.step.dial(progress(number))
            self._graphed(index)
            yield
        run.take_over(self._own)

    def close(self) -> None:
        self._graphed.close()
        self._own.close()

    def _prove(self, run: Run, index: Tensor, progress: float) -> str:
        """One of the first steps ever, by the run's own networks: what these keep to themselves nobody could copy out of others.

        Why it cannot be recorded, if so; the last of them counts, since the first may prepare what the later ones use.
        """
        run.step.dial(progress)
        return rehearse(lambda: self._launched(run.step, index), index.device.type, run.parts)

    def _launched(self, step: Step, index: Tensor) -> None:
        with TURNS.together():
            self._capture.run(lambda: self._whole(step, index))


def obstacle(runs: Sequence[Run], rows: Rows, signal: TeacherSignal | None) -> str:
    """Why the next epoch of these runs cannot be trained by a shared step, or ""."""
    recipe = runs[0].recipe
    if len(runs) > 1:
        return "the trials of a cohort are fed the same batches"
    if not isinstance(rows, Resident):
        return "the data are streamed"
    if runs[0].listens and not isinstance(signal, Replay):
        return "the teacher runs live"
    if runs[0].asks:
        return "a loss asks for rows of its own"
    if isinstance(signal, Replay) and bytes_of(signal) > MOST_HELD:
        return f"an epoch of the tape takes {bytes_of(signal) / 1e9:.1f} GB, {MOST_HELD / 1e9:.1f} GB may be held"
    if recipe.augment.policy != "jda":
        return ""
    per_image = augmented_per_image(recipe.augment.rho)
    if not per_image.is_integer():
        return f"{per_image:.2f} augmented rows per image make batches of changing size"
    recorded = isinstance(signal, Replay) and signal.made is not None
    return "" if recorded or not per_image else "the augmented rows are not on the tape"
