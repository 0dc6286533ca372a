"""Losses on mixed rows, which student and live teacher are asked about: msst.

N rows, C classes, K images in a mixed row (2, or 3 with "mixup3"), λ their shares, which sum to 1; z̃ logits of the mixed row, s student,
t teacher, T temperature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from autokd.augment.counters import Stream
from autokd.errors import RecipeError
from autokd.objectives.logits import TEMPERATURE, kl_rows, mean_over_rows
from autokd.objectives.requirements import require_ask
from autokd.protocols import Ask, Batch, Objective, Outputs, Shapes
from autokd.rules import Rule

CELLS = 512  # of the integral under a beta density
IMAGES = {"mixup": 2, "cutmix": 2, "mixup3": 3}  # in a mixed row
WHETHER = 1  # a counter beside that of the partner: is the row mixed at all

Number = float | Tensor


# ---- shares and partners, from uniform numbers


def beta_quantile(u: Tensor, a: Number, b: Number) -> Tensor:
    """The number below which a Beta(a, b) variable lies with probability u in [0, 1), of u's shape: a draw, for u uniform.

    One number each, and no loop that ends when it may: the density is integrated from either end to ½ by trapezia and inverted.
    """
    one, other = (torch.as_tensor(each, dtype=u.dtype, device=u.device) for each in (a, b))
    left, right = _below_half(one, other), _below_half(other, one)
    below = u * (left[-1] + right[-1])
    low = _inverse(left, below) ** (1 / one.clamp_max(1)) / 2
    high = _inverse(right, left[-1] + right[-1] - below) ** (1 / other.clamp_max(1)) / 2
    return torch.where(below < left[-1], low, 1 - high)


def _below_half(a: Tensor, b: Tensor) -> Tensor:
    """Integrals of x^(a−1)·(1−x)^(b−1) from 0 to x = r^(1/p)/2, p = min(a, 1), at CELLS + 1 equal distances of r in [0, 1].

    In r there is no pole at 0: the integral is 2^−a/p·∫ r^(a/p − 1)·(1 − r^(1/p)/2)^(b−1) dr.
    """
    p, r = a.clamp_max(1), torch.linspace(0, 1, CELLS + 1, device=a.device)
    height = r ** (a / p - 1) * (1 - r ** (1 / p) / 2) ** (b - 1)
    area = torch.cat([height.new_zeros(1), (height[1:] + height[:-1]).cumsum(0)])
    return area * torch.exp2(-a) / (2 * CELLS * p)


def _inverse(rising: Tensor, at: Tensor) -> Tensor:
    """Where in [0, 1] a piecewise linear function, rising (CELLS + 1,) at equal distances, takes the value `at`."""
    cell = (torch.searchsorted(rising, at, right=True) - 1).clamp(0, CELLS - 1)
    within = (at - rising[cell]) / (rising[cell + 1] - rising[cell]).clamp_min(torch.finfo(rising.dtype).tiny)
    return (cell + within.clamp(0, 1)) / CELLS


def successors(random: Tensor, member: Tensor) -> Tensor:
    """Each member's next one in a random order of them, and around: (N,) in [0, 1) and (N,) bool -> (N,) int64.

    The others stay with themselves, and so does a single member. It depends on the rows' numbers, not on where they stand.
    """
    order = torch.argsort(torch.where(member, random, 2.0), stable=True)  # members first
    place = torch.argsort(order)
    following = order[(place + 1) % member.sum().clamp_min(1)]
    return torch.where(member, following, torch.arange(len(member), device=member.device))


def box(height: int, width: int, kept: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """(height, width) bool: true in a box of area 1 − kept about (down, across) in [0, 1), cut off at the border."""
    side = (1 - kept).clamp_min(0).sqrt()

    def inside(size: int, centre: Tensor) -> Tensor:
        middles = (torch.arange(size, device=kept.device) + 0.5) / size
        return (middles - centre).abs() < side / 2

    return inside(height, down)[:, None] & inside(width, across)


# ---- losses of mixed rows


def mixed_ce_rows(student: Tensor, labels: Tensor, shares: Tensor) -> Tensor:
    """Σ_k λ_k·CE(z̃_s, y_k) per row, which is the cross-entropy of the mixed label: (N, C), (N, K) and (N, K) -> (N,)."""
    return -(shares * student.log_softmax(1).gather(1, labels)).sum(1)


def outside_kl_rows(student: Tensor, teacher: Tensor, labels: Tensor, temperature: Number) -> Tensor:
    """KL(p̃_t ‖ p̃_s) per row over the classes that are none of `labels` (N, K), renormalised, without T²: (N, C) -> (N,).

    At least one class must be outside; with all labels equal it is DKD's non-target part.
    """
    outside = torch.ones_like(student, dtype=torch.bool).scatter(1, labels, False)
    log_s, log_t = (_renormalised(logits / temperature, outside) for logits in (student, teacher))
    return (torch.where(outside, log_t, -torch.inf).exp() * (log_t - log_s)).sum(1)


def _renormalised(scaled: Tensor, outside: Tensor) -> Tensor:
    """Log-probabilities among the classes outside; those of the others are finite and mean nothing."""
    return scaled - scaled.masked_fill(~outside, -torch.inf).logsumexp(1, keepdim=True)


class MSST(Objective):
    """(1 − rho)·L_mixCE + rho·L_sim + eta·L_nc on mixed rows x̃ = λx + (1 − λ)x_π. Zhao, Sun, Dong, Yu, Wang, KBS 256, 2022.

    "mix_ce": ⟨λ·CE(z̃_s, y) + (1 − λ)·CE(z̃_s, y_π)⟩; "similarity": T²⟨KL_T(z̃_t ‖ z̃_s)⟩; "incorrect", only with eta > 0: T²⟨KL_T⟩ over the
    classes that are neither y nor y_π, renormalised. z̃_t is what the live teacher says of the mixed row itself, never a mixture of what it
    says of the images.

    Reconstruction, level C: the abstract has the mixed images and the teacher's distribution on them; the weights, and that the incorrect
    classes are isolated, are ours. λ ~ Beta(alpha, alpha), one per batch; "cutmix" puts a box of x_π into x instead, λ its complement's area;
    "mixup3" mixes three images, λ ~ Dirichlet(alpha, alpha, alpha). π goes once around the base rows in a random order. Base rows (view 0)
    alone are mixed and counted; one is mixed with probability `portion`, else it stays what it is (λ = 1), so that shapes do not change.
    """

    fields: ClassVar[Mapping[str, Rule]] = {
        "alpha": Rule(
            "float", 1.0, 0.05, 8.0, about="of the beta distribution of λ: small leaves images nearly as they are"
        ),
        "rho": Rule(
            "float", 0.9, 0.0, 1.0, about="share of the teacher's distribution; the rest is that of the mixed labels"
        ),
        "eta": Rule("float", 0.0, 0.0, 8.0, about="weight of the classes outside the mixed labels"),
        "temperature": Rule("float", 4.0, 0.5, 50.0, about=TEMPERATURE),
        "mixer": Rule("choice", "mixup", choices=tuple(IMAGES), about="how images become one"),
        "portion": Rule("float", 1.0, 0.0, 1.0, about="of the rows that are mixed"),
    }
    dials: ClassVar[frozenset[str]] = frozenset({"alpha", "rho", "eta", "temperature", "portion"})
    divergence: ClassVar[bool] = False  # half of it is a cross-entropy
    listens: ClassVar[bool] = False  # it hears the teacher on mixed rows alone
    asks: ClassVar[bool] = True

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        rho: float = 0.9,
        eta: float = 0.0,
        temperature: float = 4.0,
        mixer: str = "mixup",
        portion: float = 1.0,
    ) -> None:
        super().__init__()
        self.alpha, self.rho, self.eta, self.temperature = alpha, rho, eta, temperature
        self.mixer, self.portion = mixer, portion
        self.isolates = eta > 0  # decided here: eta itself may come to lie on the device

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Refuse to compare fewer than two classes outside the labels."""
        needed = IMAGES[self.mixer] + 2
        if self.isolates and student.classes < needed:
            raise RecipeError(
                f"objective 'msst': eta above 0 with {self.mixer} needs at least {needed} classes, got {student.classes}; set eta to 0"
            )

    def forward(
        self,
        student: Outputs,
        teacher: Outputs,
        batch: Batch,
        row_weight: Tensor | None = None,
        ask: Ask | None = None,
    ) -> dict[str, Tensor]:
        asked = require_ask("msst", ask)
        with torch.no_grad():
            x, labels, shares = self._mixed(batch, asked)
        own, other = asked.student(x).logits, asked.teacher(x).logits
        base = (batch.view == 0).to(own.dtype)
        weight, scale = base / base.mean(), self.temperature**2
        parts = {
            "mix_ce": (1 - self.rho) * mean_over_rows(mixed_ce_rows(own, labels, shares), weight),
            "similarity": self.rho * scale * mean_over_rows(kl_rows(own, other, self.temperature), weight),
        }
        if self.isolates:
            outside = outside_kl_rows(own, other, labels, self.temperature)
            parts["incorrect"] = self.eta * scale * mean_over_rows(outside, weight)
        return parts

    def _mixed(self, batch: Batch, ask: Ask) -> tuple[Tensor, Tensor, Tensor]:
        """Mixed rows (N, …), their labels (N, K) and the shares of these (N, K)."""
        base = batch.view == 0
        partner = successors(ask.uniform(Stream.PARTNER, batch.index), base)
        rows = [torch.arange(len(base), device=base.device), partner, partner[partner]][: IMAGES[self.mixer]]
        mixed = base & (ask.uniform(Stream.PARTNER, batch.index, WHETHER) < self.portion)
        shares = self._shares(batch.index.min(), ask)
        if self.mixer == "cutmix":
            x, shares = self._cut(batch, partner, mixed, shares, ask)
        shares = torch.where(mixed[:, None], shares, torch.eye(len(rows), device=shares.device)[0])
        if self.mixer != "cutmix":
            each = shares.T.reshape(len(rows), -1, *(1,) * (batch.x.dim() - 1))
            x = sum((share * batch.x[of] for share, of in zip(each, rows, strict=True)), torch.zeros_like(batch.x))
        return x, batch.y[torch.stack(rows, 1)], shares

    def _shares(self, lead: Tensor, ask: Ask) -> Tensor:
        """λ (K,) of the batch that has this smallest index: which does not depend on the order of its rows."""
        first, second = (ask.uniform(Stream.MIX, lead, number) for number in range(2))
        if self.mixer != "mixup3":
            kept = beta_quantile(first, self.alpha, self.alpha)
            return torch.stack([kept, 1 - kept])
        kept, rest = beta_quantile(first, self.alpha, 2 * self.alpha), beta_quantile(second, self.alpha, self.alpha)
        return torch.stack([kept, (1 - kept) * rest, (1 - kept) * (1 - rest)])

    def _cut(self, batch: Batch, partner: Tensor, mixed: Tensor, shares: Tensor, ask: Ask) -> tuple[Tensor, Tensor]:
        """Rows with a box of their partners, and the shares of the area (2,)."""
        if batch.x.dim() != 4:
            got = tuple(batch.x.shape[1:])
            raise RecipeError(
                f"objective 'msst': cutmix needs images (channels, height, width), got rows of shape {got}; use mixup"
            )
        lead = batch.index.min()
        down, across = (ask.uniform(Stream.MIX, lead, number) for number in (2, 3))
        taken = box(batch.x.shape[2], batch.x.shape[3], shares[0], down, across)
        x = torch.where(mixed[:, None, None, None] & taken, batch.x[partner], batch.x)
        area = taken.float().mean()
        return x, torch.stack([1 - area, area])
