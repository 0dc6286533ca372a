"""One epoch of one trial, top to bottom.

Read this file first: data, teacher, objectives, peers and optimiser meet here and nowhere else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from autokd.augment.views import ccd_weight
from autokd.core.data import Resident, to_float
from autokd.core.device import Setting
from autokd.core.optim import learning_rate
from autokd.core.run import Run, finite
from autokd.errors import TrialFailure
from autokd.peers import peer_losses
from autokd.protocols import Batch, Objective, Outputs, Task, TeacherSignal, seed_everything
from autokd.recipe import Recipe


def train_epoch(
    run: Run,
    data: Resident,
    teacher: TeacherSignal | None,
    task: Task,
    total: int,
    setting: Setting,
    most_steps: int | None = None,
) -> dict[str, Any]:
    """Train one epoch and validate. Returns its log: epoch, seconds, lr, loss, terms, metrics.

    With `most_steps` the epoch is cut short: for measuring what one costs.

    Raises TrialFailure("nan") when a loss is no longer a number.
    """
    begun = time.perf_counter()
    recipe, steps = run.recipe, data.steps(run.recipe.optim.batch)
    seed_everything(run.seed * 100_003 + run.epoch)  # dropout after a resume equals dropout without one
    run.parts.train()
    sums: dict[str, Tensor] = {}

    batches = data.epoch(recipe.augment, recipe.optim.batch, run.seed, run.epoch)
    for step, batch in enumerate(islice(batches, most_steps)):
        progress = (run.epoch + step / steps) / total
        for group in run.optimiser.param_groups:
            group["lr"] = learning_rate(recipe.optim, progress)

        # 1. the teacher once, every network once
        taught = teacher.outputs(batch) if teacher is not None and recipe.terms else None
        with setting.autocast():
            outputs = [tap(batch.x) for tap in run.taps]
        outputs = [each.float() for each in outputs]

        # 2. losses of every network by name, in float32
        mutual = peer_losses([each.logits for each in outputs], recipe.peers.temperature)
        weight = row_weights(recipe, taught, batch)
        losses = []
        for each, objectives, peer_loss in zip(outputs, run.objectives, mutual, strict=True):
            parts = network_losses(recipe, task, each, taught, batch, objectives, weight, progress)
            if recipe.peers.count:
                parts["peers"] = recipe.peers.weight * peer_loss
            losses.append(parts)

        # 3. one backward, one step
        loss = torch.stack([term for parts in losses for term in parts.values()]).sum()
        run.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        run.optimiser.step()
        for name, term in losses[0].items():  # the student's own are the ones logged
            sums[name] = sums.get(name, 0) + term.detach()
        sums["all"] = sums.get("all", 0) + loss.detach()

    # once an epoch: is it still a number, and how good is the student?
    metrics = validate(run, data, task, setting)
    if not (finite(sums.pop("all")) and all(map(math.isfinite, metrics.values()))):
        raise TrialFailure(
            "nan", f"the loss was no longer a number in epoch {run.epoch + 1}; lower optim.lr or the term weights"
        )
    run.epoch += 1
    terms = {name: float(total_of_term) / steps for name, total_of_term in sums.items()}
    log = {
        "epoch": run.epoch,
        "lr": learning_rate(recipe.optim, (run.epoch - 1) / total),
        "loss": sum(terms.values()),
        "terms": terms,
        "metrics": metrics,
        "seconds": time.perf_counter() - begun,
    }
    run.history.append(log)
    return log


def network_losses(
    recipe: Recipe,
    task: Task,
    student: Outputs,
    teacher: Outputs | None,
    batch: Batch,
    objectives: Any,
    row_weight: Tensor | None,
    progress: float,
) -> dict[str, Tensor]:
    """Weighted losses of one network by name: "ce", then "<objective>" or "<objective>.<part>"."""
    losses = {"ce": recipe.ce_weight * task.loss(student, batch)}
    for term, objective in zip(recipe.terms, objectives, strict=True):
        parts = parts_of(objective, student, teacher, batch, row_weight)
        ramp = min(1.0, progress / term.warmup) if term.warmup else 1.0
        for name, part in parts.items():
            full = term.objective if name == term.objective else f"{term.objective}.{name}"
            losses[full] = (term.weight * ramp) * part
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


def validate(run: Run, data: Resident, task: Task, setting: Setting) -> dict[str, float]:
    """Metrics of the plain student on the validation split."""
    module = run.student
    module.eval()

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad(), setting.autocast():
            return run.taps[0](x).logits.float()

    return task.evaluate(forward, to_float(data.val_x), data.val_y)
