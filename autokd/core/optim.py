"""Optimisers and schedules of a recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from autokd.recipe import OptimSpec


def optimiser(parameters: Iterable[nn.Parameter], spec: OptimSpec) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW, in torch's fused form. The learning rate is set per step by the loop."""
    if spec.name == "adamw":
        return torch.optim.AdamW(parameters, lr=spec.lr, weight_decay=spec.weight_decay, fused=True)
    return torch.optim.SGD(
        parameters,
        lr=spec.lr,
        momentum=spec.momentum,
        nesterov=spec.momentum > 0,
        weight_decay=spec.weight_decay,
        fused=True,
    )


def learning_rate(spec: OptimSpec, progress: float) -> float:
    """At `progress` in [0, 1] of the whole training: linear warm-up, then cosine to zero or constant."""
    if progress < spec.warmup:
        return spec.lr * (progress / spec.warmup)
    if spec.schedule == "constant":
        return spec.lr
    return spec.lr * 0.5 * (1 + math.cos(math.pi * (progress - spec.warmup) / (1 - spec.warmup)))
