"""Classifiers on stages of a network: what they say is compared with what deeper stages say. Dropped after training."""

from __future__ import annotations

from torch import Tensor, nn

from autokd.objectives.review import BatchScale


class StageHead(nn.Module):
    """A stage's map (N, channels, H, W) -> (N, outputs): `remaining` blocks, global average pooling, a linear layer.

    A block is a depthwise 3×3 convolution of stride 2, a pointwise one, batch norm (by the statistics of the batch: nothing here
    outlives training) and ReLU: it stands for one of the stages that the map has not seen. A map of one position stays one.
    Channels double from block to block up to `width`, which the last block has; without `width` they stay as they are.
    """

    def __init__(self, channels: int, remaining: int, outputs: int, width: int | None = None) -> None:
        super().__init__()
        last = channels if width is None else width
        widths = [channels, *(min(last, channels << block) for block in range(1, remaining)), *[last][:remaining]]
        self.blocks = nn.Sequential(*(_block(a, b) for a, b in zip(widths, widths[1:], strict=False)))
        self.linear = nn.Linear(widths[-1], outputs)

    def pooled(self, maps: Tensor) -> Tensor:
        """What the linear layer reads: (N, width), or (N, channels) without blocks."""
        features: Tensor = self.blocks(maps)
        return features.mean((2, 3))

    def forward(self, maps: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.pooled(maps))
        return logits


def _block(channels: int, wider: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, wider, 1, bias=False),
        BatchScale(wider),
        nn.ReLU(),
    )
