"""ShuffleNetV1 (Zhang et al., CVPR 2018; 3 groups, width 1) and V2 (Ma et al., ECCV 2018; width 1) for CIFAR.

As in CRD's benchmark the stem is a 1x1 convolution, without the pooling after it; V1 has a ReLU after its depthwise convolutions,
which the paper leaves out. All three stages halve the side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autokd.students.blocks import Staged, conv_bn, conv_bn_relu, in_stages, stages

STEM, GROUPS, LAST = 24, 3, 1024
DEPTHS = (4, 8, 4)


class GroupedUnit(nn.Module):
    """V1: 1x1 in groups, shuffle, 3x3 depthwise, 1x1 in groups; plus x, or at stride 2 beside x made smaller by its mean."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        made = outputs - inputs if stride == 2 else outputs
        hidden = made // 4
        groups = 1 if inputs == STEM else GROUPS  # the paper: too few channels to be grouped
        narrow = conv_bn_relu(inputs, hidden, 1, groups=groups)
        depthwise = conv_bn_relu(hidden, hidden, 3, stride, groups=hidden)
        self.layers = nn.Sequential(*narrow, nn.ChannelShuffle(groups), *depthwise)
        self.conv, self.bn = conv_bn(hidden, made, 1, groups=GROUPS, relu=True)
        self.pool = nn.AvgPool2d(3, 2, 1) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.layers(x))
        if self.pool is None:
            return self.bn(y, residual=x)
        return torch.cat([self.bn(y), self.pool(x)], 1)  # x is rectified, and so is its mean


class SplitUnit(nn.Module):
    """V2: half of the channels pass, the others go through 1x1, 3x3 depthwise, 1x1; at stride 2 all go through both ways. Then a shuffle."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        worked = inputs if stride == 2 else half
        depthwise = conv_bn(half, half, 3, stride, groups=half)
        self.branch = nn.Sequential(*conv_bn_relu(worked, half, 1), *depthwise, *conv_bn_relu(half, half, 1))
        halved = [*conv_bn(inputs, inputs, 3, stride, groups=inputs), *conv_bn_relu(inputs, half, 1)]
        self.shortcut = nn.Sequential(*halved) if stride == 2 else None
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = x.chunk(2, 1) if self.shortcut is None else (self.shortcut(x), x)
        return self.shuffle(torch.cat([kept, self.branch(worked)], 1))


def shufflenet_v1(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    blocks = in_stages(GroupedUnit, STEM, stages(240, DEPTHS), stride=2)
    return Staged(input_shape, classes, conv_bn_relu(input_shape[0], STEM, 1), blocks, 960)


def shufflenet_v2(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    blocks = in_stages(SplitUnit, STEM, stages(116, DEPTHS), stride=2)
    stem = conv_bn_relu(input_shape[0], STEM, 1)
    return Staged(input_shape, classes, stem, blocks, LAST, conv_bn_relu(464, LAST, 1))
