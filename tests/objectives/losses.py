"""Outputs to compare, objectives built for them, and who answers those that ask.

Closed inputs, row i, column j from 0: student logits 2 sin(1.3i + .7j), teacher logits 3 cos(.9i − .4j + .2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from autokd.augment.counters import uniform
from autokd.core.headed import HEADS, with_heads
from autokd.objectives import OBJECTIVES
from autokd.protocols import Ask, Batch, Objective, Outputs, Samples, Shapes

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
    return student, headed(teacher), batch_of([1, 0, 4, 2], torch.float64)


def batch_of(labels: list[int], dtype: torch.dtype = torch.float32) -> Batch:
    """The first samples, as they are."""
    rows = torch.arange(len(labels))
    return Batch(images(rows).to(dtype), torch.tensor(labels), rows, torch.zeros_like(rows), rows)


def images(index: Tensor) -> Tensor:
    """The base views (M, 1, 4, 4) of these samples, in [0, 1]."""
    place = torch.arange(16.0)
    return (0.5 + 0.4 * torch.sin(0.7 * index[:, None] + 1.3 * place + 0.1 * index[:, None] * place)).view(-1, 1, 4, 4)


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


def precise_outputs(seed: int) -> Outputs:
    """The same in float64."""
    return random_outputs(seed).map(Tensor.double)


def headed(outputs: Outputs, scale: float = 1.0, seed: int = 0) -> Outputs:
    """With what a teacher's heads of every kind might say of these rows, and the means of its stages."""
    generator = torch.Generator().manual_seed(seed)
    count, like = len(outputs.logits), outputs.logits
    said = {
        kind: tuple(scale * torch.randn(count, width, generator=generator).to(like) for width in widths)
        for kind, widths in shapes(outputs).aux.items()
    }
    return replace(outputs, aux={**said, "pooled": tuple(stage.mean((2, 3)) for stage in outputs.stages)})


def right(outputs: Outputs, labels: list[int], by: float = 4.0) -> Outputs:
    """The same with larger logits of the labels, so that most rows are classified as these."""
    bonus = by * torch.eye(outputs.logits.shape[1], dtype=outputs.logits.dtype)[torch.tensor(labels)]
    return replace(outputs, logits=outputs.logits + bonus)


def shapes(outputs: Outputs) -> Shapes:
    """Of a network with heads of every kind."""
    assert outputs.embedding is not None
    stages = tuple(tuple(stage.shape[1:]) for stage in outputs.stages)
    return with_heads(Shapes(outputs.logits.shape[1], outputs.embedding.shape[1], stages), HEADS)


def built(name: str, student: Outputs, teacher: Outputs, **fields: float | str) -> Objective:
    """In the last epoch of a training that began with 200 samples, sample i of class i modulo C, and an untrained linear network."""
    torch.manual_seed(0)
    objective, classes = OBJECTIVES[name](**fields), student.logits.shape[1]
    objective.know(Samples(torch.arange(200) % classes))
    objective.build(shapes(student), shapes(teacher))
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    objective.adopt(network)
    objective = objective.to(student.logits.dtype)
    objective.begin_epoch(network, 1.0)
    return objective


def called(
    objective: Objective,
    student: Outputs,
    teacher: Outputs,
    batch: Batch,
    row_weight: Tensor | None = None,
    ask: Ask | None = None,
) -> dict[str, Tensor]:
    """Its terms; one that asks is answered by `ask`, or by a `FakeAsk`."""
    answers = (ask or FakeAsk(student, teacher),) if objective.asks else ()
    terms: dict[str, Tensor] = objective(student, teacher, batch, row_weight, *answers)
    return terms


class Probe(nn.Module):
    """Rows of 16 numbers -> Outputs of the same kinds, widths and type as those it is like: a layer each, of closed weights."""

    def __init__(self, like: Outputs, phase: float) -> None:
        super().__init__()
        self.like = like
        kinds = [each for each in (like.logits, like.embedding, *like.stages) if each is not None]
        self.layers = nn.ParameterList(
            nn.Parameter(torch.sin(phase + 1.7 * torch.arange(16 * each[0].numel())).view(16, -1).to(each))
            for each in kinds
        )

    def forward(self, x: Tensor) -> Outputs:
        rows, like = x.flatten(1).to(self.like.logits.dtype), self.like
        logits, *rest = (rows @ layer for layer in self.layers)
        embedding = None if like.embedding is None else rest.pop(0)
        stages = (each.view(-1, *stage.shape[1:]) for each, stage in zip(rest, like.stages, strict=True))
        return Outputs(logits, embedding, tuple(stages))


class FakeAsk:
    """Answers as a training core does, with a `Probe` for each network; `asked` counts rows, a backward pass as two forward ones."""

    def __init__(self, student: Outputs, teacher: Outputs) -> None:
        self.network, self.frozen = Probe(student, 0.3), Probe(teacher, 1.1)
        self.asked = Counter[str]()

    def student(self, x: Tensor) -> Outputs:
        self.asked["student"] += len(x)
        found: Outputs = self.network(x)
        return found

    def teacher(self, x: Tensor) -> Outputs:
        self.asked["teacher"] += len(x)
        found: Outputs = self.frozen(x)
        return found.detach()

    def slope(self, x: Tensor, of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        self.asked["teacher"] += 3 * len(x)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            logits = self.frozen(leaf).logits
            (gradient,) = torch.autograd.grad(of(logits), leaf)
        return logits.detach(), gradient

    def base(self, index: Tensor) -> Tensor:
        return images(index)

    def uniform(self, *counters: Tensor | int) -> Tensor:
        return uniform(0, 0, *counters)


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
