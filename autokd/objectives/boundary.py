"""Losses on rows that were driven across the teacher's decision boundary: amkd.

N rows, n of them driven, C classes, z logits, p = softmax(z/T); s student, t teacher, y labels, k the class a row is driven to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from autokd.augment.counters import Stream
from autokd.objectives.logits import TEMPERATURE, mean_over
from autokd.objectives.metric import MARGIN, apart
from autokd.objectives.requirements import require_ask
from autokd.protocols import Ask, Batch, Objective, Outputs, Samples, Shapes
from autokd.rules import Rule

BEYOND = 1e-4  # logits that a step aims beyond the boundary, as in the authors' code
LEAST_SLOPE = 1e-12  # a gradient of a smaller norm has no direction
PAST = 0.9  # share of the past in the mean logits of a class
STANDS_FOR = 1  # a counter beside that of the class: which row stands for it

Slope = Callable[[Tensor, Callable[[Tensor], Tensor]], tuple[Tensor, Tensor]]


def boundary_rows(
    x: Tensor, k: Tensor, slope: Slope, steps: int, eta: float | Tensor, low: float, high: float
) -> Tensor:
    """Rows (n, …) driven to the teacher's boundary with class k (n,), and just across. Heo et al., AAAI 2019 (arXiv:1805.05532).

    b = argmax z_t(x) at first; x ← clamp(x + eta·((z_b − z_k) + 1e-4)·g/‖g‖₂), g the gradient of z_k − z_b by x, while argmax z_t(x) = b. A
    row that flipped stays where it is, so that all `steps` can be made whatever the others do.
    """
    moved = x.detach()
    first: Tensor | None = None
    for _ in range(steps):
        logits, gradient = slope(moved, lambda z: (_picked(z, k) - _picked(z, z.argmax(1))).sum())
        leader = logits.argmax(1)
        first = leader if first is None else first
        gap = _picked(logits, leader) - _picked(logits, k)
        length = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp_min(LEAST_SLOPE)
        stride = (eta * (gap + BEYOND) / length * (leader == first)).to(x.dtype)
        moved = (moved + stride.reshape(-1, *(1,) * (x.dim() - 1)) * gradient).clamp(low, high)
    return moved


def _picked(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]


def target_classes(teacher: Tensor, y: Tensor, random: Tensor) -> Tensor:
    """A class other than y, with probability in proportion to the teacher's (T = 1): logits (N, C), (N,), (N,) in [0, 1) -> (N,) int64."""
    column = torch.arange(teacher.shape[1] - 1, device=teacher.device)
    others = column + (column >= y[:, None]).long()
    below = teacher.gather(1, others).softmax(1).cumsum(1)
    place = (below <= random[:, None] * below[:, -1:]).sum(1, keepdim=True).clamp_max(len(column) - 1)
    return others.gather(1, place)[:, 0]


def base_rows(student: Tensor, teacher: Tensor, y: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Which rows are driven, (most,) int64, and whether each is fit to be, (most,) bool: always so many, so that shapes do not change.

    Fit are those that both networks classify as y; of them those with the largest Σ_{c≠y} (p_t − p_s)² (T = 1) come first.
    """
    fit = (student.argmax(1) == y) & (teacher.argmax(1) == y)
    gaps = (teacher.softmax(1) - student.softmax(1)).square()
    score = gaps.sum(1) - _picked(gaps, y)
    found = torch.where(fit, score.clamp_min(0), -1.0).topk(most)
    return found.indices, found.values >= 0


class AMKD(Objective):
    """beta·⟨H(p_t(x̂), p_s(x̂))⟩ + mu·⟨max(0, d(a, p) − d(a, q) + margin)⟩ on rows x̂ at the teacher's boundary. ICCIP 2020.

    "boundary": cross-entropy of the student to the teacher on x̂, times T² unless `t2` is off; its gradient is the KL's. "triplet":
    a = z_s(x̂), p = z_t(x̂) (or z_s(x), x the row before it was driven), q = z_s of a row of the batch of class k, d(u, v) = ‖u − v + 1e-6‖₂;
    without one the mean logits of class k in earlier batches (a running mean, share of the past 0.9), and a row whose class was in none is
    left out. Means over the driven rows; without any the loss is 0. x̂ is `boundary_rows` of the `portion` of rows that
    `base_rows` chooses, each towards a class k drawn by `target_classes`.

    The boundary samples, with mu = 0 and t2 = False, are those of Heo et al., AAAI 2019 (level A, the authors' code was read); there beta is
    2·max(0, 1 − 4e/(3E)), and kd without T² has the weight 1 + 3(1 − e/E). Their eta = 0.3 is in units of normalised pixels; here x is in the
    data's own range, where 0.3 is 0.3 standard deviations, 0.075 for CIFAR's of about a quarter; clamped to the range of the data.

    Reconstruction, level C: of the triplets the abstract says that they have adversarial samples; who is anchor, positive and negative, margin
    and weights are ours.
    """

    fields: ClassVar[Mapping[str, Rule]] = {
        "eta": Rule(
            "float", 0.075, 0.0, 10.0, about="length of a step per unit of the gap in logits, in the data's own units"
        ),
        "steps": Rule("int", 10, 1, 50, about="of the attack, each a forward and a backward pass of the teacher"),
        "portion": Rule("choice", 0.25, choices=(0.125, 0.25, 0.5), about="of the rows that are driven, at most"),
        "temperature": Rule("float", 3.0, 0.5, 50.0, about=TEMPERATURE),
        "t2": Rule("choice", True, choices=(True, False), about="whether the boundary part is multiplied by T²"),
        "beta": Rule("float", 2.0, 0.0, 32.0, about="weight of the boundary part"),
        "mu": Rule("float", 0.1, 0.0, 32.0, about="weight of the triplets"),
        "margin": MARGIN,
        "positive": Rule(
            "choice", "teacher", choices=("teacher", "student"), about="z_t of the driven row, or z_s before"
        ),
    }
    dials: ClassVar[frozenset[str]] = frozenset({"eta", "temperature", "beta", "mu", "margin"})
    divergence: ClassVar[bool] = False  # a cross-entropy, and margins
    asks: ClassVar[bool] = True
    own_unit: ClassVar[bool] = True  # before training few samples can be driven to a boundary, or none
    means: Tensor  # (C, C) mean logits of the student by class
    seen: Tensor  # (C,) 1 for the classes that were in some batch

    def __init__(
        self,
        *,
        eta: float = 0.075,
        steps: int = 10,
        portion: float = 0.25,
        temperature: float = 3.0,
        t2: bool = True,
        beta: float = 2.0,
        mu: float = 0.1,
        margin: float = 5.0,
        positive: str = "teacher",
    ) -> None:
        super().__init__()
        self.eta, self.steps, self.portion, self.temperature, self.t2 = eta, steps, portion, temperature, t2
        self.beta, self.mu, self.margin, self.positive = beta, mu, margin, positive
        self.low, self.high = 0.0, 1.0

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Nothing is remembered of any class yet."""
        self.register_buffer("means", torch.zeros(student.classes, student.classes))
        self.register_buffer("seen", torch.zeros(student.classes))

    def know(self, samples: Samples) -> None:
        """The range that driven rows are clamped to."""
        self.low, self.high = samples.value_range

    def forward(
        self,
        student: Outputs,
        teacher: Outputs,
        batch: Batch,
        row_weight: Tensor | None = None,
        ask: Ask | None = None,
    ) -> dict[str, Tensor]:
        asked, most = require_ask("amkd", ask), max(1, int(self.portion * len(batch.y)))
        with torch.no_grad():
            rows, fit = base_rows(student.logits, teacher.logits, batch.y, most)
            k = target_classes(teacher.logits, batch.y, asked.uniform(Stream.TARGET, batch.index, batch.view))[rows]
        driven = boundary_rows(batch.x[rows], k, asked.slope, self.steps, self.eta, self.low, self.high)
        own, other = asked.student(driven).logits, asked.teacher(driven).logits
        crossed = -((other / self.temperature).softmax(1) * (own / self.temperature).log_softmax(1)).sum(1)
        scale = self.temperature**2 if self.t2 else 1.0

        # a row of class k: the one of the largest number, so that their order does not matter
        number = asked.uniform(Stream.TARGET, batch.index, batch.view, STANDS_FOR)
        of_class = batch.y[None, :] == k[:, None]
        here = of_class.any(1)
        there = student.logits[torch.where(of_class, number, -1.0).argmax(1)]
        negative = torch.where(here[:, None], there, self.means[k].to(there.dtype))
        known = here | (self.seen[k] > 0)
        self._remember(student.logits, batch.y)
        positive = other if self.positive == "teacher" else student.logits[rows]
        short = (apart(own, positive) - apart(own, negative) + self.margin).relu()
        return {
            "boundary": self.beta * scale * mean_over(fit, crossed),
            "triplet": self.mu * mean_over(fit & known, short),
        }

    def _remember(self, logits: Tensor, y: Tensor) -> None:
        """The classes of this batch in the running means of their logits."""
        with torch.no_grad():
            member = functional.one_hot(y, len(self.means)).to(self.means.dtype)
            count = member.sum(0)
            here = (member.T @ logits.to(self.means.dtype)) / count.clamp_min(1)[:, None]
            share = torch.where(self.seen > 0, PAST, 0.0)[:, None]
            moved = share * self.means + (1 - share) * here
            self.means.copy_(torch.where(count[:, None] > 0, moved, self.means))
            self.seen.copy_(torch.maximum(self.seen, (count > 0).to(self.seen.dtype)))
