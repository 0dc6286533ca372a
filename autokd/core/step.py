"""One training step of one run: forward, losses, backward, update.

What changes between steps is read from tensors only (rows, teacher's outputs, learning rate, ramps), and nothing is read back from
the device, so that a step can be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autokd.augment.views import ccd_weight
from autokd.core.device import Setting
from autokd.core.dials import Dials, Factors, factors_of
from autokd.core.optim import decay, learning_rate, set_learning_rate
from autokd.errors import TrialFailure
from autokd.peers import peer_losses
from autokd.protocols import Batch, Objective, Outputs, Task
from autokd.recipe import Recipe

Forward = Callable[[Tensor], list[Outputs]]  # rows -> what each network says of them, the student first


class Step:
    """Trains the student (the first network) and its peers on one batch per call; `sums` adds up the student's own losses."""

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        forward: Forward,
        objectives: Sequence[nn.ModuleList],
        optimiser: torch.optim.Optimizer,
        setting: Setting,
        dials: Dials | None = None,
    ) -> None:
        """With `dials`, which `optimiser` has its learning rate from, the recipe's numbers are read there in every step."""
        self.recipe, self.task, self.setting, self.dials = recipe, task, setting, dials
        self._factors = factors_of(recipe) if dials is None else dials.factors
        self.forward, self.objectives, self.optimiser = forward, objectives, optimiser
        self._ramps = torch.ones(max(1, len(recipe.terms)), device=setting.device)  # of the terms' weights, in [0, 1]
        self._names: list[str] = []
        self._sums = torch.zeros(0, device=setting.device)

    def dial(self, progress: float) -> None:
        """Learning rate and ramps for the next call, at `progress` in [0, 1] of the whole training."""
        set_learning_rate(self.optimiser, learning_rate(self.recipe.optim, progress))
        for number, term in enumerate(self.recipe.terms):
            if term.warmup:
                self._ramps[number].fill_(min(1.0, progress / term.warmup))

    def __call__(self, batch: Batch, taught: Outputs | None) -> None:
        recipe, factors = self.recipe, self._factors

        # 1. every network once
        with self.setting.autocast():
            outputs = self.forward(batch.x)
        outputs = [each.float() for each in outputs]

        # 2. losses of every network by name, in float32
        mutual = peer_losses([each.logits for each in outputs], factors.peer_temperature)
        weight = row_weights(recipe, taught, batch)
        losses = []
        for each, objectives, peer_loss in zip(outputs, self.objectives, mutual, strict=True):
            parts = network_losses(recipe, factors, self.task, each, taught, batch, objectives, weight, self._ramps)
            if recipe.peers.count:
                parts["peers"] = factors.peer_weight * peer_loss
            losses.append(parts)

        # 3. one backward, one update
        loss = torch.stack([term for parts in losses for term in parts.values()]).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.dials is not None:
            decay(self.optimiser, self.dials.lr, self.dials.weight_decay)
        self.optimiser.step()
        self._add({**losses[0], "all": loss})  # the student's own are the ones logged

    def begin(self) -> None:
        """Of an epoch: nothing is summed up yet."""
        self._sums.zero_()

    def take_over(self, other: Step) -> None:
        """The trial of another step of the same structure: its schedules, and what it has summed up in this epoch."""
        self.recipe = other.recipe
        self._ramps.fill_(1.0)
        if other._names and not self._names:
            self._names, self._sums = list(other._names), other._sums.clone()
        elif other._names:
            self._sums.copy_(other._sums)
        else:
            self._sums.zero_()

    @property
    def sums(self) -> dict[str, float]:
        """Read from the device, which waits for it: once an epoch."""
        return dict(zip(self._names, self._sums.tolist(), strict=True))

    def _add(self, losses: Mapping[str, Tensor]) -> None:
        if not self._names:
            self._names = list(losses)
            self._sums = torch.zeros(len(losses), device=self._sums.device)
        self._sums += torch.stack([loss.detach() for loss in losses.values()])


def network_losses(
    recipe: Recipe,
    factors: Factors,
    task: Task,
    student: Outputs,
    teacher: Outputs | None,
    batch: Batch,
    objectives: Any,
    row_weight: Tensor | None,
    ramps: Tensor,
) -> dict[str, Tensor]:
    """Weighted losses of one network by name: "ce", then "<objective>" or "<objective>.<part>"."""
    losses = {"ce": factors.ce_weight * task.loss(student, batch)}
    for term, weight, objective, ramp in zip(recipe.terms, factors.weights, objectives, ramps, strict=False):
        parts = parts_of(objective, student, teacher, batch, row_weight)
        for name, part in parts.items():
            full = term.objective if name == term.objective else f"{term.objective}.{name}"
            losses[full] = (weight * ramp) * part
    return losses


def parts_of(
    objective: Objective, student: Outputs, teacher: Outputs | None, batch: Batch, row_weight: Tensor | None
) -> Mapping[str, Tensor]:
    if teacher is None:
        raise TrialFailure("exception", "a recipe with distillation terms needs a teacher; pass one")
    return objective(student, teacher, batch, row_weight if objective.row_weighted else None)


def row_weights(recipe: Recipe, teacher: Outputs | None, batch: Batch) -> Tensor | None:
    """Cosine confidence of the teacher in the augmented rows, if the recipe asks for it."""
    if teacher is None or recipe.augment.policy != "jda" or not recipe.augment.ccd:
        return None
    return ccd_weight(teacher.logits, batch, normalise=recipe.augment.ccd_normalise)
