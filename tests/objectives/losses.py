"""Outputs to compare, objectives built for them, and who answers those that ask.

Closed inputs, row i, column j from 0: student logits 2 sin(1.3i + .7j), teacher logits 3 cos(.9i − .4j + .2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autokd.augment.counters import uniform
from autokd.objectives import OBJECTIVES
from autokd.protocols import Batch, Objective, Outputs, Samples, Shapes

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
    return student, teacher, batch_of([1, 0, 4, 2], torch.float64)


def batch_of(labels: list[int], dtype: torch.dtype = torch.float32) -> Batch:
    """Rows (N, 1) of the first N samples."""
    rows = torch.arange(len(labels))
    return Batch((rows + 1).sin().to(dtype)[:, None], torch.tensor(labels), rows, torch.zeros_like(rows), rows)


def permuted(batch: Batch, order: Tensor) -> Batch:
    """The same rows in another order."""
    x, y, index, view = (each[order] for each in (batch.x, batch.y, batch.index, batch.view))
    return Batch(x, y, index, view, order.argsort()[batch.parent[order]])


def random_outputs(seed: int, n: int = 6, classes: int = 5, width: int = 7, scale: float = 1.0) -> Outputs:
    """Float32 outputs with three stages, the last of one position."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return scale * torch.randn(shape, generator=generator)

    return Outputs(draw(n, classes), draw(n, width), (draw(n, 4, 6, 6), draw(n, width, 3, 3), draw(n, width, 1, 1)))


def precise_outputs(seed: int) -> Outputs:
    """The same in float64."""
    return random_outputs(seed).map(Tensor.double)


def shapes(outputs: Outputs) -> Shapes:
    assert outputs.embedding is not None
    return Shapes(
        outputs.logits.shape[1], outputs.embedding.shape[1], tuple(tuple(stage.shape[1:]) for stage in outputs.stages)
    )


def built(name: str, student: Outputs, teacher: Outputs, **fields: float | str) -> Objective:
    """At the end of a training that began with 200 samples of five classes and an untrained linear network of rows (N, 1)."""
    torch.manual_seed(0)
    objective = OBJECTIVES[name](**fields)
    objective.know(Samples(torch.arange(200) % 5))
    objective.build(shapes(student), shapes(teacher))
    network = nn.Linear(1, student.logits.shape[1])
    objective.adopt(network)
    objective = objective.to(student.logits.dtype)
    objective.begin_epoch(network, 1.0)
    return objective


class FakeAsk:
    """What objectives that ask are answered."""

    def uniform(self, *counters: Tensor | int) -> Tensor:
        return uniform(0, 0, *counters)


def said(
    objective: Objective, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
) -> dict[str, Tensor]:
    """Its terms; one that asks is answered."""
    asked = (FakeAsk(),) if objective.asks else ()
    terms: dict[str, Tensor] = objective(student, teacher, batch, row_weight, *asked)
    return terms


def with_gradient(outputs: Outputs) -> tuple[Outputs, list[Tensor]]:
    """The outputs as leaves that require gradients, and those leaves."""
    assert outputs.embedding is not None
    leaves = [
        tensor.detach().clone().requires_grad_() for tensor in (outputs.logits, outputs.embedding, *outputs.stages)
    ]
    return Outputs(leaves[0], leaves[1], tuple(leaves[2:])), leaves


def rows(outputs: Outputs, order: Tensor) -> Outputs:
    assert outputs.embedding is not None
    return Outputs(outputs.logits[order], outputs.embedding[order], tuple(stage[order] for stage in outputs.stages))


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def number(term: Tensor) -> float:
    return float(term.detach())


def everything_finite(terms: dict[str, Tensor], leaves: list[Tensor]) -> bool:
    gradients = torch.autograd.grad(total(terms), leaves, allow_unused=True, materialize_grads=True)
    return all(bool(tensor.isfinite().all()) for tensor in (*terms.values(), *gradients))
