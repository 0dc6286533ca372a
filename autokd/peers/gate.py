"""A learned gate mixes the networks, row by row, into the teacher of all of them: one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from autokd.objectives.features import BatchScale
from autokd.peers.base import Mutual, PeerSystem, require_stages, risen
from autokd.peers.mutual import mutual_loss
from autokd.protocols import Batch, Outputs, Shapes
from autokd.rules import Rule

RAMP = 80 / 300  # epochs, in the authors' runs


class ONE(PeerSystem):
    """CE(z_m) + r·T²·⟨KL(z_m ‖ z_b)⟩ for every network b, z_m = Σ_b g_b·z_b. Lan, Zhu, Gong, NeurIPS 2018 (arXiv:1806.04606).

    The gate g, (N, M) with rows that sum to 1, is softmax(ReLU(BN(linear(mean over positions of the student's last
    stage map but one)))), the last that the source's branches share. It learns by CE(z_m), which reaches the networks as well, as in the source; in the KL the mixture
    is a constant. r rises to 1 within `ramp` of the training. A reconstruction in one point: the source's branches
    share all stages but the last, here they are whole networks.
    """

    fields: ClassVar[Mapping[str, Rule]] = {
        "ramp": Rule("float", RAMP, 0.0, 1.0, about="share of the training after which the KL has its full weight"),
    }
    needs: ClassVar[frozenset[str]] = frozenset({"logits", "stages"})
    dials: ClassVar[frozenset[str]] = frozenset({"ramp"})  # read on the host; a recorded step reads `risen`
    risen: Tensor

    def __init__(self, *, ramp: float = RAMP) -> None:
        super().__init__()
        self.ramp, self.stage = ramp, 0
        self.register_buffer("risen", torch.ones(()))

    def build(self, networks: Sequence[Shapes]) -> None:
        """Draw the gate. Raises RecipeError without stage maps."""
        require_stages("one", networks)
        stages = networks[0].stages
        self.stage = max(0, len(stages) - 2)
        self.gate = nn.Sequential(nn.Linear(stages[self.stage][0], len(networks)), BatchScale(len(networks)))

    def begin_epoch(self, networks: Sequence[nn.Module], progress: float) -> None:
        self.risen.fill_(risen(progress, self.ramp))

    def forward(self, outputs: Sequence[Outputs], batch: Batch, temperature: float | Tensor) -> Mutual:
        gate = self.gate(outputs[0].stages[self.stage].mean((2, 3))).relu().softmax(1)
        mixture = (gate[:, :, None] * torch.stack([each.logits for each in outputs], 1)).sum(1)
        own = [{"ensemble": self.risen * mutual_loss(each.logits, [mixture], temperature)} for each in outputs]
        return Mutual(own, {"gate_ce": functional.cross_entropy(mixture, batch.y)})
