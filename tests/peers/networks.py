"""What M networks say of the same rows, systems built for them, and whose gradient a loss is.

The closed inputs are those of tests/objectives: row i, column j from 0, the first network 2 sin(1.3i + .7j), the second 3 cos(.9i − .4j + .2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autokd.peers import SYSTEMS
from autokd.peers.base import Mutual, PeerSystem
from autokd.protocols import Batch, Outputs, Shapes

torch.set_num_threads(1)

CASES: list[tuple[str, dict[str, Any]]] = [  # every system, at its defaults first
    ("dml", {}),
    ("kdcl", {}),
    ("kdcl", {"ensemble": "best"}),
    ("kdcl", {"ensemble": "min_logit"}),
    ("one", {}),
    ("ffcl", {}),
    ("ffcl", {"fusion": "pointwise", "beta_f": 2.0}),
    ("ffcl", {"fusion": "add", "positive": "correct_only"}),
    ("ffcl", {"fusion": "off", "beta_f": 2.0}),
    ("ckd_mkt", {}),
    ("ckd_mkt", {"relation": "logits", "init": "scratch"}),
    ("ckd_mkt", {"first": 0.0, "gamma": 0.0}),
]
FUSED = 0.5, 0.1  # the closed logits of a fusion: half the sum of both networks', plus 0.1j


def two_logits(rows: int = 4, classes: int = 5) -> tuple[Tensor, Tensor]:
    i, j = torch.arange(float(rows), dtype=torch.float64)[:, None], torch.arange(float(classes), dtype=torch.float64)
    return 2 * torch.sin(1.3 * i + 0.7 * j), 3 * torch.cos(0.9 * i - 0.4 * j + 0.2)


def two_embeddings() -> tuple[Tensor, Tensor]:
    """(4, 6) and (4, 8)."""
    i, j = torch.arange(4.0, dtype=torch.float64)[:, None], torch.arange(8.0, dtype=torch.float64)
    return torch.sin(0.5 * i + 0.3 * j[:6]), torch.cos(0.8 * i - 0.6 * j)


def two_maps() -> tuple[Tensor, Tensor]:
    """(4, 3, 2, 2) and (4, 5, 2, 2)."""
    i = torch.arange(8.0, dtype=torch.float64)
    b, c, h, w = i[:4, None, None, None], i[None, :, None, None], i[None, None, :2, None], i[:2]
    return torch.sin(b + 0.5 * c[:, :3] + 0.3 * h - 0.2 * w), torch.cos(0.7 * b - 0.4 * c[:, :5] + 0.6 * h + 0.1 * w)


def two() -> list[Outputs]:
    """All of the closed inputs."""
    sides = zip(two_logits(), two_embeddings(), two_maps(), strict=True)
    return [Outputs(logits, embedding, (maps,)) for logits, embedding, maps in sides]


def fused_logits() -> Tensor:
    half, slope = FUSED
    first, second = two_logits()
    return half * (first + second) + slope * torch.arange(5.0, dtype=torch.float64)


def drawn(
    count: int, n: int = 6, classes: int = 5, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> list[Outputs]:
    """Of networks of one architecture, with stages of three sizes, the last of one position."""
    draw = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return (scale * torch.randn(shape, generator=draw, dtype=torch.float64)).to(dtype)

    return [
        Outputs(normal(n, classes), normal(n, 7), (normal(n, 4, 6, 6), normal(n, 6, 3, 3), normal(n, 7, 1, 1)))
        for _ in range(count)
    ]


def rows_of(labels: Sequence[int], dtype: torch.dtype = torch.float32) -> Batch:
    """A batch whose rows are four pixels that tell them apart."""
    index = torch.arange(len(labels))
    x = torch.sin(torch.arange(4 * len(labels), dtype=dtype)).reshape(-1, 4)
    return Batch(x, torch.tensor(labels), index, torch.zeros_like(index), index)


def shapes(outputs: Outputs) -> Shapes:
    assert outputs.embedding is not None
    stages = tuple(tuple(stage.shape[1:]) for stage in outputs.stages)
    return Shapes(outputs.logits.shape[1], outputs.embedding.shape[1], stages)


def modules(count: int, classes: int = 5, dtype: torch.dtype = torch.float32) -> list[nn.Module]:
    """What systems adopt: networks that tell rows of four pixels apart, with statistics and noise of their own."""
    torch.manual_seed(1)
    return [nn.Sequential(nn.Linear(4, classes), nn.BatchNorm1d(classes), nn.Dropout()).to(dtype) for _ in range(count)]


def built(name: str, outputs: Sequence[Outputs], **fields: Any) -> PeerSystem:
    """Such a system at the end of a training."""
    dtype = outputs[0].logits.dtype
    networks = modules(len(outputs), outputs[0].logits.shape[1], dtype)
    torch.manual_seed(0)
    system = SYSTEMS[name](**fields)
    system.build([shapes(each) for each in outputs])
    system.adopt(networks)
    system.to(dtype).train()
    system.begin_epoch(networks, 1.0)
    return system


def with_gradient(outputs: Sequence[Outputs]) -> tuple[list[Outputs], list[list[Tensor]]]:
    """The outputs as leaves that require gradients, and each network's leaves: logits, embedding, stages."""
    leaves = [
        [
            part.detach().clone().requires_grad_()
            for part in (each.logits, each.embedding, *each.stages)
            if part is not None
        ]
        for each in outputs
    ]
    return [Outputs(own[0], own[1], tuple(own[2:])) for own in leaves], leaves


def everything(mutual: Mutual) -> dict[str, Tensor]:
    """All parts, those of network k as "k.name"."""
    own = {f"{k}.{name}": part for k, parts in enumerate(mutual.own) for name, part in parts.items()}
    return own | dict(mutual.shared)


def total(parts: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum()


def number(part: Tensor) -> float:
    return float(part.detach())


def numbers(parts: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: number(part) for name, part in parts.items()}


def reached(loss: Tensor, leaves: Sequence[Sequence[Tensor]]) -> list[bool]:
    """Whether a gradient of the loss gets to each network."""
    flat = [leaf for own in leaves for leaf in own]
    found = dict(zip(map(id, flat), torch.autograd.grad(loss, flat, retain_graph=True, allow_unused=True), strict=True))
    return [any(found[id(leaf)] is not None for leaf in own) for own in leaves]
