"""A teacher with heads: small networks on what it puts out, trained first and then frozen like itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor, nn

from autokd.errors import TeacherError, nearest
from autokd.objectives.review import BatchScale
from autokd.objectives.staged import TURNS, joint_heads, projection, stage_heads
from autokd.protocols import Outputs, Shapes

HEADS = {"stage": "stages", "joint": "stages", "projection": "embedding"}  # kind -> what its heads read


class Headed(nn.Module):
    """A network and its heads by kind. A call gives the network's own logits."""

    def __init__(self, backbone: nn.Module, heads: nn.ModuleDict) -> None:
        super().__init__()
        self.backbone, self.heads = backbone, heads

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.backbone(x)
        return logits


def said(heads: nn.Module, kind: str, outputs: Outputs) -> tuple[Tensor, ...]:
    """Each head of an nn.ModuleList on its stage, from the first on, or on the embedding."""
    read = outputs.stages if HEADS[kind] == "stages" else (outputs.embedding,)
    return tuple(head(each) for head, each in zip(heads.children(), read, strict=False))


def new_heads(kind: str, shapes: Shapes) -> nn.ModuleList:
    """Untrained heads of a kind for a network of these shapes. Raises TeacherError if it does not put out what they read.

    "stage": a classifier on every stage but the last. "joint": one of class and rotation on every stage. "projection": one, of the embedding.
    """
    if kind not in HEADS:
        raise TeacherError(f"unknown kind of heads '{kind}'; {nearest(kind, HEADS)}")
    if not getattr(shapes, HEADS[kind]):
        raise TeacherError(
            f"heads of kind '{kind}' read {HEADS[kind]}, which this teacher does not put out; use a convolutional one, or objectives like kd"
        )
    if kind == "projection":
        return nn.ModuleList([projection(shapes.embedding)])
    heads = stage_heads(shapes) if kind == "stage" else joint_heads(shapes)
    for name, part in list(heads.named_modules()):
        if isinstance(part, BatchScale):  # frozen heads say the same of a row whatever else is in its batch
            heads.set_submodule(name, nn.BatchNorm2d(len(part.weight)))
    return heads


def with_heads(shapes: Shapes, kinds: Iterable[str]) -> Shapes:
    """The shapes of a network once it has heads of these kinds."""
    depth, classes = len(shapes.stages), shapes.classes
    puts_out = {
        "stage": (classes,) * (depth - 1),
        "joint": (TURNS * classes,) * depth,
        "projection": (shapes.embedding,),
    }
    return replace(shapes, aux={kind: puts_out[kind] for kind in sorted(kinds)})
