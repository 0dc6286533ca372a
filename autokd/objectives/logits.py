"""Losses that compare what two classifiers say: kd, dkd, dist, cos.

N rows, C classes, T temperature, z logits, p = softmax(z/T); s student, t teacher. Written with elementary operations
and no value-dependent branch, so that students stacked by `torch.func.vmap` run through them unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from autokd.objectives.requirements import require_three_classes
from autokd.protocols import Batch, Objective, Outputs, Shapes
from autokd.rules import Rule

PEARSON_EPS = 1e-8  # added to the denominator, as in the authors' DIST code
SPREAD_EPS = 1e-7  # added to the standard deviation of a row of logits, as in the authors' code
COSINE_EPS = 1e-8  # logits of a smaller norm have no direction: cos 0
TEMPERATURE = "both softmaxes are of logits divided by it"
STANDARDISE = Rule("choice", False, choices=(False, True), about="z-scores of logits instead of logits")


def standardised(logits: Tensor) -> Tensor:
    """Each row less its mean, over its standard deviation (population): (N, C) -> (N, C). A constant row becomes 0.

    Sun et al., CVPR 2024 (arXiv:2403.01427). A row's gain and offset are lost, so a student need not match them.
    """
    centred = logits - logits.mean(1, keepdim=True)
    spread = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / logits.shape[1] ** 0.5
    return centred / (spread + SPREAD_EPS)


def kl_rows(student: Tensor, teacher: Tensor, temperature: float | Tensor) -> Tensor:
    """KL(p_t ‖ p_s) per row of (N, C) logits -> (N,), nats, without T². Finite for finite logits."""
    log_s = (student / temperature).log_softmax(1)
    log_t = (teacher / temperature).log_softmax(1)
    return (log_t.exp() * (log_t - log_s)).sum(1)


def mean_over_rows(per_row: Tensor, row_weight: Tensor | None) -> Tensor:
    """Mean over N of row_weight·per_row; the weights are not normalised here."""
    return per_row.mean() if row_weight is None else (row_weight * per_row).mean()


def mean_over(kept: Tensor, per_row: Tensor) -> Tensor:
    """Mean of per_row (N,) over the rows that are kept, (N,) bool; 0 if there are none."""
    return torch.where(kept, per_row, 0.0).sum() / kept.sum().clamp_min(1)


class KD(Objective):
    """T²·mean KL(p_t ‖ p_s). Hinton, Vinyals, Dean 2015 (arXiv:1503.02531). T -> ∞: ‖z̄_t − z̄_s‖²/(2C), z̄ centred.

    With `standardise`, p = softmax(z-score(z)/T) (Sun et al., CVPR 2024); refused for two classes.
    """

    fields: ClassVar[Mapping[str, Rule]] = {
        "temperature": Rule("float", 4.0, 0.5, 50.0, about=TEMPERATURE),
        "standardise": STANDARDISE,
    }
    row_weighted: ClassVar[bool] = True
    dials: ClassVar[frozenset[str]] = frozenset({"temperature"})

    def __init__(self, *, temperature: float = 4.0, standardise: bool = False) -> None:
        super().__init__()
        self.temperature, self.standardise = temperature, standardise

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Refuse z-scores of two logits."""
        if self.standardise:
            require_three_classes("kd", student.classes)

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        own, other = _compared(student, teacher, self.standardise)
        per_row = kl_rows(own, other, self.temperature)
        return {"kd": self.temperature**2 * mean_over_rows(per_row, row_weight)}


def _compared(student: Outputs, teacher: Outputs, standardise: bool) -> tuple[Tensor, Tensor]:
    """Both networks' logits, or z-scores of them."""
    if not standardise:
        return student.logits, teacher.logits
    return standardised(student.logits), standardised(teacher.logits)


class DKD(Objective):
    """T²·mean(alpha·TCKD + beta·NCKD). Zhao et al., CVPR 2022 (arXiv:2203.08679).

    TCKD compares (p_y, 1 − p_y), NCKD the other classes renormalised; KL = TCKD + (1 − p_y of the teacher)·NCKD.
    With two classes one other class is left and NCKD is exactly 0. `standardise` is as for kd.
    """

    fields: ClassVar[Mapping[str, Rule]] = {
        "alpha": Rule("float", 1.0, 0.0, 16.0, about="weight of the target-class part"),
        "beta": Rule("float", 8.0, 0.0, 32.0, about="weight of the other-classes part"),
        "temperature": Rule("float", 4.0, 0.5, 50.0, about=TEMPERATURE),
        "standardise": STANDARDISE,
    }
    row_weighted: ClassVar[bool] = True
    dials: ClassVar[frozenset[str]] = frozenset({"alpha", "beta", "temperature"})

    def __init__(
        self, *, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, standardise: bool = False
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.temperature, self.standardise = alpha, beta, temperature, standardise

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Refuse z-scores of two logits."""
        if self.standardise:
            require_three_classes("dkd", student.classes)

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        own, other = _compared(student, teacher, self.standardise)
        tckd, nckd = decoupled_rows(own, other, batch.y, self.temperature)
        scale = self.temperature**2
        return {
            "tckd": self.alpha * scale * mean_over_rows(tckd, row_weight),
            "nckd": self.beta * scale * mean_over_rows(nckd, row_weight),
        }


def decoupled_rows(student: Tensor, teacher: Tensor, y: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """(TCKD, NCKD) per row, (N,) each, without T².

    log(1 − p_y) is a difference of two log-sum-exps, never the log of a difference: confident rows stay finite.
    """
    others_s, others_t = _others(student, y), _others(teacher, y)
    target_s, rest_s = _target_and_rest(student / temperature, others_s / temperature, y)
    target_t, rest_t = _target_and_rest(teacher / temperature, others_t / temperature, y)
    tckd = target_t.exp() * (target_t - target_s) + rest_t.exp() * (rest_t - rest_s)
    return tckd, kl_rows(others_s, others_t, temperature)


def _others(logits: Tensor, y: Tensor) -> Tensor:
    """The logits of all classes but y: (N, C) -> (N, C − 1). A gather of fixed size: no −inf, no mask."""
    column = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, column + (column >= y[:, None]).long())


def _target_and_rest(scaled: Tensor, others: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """log p_y and log(1 − p_y), (N,) each."""
    total = scaled.logsumexp(1)
    return scaled.gather(1, y[:, None])[:, 0] - total, others.logsumexp(1) - total


class DIST(Objective):
    """T²·[beta·(1 − mean ρ of rows) + gamma·(1 − mean ρ of columns)], ρ Pearson's correlation.

    "inter" (rows) asks that classes relate alike per image, "intra" (columns) that images relate alike per class. One
    row has no columns to correlate: "intra" is then 0. Huang et al., NeurIPS 2022 (arXiv:2205.10536).
    """

    fields: ClassVar[Mapping[str, Rule]] = {
        "beta": Rule("float", 1.0, 0.0, 32.0, about="weight of the correlation over classes, per row"),
        "gamma": Rule("float", 1.0, 0.0, 32.0, about="weight of the correlation over rows, per class"),
        "temperature": Rule("float", 1.0, 0.5, 50.0, about=TEMPERATURE),
    }
    dials: ClassVar[frozenset[str]] = frozenset({"beta", "gamma", "temperature"})

    def __init__(self, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        self.beta, self.gamma, self.temperature = beta, gamma, temperature

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        p_s = (student.logits / self.temperature).softmax(1)
        p_t = (teacher.logits / self.temperature).softmax(1)
        scale = self.temperature**2
        intra = 1 - pearson(p_s.T, p_t.T).mean() if len(p_s) > 1 else p_s.new_zeros(())
        return {
            "inter": self.beta * scale * (1 - pearson(p_s, p_t).mean()),
            "intra": self.gamma * scale * intra,
        }


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of corresponding rows, (N, K) and (N, K) -> (N,); 0 for a constant row."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return (a * b).sum(1) / (norms + PEARSON_EPS)


class Cosine(Objective):
    """mean over rows of 1 − cos(z_s, z_t) of raw logits: 0 iff every row's are parallel, scale does not matter.

    The loss of hidden states in DistilBERT (Sanh et al. 2019, arXiv:1910.01108), on logits, which need no projection.
    """

    row_weighted: ClassVar[bool] = True
    weight_range: ClassVar[tuple[float, float]] = (0.1, 10.0)

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        own, other = (functional.normalize(each.logits, dim=1, eps=COSINE_EPS) for each in (student, teacher))
        return {"cos": mean_over_rows(1 - (own * other).sum(1), row_weight)}
