"""Networks teach each other, and a classifier on their fused maps teaches all of them: ffcl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from autokd.errors import RecipeError
from autokd.objectives.features import BatchScale, at_equal_size, attention, stage_pairs
from autokd.objectives.logits import kl_rows, mean_over
from autokd.objectives.own import virtual_teacher
from autokd.peers.base import Mutual, Parts, PeerSystem, require_stages, risen
from autokd.peers.mutual import mutual_loss
from autokd.protocols import Batch, Outputs, Shapes
from autokd.rules import Rule

RAMP = 80 / 300  # epochs, in the runs of FFL


class FFCL(PeerSystem):
    """Feature-fusion collaborative learning. Li, Sun, Gou, Du, Ou, IJDSN 17(11), 2021.

    Network k adds, k' being the other one and z_f the logits of a classifier on the last maps of all (`Fusion`)

        beta_r·⟨KL(z_k' ‖ z_k)⟩ + beta_f·Σ_stages mean (a_k − a_k')² + gamma·⟨KL(softmax(v/tau) ‖ z_k)⟩ + r·T²⟨KL(z_f ‖ z_k)⟩,

    v = `a` at the label, (1 − a)/(C − 1) elsewhere, a_k the attention maps of a stage; the classifier CE(z_f) +
    r·T²⟨KL(mean z_k ‖ z_f)⟩, which reaches the networks through their maps. r rises to 1 within `ramp` of the
    training; only where T stands are logits softened. The source has two networks; of more, the exchanges are means over k'. With positive "correct_only" there is no gamma term, and a
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
        """Draw the fusion's classifier. Raises RecipeError without stage maps, and where they cannot be added."""
        require_stages("ffcl", networks)
        if self.fusion != "off":
            self.head = Fusion(self.fusion, [each.stages[-1][0] for each in networks], networks[0].classes)

    def begin_epoch(self, networks: Sequence[nn.Module], progress: float) -> None:
        self.risen.fill_(risen(progress, self.ramp))

    def forward(self, outputs: Sequence[Outputs], batch: Batch, temperature: float | Tensor) -> Mutual:
        own = [self._exchanged(each, [*outputs[:k], *outputs[k + 1 :]], batch.y) for k, each in enumerate(outputs)]
        if self.head is None:
            return Mutual(own)
        fused = self.head([each.stages[-1] for each in outputs])
        for parts, each in zip(own, outputs, strict=True):
            parts["fused"] = self.risen * mutual_loss(each.logits, [fused], temperature)
        together = torch.stack([each.logits for each in outputs]).mean(0)
        shared = {
            "fusion_ce": functional.cross_entropy(fused, batch.y),
            "fusion_ensemble": self.risen * mutual_loss(fused, [together], temperature),
        }
        return Mutual(own, shared)

    def _exchanged(self, own: Outputs, others: Sequence[Outputs], y: Tensor) -> Parts:
        """What a network learns of the others and of positive knowledge."""
        if self.positive == "virtual":
            response = mutual_loss(own.logits, [other.logits for other in others])
        else:
            response = _mean([correct_response(own.logits, other.logits, y) for other in others])
        parts = {"response": self.beta_r * response}
        if self.positive == "virtual":
            parts["positive"] = self.gamma * virtual_teacher(own.logits, y, self.a, self.tau)
        if self.beta_f:
            parts["feature"] = self.beta_f * _mean([attention_gap(own.stages, other.stages) for other in others])
        return parts


def _mean(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean()


class Fusion(nn.Module):
    """Logits (N, C) from the networks' maps (N, c_k, h, w): concatenated or added, convolved, averaged over positions, classified.

    "depthwise": depthwise 3×3, BN, ReLU, pointwise 1×1 to max c_k channels, BN, ReLU on the concatenated maps, as FFL has
    it. "pointwise" leaves out the first three, "add" does so with the sum of the maps. Maps of different size are
    average-pooled to the smallest.
    """

    def __init__(self, how: str, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        if how == "add" and len(set(widths)) > 1:
            told = ", ".join(map(str, widths))
            raise RecipeError(
                f"system of peers 'ffcl': fusion add needs maps of equal width, got {told}; use pointwise"
            )
        self.added = how == "add"
        joined, width = widths[0] if self.added else sum(widths), max(widths)
        depthwise: list[nn.Module] = []
        if how == "depthwise":
            depthwise = [
                nn.Conv2d(joined, joined, 3, padding=1, groups=joined, bias=False),
                BatchScale(joined),
                nn.ReLU(),
            ]
        self.mix = nn.Sequential(*depthwise, nn.Conv2d(joined, width, 1, bias=False), BatchScale(width), nn.ReLU())
        self.classify = nn.Linear(width, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        height, width = (min(each.shape[axis] for each in maps) for axis in (2, 3))
        maps = [functional.adaptive_avg_pool2d(each, (height, width)) for each in maps]
        joined = torch.stack(maps).sum(0) if self.added else torch.cat(maps, 1)
        logits: Tensor = self.classify(self.mix(joined).mean((2, 3)))
        return logits


def correct_response(own: Tensor, other: Tensor, y: Tensor) -> Tensor:
    """Mean KL(other ‖ own) over the rows that the other network has right, 0 without any; logits (N, C), labels (N,)."""
    return mean_over(other.argmax(1) == y, kl_rows(own, other.detach(), 1.0))


def attention_gap(own: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Σ_stages mean over rows and positions of (a_own − a_other)², a the attention maps, those of the other network constants."""
    total = own[0].new_zeros(())
    for i, j in stage_pairs(len(own), len(other)):
        a, b = at_equal_size(own[i], other[j].detach())
        total = total + (attention(a) - attention(b)).square().mean()
    return total
