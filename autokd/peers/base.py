"""What a system of peers is: how networks that are trained together teach each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from autokd.errors import RecipeError
from autokd.protocols import Batch, Outputs, Shapes
from autokd.rules import Rule

Parts = dict[str, Tensor]  # scalar losses by name


@dataclass(frozen=True)
class Mutual:
    """The losses of one step, student first; `shared` are those of modules that belong to no network."""

    own: Sequence[Parts]
    shared: Parts = field(default_factory=dict)


class PeerSystem(nn.Module):
    """Losses between M networks, the student (the first) and M − 1 peers, on the same rows.

    Means over rows; a softened KL is multiplied by T². What another network said is a constant to the one that learns from it: an
    implementation detaches it itself. Parameters learn with the networks and are dropped after training.
    """

    fields: ClassVar[
        Mapping[str, Rule]
    ] = {}  # keyword arguments of __init__; none is called count, system, weight or temperature
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})  # of {"logits", "embedding", "stages"}, from every network
    dials: ClassVar[frozenset[str]] = frozenset()  # as for an objective

    def build(self, networks: Sequence[Shapes]) -> None:
        """Create modules (as submodules) for networks of these shapes. Raises RecipeError if they cannot teach each other."""

    def adopt(self, networks: Sequence[nn.Module]) -> None:
        """After `build`: the networks, before they are trained. Keep copies, if anything: they are not part of this one."""

    def begin_epoch(self, networks: Sequence[nn.Module], progress: float) -> None:
        """Before each epoch, at `progress` in [0, 1] of the whole training."""

    def forward(self, outputs: Sequence[Outputs], batch: Batch, temperature: float | Tensor) -> Mutual:
        """The losses on one batch, in float32."""
        raise NotImplementedError


def risen(progress: float, share: float) -> float:
    """exp(−5(1 − t)²), t = progress/share, at most 1: from 0.0067 to 1 within `share`. Laine, Aila, ICLR 2017."""
    t = min(1.0, progress / share) if share > 0 else 1.0
    return math.exp(-5 * (1 - t) ** 2)


def require_stages(name: str, networks: Sequence[Shapes]) -> None:
    """Raise RecipeError unless all networks have stage maps."""
    if not all(shapes.stages for shapes in networks):
        raise RecipeError(
            f"system of peers '{name}' reads stage maps, the student has 0 stages; "
            "use a convolutional student, or the system dml or kdcl"
        )


def require_embedding(name: str, networks: Sequence[Shapes]) -> None:
    """Raise RecipeError unless all networks have an embedding."""
    for shapes in networks:
        if shapes.embedding < 1:
            raise RecipeError(
                f"system of peers '{name}' relates embeddings, the student's has width {shapes.embedding}; "
                "set its relation to logits"
            )
