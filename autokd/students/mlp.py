"""Fully connected networks with batch norm: the only family for vectors, and on images a floor for the others."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from torch import Tensor, nn

from autokd.rules import Rule, Value
from autokd.students.blocks import initialise, settings
from autokd.students.normalise import Normalise


class MLP(nn.Module):
    """Normalise, flatten, `depth` times (linear, batch norm, ReLU), head. Depth 0 is softmax regression. No stages."""

    stage_names: tuple[str, ...] = ()

    def __init__(self, width: int, depth: int, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.normalise = Normalise(input_shape)
        widths = [prod(input_shape), *[width] * depth]
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.normalise(x).flatten(1)))


class MLPFamily:
    """Fields: width and number of hidden layers."""

    fields: Mapping[str, Rule] = {
        "width": Rule("int", 64, 4, 1024, about="units of each hidden layer"),
        "depth": Rule("int", 2, 0, 6, about="hidden layers"),
    }

    def misfit(self, input_shape: tuple[int, ...]) -> str | None:
        if len(input_shape) in (1, 3):
            return None
        return f"family 'mlp' needs vectors (features,) or images (channels, height, width), got {tuple(input_shape)}"

    def build(self, spec: Mapping[str, Value], input_shape: tuple[int, ...], classes: int) -> nn.Module:
        given = settings("mlp", spec, self.fields)
        return MLP(given["width"], given["depth"], input_shape, classes)
