"""Losses of metric learning, which push away what other classes say: triplet, triplet_embedding.

N rows, D numbers of a point: logits, probabilities, or an embedding; s student, t teacher, y labels. Each row has negatives, rows of
other classes: samples of the whole training split, on which a network is run for this alone, or rows of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from autokd.augment.counters import Stream
from autokd.objectives.drawing import ByClass
from autokd.objectives.logits import COSINE_EPS
from autokd.objectives.relations import COINCIDENT, embedding_of
from autokd.objectives.requirements import require_ask, require_embedding
from autokd.protocols import Ask, Batch, Objective, Outputs, Samples, Shapes
from autokd.rules import Rule

PAIR_EPS = 1e-6  # added to every coordinate of a difference, as torch's pairwise distance does

MARGIN = Rule("float", 5.0, 0.0, 50.0, about="how much farther other classes have to be, in units of the distance")
NEGATIVES = Rule(
    "choice",
    "dataset",
    choices=("dataset", "random", "semi-hard", "hardest", "all"),
    about="rows of other classes: one of all training samples, or in the batch one, the nearest beyond the own, the nearest, or the mean over all",
)
FORM = Rule(
    "choice", "triplet", choices=("triplet", "pair"), about="the distances against each other, or each for itself"
)
SPACE = Rule("choice", "logits", choices=("logits", "probabilities"), about="what is compared")
METRIC = Rule("choice", "l2", choices=("l2", "squared", "cosine"), about="the distance")
ANCHOR = Rule("choice", "teacher", choices=("teacher", "student"), about="whose row is compared with the negatives")


# ---- distances


def apart(a: Tensor, b: Tensor, metric: str = "l2") -> Tensor:
    """Distances of corresponding rows, (N, D) and (N, D) -> (N,): "l2", its square, or 1 − cos."""
    if metric == "cosine":
        return 1 - (_unit(a) * _unit(b)).sum(1)
    difference = a - b + PAIR_EPS
    return difference.square().sum(1) if metric == "squared" else torch.linalg.vector_norm(difference, dim=1)


def all_apart(a: Tensor, b: Tensor, metric: str = "l2") -> Tensor:
    """Distances of each row of a to every row of b, (N, D) and (M, D) -> (N, M).

    Points that lie together have distance 0 and gradient 0: no square root is taken at 0.
    """
    if metric == "cosine":
        return 1 - _unit(a) @ _unit(b).T
    centre = b.mean(0, keepdim=True)  # keeps the differences of inner products accurate
    one, other = a + PAIR_EPS - centre, b - centre
    squares = one.square().sum(1)[:, None] + other.square().sum(1)[None, :] - 2 * one @ other.T
    distinct = squares > (COINCIDENT * squares.detach().mean()).clamp_min(1e-12)
    if metric == "squared":
        return torch.where(distinct, squares, 0.0)
    return torch.where(distinct, torch.where(distinct, squares, 1.0).sqrt(), 0.0)


def _unit(x: Tensor) -> Tensor:
    return functional.normalize(x, dim=1, eps=COSINE_EPS)


# ---- negatives in the batch


def shares_of(negatives: str, near: Tensor, far: Tensor, other: Tensor, random: Tensor) -> Tensor:
    """How much row k counts as a negative of row n, (N, N): a row's sum is 1, or 0 if no row of the batch has another class.

    near (N,) distance to the own row, far (N, N) to every row, other (N, N) bool whether it has another class, random (N, N) in [0, 1).
    "semi-hard" (Schroff, Kalenichenko, Philbin, CVPR 2015) is the nearest that is farther than the own row, else the farthest.
    """
    if negatives == "all":
        return other / other.sum(1, keepdim=True).clamp_min(1)
    if negatives == "random":
        pick = random.masked_fill(~other, -1.0).argmax(1)
    elif negatives == "hardest":
        pick = far.masked_fill(~other, torch.inf).argmin(1)
    else:
        beyond = other & (far > near[:, None])
        nearest = far.masked_fill(~beyond, torch.inf).argmin(1)
        pick = torch.where(beyond.any(1), nearest, far.masked_fill(~other, -torch.inf).argmax(1))
    return (other & (torch.arange(other.shape[1], device=other.device) == pick[:, None])).to(far.dtype)


# ---- losses


def triplet_loss(near: Tensor, far: Tensor, shares: Tensor, margin: float | Tensor) -> Tensor:
    """⟨Σ_k share·max(0, near − far + margin)⟩: near (N,), far and shares (N, K) of K negatives."""
    return (shares * (near[:, None] - far + margin).relu()).sum(1).mean()


def pair_loss(near: Tensor, far: Tensor, shares: Tensor, margin: float | Tensor) -> Tensor:
    """Mean of near² and of share·max(0, margin − far)² over all pairs, of which shares of 1 make one: near (N,), far and shares (N, K)."""
    pushed = (shares * (margin - far).relu().square()).sum()
    return (near.square().sum() + pushed) / (len(near) + shares.sum())


class MetricLoss(Objective):
    """What the losses of this file have in common: all but the points that they compare."""

    default_weight: ClassVar[float] = 2.0
    weight_range: ClassVar[tuple[float, float]] = (0.01, 10.0)
    divergence: ClassVar[bool] = False  # equal points of different classes may be nearer than the margin
    asks: ClassVar[bool] = True
    name: ClassVar[str]

    def __init__(self, margin: float, negatives: str, form: str, metric: str, anchor: str) -> None:
        super().__init__()
        self.margin, self.negatives, self.form, self.metric, self.anchor = margin, negatives, form, metric, anchor

    def of_student(self, outputs: Outputs) -> Tensor:
        """The student's points (N, D)."""
        raise NotImplementedError

    def of_frozen(self, outputs: Outputs) -> Tensor:
        """The teacher's points (N, D)."""
        raise NotImplementedError

    def know(self, samples: Samples) -> None:
        """Sort the split by class, if negatives are drawn from it."""
        if self.negatives == "dataset":
            self.by_class = ByClass(samples.y)

    def forward(
        self,
        student: Outputs,
        teacher: Outputs,
        batch: Batch,
        row_weight: Tensor | None = None,
        ask: Ask | None = None,
    ) -> dict[str, Tensor]:
        own, given = self.of_student(student), self.of_frozen(teacher)
        near = apart(given, own, self.metric)
        anchor, others = (given, own) if self.anchor == "teacher" else (own, given)
        if self.negatives == "dataset":
            far = apart(anchor, self._drawn(batch, require_ask(self.name, ask)), self.metric)[:, None]
            shares = torch.ones_like(far)
        else:
            far = all_apart(anchor, others, self.metric)
            other = batch.y[:, None] != batch.y[None, :]
            with torch.no_grad():
                shares = shares_of(self.negatives, near, far, other, self._random(batch, ask, far))
        loss = triplet_loss if self.form == "triplet" else pair_loss
        return {self.name: loss(near, far, shares, self.margin)}

    def _drawn(self, batch: Batch, ask: Ask) -> Tensor:
        """Points (N, D) of a sample of another class for each row: other ones in each epoch, and in each view of an image."""
        index = self.by_class.other_class(batch.y, ask.uniform(Stream.OTHER, batch.index, batch.view))
        x = ask.base(index)
        return self.of_student(ask.student(x)) if self.anchor == "teacher" else self.of_frozen(ask.teacher(x))

    def _random(self, batch: Batch, ask: Ask | None, like: Tensor) -> Tensor:
        """A number (N, N) of each pair of rows that does not depend on where they stand in the batch; 0 if nobody needs it."""
        if self.negatives != "random":
            return torch.zeros_like(like)
        pairs = (batch.index[:, None], batch.view[:, None], batch.index, batch.view)
        return require_ask(self.name, ask).uniform(Stream.OTHER, *pairs)


class Triplet(MetricLoss):
    """⟨max(0, d(z_t(x), z_s(x)) − d(z_t(x), z_s(x⁻)) + margin)⟩, d(u, v) = ‖u − v + 1e-6‖₂. Oki, Abe, Miyao, Kurita, IJCNN 2020.

    arXiv:2004.08116; level A (the authors' code was read): loss, constants, defaults and where x⁻ comes from, a sample drawn uniformly from
    all training samples of other classes, anew in each epoch, on which the student runs as well. The source adds KL with T = 1 (weight 1)
    and cross-entropy (weight 1).

    Ours (reconstruction): negatives among the rows of the batch, where one without any counts 0; `form` "pair", the mean over pairs of
    d(t_n, s_n)² and max(0, margin − d(t_n, s_k))²; softmax probabilities (T = 1) in place of logits; squared and cosine distances; the
    student as anchor, d(s_n, t_k), for which the live teacher runs on x⁻.
    """

    fields: ClassVar[Mapping[str, Rule]] = {
        "margin": MARGIN,
        "negatives": NEGATIVES,
        "form": FORM,
        "space": SPACE,
        "metric": METRIC,
        "anchor": ANCHOR,
    }
    dials: ClassVar[frozenset[str]] = frozenset({"margin"})
    name: ClassVar[str] = "triplet"

    def __init__(
        self,
        *,
        margin: float = 5.0,
        negatives: str = "dataset",
        form: str = "triplet",
        space: str = "logits",
        metric: str = "l2",
        anchor: str = "teacher",
    ) -> None:
        super().__init__(margin, negatives, form, metric, anchor)
        self.space = space

    def of_student(self, outputs: Outputs) -> Tensor:
        return outputs.logits if self.space == "logits" else outputs.logits.softmax(1)

    def of_frozen(self, outputs: Outputs) -> Tensor:
        return self.of_student(outputs)


class TripletEmbedding(MetricLoss):
    """As triplet, of embeddings: the teacher's (N, D_t), and the student's (N, D_s) after a learned linear map to its width.

    Reconstruction: the source compares logits. The map learns with the student and is dropped afterwards.
    """

    fields: ClassVar[Mapping[str, Rule]] = {"margin": MARGIN, "negatives": NEGATIVES, "form": FORM, "metric": METRIC}
    needs: ClassVar[frozenset[str]] = frozenset({"embedding"})
    dials: ClassVar[frozenset[str]] = frozenset({"margin"})
    name: ClassVar[str] = "triplet_embedding"

    def __init__(
        self, *, margin: float = 5.0, negatives: str = "dataset", form: str = "triplet", metric: str = "l2"
    ) -> None:
        super().__init__(margin, negatives, form, metric, anchor="teacher")

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Draw the linear map."""
        require_embedding(self.name, student, teacher)
        self.projection = nn.Linear(student.embedding, teacher.embedding)

    def of_student(self, outputs: Outputs) -> Tensor:
        projected: Tensor = self.projection(embedding_of(self.name, outputs))
        return projected

    def of_frozen(self, outputs: Outputs) -> Tensor:
        return embedding_of(self.name, outputs)
