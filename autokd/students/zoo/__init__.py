"""The networks of published distillation tables, layer for layer as CRD's benchmark has them (Tian et al., ICLR 2020).

Nothing about them can be searched. Side 32 is what they were made for; larger images go through as they are, so that FLOPs
grow with the area. Ours are only the first layer, which normalises, and the initial weights (`blocks.initialise`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from autokd.errors import RecipeError
from autokd.rules import Rule, Value
from autokd.students.blocks import SMALLEST_SIDE, image_misfit
from autokd.students.zoo.mobilenet import mobilenet_v2
from autokd.students.zoo.residual import resnet, wide_resnet
from autokd.students.zoo.shufflenet import shufflenet_v1, shufflenet_v2
from autokd.students.zoo.vgg import vgg


class Published:
    """A family of one network: `make(input_shape, classes, *arguments)`, for images of at least `smallest` by `smallest`."""

    fields: Mapping[str, Rule] = {}

    def __init__(
        self,
        name: str,
        make: Callable[..., nn.Module],
        arguments: tuple[int, ...] = (),
        smallest: int = SMALLEST_SIDE,
    ) -> None:
        self.name, self.make, self.arguments, self.smallest = name, make, arguments, smallest

    def misfit(self, input_shape: tuple[int, ...]) -> str | None:
        return image_misfit(self.name, input_shape, self.smallest)

    def build(self, spec: Mapping[str, Value], input_shape: tuple[int, ...], classes: int) -> nn.Module:
        if spec:
            raise RecipeError(
                f"family '{self.name}' is one published network and has no fields, got {', '.join(spec)}; leave them out"
            )
        return self.make(input_shape, classes, *self.arguments)


# At the smallest side the last stage is 2x2 on its shorter edge.
ZOO: dict[str, Published] = {
    "resnet20": Published("resnet20", resnet, (3, 16, 16)),  # He et al., CVPR 2016: blocks of a stage, stem, stage 1
    "resnet32": Published("resnet32", resnet, (5, 16, 16)),
    "resnet56": Published("resnet56", resnet, (9, 16, 16)),
    "resnet110": Published("resnet110", resnet, (18, 16, 16)),
    "resnet8x4": Published("resnet8x4", resnet, (1, 32, 64)),
    "resnet32x4": Published("resnet32x4", resnet, (5, 32, 64)),
    "wrn_16_2": Published("wrn_16_2", wide_resnet, (16, 2)),  # Zagoruyko and Komodakis, BMVC 2016: depth, widening
    "wrn_40_1": Published("wrn_40_1", wide_resnet, (40, 1)),
    "wrn_40_2": Published("wrn_40_2", wide_resnet, (40, 2)),
    "vgg8": Published("vgg8", vgg, (1,), 16),  # Simonyan and Zisserman, ICLR 2015: convolutions of a stage
    "vgg13": Published("vgg13", vgg, (2,), 16),
    "mobilenet_v2": Published("mobilenet_v2", mobilenet_v2, smallest=17),  # Sandler et al., CVPR 2018
    "shufflenet_v1": Published("shufflenet_v1", shufflenet_v1, smallest=9),  # Zhang et al., CVPR 2018
    "shufflenet_v2": Published("shufflenet_v2", shufflenet_v2, smallest=9),  # Ma et al., ECCV 2018
}
