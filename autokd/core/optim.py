"""Optimisers and schedules of a recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from autokd.recipe import OptimSpec


def optimiser(parameters: Iterable[nn.Parameter], spec: OptimSpec, device: str) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW, in torch's fused form. The learning rate is set per step by the loop.

    On a GPU it is a tensor there, so that a captured step reads it anew.
    """
    on_gpu = device.startswith("cuda")
    lr = torch.tensor(spec.lr, device=device) if on_gpu else spec.lr
    if spec.name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=spec.weight_decay, fused=True, capturable=on_gpu)
    return torch.optim.SGD(
        parameters,
        lr=lr,
        momentum=spec.momentum,
        nesterov=spec.momentum > 0,
        weight_decay=spec.weight_decay,
        fused=True,
    )


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    for group in optimiser.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def learning_rate(spec: OptimSpec, progress: float) -> float:
    """At `progress` in [0, 1] of the whole training: linear warm-up, then cosine to zero or constant."""
    if progress < spec.warmup:
        return spec.lr * (progress / spec.warmup)
    if spec.schedule == "constant":
        return spec.lr
    return spec.lr * 0.5 * (1 + math.cos(math.pi * (progress - spec.warmup) / (1 - spec.warmup)))
