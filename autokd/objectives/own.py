"""Losses that need no teacher: the label or the network itself, its last stage or its own past, is one (tfkd_reg, byot, past).

N rows, C classes, T temperature, z logits, p = softmax(z/T). What the network is compared with is detached here, since nobody else can.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from autokd.objectives.heads import StageHead
from autokd.objectives.logits import TEMPERATURE, kl_rows
from autokd.objectives.requirements import require_two_stages
from autokd.protocols import Batch, Objective, Outputs, Shapes
from autokd.rules import Rule
from autokd.students.copies import frozen_copy, tensors_of
from autokd.students.tap import logits_of


class TfKDReg(Objective):
    """mean over rows of KL(u ‖ softmax(z)), u = softmax(v/tau): a virtual teacher. Yuan et al., CVPR 2020 (arXiv:1909.11723).

    v is `accuracy` at the label and (1 − accuracy)/(C − 1) elsewhere. As in the authors' code the softmax is taken of these
    *probabilities* over tau, so that u is nearly uniform, the student has no temperature, and there is no T². Their code divides by C
    as well ("elements") and multiplies by 100.
    """

    fields: ClassVar[Mapping[str, Rule]] = {
        "tau": Rule("float", 20.0, 0.05, 100.0, about="temperature of the virtual teacher alone"),
        "accuracy": Rule("float", 0.99, 0.1, 1.0, about="the virtual teacher's probability of the label"),
        "reduction": Rule(
            "choice", "rows", choices=("rows", "elements"), about="mean over N, or over N·C as the source"
        ),
    }
    dials: ClassVar[frozenset[str]] = frozenset({"tau", "accuracy"})
    default_weight: ClassVar[float] = 0.1  # the source's .1·100 of a mean over elements, at its 100 classes
    weight_range: ClassVar[tuple[float, float]] = (0.01, 10.0)
    divergence: ClassVar[bool] = False
    listens: ClassVar[bool] = False

    def __init__(self, *, tau: float = 20.0, accuracy: float = 0.99, reduction: str = "rows") -> None:
        super().__init__()
        self.tau, self.accuracy, self.reduction = tau, accuracy, reduction

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        loss = virtual_teacher(student.logits, batch.y, self.accuracy, self.tau)
        return {"tfkd_reg": loss if self.reduction == "rows" else loss / student.logits.shape[1]}


def virtual_teacher(logits: Tensor, y: Tensor, accuracy: float | Tensor, tau: float | Tensor) -> Tensor:
    """⟨KL(softmax(v/tau) ‖ softmax(logits))⟩, v = accuracy at the label, (1 − accuracy)/(C − 1) elsewhere; logits (N, C), labels (N,)."""
    classes = logits.shape[1]
    right = (torch.arange(classes, device=logits.device) == y[:, None]).to(logits.dtype)
    virtual = right * accuracy + (1 - right) * (1 - accuracy) / (classes - 1)
    return kl_rows(logits, virtual / tau, 1.0).mean()


class BYOT(Objective):
    """Σ_l [(1 − alpha)·⟨CE(z_l)⟩ + alpha·T²·⟨KL(p_S ‖ p_l)⟩ + beta·mean (f_l − f_S)²]. Zhang et al., ICCV 2019 (arXiv:1905.08094).

    l runs over all stages but the last. z_l is what a head on it says (`StageHead`: depthwise separable convolutions, pooling, a linear layer;
    the source has bottlenecks on residual networks), f_l its pooled feature; z_S are the network's own logits and f_S its last
    stage, pooled, both constants here. The cross-entropy of z_S is the recipe's. Named "ce", "response" and "hint".
    """

    fields: ClassVar[Mapping[str, Rule]] = {
        "alpha": Rule("float", 0.1, 0.0, 1.0, about="share of the network's own logits in what heads learn from"),
        "beta": Rule("float", 0.05, 0.0, 10.0, about="weight of the pooled features"),
        "temperature": Rule("float", 3.0, 0.5, 50.0, about=TEMPERATURE),
    }
    needs: ClassVar[frozenset[str]] = frozenset({"stages", "logits"})
    dials: ClassVar[frozenset[str]] = frozenset({"alpha", "beta", "temperature"})
    divergence: ClassVar[bool] = False
    listens: ClassVar[bool] = False

    def __init__(self, *, alpha: float = 0.1, beta: float = 0.05, temperature: float = 3.0) -> None:
        super().__init__()
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Draw a head for each stage but the last."""
        require_two_stages("byot", student)
        *stages, last = (stage[0] for stage in student.stages)
        self.heads = nn.ModuleList(
            StageHead(channels, len(stages) - number, student.classes, width=last)
            for number, channels in enumerate(stages)
        )

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        deepest, final = student.logits.detach(), student.stages[-1].detach().mean((2, 3))
        ce = response = hint = deepest.new_zeros(())
        heads = [head for head in self.heads if isinstance(head, StageHead)]
        for head, stage in zip(heads, student.stages[:-1], strict=True):
            feature = head.pooled(stage)
            logits = head.linear(feature)
            ce = ce + functional.cross_entropy(logits, batch.y)
            response = response + kl_rows(logits, deepest, self.temperature).mean()
            hint = hint + (feature - final).square().mean()
        return {
            "ce": (1 - self.alpha) * ce,
            "response": self.alpha * self.temperature**2 * response,
            "hint": self.beta * hint,
        }


class Past(Objective):
    """T²·⟨KL(p_past ‖ p)⟩ from `after` on, before that alone·⟨CE(p, y)⟩: the past is this network as it was then, in eval mode.

    `alone` makes up for a small `ce_weight`, by which the network would have learned little that is worth remembering. With
    init "scratch" the network then begins again at its initial weights (the optimiser's moments stay as they are), else it goes on.
    `optim.restart`, where it is the same share, gives both stages a whole schedule.

    After Born-Again Networks (Furlanello et al., ICML 2018, arXiv:1805.04770) and Tf-KD_self (Yuan et al., CVPR 2020, arXiv:1909.11723),
    which train a whole network first and then another one by it; here one training holds both.
    """

    fields: ClassVar[Mapping[str, Rule]] = {
        "temperature": Rule("float", 4.0, 0.5, 50.0, about=TEMPERATURE),
        "after": Rule("float", 0.5, 0.1, 0.95, about="share of the epochs after which the network is copied"),
        "init": Rule("choice", "stage1", choices=("stage1", "scratch"), about="what the network goes on from"),
        "alone": Rule("float", 0.0, 0.0, 10.0, about="weight of a cross-entropy until then, beside the recipe's"),
    }
    dials: ClassVar[frozenset[str]] = frozenset({"temperature", "after", "alone"})
    divergence: ClassVar[bool] = False  # in eval mode the same weights say something else
    listens: ClassVar[bool] = False
    own_unit: ClassVar[bool] = True  # what it is before training is not what it will be
    on: Tensor

    def __init__(
        self, *, temperature: float = 4.0, after: float = 0.5, init: str = "stage1", alone: float = 0.0
    ) -> None:
        super().__init__()
        self.temperature, self.after, self.init, self.alone = temperature, after, init, alone
        self.register_buffer("on", torch.zeros(()))  # 1 once the copy is taken

    def adopt(self, network: nn.Module) -> None:
        """Make room for the copy: a part of this loss, and of checkpoints. Until it is taken these are the initial weights."""
        self.earlier = frozen_copy(network)

    def begin_epoch(self, network: nn.Module, progress: float) -> None:
        """Take the copy, at the first epoch that begins at `after` or later."""
        if progress < self.after:
            return
        with torch.no_grad():  # and without asking the device whether it was taken before
            for kept, now in zip(tensors_of(self.earlier), tensors_of(network), strict=True):
                onwards = kept.clone() if self.init == "scratch" else now
                kept.copy_(torch.where(self.on > 0, kept, now))
                if onwards is not now:
                    now.copy_(torch.where(self.on > 0, now, onwards))
            self.on.fill_(1)

    def train(self, mode: bool = True) -> Self:
        """The copy stays in eval mode."""
        super().train(mode)
        for part in self.children():
            part.eval()
        return self

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            earlier = logits_of(self.earlier(batch.x)).to(student.logits.dtype)
        loss = kl_rows(student.logits, earlier, self.temperature).mean()
        labels = functional.cross_entropy(student.logits, batch.y)
        return {"past": self.on * self.temperature**2 * loss + (1 - self.on) * self.alone * labels}
