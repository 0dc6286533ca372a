"""Losses that compare how rows lie to each other: rkd, pkt, sp.

N rows, D embedding width; student and teacher widths may differ, relations are N×N and N×N×N. All relations come from
one Gram matrix: for rkd N²·D + N³ operations instead of the N³·D of explicit differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from autokd.errors import RecipeError
from autokd.objectives.requirements import require_embedding, require_stages
from autokd.protocols import Batch, Objective, Outputs, Shapes
from autokd.rules import Rule

MAX_ROWS = 64  # the batch of the published runs; 64³ angles = 1 MB in float32. Of more rows only the first are related
PKT_EPS = 1e-7  # as in the authors' code, beside norms and probabilities
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
        require_embedding("rkd", student, teacher)

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        distance_s, angle_s = relations(embedding_of("rkd", student)[:MAX_ROWS])
        distance_t, angle_t = relations(embedding_of("rkd", teacher)[:MAX_ROWS])
        return {
            "distance": self.distance * huber(distance_s - distance_t).mean(),
            "angle": self.angle * huber(angle_s - angle_t).mean(),
        }


def embedding_of(name: str, outputs: Outputs) -> Tensor:
    """(N, D). Raises RecipeError where a network gave none."""
    if outputs.embedding is None:
        raise RecipeError(f"objective '{name}' needs embeddings, the network gave none; use kd, dkd or dist")
    return outputs.embedding


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


class PKT(Objective):
    """mean over N² pairs of p_t·log(p_t/p_s), p_ij = (cos_ij + 1)/2 over its sum over j. Passalis, Tefas, ECCV 2018.

    cos_ij is between the embeddings of rows i and j of one network; arXiv:1803.10837. Scale and rotation of an embedding do not matter.
    p is about 1/N, and so is the loss against a mean over rows.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"embedding"})
    default_weight: ClassVar[float] = 30000.0  # RepDistiller's setting for this loss, at 64 rows
    weight_range: ClassVar[tuple[float, float]] = (1e3, 1e5)

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Refuse networks without an embedding."""
        require_embedding("pkt", student, teacher)

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        p_s, p_t = (neighbours(embedding_of("pkt", each)) for each in (student, teacher))
        return {"pkt": (p_t * ((p_t + PKT_EPS) / (p_s + PKT_EPS)).log()).mean()}


def neighbours(embedding: Tensor) -> Tensor:
    """Probability of row j for row i by the cosine of their embeddings, j = i included: (N, D) -> (N, N)."""
    unit = embedding / (torch.linalg.vector_norm(embedding, dim=1, keepdim=True) + PKT_EPS)
    alike = (unit @ unit.T + 1) / 2
    return alike / alike.sum(1, keepdim=True)


class SP(Objective):
    """mean over N² pairs of (Ĝ_s − Ĝ_t)², Ĝ = F·Fᵀ with rows of unit L2 norm. Tung, Mori, ICCV 2019 (arXiv:1907.09682).

    F holds the last stage map of each row, flattened. Rotating F, or scaling all of it, changes nothing; one row alone gives 0.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"stages"})
    default_weight: ClassVar[float] = 3000.0  # RepDistiller's setting for this loss
    weight_range: ClassVar[tuple[float, float]] = (100.0, 1e4)

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Refuse networks without stage maps."""
        require_stages("sp", student, teacher)

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        own, other = (similarity(each.stages[-1].flatten(1)) for each in (student, teacher))
        return {"sp": (own - other).square().mean()}


def similarity(rows: Tensor) -> Tensor:
    """Inner products of rows, those with one row of unit L2 norm: (N, D) -> (N, N)."""
    return functional.normalize(rows @ rows.T, dim=1)
