"""What losses may ask for beside the rows of a step: other rows, and what the student and the live teacher say of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autokd.augment.counters import uniform
from autokd.augment.views import make_view
from autokd.core.data import Rows
from autokd.core.live import LiveTeacher
from autokd.errors import TrialFailure
from autokd.protocols import Outputs

if TYPE_CHECKING:
    from autokd.core.run import Run


@dataclass(frozen=True)
class Beside:
    """What the core has and a run may ask for."""

    rows: Rows
    teacher: LiveTeacher | None


class Asking:
    """`autokd.protocols.Ask` for one network of a run."""

    def __init__(self, run: Run, network: int, beside: Beside) -> None:
        self._run = weakref.proxy(run)  # which holds this: a circle would keep its memory until it is found
        self._network, self._beside = network, beside
        self._seed, self._epoch = torch.zeros(2, dtype=torch.int64, device=run.setting.device).unbind()

    def begin_epoch(self) -> None:
        """Numbers of another epoch: on the device, where a recorded step reads them anew."""
        self._seed.fill_(self._run.seed)
        self._epoch.fill_(self._run.epoch)

    def student(self, x: Tensor) -> Outputs:
        with self._run.setting.autocast():
            return self._run.taps[self._network](x).float()

    def teacher(self, x: Tensor) -> Outputs:
        return self._teacher.outputs(x)

    def slope(self, x: Tensor, of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        return self._teacher.slope(x, of)

    def base(self, index: Tensor) -> Tensor:
        run, data = self._run, self._beside.rows.data
        x, _ = next(iter(self._beside.rows.fetch([index])))
        augment = run.recipe.augment
        return make_view(x, index, 0, augment, self._seed, self._epoch, data.pad, data.flip, data.value_range).x

    def uniform(self, *counters: Tensor | int) -> Tensor:
        return uniform(self._seed, self._epoch, *counters)

    @property
    def _teacher(self) -> LiveTeacher:
        if self._beside.teacher is None:
            raise TrialFailure(
                "exception", "a loss asks the teacher about rows of its own, and there is none; pass one"
            )
        return self._beside.teacher
