"""Residual networks of basic blocks in the CIFAR manner (He et al., CVPR 2016, section 4.2).

ResNet-20 is width 16, depths 3, 3, 3: 0.27 M parameters and 82 MFLOP on 3x32x32. Where the shape changes the shortcut
is a 1x1 convolution (the paper's option B).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from autokd.rules import Rule, Value
from autokd.students.blocks import Staged, conv_bn, image_misfit, in_stages, settings, stages, stem, width_and_depths


class BasicBlock(nn.Module):
    """relu(shortcut(x) + two 3x3 convolutions of x)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, outputs, stride=stride, relu=True)
        self.conv2, self.bn2 = conv_bn(outputs, outputs, relu=True)
        same = inputs == outputs and stride == 1
        self.shortcut: nn.Module = nn.Identity() if same else nn.Sequential(*conv_bn(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x))
        return self.bn2(self.conv2(y), residual=self.shortcut(x))


class ResNetFamily:
    """Fields: width, and the basic blocks of each stage."""

    fields: Mapping[str, Rule] = width_and_depths(18, "basic blocks")

    def misfit(self, input_shape: tuple[int, ...]) -> str | None:
        return image_misfit("resnet", input_shape)

    def build(self, spec: Mapping[str, Value], input_shape: tuple[int, ...], classes: int) -> nn.Module:
        given = settings("resnet", spec, self.fields)
        width = given["width"]
        plan = stages(width, (given["depth1"], given["depth2"], given["depth3"]))
        blocks = in_stages(BasicBlock, width, plan)
        return Staged(input_shape, classes, stem(input_shape, width), blocks, plan[-1][1])
