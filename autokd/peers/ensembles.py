"""Every network imitates one ensemble of all of them: kdcl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from autokd.peers.base import Mutual, PeerSystem
from autokd.peers.mutual import mutual_loss
from autokd.protocols import Batch, Outputs
from autokd.rules import Rule


class KDCL(PeerSystem):
    """T²·⟨KL(ensemble ‖ own)⟩ for every network. Guo et al., CVPR 2020, from memory of the paper.

    The ensemble is made of the logits of all networks, the learner's own among them, and is a constant: see
    `ensemble`. In the paper each network sees an augmented view of its own; here all see the same rows.
    """

    fields: ClassVar[Mapping[str, Rule]] = {
        "ensemble": Rule("choice", "mean", choices=("mean", "best", "min_logit"), about="what all networks imitate"),
    }

    def __init__(self, *, ensemble: str = "mean") -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, outputs: Sequence[Outputs], batch: Batch, temperature: float | Tensor) -> Mutual:
        together = ensemble([each.logits for each in outputs], batch.y, self.ensemble)
        return Mutual([{"ensemble": mutual_loss(each.logits, [together], temperature)} for each in outputs])


def ensemble(logits: Sequence[Tensor], y: Tensor, how: str) -> Tensor:
    """Logits (N, C) made of M networks' logits (N, C) and labels (N,), detached.

    "mean" of the networks; "best", those of the network whose cross-entropy over the batch is the smallest;
    "min_logit", for each row and class the smallest z − z_y of any network: the label's is 0, every other class has
    the fewest odds that a network gives it.
    """
    each = torch.stack([of_one.detach() for of_one in logits])
    if how == "mean":
        return each.mean(0)
    label = y.expand(len(each), -1)[:, :, None]
    if how == "best":
        surprise = -each.log_softmax(2).gather(2, label).mean((1, 2))
        return each.index_select(0, surprise.argmin(0, keepdim=True))[0]
    return (each - each.gather(2, label)).amin(0)
