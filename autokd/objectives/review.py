"""Knowledge review: reviewkd. Deep maps of the student are fused into shallow ones, which then follow the teacher's.

An embedding counts as the last stage, of one position.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from autokd.objectives.features import BatchScale, at_equal_size, stage_pairs
from autokd.objectives.relations import embedding_of
from autokd.objectives.requirements import require_embedding, require_stages
from autokd.protocols import Batch, Objective, Outputs, Shapes

MAX_WIDTH = 512  # channels of fused maps, at most
LEVELS = (4, 2, 1)  # side lengths to which maps are pooled for their context


class ReviewKD(Objective):
    """Σ_stages HCL(fused map of the student, map of the teacher). Chen et al., CVPR 2021 (arXiv:2104.09044).

    From the last stage to the first each map is fused with the one fused before, brought to its size, by two learned maps of
    weights in (0, 1); a 3×3 convolution leads from there to the teacher's channels. HCL, the hierarchical context loss, is
    `context_gap`. What is learned here is dropped after training.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"stages", "embedding"})
    weight_range: ClassVar[tuple[float, float]] = (0.3, 10.0)
    divergence: ClassVar[bool] = False  # freshly drawn fusions stand between equal networks

    def __init__(self) -> None:
        super().__init__()
        self.pairs: tuple[tuple[int, int], ...] = ()  # from the last stage to the first, as are the fusions

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Draw a fusion for each of the student's stages and for its embedding."""
        require_stages("reviewkd", student, teacher)
        require_embedding("reviewkd", student, teacher)
        last = (len(student.stages), len(teacher.stages))
        self.pairs = (last, *reversed(stage_pairs(*last)))
        own, other = ([*(stage[0] for stage in each.stages), each.embedding] for each in (student, teacher))
        width = min(MAX_WIDTH, own[-1])
        self.fusions = nn.ModuleList(Fusion(own[i], width, other[j], alone=i == last[0]) for i, j in self.pairs)

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        own, other = ((*each.stages, embedding_of("reviewkd", each)[:, :, None, None]) for each in (student, teacher))
        total, deeper = student.stages[0].new_zeros(()), None
        for fusion, (i, j) in zip(self.fusions, self.pairs, strict=True):
            deeper, guess = fusion(own[i], deeper)
            total = total + context_gap(guess, other[j])
        return {"reviewkd": total}


class Fusion(nn.Module):
    """One stage's map and the fused map of the stage behind it -> this stage's fused map, and a guess at the teacher's."""

    def __init__(self, channels: int, width: int, wanted: int, alone: bool) -> None:
        """`alone`: there is no stage behind it."""
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), BatchScale(width))
        self.gates = None if alone else Gates(width)
        self.leave = nn.Sequential(nn.Conv2d(width, wanted, 3, padding=1, bias=False), BatchScale(wanted))

    def forward(self, stage: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        fused = self.enter(stage)
        if self.gates is not None and deeper is not None:
            fused = self.gates(fused, deeper)
        return fused, self.leave(fused)


class Gates(nn.Module):
    """Sum of two maps, the second brought to the first one's size, each times a map of weights that both decide.

    A 1×1 convolution of the concatenated maps, written as two: that of the smaller map is taken before it grows.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.here, self.deeper = nn.Conv2d(width, 2, 1), nn.Conv2d(width, 2, 1, bias=False)

    def forward(self, x: Tensor, deeper: Tensor) -> Tensor:
        size = x.shape[2:]
        gates = (self.here(x) + functional.interpolate(self.deeper(deeper), size=size, mode="nearest")).sigmoid()
        grown = functional.interpolate(deeper, size=size, mode="nearest")
        return gates[:, :1] * x + gates[:, 1:] * grown


def context_gap(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference at full size and after average pooling to 4×4, 2×2 and 1×1, those that are smaller.

    The mean of these, weighed 1, ½, ¼, …: (N, C, H, W) twice, the larger pooled to the smaller -> scalar.
    """
    own, other = at_equal_size(a, b)
    gap = own - other  # pooling is linear: the gap is pooled once instead of two maps
    sides = [side for side in LEVELS if side < min(gap.shape[2:])]
    weights = [0.5 ** (k + 1) for k in range(len(sides))]
    total, pooled = gap.new_zeros(()), gap
    for side, weight in zip(sides, weights, strict=True):
        even = not (gap.shape[2] % (2 * side) or gap.shape[3] % (2 * side))
        pooled = functional.adaptive_avg_pool2d(pooled if even else gap, side)  # of even cells, or of all again
        total = total + weight * pooled.square().mean()
    # Batch norm is up to 20 times slower where gradient and map lie differently in memory. The gradient of a sum lies as the
    # map does, those of a mean and of pooling need not; what is added last is differentiated first, and others follow it.
    return (total + gap.square().sum() / gap.numel()) / (1 + sum(weights))
