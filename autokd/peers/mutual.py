"""Deep mutual learning: every network imitates what its partners say of the same rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autokd.peers.base import Mutual, PeerSystem
from autokd.protocols import Batch, Outputs


def mutual_loss(own: Tensor, others: Sequence[Tensor], temperature: float | Tensor = 1.0) -> Tensor:
    """Mean over partners of T²·mean KL(partner ‖ own), nats; logits (N, C). 0 without partners.

    No gradient reaches the partners. The paper has T = 1.
    """
    if not others:
        return own.new_zeros(())
    log_own = (own / temperature).log_softmax(1)
    log_others = (torch.stack([other.detach() for other in others]) / temperature).log_softmax(2)
    return temperature**2 * (log_others.exp() * (log_others - log_own)).sum(2).mean()


def peer_losses(logits: Sequence[Tensor], temperature: float | Tensor = 1.0) -> list[Tensor]:
    """One mutual loss per network, from the logits (N, C) of all M on the same rows; partners detached."""
    return [
        mutual_loss(own, [*logits[:position], *logits[position + 1 :]], temperature)
        for position, own in enumerate(logits)
    ]


class DML(PeerSystem):
    """Mean over partners of T²·⟨KL(partner ‖ own)⟩. Zhang, Xiang, Hospedales, Lu, CVPR 2018 (arXiv:1706.00384).

    Every network runs forward once per step, so that M networks cost M students and one backward pass over the sum of their losses.
    """

    def forward(self, outputs: Sequence[Outputs], batch: Batch, temperature: float | Tensor) -> Mutual:
        return Mutual([{"peers": loss} for loss in peer_losses([each.logits for each in outputs], temperature)])
