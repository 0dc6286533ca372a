"""Plain stacks of 3x3 convolutions, batch norm and max-pooling (Simonyan and Zisserman, ICLR 2015; small head).

Fewest operations per layer of the convolutional families; harder to train when deep. The stem is the first convolution of
stage 1.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from autokd.rules import Rule, Value
from autokd.students.blocks import Staged, conv_bn_relu, image_misfit, settings, stages, stem, width_and_depths


class PlainFamily:
    """Fields: width, and the convolutions of each stage."""

    fields: Mapping[str, Rule] = width_and_depths(8, "convolutions", depth=2)

    def misfit(self, input_shape: tuple[int, ...]) -> str | None:
        return image_misfit("plain", input_shape)

    def build(self, spec: Mapping[str, Value], input_shape: tuple[int, ...], classes: int) -> nn.Module:
        given = settings("plain", spec, self.fields)
        made: dict[str, list[nn.Module]] = {}
        last = given["width"]
        for name, channels, depth in stages(last, (given["depth1"], given["depth2"], given["depth3"])):
            first = stem(input_shape, last) if name == "stage1" else [nn.MaxPool2d(2), *conv_bn_relu(last, channels)]
            made[name] = [*first, *(layer for _ in range(depth - 1) for layer in conv_bn_relu(channels, channels))]
            last = channels
        return Staged(input_shape, classes, (), made, last)
