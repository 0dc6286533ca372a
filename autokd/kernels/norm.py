"""Batch norm, residual addition and ReLU as one operation for torch's autograd, on one CPU thread."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from autokd.kernels.build import library

TYPES = (torch.float32, torch.bfloat16)
NONE, FROM_X, FROM_Y = 0, 1, 2  # Mask in norm.cpp


def fits(norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None) -> bool:
    """Whether `fused_norm` can stand in for `norm`: one thread, real images in channels_last, float statistics."""
    return (
        type(x) is Tensor  # not one that stands for others while a network is exported
        and x.device.type == "cpu"
        and torch.get_num_threads() == 1
        and _in_order(x)
        and x.numel() > x.shape[1]  # torch refuses a single row, in its own words
        and (residual is None or (_in_order(residual) and residual.shape == x.shape and residual.dtype == x.dtype))
        and _plain(norm)
        and library() is not None
    )


def fused_norm(norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
    """relu(norm(x) + residual), (N, C, H, W) -> the same; in training mode running statistics are updated in place.

    In eval mode there is no way back: call it without gradients. Sums are float32 and double, only the result is rounded to x's type: torch rounds after every operation.
    Needs `fits`. Ioffe and Szegedy (ICML 2015).
    """
    if not norm.training:
        return _frozen(norm, x, residual, relu)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return _Fused.apply(x, residual, norm.weight, norm.bias, norm, relu)


def _frozen(norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    y = torch.empty_like(x)
    _lib().norm_frozen(
        x.dtype == torch.bfloat16,
        *_pointers(x, residual, y),
        *_sizes(x),
        *_pointers(norm.weight, norm.bias),
        norm.eps,
        *_pointers(norm.running_mean, norm.running_var),
        relu,
    )
    return y


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, relu: bool
    ) -> Tensor:
        y, (mean, inverse) = torch.empty_like(x), weight.new_empty(2, len(weight))
        _lib().norm_forward(
            x.dtype == torch.bfloat16,
            *_pointers(x, residual, y),
            *_sizes(x),
            *_pointers(weight, bias),
            norm.eps,
            norm.momentum,
            *_pointers(norm.running_mean, norm.running_var, mean, inverse),
            relu,
        )
        ctx.mask = NONE if not relu else FROM_X if residual is None else FROM_Y
        ctx.adds = residual is not None
        ctx.save_for_backward(x, weight, bias, mean, inverse, y if ctx.mask == FROM_Y else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, inverse, y = ctx.saved_tensors
        dy = dy.to(x.dtype).contiguous(memory_format=torch.channels_last)
        kept = torch.empty_like(x) if ctx.mask == FROM_Y else None
        dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        _lib().norm_backward(
            x.dtype == torch.bfloat16,
            *_pointers(dy, x, y, kept, dx),
            *_sizes(x),
            *_pointers(weight, bias, mean, inverse, dweight, dbias),
            ctx.mask,
        )
        of_residual = (dy if kept is None else kept) if ctx.adds else None
        return dx, of_residual, dweight, dbias, None, None


def _lib() -> Any:
    return library()


def _pointers(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _sizes(x: Tensor) -> tuple[int, int]:
    """Rows and channels."""
    return x.numel() // x.shape[1], x.shape[1]


def _in_order(x: Tensor) -> bool:
    return x.dim() == 4 and x.dtype in TYPES and x.is_contiguous(memory_format=torch.channels_last)


def _plain(norm: nn.BatchNorm2d) -> bool:
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return norm.momentum is not None and all(t is not None and t.dtype == torch.float32 for t in tensors)
