"""Losses that compare how rows lie to each other in embedding space: rkd.

N rows, D embedding width; student and teacher widths may differ, relations are N×N and N×N×N. All relations come from
one Gram matrix: N²·D + N³ operations instead of the N³·D of explicit differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from autokd.errors import RecipeError
from autokd.protocols import Batch, Objective, Outputs, Shapes
from autokd.recipe import Rule

MAX_ROWS = 64  # the batch of the published runs; 64³ angles = 1 MB in float32. Of more rows only the first are related
COINCIDENT = 1e-6  # squared distances below this share of their mean are rounding noise of the Gram matrix: taken as 0


class RKD(Objective):
    """distance·Huber(ψ_s − ψ_t) + angle·Huber(cos_s − cos_t). Park et al., CVPR 2019 (arXiv:1904.05068).

    ψ: Euclidean distances over their mean (means over N² pairs); cos of the angle at row i between rows j and k
    (means over N³). Rows beyond the first 64 are left out. Invariant to scaling, shifting and rotating an embedding;
    0 for fewer than 2 rows.
    """

    fields: ClassVar[Mapping[str, Rule]] = {
        "distance": Rule("float", 25.0, 0.0, 250.0, about="weight of the pairwise distances"),
        "angle": Rule("float", 50.0, 0.0, 500.0, about="weight of the angles of triples"),
    }
    needs: ClassVar[frozenset[str]] = frozenset({"embedding"})
    dials: ClassVar[frozenset[str]] = frozenset({"distance", "angle"})
    weight_range: ClassVar[tuple[float, float]] = (0.2, 5.0)

    def __init__(self, *, distance: float = 25.0, angle: float = 50.0) -> None:
        super().__init__()
        self.distance, self.angle = distance, angle

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Refuse networks without an embedding."""
        for who, shapes in (("student", student), ("teacher", teacher)):
            if shapes.embedding < 1:
                raise RecipeError(
                    f"objective 'rkd' compares embeddings, the {who}'s has width {shapes.embedding}; use kd or dist"
                )

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        distance_s, angle_s = relations(_embedding(student))
        distance_t, angle_t = relations(_embedding(teacher))
        return {
            "distance": self.distance * huber(distance_s - distance_t).mean(),
            "angle": self.angle * huber(angle_s - angle_t).mean(),
        }


def _embedding(outputs: Outputs) -> Tensor:
    if outputs.embedding is None:
        raise RecipeError("objective 'rkd' needs embeddings, the network gave none; use kd, dkd or dist")
    return outputs.embedding[:MAX_ROWS]


def relations(embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Distances over their mean (N, N), and cos of the angle at the first index between the two others (N, N, N).

    Coincident rows have distance 0 and no direction (cos 0), both with gradient 0: no square root is taken at 0.
    """
    centred = embedding - embedding.mean(0, keepdim=True)  # keeps the differences of Gram entries accurate
    gram = centred @ centred.T
    norms = gram.diagonal()
    squares = norms[:, None] + norms[None, :] - 2 * gram
    apart = squares > (COINCIDENT * squares.detach().mean()).clamp_min(1e-12)
    lengths = torch.where(apart, squares, 1.0).sqrt()
    distances = torch.where(apart, lengths, 0.0)
    mean = distances.sum() / apart.sum().clamp_min(1)
    inverse = torch.where(apart, 1 / lengths, 0.0)
    dots = gram[None, :, :] - gram[:, :, None] - gram[:, None, :] + norms[:, None, None]
    return distances / mean.clamp_min(1e-12), dots * inverse[:, :, None] * inverse[:, None, :]


def huber(x: Tensor) -> Tensor:
    """x²/2 within ±1, |x| − 1/2 outside."""
    size = x.abs()
    return torch.where(size < 1, 0.5 * x * x, size - 0.5)
