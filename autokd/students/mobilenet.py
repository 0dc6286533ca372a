"""Inverted residuals with linear bottlenecks (MobileNetV2: Sandler et al., CVPR 2018), scaled to three stages.

Few FLOPs and parameters, but depthwise convolutions are slow on a CPU: measured in training at width 16 on one thread,
13 GFLOP/s at 3x32x32 against 111 for `resnet`, and at 1x8x8 bfloat16 runs at a quarter of the speed of float32.
ReLU instead of ReLU6, whose ceiling serves 8-bit arithmetic; the last 1x1 convolution widens by `expand` (paper: x4).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from autokd.recipe import Rule, Value
from autokd.students.blocks import (
    conv_bn,
    conv_bn_relu,
    image_misfit,
    initialise,
    pooled,
    settings,
    stages,
    stem,
    width_and_depths,
)
from autokd.students.normalise import Normalise


class InvertedResidual(nn.Module):
    """1x1 widen (not at expand 1), 3x3 depthwise, 1x1 narrow without activation; plus x where the shape is kept."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        widen = conv_bn_relu(inputs, hidden, 1) if expand > 1 else []
        depthwise = conv_bn_relu(hidden, hidden, 3, stride, groups=hidden)
        self.layers = nn.Sequential(*widen, *depthwise, *conv_bn(hidden, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        *layers, norm = self.layers
        y = x
        for layer in layers:
            y = layer(y)
        return norm(y, residual=x if self.residual else None)


class MobileNet(nn.Module):
    """Normalise, stem, stages, last 1x1 convolution, mean over places, head."""

    def __init__(
        self, width: int, depths: tuple[int, int, int], expand: int, input_shape: tuple[int, ...], classes: int
    ) -> None:
        super().__init__()
        self.normalise = Normalise(input_shape)
        self.stem = nn.Sequential(*stem(input_shape, width))
        self.stage_names: tuple[str, ...] = ()
        last = width
        for name, channels, depth in stages(width, depths):
            stride = 1 if name == "stage1" else 2
            first = InvertedResidual(last, channels, stride, expand)
            rest = [InvertedResidual(channels, channels, 1, expand) for _ in range(depth - 1)]
            self.add_module(name, nn.Sequential(first, *rest))
            self.stage_names += (name,)
            last = channels
        self.last = nn.Sequential(*conv_bn_relu(last, last * expand, 1))
        self.head = nn.Linear(last * expand, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.normalise(x))
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
        return self.head(pooled(self.last(x)))


class MobileNetFamily:
    """Fields: width, the inverted residuals of each stage, and how far each widens."""

    fields: Mapping[str, Rule] = {
        **width_and_depths(12, "inverted residuals"),
        "expand": Rule("int", 4, 1, 6, about="channels inside a block / channels between blocks"),
    }

    def misfit(self, input_shape: tuple[int, ...]) -> str | None:
        return image_misfit("mobilenet", input_shape)

    def build(self, spec: Mapping[str, Value], input_shape: tuple[int, ...], classes: int) -> nn.Module:
        given = settings("mobilenet", spec, self.fields)
        depths = (given["depth1"], given["depth2"], given["depth3"])
        return MobileNet(given["width"], depths, given["expand"], input_shape, classes)
