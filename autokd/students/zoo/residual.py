"""Residual networks of basic blocks, and wide ones with pre-activation.

ResNet (He et al., CVPR 2016, section 4.2) with 1x1 shortcuts where the shape changes (option B; the paper's own tables for
CIFAR have option A, without parameters). "x4" means channels: stem 32, stages of 64, 128, 256. Wide ResNet (Zagoruyko and
Komodakis, BMVC 2016) without dropout.
"""

from __future__ import annotations

from torch import Tensor, nn

from autokd.students.blocks import Staged, conv_bn, conv_bn_relu, in_stages, stages
from autokd.students.norm import BatchNorm
from autokd.students.resnet import BasicBlock


def resnet(input_shape: tuple[int, ...], classes: int, depth: int, stem: int, width: int) -> nn.Module:
    """`depth` blocks in every stage, `width` channels in the first. 6 * depth + 2 layers."""
    blocks = in_stages(BasicBlock, stem, stages(width, (depth, depth, depth)))
    return Staged(input_shape, classes, conv_bn_relu(input_shape[0], stem), blocks, 4 * width)


class PreactivationBlock(nn.Module):
    """Two 3x3 convolutions, batch norm and ReLU before each; plus x, or where channels change a 1x1 convolution of relu(norm(x))."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = BatchNorm(inputs, relu=True)
        self.conv1, self.bn2 = conv_bn(inputs, outputs, stride=stride, relu=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.bn1(x)
        y = self.conv2(self.bn2(self.conv1(active)))
        return y + (x if self.shortcut is None else self.shortcut(active))


def wide_resnet(input_shape: tuple[int, ...], classes: int, layers: int, widen: int) -> nn.Module:
    """WRN-`layers`-`widen`. A stage puts out the sum of its last block; the next stage, or `last`, normalises it."""
    stem, width, depth = 16, 16 * widen, (layers - 4) // 6
    blocks = in_stages(PreactivationBlock, stem, stages(width, (depth, depth, depth)))
    first = nn.Conv2d(input_shape[0], stem, 3, padding=1, bias=False)
    return Staged(input_shape, classes, [first], blocks, 4 * width, [BatchNorm(4 * width, relu=True)])
