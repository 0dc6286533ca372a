"""Outputs to compare, and objectives built for them.

Closed inputs, row i, column j from 0: student logits 2 sin(1.3i + .7j), teacher logits 3 cos(.9i − .4j + .2).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from autokd.core.headed import HEADS, with_heads
from autokd.objectives import OBJECTIVES
from autokd.protocols import Batch, Objective, Outputs, Shapes

torch.set_num_threads(1)


def reference() -> tuple[Outputs, Outputs, Batch]:
    """The closed inputs, float64: logits (4, 5), embeddings (4, 6) and (4, 8), maps of 3 and 5 channels, 2×2."""
    i, j = torch.arange(4.0, dtype=torch.float64)[:, None], torch.arange(8.0, dtype=torch.float64)
    b, c = i[:, :, None, None], j[None, :, None, None]
    h, w = i[None, None, :2], j[:2]
    student = Outputs(
        2 * torch.sin(1.3 * i + 0.7 * j[:5]),
        torch.sin(0.5 * i + 0.3 * j[:6]),
        (torch.sin(b + 0.5 * c[:, :3] + 0.3 * h - 0.2 * w),),
    )
    teacher = Outputs(
        3 * torch.cos(0.9 * i - 0.4 * j[:5] + 0.2),
        torch.cos(0.8 * i - 0.6 * j),
        (torch.cos(0.7 * b - 0.4 * c[:, :5] + 0.6 * h + 0.1 * w),),
    )
    return student, headed(teacher), batch_of([1, 0, 4, 2])


def batch_of(labels: list[int]) -> Batch:
    rows = torch.arange(len(labels))
    return Batch(torch.zeros(len(labels), 1), torch.tensor(labels), rows, torch.zeros_like(rows), rows)


def rotated(batch: Batch) -> Batch:
    """The same rows, every four of which are one image and its rotations."""
    rows = torch.arange(len(batch.index))
    return replace(batch, index=rows // 4, view=rows % 4, parent=rows - rows % 4)


def permuted(batch: Batch, order: Tensor) -> Batch:
    """The same rows in another order."""
    x, y, index, view = (each[order] for each in (batch.x, batch.y, batch.index, batch.view))
    return Batch(x, y, index, view, order.argsort()[batch.parent[order]])


def random_outputs(seed: int, n: int = 6, classes: int = 5, width: int = 7, scale: float = 1.0) -> Outputs:
    """Float32 outputs with three stages, the last of one position."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return scale * torch.randn(shape, generator=generator)

    logits, embedding = draw(n, classes), draw(n, width)
    stages = draw(n, 4, 6, 6), draw(n, width, 3, 3), draw(n, width, 1, 1)
    return headed(Outputs(logits, embedding, stages), scale, seed)


def headed(outputs: Outputs, scale: float = 1.0, seed: int = 0) -> Outputs:
    """With what a teacher's heads of every kind might say of these rows, and the means of its stages."""
    generator = torch.Generator().manual_seed(seed)
    count, like = len(outputs.logits), outputs.logits
    said = {
        kind: tuple(scale * torch.randn(count, width, generator=generator).to(like) for width in widths)
        for kind, widths in shapes(outputs).aux.items()
    }
    return replace(outputs, aux={**said, "pooled": tuple(stage.mean((2, 3)) for stage in outputs.stages)})


def shapes(outputs: Outputs) -> Shapes:
    assert outputs.embedding is not None
    stages = tuple(tuple(stage.shape[1:]) for stage in outputs.stages)
    return with_heads(Shapes(outputs.logits.shape[1], outputs.embedding.shape[1], stages), HEADS)


def built(name: str, student: Outputs, teacher: Outputs, **fields: float | str) -> Objective:
    torch.manual_seed(0)
    objective = OBJECTIVES[name](**fields)
    objective.build(shapes(student), shapes(teacher))
    return objective.to(student.logits.dtype)


def with_gradient(outputs: Outputs) -> tuple[Outputs, list[Tensor]]:
    """The outputs as leaves that require gradients, and those leaves."""
    assert outputs.embedding is not None
    leaves = [
        tensor.detach().clone().requires_grad_() for tensor in (outputs.logits, outputs.embedding, *outputs.stages)
    ]
    return replace(outputs, logits=leaves[0], embedding=leaves[1], stages=tuple(leaves[2:])), leaves


def rows(outputs: Outputs, order: Tensor) -> Outputs:
    return outputs.map(lambda tensor: tensor[order])


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def number(term: Tensor) -> float:
    return float(term.detach())


def everything_finite(terms: dict[str, Tensor], leaves: list[Tensor]) -> bool:
    gradients = torch.autograd.grad(total(terms), leaves, allow_unused=True, materialize_grads=True)
    return all(bool(tensor.isfinite().all()) for tensor in (*terms.values(), *gradients))
