"""VGG (Simonyan and Zisserman, ICLR 2015) for CIFAR: batch norm, a mean over places, and one linear layer instead of three.

VGG-13 is the paper's B, VGG-8 has half of its convolutions. Biases are kept though batch norm takes them out again: published counts
include them.
"""

from __future__ import annotations

from torch import nn

from autokd.students.blocks import Staged, conv_bn

STEM, WIDTHS = 64, {"stage1": 128, "stage2": 256, "stage3": 512, "stage4": 512}


def vgg(input_shape: tuple[int, ...], classes: int, depth: int) -> nn.Module:
    """`depth` convolutions at full resolution and in each of four stages; all but the last stage begin with max-pooling."""
    stages: dict[str, list[nn.Module]] = {}
    inputs = STEM
    for name, width in WIDTHS.items():
        pool = [] if name == "stage4" else [nn.MaxPool2d(2)]
        stages[name] = [*pool, *_convolutions(inputs, width, depth)]
        inputs = width
    return Staged(input_shape, classes, _convolutions(input_shape[0], STEM, depth), stages, inputs)


def _convolutions(inputs: int, outputs: int, depth: int) -> list[nn.Module]:
    widths = [inputs, *[outputs] * (depth - 1)]
    return [layer for width in widths for layer in conv_bn(width, outputs, relu=True, bias=True)]
