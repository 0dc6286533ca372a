"""Plain stacks of 3x3 convolutions, batch norm and max-pooling (Simonyan and Zisserman, ICLR 2015; small head).

Fewest operations per layer of the convolutional families; harder to train when deep.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from autokd.recipe import Rule, Value
from autokd.students.blocks import (
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


class Plain(nn.Module):
    """Normalise, stages, mean over places, head. The stem is the first convolution of stage 1."""

    def __init__(self, width: int, depths: tuple[int, int, int], input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.normalise = Normalise(input_shape)
        self.stage_names: tuple[str, ...] = ()
        last = width
        for name, channels, depth in stages(width, depths):
            first = stem(input_shape, width) if name == "stage1" else [nn.MaxPool2d(2), *conv_bn_relu(last, channels)]
            rest = [layer for _ in range(depth - 1) for layer in conv_bn_relu(channels, channels)]
            self.add_module(name, nn.Sequential(*first, *rest))
            self.stage_names += (name,)
            last = channels
        self.head = nn.Linear(last, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalise(x)
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
        return self.head(pooled(x))


class PlainFamily:
    """Fields: width, and the convolutions of each stage."""

    fields: Mapping[str, Rule] = width_and_depths(8, "convolutions", depth=2)

    def misfit(self, input_shape: tuple[int, ...]) -> str | None:
        return image_misfit("plain", input_shape)

    def build(self, spec: Mapping[str, Value], input_shape: tuple[int, ...], classes: int) -> nn.Module:
        given = settings("plain", spec, self.fields)
        return Plain(given["width"], (given["depth1"], given["depth2"], given["depth3"]), input_shape, classes)
