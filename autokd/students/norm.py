"""Batch norm that can be followed by the addition of a residual and by ReLU, and does all of it at once where a kernel is at hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from autokd.kernels.norm import fits, fused_norm


class BatchNorm(nn.BatchNorm2d):
    """relu(batch norm(x) + residual), each of the last two on demand. Torch's batch norm in all else, its checkpoints included."""

    relu = False
    fused = False  # see `fuse_norms`

    def __init__(self, channels: int, relu: bool = False) -> None:
        super().__init__(channels)
        self.relu = relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.fused and (self.training or not torch.is_grad_enabled()) and fits(self, x, residual):
            return fused_norm(self, x, residual, self.relu)
        y = super().forward(x)
        if residual is not None:
            y = y.add_(residual)
        return functional.relu(y, inplace=True) if self.relu else y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, relu={self.relu}"


def fuse_norms(module: nn.Module) -> nn.Module:
    """Let every batch norm of the network, a user's own as well, run with the kernel where it fits. Returns the network."""
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = BatchNorm  # same parameters, same buffers, no ReLU
    switch(module, True)
    return module


def switch(module: nn.Module, on: bool) -> None:
    """The same for the batch norms of shipped families alone, on or off: nothing in the network is replaced."""
    for part in module.modules():
        if isinstance(part, BatchNorm):
            part.fused = on
