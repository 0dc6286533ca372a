"""Losses that compare stage maps: fitnet, at, nst, vid.

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

from autokd.objectives.requirements import require_positions, require_stages
from autokd.protocols import Batch, Objective, Outputs, Shapes
from autokd.rules import Rule

NORM_EPS = 1e-8  # a map whose squares have a smaller norm counts as empty
FIRST_VARIANCE, LEAST_VARIANCE = 5.0, 1e-5  # of vid, as in the authors' code


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


class FitNet(Objective):
    """mean (regressor(F_s) − F_t)² over all elements of one stage. Romero et al., ICLR 2015 (arXiv:1412.6550).

    The regressor is a 1×1 convolution to the teacher's channels, batch norm and, for maps that come out of a ReLU as most
    do, a ReLU; it learns with the student and is dropped after training. Without batch norm the weight of the benchmarks,
    100, is beyond what a learning rate of 0.05 with momentum bears.
    """

    fields: ClassVar[Mapping[str, Rule]] = {
        "stage": Rule("choice", "middle", choices=("first", "middle", "last"), about="which student stage is guided"),
        "regressor": Rule("choice", "relu", choices=("relu", "linear"), about="linear for maps that can be negative"),
    }
    needs: ClassVar[frozenset[str]] = frozenset({"stages"})
    default_weight: ClassVar[float] = 100.0  # RepDistiller's setting for this loss
    weight_range: ClassVar[tuple[float, float]] = (1.0, 1e3)
    divergence: ClassVar[bool] = False  # a freshly drawn regressor stands between equal networks

    def __init__(self, *, stage: str = "middle", regressor: str = "relu") -> None:
        super().__init__()
        self.stage, self.kind = stage, regressor
        self.pair = (0, 0)

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Choose the pair of stages and draw the regressor."""
        require_stages("fitnet", student, teacher)
        depth = len(student.stages)
        position = {"first": 0, "middle": depth // 2, "last": depth - 1}[self.stage]
        self.pair = stage_pairs(depth, len(teacher.stages))[position]
        inputs, outputs = student.stages[self.pair[0]][0], teacher.stages[self.pair[1]][0]
        layers = [nn.Conv2d(inputs, outputs, 1, bias=False), BatchScale(outputs)]
        self.regressor = nn.Sequential(*layers, *([nn.ReLU()] if self.kind == "relu" else []))

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        own, other = at_equal_size(student.stages[self.pair[0]], teacher.stages[self.pair[1]])
        return {"fitnet": (self.regressor(own) - other).square().mean()}


class BatchScale(nn.Module):
    """Batch norm by the statistics of the batch, always: no running ones, since no adaptor outlives training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.batch_norm(x, self.weight, self.bias, None, None, True, 0.0, 1e-5, False)


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
        require_stages("at", student, teacher)
        require_positions("at", compared_sizes(student, teacher))

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


def compared_sizes(student: Shapes, teacher: Shapes) -> list[tuple[int, int]]:
    """(height, width) at which each pair of stages is compared."""
    pairs = stage_pairs(len(student.stages), len(teacher.stages))
    return [_smaller(student.stages[i], teacher.stages[j]) for i, j in pairs]


def _smaller(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, int]:
    """The smaller height and the smaller width of two (channels, height, width)."""
    return min(a[1], b[1]), min(a[2], b[2])


def attention(maps: Tensor) -> Tensor:
    """Where a map is strong: (N, channels, H, W) -> (N, H, W), rows of unit length (0 for an empty map)."""
    energy = maps.square().mean(1)
    return energy / torch.linalg.vector_norm(energy, dim=(1, 2), keepdim=True).clamp_min(NORM_EPS)


class NST(Objective):
    """Σ_stages mean over rows of MMD²(channels of F_s, channels of F_t). Huang, Wang 2017 (arXiv:1707.01219).

    A channel is its map, of unit L2 norm over positions; two channels are as alike as k(a, b) = (a·b)², and
    MMD² = mean k(s, s') + mean k(t, t') − 2·mean k(s, t) over pairs of channels. Numbers of channels may differ. Scale of a
    channel does not matter; a stage compared at one position, where all channels are alike, is left out.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"stages"})
    default_weight: ClassVar[float] = 50.0  # RepDistiller's setting for this loss
    weight_range: ClassVar[tuple[float, float]] = (1.0, 1e3)

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Check that some pair of stages has more than one position."""
        require_stages("nst", student, teacher)
        require_positions("nst", compared_sizes(student, teacher))

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        total = student.stages[0].new_zeros(())
        for i, j in stage_pairs(len(student.stages), len(teacher.stages)):
            own, other = at_equal_size(student.stages[i], teacher.stages[j])
            if math.prod(own.shape[2:]) > 1:
                total = total + selectivity_gap(own, other).mean()
        return {"nst": total}


def selectivity_gap(a: Tensor, b: Tensor) -> Tensor:
    """MMD² between the channels of two maps of equal size, per row: (N, C, H, W), (N, C', H, W) -> (N,).

    mean (a_i·b_j)² is the inner product of A = Σ a_i a_iᵀ/C and B, positions × positions: where there are fewer positions than
    channels, MMD² is computed as ‖A − B‖². Elsewhere inner products of maps are divided by their norms, not maps.
    """
    a, b = a.flatten(2), b.flatten(2)
    if a.shape[2] <= max(a.shape[1], b.shape[1]):
        units = [functional.normalize(each, dim=2, eps=math.sqrt(NORM_EPS)) for each in (a, b)]
        moments = [each.transpose(1, 2) @ each / each.shape[1] for each in units]
        return (moments[0] - moments[1]).square().sum((1, 2))
    own, other, mutual = (x @ y.transpose(1, 2) for x, y in ((a, a), (b, b), (a, b)))
    of_a, of_b = (gram.diagonal(dim1=1, dim2=2).clamp_min(NORM_EPS) for gram in (own, other))
    return _kernel_mean(own, of_a, of_a) + _kernel_mean(other, of_b, of_b) - 2 * _kernel_mean(mutual, of_a, of_b)


def _kernel_mean(products: Tensor, norms: Tensor, others: Tensor) -> Tensor:
    """Mean squared cosine from inner products (N, C, C') and squared norms (N, C), (N, C') -> (N,)."""
    return (products.square() / (norms[:, :, None] * others[:, None, :])).mean((1, 2))


class VID(Objective):
    """Σ_stages mean ½[(F_t − μ(F_s))²/σ² + log σ²] over rows, channels, positions. Ahn et al., CVPR 2019 (arXiv:1904.05835).

    The negative log-likelihood of the teacher's map, without its constant: a bound on what the student's map tells of it. μ (three 1×1
    convolutions with ReLU between them) and σ² (one per channel of the teacher) learn with the student and are dropped
    after training. May become negative, as σ² falls.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"stages"})
    divergence: ClassVar[bool] = False  # a likelihood, with freshly drawn regressors between equal networks

    def __init__(self) -> None:
        super().__init__()
        self.pairs: tuple[tuple[int, int], ...] = ()

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Draw a regressor for each of the student's stages; variances begin at 5."""
        require_stages("vid", student, teacher)
        self.pairs = stage_pairs(len(student.stages), len(teacher.stages))
        widths = [(student.stages[i][0], teacher.stages[j][0]) for i, j in self.pairs]
        self.means = nn.ModuleList(_regressor(own, other) for own, other in widths)
        begin = math.log(math.expm1(FIRST_VARIANCE - LEAST_VARIANCE))  # the inverse of softplus
        self.spreads = nn.ParameterList(torch.full((other,), begin) for _, other in widths)

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        total = student.stages[0].new_zeros(())
        for (i, j), mean, spread in zip(self.pairs, self.means, self.spreads, strict=True):
            own, other = at_equal_size(student.stages[i], teacher.stages[j])
            variance = functional.softplus(spread) + LEAST_VARIANCE
            errors = (other - mean(own)).square().mean((0, 2, 3))
            total = total + 0.5 * (errors / variance + variance.log()).mean()
        return {"vid": total}


def _regressor(channels: int, wanted: int) -> nn.Sequential:
    """Student channels to teacher channels, position by position."""
    return nn.Sequential(
        nn.Conv2d(channels, wanted, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(wanted, wanted, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(wanted, wanted, 1, bias=False),
    )
