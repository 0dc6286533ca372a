"""Inverted residuals with linear bottlenecks (MobileNetV2: Sandler et al., CVPR 2018), scaled to three stages.

Few FLOPs and parameters, but depthwise convolutions are slow on a CPU: measured in training at width 16 on one thread,
13 GFLOP/s at 3x32x32 against 111 for `resnet`, and at 1x8x8 bfloat16 runs at a quarter of the speed of float32.
ReLU instead of ReLU6, whose ceiling serves 8-bit arithmetic; the last 1x1 convolution widens by `expand` (paper: x4).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn

from autokd.rules import Rule, Value
from autokd.students.blocks import (
    Staged,
    conv_bn,
    conv_bn_relu,
    image_misfit,
    in_stages,
    settings,
    stages,
    stem,
    width_and_depths,
)


class InvertedResidual(nn.Module):
    """1x1 widen (at expand 1 only on demand), 3x3 depthwise, 1x1 narrow without activation; plus x where the shape is kept."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int, always_widen: bool = False) -> None:
        super().__init__()
        hidden = inputs * expand
        widen = conv_bn_relu(inputs, hidden, 1) if expand > 1 or always_widen else []
        depthwise = conv_bn_relu(hidden, hidden, 3, stride, groups=hidden)
        self.layers = nn.Sequential(*widen, *depthwise, *conv_bn(hidden, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        *layers, norm = self.layers
        y = x
        for layer in layers:
            y = layer(y)
        return norm(y, residual=x if self.residual else None)


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
        width, expand = given["width"], given["expand"]
        plan = stages(width, (given["depth1"], given["depth2"], given["depth3"]))
        first = stem(input_shape, width)
        blocks = in_stages(partial(InvertedResidual, expand=expand), width, plan)
        channels = plan[-1][1]
        last = conv_bn_relu(channels, channels * expand, 1)
        return Staged(input_shape, classes, first, blocks, channels * expand, last)
