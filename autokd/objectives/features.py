"""Losses that compare stage maps: fitnet, at.

Stages run from input to output, each (N, channels, height, width). Networks of different depth are compared at equal
relative depth, last with last; of two maps of different size the larger is average-pooled to the smaller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from autokd.errors import RecipeError
from autokd.protocols import Batch, Objective, Outputs, Shapes
from autokd.recipe import Rule

NORM_EPS = 1e-8  # a map whose squares have a smaller norm counts as empty


def stage_pairs(students: int, teachers: int) -> tuple[tuple[int, int], ...]:
    """Pairs (student stage, teacher stage) at equal relative depth, one per student stage; the last meets the last.

    >>> stage_pairs(3, 4)
    ((0, 0), (1, 2), (2, 3))
    """
    return tuple((i, max(0, ((i + 1) * teachers + students // 2) // students - 1)) for i in range(students))


def at_equal_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps average-pooled to the smaller height and the smaller width."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return _pool(a, size), _pool(b, size)


def _pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[2:] == size else functional.adaptive_avg_pool2d(x, size)


def _require_stages(name: str, student: Shapes, teacher: Shapes) -> None:
    for who, shapes in (("student", student), ("teacher", teacher)):
        if not shapes.stages:
            raise RecipeError(
                f"objective '{name}' compares stage maps, the {who} has 0 stages; "
                "use a convolutional network, or kd, dkd, dist, rkd"
            )


class FitNet(Objective):
    """mean (conv1x1(F_s) − F_t)² over all elements of one stage. Romero et al., ICLR 2015 (arXiv:1412.6550).

    The 1×1 convolution maps the student's channels to the teacher's, learns with the student and is dropped after
    training.
    """

    fields: ClassVar[Mapping[str, Rule]] = {
        "stage": Rule("choice", "middle", choices=("first", "middle", "last"), about="which student stage is guided"),
    }
    needs: ClassVar[frozenset[str]] = frozenset({"stages"})
    default_weight: ClassVar[float] = 100.0  # RepDistiller's setting for this loss
    weight_range: ClassVar[tuple[float, float]] = (1.0, 1e3)
    divergence: ClassVar[bool] = False  # a freshly drawn regressor stands between equal networks

    def __init__(self, *, stage: str = "middle") -> None:
        super().__init__()
        self.stage = stage
        self.pair = (0, 0)

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Choose the pair of stages and draw the regressor."""
        _require_stages("fitnet", student, teacher)
        depth = len(student.stages)
        position = {"first": 0, "middle": depth // 2, "last": depth - 1}[self.stage]
        self.pair = stage_pairs(depth, len(teacher.stages))[position]
        self.regressor = nn.Conv2d(student.stages[self.pair[0]][0], teacher.stages[self.pair[1]][0], kernel_size=1)

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        own, other = at_equal_size(student.stages[self.pair[0]], teacher.stages[self.pair[1]])
        return {"fitnet": (self.regressor(own) - other).square().mean()}


class AT(Objective):
    """Σ_stages mean (a_s − a_t)², a = mean_c F² over positions, L2-normalised.

    The mean is over rows and positions of a stage, the sum over the student's stages. Scale of a map does not matter.
    Zagoruyko, Komodakis, ICLR 2017 (arXiv:1612.03928).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"stages"})
    recorded: ClassVar[frozenset[str] | None] = frozenset({"attention"})
    default_weight: ClassVar[float] = 1000.0  # RepDistiller's setting for this loss
    weight_range: ClassVar[tuple[float, float]] = (10.0, 1e4)

    def of_teacher(self, student: Shapes, teacher: Shapes) -> frozenset[str]:
        """The attention maps alone, unless a teacher's map has to be pooled first."""
        pairs = stage_pairs(len(student.stages), len(teacher.stages))
        pooled = any(_smaller(student.stages[i], teacher.stages[j]) != teacher.stages[j][1:] for i, j in pairs)
        return self.needs if pooled else frozenset({"attention"})

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Check that some pair of stages has more than one position; an attention map of one position is always 1."""
        _require_stages("at", student, teacher)
        pairs = stage_pairs(len(student.stages), len(teacher.stages))
        if max(math.prod(_smaller(student.stages[i], teacher.stages[j])) for i, j in pairs) < 2:
            raise RecipeError(
                "objective 'at' needs maps of more than one position, all are 1×1; use kd, dkd, dist or rkd"
            )

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        total = student.stages[0].new_zeros(())
        for i, j in stage_pairs(len(student.stages), len(teacher.stages or teacher.attention)):
            if teacher.attention:  # of maps that need no pooling: see of_teacher
                known = teacher.attention[j]
                own = _pool(student.stages[i], (known.shape[1], known.shape[2]))
            else:
                own, other = at_equal_size(student.stages[i], teacher.stages[j])
                known = attention(other)
            total = total + (attention(own) - known).square().mean()
        return {"at": total}


def _smaller(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, int]:
    """The smaller height and the smaller width of two (channels, height, width)."""
    return min(a[1], b[1]), min(a[2], b[2])


def attention(maps: Tensor) -> Tensor:
    """Where a map is strong: (N, channels, H, W) -> (N, H, W), rows of unit length (0 for an empty map)."""
    energy = maps.square().mean(1)
    return energy / torch.linalg.vector_norm(energy, dim=(1, 2), keepdim=True).clamp_min(NORM_EPS)
