"""Optimisers and schedules of a recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from autokd.recipe import OptimSpec


def optimiser(parameters: Iterable[nn.Parameter], spec: OptimSpec, device: str) -> torch.optim.Optimizer:
    """SGD with momentum (Nesterov's unless the recipe says otherwise), or AdamW, in torch's fused form. The learning rate is set per step by the loop.

    On a GPU it is a tensor there, so that a captured step reads it anew.
    """
    lr = torch.tensor(spec.lr, device=device) if device.startswith("cuda") else spec.lr
    return _fused(parameters, spec, device, lr, spec.weight_decay)


def shared_optimiser(
    parameters: Iterable[nn.Parameter], spec: OptimSpec, device: str, lr: Tensor
) -> torch.optim.Optimizer:
    """The same for trials in turn: its slots are there from the beginning, and `decay` is to be called before each step."""
    made = _fused(parameters, spec, device, lr, 0.0)
    for parameter in parameters_of(made):
        made.state[parameter] = _resting(parameter, spec)
    return made


def decay(optimiser: torch.optim.Optimizer, lr: Tensor, weight_decay: Tensor) -> None:
    """Weight decay by a scalar on the device, which torch's fused optimisers do not take; as they would do it themselves."""
    pairs = [(parameter, parameter.grad) for parameter in parameters_of(optimiser) if parameter.grad is not None]
    parameters, gradients = [parameter.detach() for parameter, _ in pairs], [gradient for _, gradient in pairs]
    if isinstance(optimiser, torch.optim.AdamW):
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)  # torch has no public name for these two
    else:
        torch._foreach_add_(gradients, list(torch._foreach_mul(parameters, weight_decay)))


def copy_slots(source: torch.optim.Optimizer, target: torch.optim.Optimizer) -> None:
    """What an optimiser remembers of each parameter, into one of the same kind. Slots that are missing are at rest."""
    for of, to in zip(parameters_of(source), parameters_of(target), strict=True):
        slots, kept = source.state.get(of, {}), target.state.setdefault(to, {})
        for name in {**slots, **kept}:
            if isinstance(slots.get(name), Tensor) and isinstance(kept.get(name), Tensor):
                kept[name].copy_(slots[name])
            elif isinstance(kept.get(name), Tensor):
                kept[name].zero_()
            elif isinstance(slots[name], Tensor):
                kept[name] = slots[name].clone()


def parameters_of(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _fused(
    parameters: Iterable[nn.Parameter], spec: OptimSpec, device: str, lr: float | Tensor, weight_decay: float
) -> torch.optim.Optimizer:
    if spec.name == "adamw":
        on_gpu = device.startswith("cuda")
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True, capturable=on_gpu)
    return torch.optim.SGD(
        parameters,
        lr=lr,
        momentum=spec.momentum,
        nesterov=spec.nesterov and spec.momentum > 0,
        weight_decay=weight_decay,
        fused=True,
    )


def _resting(parameter: nn.Parameter, spec: OptimSpec) -> dict[str, Tensor]:
    """The slots as torch makes them in a first step; nothing of a momentum of zero equals none."""
    if spec.name == "adamw":
        step = torch.zeros((), device=parameter.device)
        return {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
    return {"momentum_buffer": torch.zeros_like(parameter)} if spec.momentum else {}


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    for group in optimiser.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def learning_rate(spec: OptimSpec, progress: float) -> float:
    """At `progress` in [0, 1] of the whole training: linear warm-up, then cosine to zero, steps to a tenth, or constant.

    With a `restart` both parts of the training have such a schedule of their own.
    """
    if spec.restart:
        begun = progress >= spec.restart
        progress = (progress - spec.restart) / (1 - spec.restart) if begun else progress / spec.restart
    if progress < spec.warmup:
        return spec.lr * (progress / spec.warmup)
    if spec.schedule == "constant":
        return spec.lr
    if spec.schedule == "step":
        return float(spec.lr * 0.1 ** sum(progress >= float(share) for share in spec.milestones.split(",")))
    return spec.lr * 0.5 * (1 + math.cos(math.pi * (progress - spec.warmup) / (1 - spec.warmup)))
