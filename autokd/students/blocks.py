"""What the convolutional families share: field rules, the stem, convolution with batch norm, the network of stages, initial weights.

A family has up to three stages of 1x, 2x and 4x `width` channels; the second and third halve the side. A stage of depth
0 is left out together with its halving. Inputs with a side of 64 or more are first made smaller by the stem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import log2

from torch import Tensor, nn

from autokd.rules import Rule, Value, check_fields
from autokd.students.norm import BatchNorm
from autokd.students.normalise import Normalise

SMALLEST_SIDE = 8  # two halvings leave 2 x 2


def width_and_depths(deepest: int, about: str, width: int = 16, depth: int = 1) -> dict[str, Rule]:
    """The fields width, depth1, depth2, depth3; `about` says what depth counts."""
    rules = {"width": Rule("int", width, 4, 256, about="channels of stage 1; doubled in stage 2 and again in stage 3")}
    for stage in (1, 2, 3):
        low, left_out = (1, "") if stage == 1 else (0, "; 0 leaves the stage out")
        rules[f"depth{stage}"] = Rule("int", depth, low, deepest, about=f"{about} in stage {stage}{left_out}")
    return rules


def settings(family: str, spec: Mapping[str, Value], rules: Mapping[str, Rule]) -> dict[str, int]:
    """The spec with its defaults filled in. Raises RecipeError for an unknown field or a value outside its range."""
    check_fields(f"family '{family}'", spec, rules)
    return {name: int(spec.get(name, rule.default)) for name, rule in rules.items()}


def image_misfit(family: str, input_shape: tuple[int, ...], smallest: int = SMALLEST_SIDE) -> str | None:
    """Why a convolutional family cannot take such inputs, or None."""
    if len(input_shape) == 3 and min(input_shape[1:]) >= smallest:
        return None
    wanted = f"images (channels, height, width) of at least {smallest}x{smallest}"
    return f"family '{family}' needs {wanted}, got {tuple(input_shape)}; use family 'mlp'"


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    relu: bool = False,
    bias: bool = False,
) -> list[nn.Module]:
    """Convolution that keeps the side (divided by stride), then batch norm, with ReLU on demand."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)
    return [conv, BatchNorm(outputs, relu)]


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return conv_bn(inputs, outputs, kernel, stride, groups, relu=True)


def stem(input_shape: tuple[int, ...], width: int) -> list[nn.Module]:
    """The first 3x3 convolution. Side 64 and up: stride 2; 128 and up: a max-pool of 2, 4, … after it as well."""
    channels, height, rest = input_shape
    halvings = max(0, int(log2(min(height, rest))) - 5)
    layers = conv_bn_relu(channels, width, stride=2 if halvings else 1)
    return [*layers, nn.MaxPool2d(2 ** (halvings - 1))] if halvings > 1 else layers


def pooled(x: Tensor) -> Tensor:
    """(N, channels, height, width) -> (N, channels): the mean over places."""
    return x.mean((2, 3))


def stages(width: int, depths: tuple[int, int, int]) -> list[tuple[str, int, int]]:
    """(name, channels, depth) of the stages that are not left out."""
    return [(f"stage{i + 1}", width * 2**i, depth) for i, depth in enumerate(depths) if depth]


def in_stages(
    block: Callable[[int, int, int], nn.Module], inputs: int, plan: Iterable[tuple[str, int, int]], stride: int = 1
) -> dict[str, list[nn.Module]]:
    """Blocks (inputs, outputs, stride) by stage; the first of a stage halves the side, in stage 1 it has `stride`."""
    made: dict[str, list[nn.Module]] = {}
    for name, channels, depth in plan:
        first = block(inputs, channels, stride if name == "stage1" else 2)
        made[name] = [first, *(block(channels, channels, 1) for _ in range(depth - 1))]
        inputs = channels
    return made


class Staged(nn.Module):
    """Normalise, stem, stages, what comes after them, mean over places, head."""

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        stem: Sequence[nn.Module],
        stages: Mapping[str, Sequence[nn.Module]],
        width: int,
        last: Sequence[nn.Module] = (),
    ) -> None:
        """`width` channels arrive at the head."""
        super().__init__()
        self.normalise = Normalise(input_shape)
        self.stem = nn.Sequential(*stem)
        self.stage_names = tuple(stages)
        for name, layers in stages.items():
            self.add_module(name, nn.Sequential(*layers))
        self.last = nn.Sequential(*last)
        self.head = nn.Linear(width, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.normalise(x))
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
        return self.head(pooled(self.last(x)))


def initialise(module: nn.Module) -> nn.Module:
    """Kaiming normal weights (He et al., ICCV 2015, fan in) before every ReLU; `head` keeps torch's Kaiming uniform."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and name != "head" and not layer.weight.is_meta:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module
