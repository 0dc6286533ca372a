"""A training step as the loop runs it, small: student, losses, fused optimiser, dials and sums as device tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from tiny import CLASSES, SHAPE, network
from torch import Tensor, nn
from torch.nn import functional

from autokd.objectives import OBJECTIVES
from autokd.protocols import Batch, Outputs

Loss = Callable[[Tensor], Tensor]


def batch_of(rows: int = 12, seed: int = 0, device: str = "cpu", fired: bool = False) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, *SHAPE, generator=draw).to(device).contiguous(memory_format=torch.channels_last)
    index = torch.randperm(rows, generator=draw).to(device)
    y = torch.randint(CLASSES, (rows,), generator=draw).to(device)
    zero = torch.zeros_like(index)
    bits = torch.rand(rows, 2, generator=draw).to(device) > 0.5 if fired else None
    return Batch(x=x, y=y, index=index, view=zero, parent=torch.arange(rows, device=device), fired=bits)


def taught_of(rows: int = 12, seed: int = 0, device: str = "cpu") -> Outputs:
    draw = torch.Generator().manual_seed(1000 + seed)
    return Outputs(torch.randn(rows, CLASSES, generator=draw).to(device))


@dataclass
class Step:
    """One student under cross-entropy and KD; `extra` adds a loss of one's own from the logits."""

    module: nn.Module = field(default_factory=network)
    optim: str = "sgd"
    device: str = "cpu"
    bf16: bool = False
    extra: Loss | None = None

    def __post_init__(self) -> None:
        self.module = self.module.to(self.device).train()
        self.lr, self.weight = (torch.zeros((), device=self.device) for _ in range(2))
        self.sums = torch.zeros((), device=self.device)
        self.kd = OBJECTIVES["kd"]()
        parameters = list(self.module.parameters())
        if self.optim == "adamw":
            capturable = self.device != "cpu"
            self.optimiser: Any = torch.optim.AdamW(parameters, lr=self.lr, fused=True, capturable=capturable)
        else:
            self.optimiser = torch.optim.SGD(parameters, lr=self.lr, momentum=0.9, nesterov=True, fused=True)

    def __call__(self, batch: Batch, taught: Outputs | None) -> None:
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            logits = self.module(batch.x)
        logits = logits.float()
        loss = functional.cross_entropy(logits, batch.y)
        if taught is not None:
            terms = self.kd(Outputs(logits), taught, batch)
            loss = loss + self.weight * sum(terms.values())
        if self.extra is not None:
            loss = loss + self.extra(logits)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.sums.add_(loss.detach())


def curve(
    run: Callable[[Batch, Outputs | None], None], step: Step, steps: Iterable[int], rows: int = 12
) -> list[float]:
    """The loss of each step, with a learning rate and a weight that change from step to step."""
    losses = []
    for number in steps:
        step.lr.fill_(0.02 + 0.01 * number)
        step.weight.fill_(0.5 + 0.1 * number)
        step.sums.zero_()
        run(batch_of(rows, number, step.device), taught_of(rows, number, step.device))
        losses.append(step.sums.item())
    return losses


class Calls:
    """Counts how often the step's Python runs: never in a replay."""

    def __init__(self, step: Callable[[Batch, Outputs | None], None]) -> None:
        self.step, self.count = step, 0

    def __call__(self, batch: Batch, taught: Outputs | None) -> None:
        self.count += 1
        self.step(batch, taught)
