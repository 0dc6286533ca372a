"""MobileNetV2 (Sandler et al., CVPR 2018) at half width for CIFAR: table 2 with stride 1 where it goes to 24 channels.

As in CRD's benchmark: ReLU instead of ReLU6, and a 1x1 convolution also in the block that widens by 1. The last 1280 channels are
not halved, as the paper has it for widths below 1.
"""

from __future__ import annotations

from torch import nn

from autokd.students.blocks import Staged, conv_bn_relu
from autokd.students.mobilenet import InvertedResidual

STEM, LAST = 16, 1280
STAGES = {  # blocks that widen by `expand`: (expand, channels, blocks, stride of the first)
    "stage1": [(1, 8, 1, 1), (6, 12, 2, 1)],
    "stage2": [(6, 16, 3, 2)],
    "stage3": [(6, 32, 4, 2), (6, 48, 3, 1)],
    "stage4": [(6, 80, 3, 2), (6, 160, 1, 1)],
}


def mobilenet_v2(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """The stem halves the side, and so do all stages but the first."""
    stages: dict[str, list[nn.Module]] = {}
    inputs = STEM
    for name, rows in STAGES.items():
        stages[name] = []
        for expand, channels, depth, stride in rows:
            for step in (stride, *[1] * (depth - 1)):
                stages[name].append(InvertedResidual(inputs, channels, step, expand, always_widen=True))
                inputs = channels
    stem = conv_bn_relu(input_shape[0], STEM, stride=2)
    return Staged(input_shape, classes, stem, stages, LAST, conv_bn_relu(inputs, LAST, 1))
