"""Where a step gets the teacher's outputs.

Now: the live network, run on every batch. A tape that records outputs once and replays them in every trial has the same interface
(`protocols.TeacherSignal`); views are already functions of (seed, epoch, index, view), which is what makes a replay possible.
"""

from __future__ import annotations

from threading import Lock

import torch
from torch import Tensor, nn

from autokd.core.device import Setting
from autokd.protocols import Batch, Outputs
from autokd.students.tap import Tap


class LiveTeacher:
    """The frozen teacher itself: eval mode, no gradients."""

    def __init__(self, module: nn.Module, example: Tensor, setting: Setting) -> None:
        self.setting = setting
        frozen = module.to(setting.device).eval().requires_grad_(False)
        self.tap = Tap(frozen, example)
        self.shapes = self.tap.shapes
        self._one_at_a_time = Lock()  # lanes of one GPU share the teacher

    def outputs(self, batch: Batch) -> Outputs:
        """Outputs for every row of `batch`, detached, float32."""
        self.tap.module.eval()  # a module shared with its owner may have been set to train
        with self._one_at_a_time, torch.no_grad(), self.setting.autocast(teacher=True):
            return self.tap(batch.x).float()

    def close(self) -> None:
        """Take the hooks off the module: it is the user's."""
        self.tap.close()
