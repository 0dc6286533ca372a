"""Losses that compare a row with samples far beyond its batch: crd, which remembers what both networks said of every sample.

N rows, n samples of the training split, K negatives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from autokd.augment.counters import Stream
from autokd.errors import RecipeError
from autokd.objectives.drawing import ByClass
from autokd.objectives.relations import embedding_of
from autokd.objectives.requirements import require_ask, require_embedding
from autokd.protocols import Ask, Batch, Objective, Outputs, Samples, Shapes
from autokd.rules import Rule

LIKELIHOOD_EPS = 1e-7  # beside likelihoods, as in the authors' code
UNKNOWN = -1.0  # a normaliser that no batch has set yet


class CRD(Objective):
    """−⟨log h(s, t⁺) + Σ_K log(1 − h(s, t⁻))⟩, and the same with s and t exchanged; h = P/(P + K/n). Tian et al., ICLR 2020 (arXiv:1910.10699).

    s and t are linear projections of the two embeddings to `dim` numbers, of unit L2 norm; P(s, t) = exp(s·t/tau)/Z. What a row is compared with is
    remembered: n×dim for each network, at first random. t⁺ is of the row's own sample, K t⁻ of samples of other classes, drawn
    anew for each row and epoch, with replacement. Z is n·mean exp(s·t/tau) of the very first batch. After the loss the memory of a sample
    becomes momentum·memory + (1 − momentum)·projection, of unit norm: the projection of its base view.
    """

    fields: ClassVar[Mapping[str, Rule]] = {
        "negatives": Rule("int", 4096, 16, 65536, about="samples of other classes drawn for each row"),
        "tau": Rule("float", 0.07, 0.03, 0.3, about="temperature of inner products"),
        "momentum": Rule("float", 0.5, 0.0, 0.99, about="share of its past in what is remembered"),
        "dim": Rule("int", 128, 8, 512, about="width of the projections"),
    }
    needs: ClassVar[frozenset[str]] = frozenset({"embedding"})
    dials: ClassVar[frozenset[str]] = frozenset({"tau", "momentum"})
    default_weight: ClassVar[float] = 0.8  # RepDistiller's setting for this loss
    weight_range: ClassVar[tuple[float, float]] = (0.1, 4.0)
    divergence: ClassVar[bool] = False  # equal networks have different memories and projections
    asks: ClassVar[bool] = True
    of_students: Tensor  # (n, dim) memory
    of_teachers: Tensor
    normalisers: Tensor  # (2,) Z of comparisons with the memory of the teacher, of the student

    def __init__(self, *, negatives: int = 4096, tau: float = 0.07, momentum: float = 0.5, dim: int = 128) -> None:
        super().__init__()
        self.negatives, self.tau, self.momentum, self.dim = negatives, tau, momentum, dim
        self.samples = 0

    def know(self, samples: Samples) -> None:
        """Sort the samples by class. Raises RecipeError without two classes."""
        if samples.y.dim() != 1:
            raise RecipeError(
                f"objective 'crd' needs one class per sample, labels have shape {tuple(samples.y.shape[1:])}; use kd"
            )
        self.samples, self.by_class = len(samples), ByClass(samples.y)

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Draw the projections and what is remembered at first. Raises RecipeError without embeddings."""
        require_embedding("crd", student, teacher)
        self.project_student = nn.Linear(student.embedding, self.dim)
        self.project_teacher = nn.Linear(teacher.embedding, self.dim)
        spread = (3 / self.dim) ** 0.5  # rows of uniform numbers in ± this have about unit norm
        for name in ("of_students", "of_teachers"):
            self.register_buffer(name, spread * (2 * torch.rand(self.samples, self.dim) - 1))
        self.register_buffer("normalisers", torch.full((2,), UNKNOWN))

    def forward(
        self,
        student: Outputs,
        teacher: Outputs,
        batch: Batch,
        row_weight: Tensor | None = None,
        ask: Ask | None = None,
    ) -> dict[str, Tensor]:
        own = functional.normalize(self.project_student(embedding_of("crd", student)), dim=1)
        other = functional.normalize(self.project_teacher(embedding_of("crd", teacher)), dim=1)
        compared = torch.cat([batch.index[:, None], self._drawn(batch, require_ask("crd", ask))], 1)
        loss = self._contrast(own, self.of_teachers, compared, self.normalisers[0])
        loss = loss + self._contrast(other, self.of_students, compared, self.normalisers[1])
        self._remember(self.of_students, own, batch)
        self._remember(self.of_teachers, other, batch)
        return {"crd": loss}

    def _drawn(self, batch: Batch, ask: Ask) -> Tensor:
        """Samples of other classes, (N, K)."""
        number = torch.arange(self.negatives, device=batch.index.device)
        chance = ask.uniform(Stream.NEGATIVE, batch.index[:, None], batch.view[:, None], number)
        return self.by_class.other_class(batch.y[:, None], chance)

    def _contrast(self, rows: Tensor, memory: Tensor, compared: Tensor, normaliser: Tensor) -> Tensor:
        """Of projections (N, dim) with the samples `compared` (N, 1 + K), the first of which is their own.

        All n inner products are taken, in one matrix product: to gather N·K rows of the memory instead moves far more numbers until n
        is many times K. The memory is copied, since it changes before the backward pass reads it.
        """
        likeness = ((rows @ memory.clone().T).gather(1, compared) / self.tau).exp()
        with torch.no_grad():
            constant = torch.where(normaliser < 0, len(memory) * likeness.mean(), normaliser)
            normaliser.copy_(constant)
        return contrast(likeness / constant, compared.shape[1] - 1, len(memory))

    def _remember(self, memory: Tensor, rows: Tensor, batch: Batch) -> None:
        """Every row of a sample writes what its base row has: the order in which they write does not matter."""
        with torch.no_grad():
            moved = self.momentum * memory[batch.index] + (1 - self.momentum) * rows
            memory.index_copy_(0, batch.index, functional.normalize(moved, dim=1)[batch.parent])


def contrast(likelihood: Tensor, negatives: int, samples: int) -> Tensor:
    """Noise-contrastive loss of P (N, 1 + K), the first column of which is of pairs that belong together: mean over rows, sum over K."""
    noise = negatives / samples
    total = likelihood + noise + LIKELIHOOD_EPS
    together = (likelihood[:, 0] / total[:, 0]).log()
    apart = (noise / total[:, 1:]).log().sum(1)
    return -(together + apart).mean()
