"""Classification: one label per sample, cross-entropy, accuracy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from autokd.protocols import Batch, Outputs

ROWS = {
    "cpu": 256,
    "cuda": 4096,
}  # per forward pass of an evaluation: small enough for a CPU's cache, enough to fill a GPU


class Classification:
    """One of C classes per row. Metrics: "accuracy" in [0, 1] and "loss" in nats per row."""

    name = "classification"
    metric = "accuracy"

    def loss(
        self, outputs: Outputs, batch: Batch, row_weight: Tensor | None = None, smoothing: float | Tensor = 0.0
    ) -> Tensor:
        """Cross-entropy with (1 − ε)·label + ε/C, nats, mean over the N rows of row_weight·each; in float32.

        ε is `smoothing` (Szegedy et al., CVPR 2016). Who spreads ε over the C − 1 other classes alone takes ε·C/(C − 1) here.
        """
        surprise = -outputs.logits.float().log_softmax(1)
        per_row = (1 - smoothing) * surprise.gather(1, batch.y[:, None])[:, 0] + smoothing * surprise.mean(1)
        return per_row.mean() if row_weight is None else (row_weight * per_row).mean()

    def evaluate(self, forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> dict[str, float]:
        """Accuracy and cross-entropy over all rows, without gradients.

        `x` (N, ...) lies where `forward` wants it; uint8 is divided by 255 first. Putting the network into eval mode is
        the caller's part.
        """
        rows = ROWS.get(x.device.type, 256)
        right, loss = torch.zeros((), device=x.device), torch.zeros((), device=x.device)
        with torch.no_grad():
            for some_x, some_y in zip(x.split(rows), y.split(rows), strict=True):
                logits = forward(some_x.float().div_(255) if some_x.dtype == torch.uint8 else some_x).float()
                right += (logits.argmax(1) == some_y).sum()
                loss += functional.cross_entropy(logits, some_y, reduction="sum")
        return {"accuracy": right.item() / len(y), "loss": loss.item() / len(y)}

    def chance(self, y: Tensor) -> float:
        """The share of the most frequent class."""
        return y.bincount().max().item() / len(y)
