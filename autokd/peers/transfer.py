"""Networks that learn from each other's responses and relations, and from what they were themselves: ckd_mkt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from autokd.errors import RecipeError
from autokd.objectives.logits import kl_rows
from autokd.objectives.relations import MAX_ROWS, embedding_of, huber, relations
from autokd.peers.base import Mutual, Parts, PeerSystem, require_embedding
from autokd.peers.mutual import mutual_loss
from autokd.protocols import Batch, Outputs, Shapes
from autokd.rules import Rule
from autokd.students.copies import frozen_copy, tensors_of
from autokd.students.tap import logits_of


class CKDMKT(PeerSystem):
    """Collaborative distillation with multiple knowledge transfer. Gou et al., TNNLS 2024; precursor arXiv:2101.08471.

    Network k adds, means over its partners k'

        beta·[w_rel·(Huber(ψ_k' − ψ_k) + beta1·Huber(cos_k' − cos_k)) + beta2·⟨KL(z_k' ‖ z_k)⟩] + gamma·⟨KL(z̄_k ‖ z_k)⟩,

    ψ the distances between rows over their mean and cos the angles in triples of rows, as in rkd, both as means and
    of the first 64 rows; z̄_k what a frozen copy of network k says, and the only place where logits are softened (times T² with `t2`).
    Until the first epoch that begins at or after `first` of the training all of it is 0 and every network learns
    alone, `alone` being the weight of a cross-entropy beside the recipe's; there the copies are taken. With init "scratch" the networks then begin again at their initial weights (the
    optimiser's moments stay as they are), else they go on.

    Reconstruction: the sum is known from a secondary text; that partners are constants, means over several of them,
    w_rel, both ways of going on, and the two stages within one training are ours.
    """

    fields: ClassVar[Mapping[str, Rule]] = {
        "relation": Rule("choice", "embedding", choices=("embedding", "logits"), about="what rows are related by"),
        "init": Rule("choice", "stage1", choices=("stage1", "scratch"), about="what networks go on from after `first`"),
        "first": Rule("float", 0.25, 0.0, 0.9, about="share of the training in which networks learn alone"),
        "beta": Rule("float", 0.05, 0.0, 20.0, about="weight of what partners teach"),
        "w_rel": Rule("float", 1.0, 0.0, 50.0, about="weight of the relations therein"),
        "beta1": Rule("float", 2.0, 0.0, 50.0, about="weight of the angles beside the distances"),
        "beta2": Rule("float", 1.0, 0.0, 50.0, about="weight of the responses beside the relations"),
        "gamma": Rule("float", 0.9, 0.0, 20.0, about="weight of what the frozen selves teach"),
        "t2": Rule("choice", False, choices=(True, False), about="whether that is multiplied by T²"),
        "alone": Rule("float", 0.0, 0.0, 10.0, about="weight of a cross-entropy until `first`, beside the recipe's"),
    }
    needs: ClassVar[frozenset[str]] = frozenset({"logits", "embedding"})
    # `first` and `alone` are none: they decide what there is
    dials: ClassVar[frozenset[str]] = frozenset({"beta", "w_rel", "beta1", "beta2", "gamma"})
    begun: Tensor  # 0, or 1 from where the networks learn from each other

    def __init__(
        self,
        *,
        relation: str = "embedding",
        init: str = "stage1",
        first: float = 0.25,
        beta: float = 0.05,
        w_rel: float = 1.0,
        beta1: float = 2.0,
        beta2: float = 1.0,
        gamma: float = 0.9,
        t2: bool = False,
        alone: float = 0.0,
    ) -> None:
        super().__init__()
        if not first and gamma:
            raise RecipeError(
                "system of peers 'ckd_mkt': gamma must be 0 where first is 0, since there are no earlier selves to learn "
                f"from, got {gamma}; set it to 0, or first to 0.25"
            )
        self.relation, self.init, self.first = relation, init, first
        self.beta, self.w_rel, self.beta1, self.beta2, self.gamma = beta, w_rel, beta1, beta2, gamma
        self.t2, self.alone = t2, alone
        self.selves, self.initial = nn.ModuleList(), nn.ModuleList()
        self.register_buffer("begun", torch.zeros(()) if first else torch.ones(()))

    def build(self, networks: Sequence[Shapes]) -> None:
        """Refuse networks without the embedding that is to be related."""
        if self.relation == "embedding":
            require_embedding("ckd_mkt", networks)

    def adopt(self, networks: Sequence[nn.Module]) -> None:
        """Make room for the frozen selves and keep the initial weights if they will be wanted; checkpoints hold both."""
        if self.first:
            self.selves.extend(map(frozen_copy, networks))
            if self.init == "scratch":
                self.initial.extend(map(frozen_copy, networks))

    def train(self, mode: bool = True) -> Self:
        """The frozen copies stay in eval mode."""
        super().train(mode)
        self.selves.eval()
        self.initial.eval()
        return self

    def begin_epoch(self, networks: Sequence[nn.Module], progress: float) -> None:
        if progress < self.first or bool(self.begun):
            return
        take_weights(self.selves, networks)
        if self.init == "scratch":
            take_weights(networks, self.initial)
        self.begun.fill_(1)

    def forward(self, outputs: Sequence[Outputs], batch: Batch, temperature: float | Tensor) -> Mutual:
        related = [relations(self._rows(each)) for each in outputs]
        with torch.no_grad():
            earlier = [logits_of(each(batch.x)).float() for each in self.selves]
        return Mutual(
            [
                self._learned(place, outputs, related)
                | self._remembered(place, outputs, earlier, temperature)
                | self._by_itself(outputs[place], batch)
                for place in range(len(outputs))
            ]
        )

    def _rows(self, outputs: Outputs) -> Tensor:
        rows = outputs.logits if self.relation == "logits" else embedding_of("ckd_mkt", outputs)
        return rows[:MAX_ROWS]

    def _learned(self, place: int, outputs: Sequence[Outputs], related: Sequence[tuple[Tensor, Tensor]]) -> Parts:
        """From the partners."""
        distances, angles = zip(*related, strict=True)
        weight = self.begun * self.beta
        return {
            "distance": weight * self.w_rel * partner_gap(place, distances),
            "angle": weight * self.w_rel * self.beta1 * partner_gap(place, angles),
            "response": weight * self.beta2 * mutual_loss(*apart(place, [each.logits for each in outputs])),
        }

    def _remembered(
        self, place: int, outputs: Sequence[Outputs], earlier: Sequence[Tensor], temperature: float | Tensor
    ) -> Parts:
        """From the earlier self, if there is any."""
        if not earlier:
            return {}
        scale = temperature**2 if self.t2 else 1.0
        loss = kl_rows(outputs[place].logits, earlier[place], temperature).mean()
        return {"self": self.begun * self.gamma * scale * loss}

    def _by_itself(self, outputs: Outputs, batch: Batch) -> Parts:
        """What makes up for a small weight of the labels until there is something else to learn from."""
        if not self.alone:
            return {}
        return {"ce": (1 - self.begun) * self.alone * functional.cross_entropy(outputs.logits, batch.y)}


def apart(place: int, each: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """One network's own, and those of its partners."""
    return each[place], [*each[:place], *each[place + 1 :]]


def partner_gap(place: int, each: Sequence[Tensor]) -> Tensor:
    """Mean over partners, and over all entries, of Huber(theirs − own); partners are constants."""
    own, others = apart(place, each)
    return torch.stack([huber(other.detach() - own).mean() for other in others]).mean()


def take_weights(to: Iterable[nn.Module], of: Iterable[nn.Module]) -> None:
    """Parameters and buffers of networks into those of others, in place."""
    with torch.no_grad():
        for own, other in zip(to, of, strict=True):
            for tensor, source in zip(tensors_of(own), tensors_of(other), strict=True):
                tensor.copy_(source)
