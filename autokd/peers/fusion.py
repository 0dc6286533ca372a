"""Two networks teach each other, and a classifier on their fused maps teaches both: ffcl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from autokd.errors import RecipeError
from autokd.objectives.features import at_equal_size, attention, stage_pairs
from autokd.objectives.logits import kl_rows
from autokd.objectives.review import BatchScale
from autokd.peers.base import Mutual, Parts, PeerSystem, require_stages, risen
from autokd.peers.mutual import mutual_loss
from autokd.protocols import Batch, Outputs, Shapes
from autokd.recipe import Rule

RAMP = 80 / 300  # epochs, in the runs of FFL


class FFCL(PeerSystem):
    """Feature-fusion collaborative learning of two networks. Li, Sun, Gou, Du, Ou, IJDSN 17(11), 2021.

    Network k adds, k' being the other one and z_f the logits of a classifier on the last maps of both (`Fusion`)

        beta_r·⟨KL(z_k' ‖ z_k)⟩ + beta_f·Σ_stages mean (a_k − a_k')² + gamma·⟨KL(softmax(v/tau) ‖ z_k)⟩ + r·T²⟨KL(z_f ‖ z_k)⟩,

    v = `a` at the label, (1 − a)/(C − 1) elsewhere, a_k the attention maps of a stage; the classifier CE(z_f) +
    r·T²⟨KL((z_1 + z_2)/2 ‖ z_f)⟩, which reaches the networks through their maps. r rises to 1 within `ramp` of the
    training; only where T stands are logits softened. With positive "correct_only" there is no gamma term, and a
    network responds on those rows alone that it has right.

    Reconstruction: fusion, its two KLs and r are those of FFL (Kim et al., ICPR 2020), whose code was read; of FFCL
    the abstract was, and the form of the exchanges, of the gamma term and all their weights are ours.
    """

    fields: ClassVar[Mapping[str, Rule]] = {
        "fusion": Rule(
            "choice", "depthwise", choices=("depthwise", "pointwise", "add", "off"), about="how the last maps are fused"
        ),
        "positive": Rule(
            "choice",
            "virtual",
            choices=("virtual", "correct_only"),
            about="positive knowledge: a virtual teacher's, or responses that are right",
        ),
        "ramp": Rule(
            "float", RAMP, 0.0, 1.0, about="share of the training after which the fusion's KLs have their full weight"
        ),
        "beta_r": Rule("float", 1.0, 0.0, 50.0, about="weight of the response exchange"),
        "beta_f": Rule("float", 0.0, 0.0, 1e4, about="weight of the feature exchange; 0 computes none"),
        "gamma": Rule("float", 0.1, 0.0, 10.0, about="weight of the virtual teacher"),
        "a": Rule("float", 0.99, 0.5, 1.0, about="what the virtual teacher gives the label"),
        "tau": Rule("float", 20.0, 0.5, 100.0, about="the virtual teacher's temperature"),
    }
    needs: ClassVar[frozenset[str]] = frozenset({"logits", "stages"})
    # `beta_f` is none: it decides what is computed. `ramp` is read on the host; a recorded step reads `risen`
    dials: ClassVar[frozenset[str]] = frozenset({"ramp", "beta_r", "gamma", "a", "tau"})
    risen: Tensor

    def __init__(
        self,
        *,
        fusion: str = "depthwise",
        positive: str = "virtual",
        ramp: float = RAMP,
        beta_r: float = 1.0,
        beta_f: float = 0.0,
        gamma: float = 0.1,
        a: float = 0.99,
        tau: float = 20.0,
    ) -> None:
        super().__init__()
        self.fusion, self.positive, self.ramp = fusion, positive, ramp
        self.beta_r, self.beta_f, self.gamma, self.a, self.tau = beta_r, beta_f, gamma, a, tau
        self.head: nn.Module | None = None
        self.register_buffer("risen", torch.ones(()))

    def build(self, networks: Sequence[Shapes]) -> None:
        """Draw the fusion's classifier. Raises RecipeError unless there are two networks, with stage maps."""
        if len(networks) != 2:
            raise RecipeError(
                f"system of peers 'ffcl' fuses two networks, got {len(networks)}; "
                "set peers.count to 1, or use another system"
            )
        require_stages("ffcl", networks)
        if self.fusion != "off":
            first, second = (each.stages[-1][0] for each in networks)
            self.head = Fusion(self.fusion, first, second, networks[0].classes)

    def begin_epoch(self, networks: Sequence[nn.Module], progress: float) -> None:
        self.risen.fill_(risen(progress, self.ramp))

    def forward(self, outputs: Sequence[Outputs], batch: Batch, temperature: float | Tensor) -> Mutual:
        first, second = outputs
        own = [self._exchanged(first, second, batch.y), self._exchanged(second, first, batch.y)]
        if self.head is None:
            return Mutual(own)
        fused = self.head(first.stages[-1], second.stages[-1])
        for parts, each in zip(own, outputs, strict=True):
            parts["fused"] = self.risen * mutual_loss(each.logits, [fused], temperature)
        together = (first.logits + second.logits) / 2
        shared = {
            "fusion_ce": functional.cross_entropy(fused, batch.y),
            "fusion_ensemble": self.risen * mutual_loss(fused, [together], temperature),
        }
        return Mutual(own, shared)

    def _exchanged(self, own: Outputs, other: Outputs, y: Tensor) -> Parts:
        """What a network learns of the other one and of positive knowledge."""
        virtual = self.positive == "virtual"
        response = mutual_loss(own.logits, [other.logits]) if virtual else correct_response(own.logits, other.logits, y)
        parts = {"response": self.beta_r * response}
        if virtual:
            parts["positive"] = self.gamma * virtual_teacher(own.logits, y, self.a, self.tau)
        if self.beta_f:
            parts["feature"] = self.beta_f * attention_gap(own.stages, other.stages)
        return parts


class Fusion(nn.Module):
    """Logits (N, C) from two maps (N, c, h, w): concatenated or added, convolved, averaged over positions, classified.

    "depthwise": depthwise 3×3, BN, ReLU, pointwise 1×1 to max(c_1, c_2) channels, BN, ReLU on the concatenated maps,
    as FFL has it. "pointwise" leaves out the first three, "add" does so with the sum of the maps. Of maps of
    different size the larger is average-pooled.
    """

    def __init__(self, how: str, first: int, second: int, classes: int) -> None:
        super().__init__()
        if how == "add" and first != second:
            raise RecipeError(
                f"system of peers 'ffcl': fusion add needs maps of equal width, got {first} and {second}; use pointwise"
            )
        self.added = how == "add"
        joined, width = first if self.added else first + second, max(first, second)
        depthwise: list[nn.Module] = []
        if how == "depthwise":
            depthwise = [
                nn.Conv2d(joined, joined, 3, padding=1, groups=joined, bias=False),
                BatchScale(joined),
                nn.ReLU(),
            ]
        self.mix = nn.Sequential(*depthwise, nn.Conv2d(joined, width, 1, bias=False), BatchScale(width), nn.ReLU())
        self.classify = nn.Linear(width, classes)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        a, b = at_equal_size(first, second)
        logits: Tensor = self.classify(self.mix(a + b if self.added else torch.cat((a, b), 1)).mean((2, 3)))
        return logits


def correct_response(own: Tensor, other: Tensor, y: Tensor) -> Tensor:
    """Mean KL(other ‖ own) over the rows that the other network has right, 0 without any; logits (N, C), labels (N,)."""
    right = (other.argmax(1) == y).to(own.dtype)
    return (right * kl_rows(own, other.detach(), 1.0)).sum() / right.sum().clamp_min(1)


def virtual_teacher(logits: Tensor, y: Tensor, a: float | Tensor, tau: float | Tensor) -> Tensor:
    """⟨KL(softmax(v/tau) ‖ softmax(logits))⟩, v = a at the label and (1 − a)/(C − 1) elsewhere; logits (N, C), labels (N,).

    The regulariser of Tf-KD (Yuan et al., CVPR 2020) as a mean over rows; their code has one over rows and classes.
    """
    # one_hot would read the labels on the host, and no step that does can be recorded
    label = torch.zeros_like(logits).scatter(1, y[:, None], 1.0)
    rest = (1 - a) / (logits.shape[1] - 1)
    log_virtual = ((rest + (a - rest) * label) / tau).log_softmax(1)
    return (log_virtual.exp() * (log_virtual - logits.log_softmax(1))).sum(1).mean()


def attention_gap(own: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Σ_stages mean over rows and positions of (a_own − a_other)², a the attention maps, those of the other network constants."""
    total = own[0].new_zeros(())
    for i, j in stage_pairs(len(own), len(other)):
        a, b = at_equal_size(own[i], other[j].detach())
        total = total + (attention(a) - attention(b)).square().mean()
    return total
