"""Residual networks of basic blocks in the CIFAR manner (He et al., CVPR 2016, section 4.2).

ResNet-20 is width 16, depths 3, 3, 3: 0.27 M parameters and 82 MFLOP on 3x32x32. Where the shape changes the shortcut
is a 1x1 convolution (the paper's option B).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from autokd.recipe import Rule, Value
from autokd.students.blocks import conv_bn, image_misfit, initialise, pooled, settings, stages, stem, width_and_depths
from autokd.students.normalise import Normalise


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


class ResNet(nn.Module):
    """Normalise, stem, stages, mean over places, head."""

    def __init__(self, width: int, depths: tuple[int, int, int], input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.normalise = Normalise(input_shape)
        self.stem = nn.Sequential(*stem(input_shape, width))
        self.stage_names: tuple[str, ...] = ()
        last = width
        for name, channels, depth in stages(width, depths):
            stride = 1 if name == "stage1" else 2
            first = BasicBlock(last, channels, stride)
            rest = [BasicBlock(channels, channels, 1) for _ in range(depth - 1)]
            self.add_module(name, nn.Sequential(first, *rest))
            self.stage_names += (name,)
            last = channels
        self.head = nn.Linear(last, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.normalise(x))
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
        return self.head(pooled(x))


class ResNetFamily:
    """Fields: width, and the basic blocks of each stage."""

    fields: Mapping[str, Rule] = width_and_depths(18, "basic blocks")

    def misfit(self, input_shape: tuple[int, ...]) -> str | None:
        return image_misfit("resnet", input_shape)

    def build(self, spec: Mapping[str, Value], input_shape: tuple[int, ...], classes: int) -> nn.Module:
        given = settings("resnet", spec, self.fields)
        return ResNet(given["width"], (given["depth1"], given["depth2"], given["depth3"]), input_shape, classes)
