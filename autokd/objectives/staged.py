"""Losses that read heads which the teacher was given first: mtkd_ssr on its stages, hsakd on class and rotation, sskd on similarities.

The student has heads of its own here; they learn with it and are dropped after training. A rotated row is turned by 90 degrees
times its `view`; `parent` says which row is its image as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from autokd.errors import RecipeError
from autokd.objectives.features import at_equal_size, compared_sizes, stage_pairs
from autokd.objectives.heads import StageHead
from autokd.objectives.logits import TEMPERATURE, kl_rows, mean_over
from autokd.objectives.relations import embedding_of
from autokd.objectives.requirements import require_embedding, require_positions, require_stages
from autokd.protocols import Batch, Objective, Outputs, Shapes
from autokd.rules import Rule

TURNS = 4  # rotations of an image, itself among them
NOWHERE = -1e9  # a similarity that no softmax gives a share


# ---- heads, the teacher's as well


def stage_heads(shapes: Shapes, first: int = 0) -> nn.ModuleList:
    """A classifier on every stage from number `first` on but the last, which has the network's own."""
    stages = shapes.stages
    behind, deepest = len(stages) - 1, stages[-1][0]
    return nn.ModuleList(
        StageHead(stages[k][0], behind - k, shapes.classes, deepest) for k in range(first, len(stages) - 1)
    )


def joint_heads(shapes: Shapes) -> nn.ModuleList:
    """A classifier of (class, rotation) on every stage, of one block more than there are stages behind it.

    What the network says of a class does not tell rotations: the last stage needs a block, too.
    """
    stages = shapes.stages
    blocks, deepest = len(stages), stages[-1][0]
    return nn.ModuleList(
        StageHead(stage[0], blocks - k, TURNS * shapes.classes, deepest) for k, stage in enumerate(stages)
    )


def projection(width: int) -> nn.Sequential:
    """Two linear layers with ReLU between them: (N, width) -> (N, width)."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def require_heads(name: str, kind: str, teacher: Shapes) -> None:
    """Raise RecipeError unless the teacher has heads of this kind."""
    if kind not in teacher.aux:
        raise RecipeError(
            f"objective '{name}' needs heads of kind '{kind}' on the teacher, which were not trained; "
            "autokd.search and autokd.distill train them, autokd.heads does for other uses"
        )


# ---- mtkd_ssr


class MTKDSSR(Objective):
    """lambda_c·SCD + lambda_r·SRD + lambda_h·HCE + lambda_x·XREV. Gou et al., IJCV 131, 2023: known by its abstract; a reconstruction.

    z_l are the logits of stage l, from a head on it or, of the last, the network's own; (i, j) stages at equal relative depth.
    scd: Σ_i mean (GAP F_j^t − φ_i(GAP F_i^s))² over rows and channels, φ linear where channels differ; with "cwd" instead
    Σ_i T_c²·mean over rows and channels of KL between the softmaxes at T_c over the positions of a channel, the larger map pooled.
    srd: Σ_i T²·mean KL(z_j^t ‖ z_i^s). hce: Σ_{i<S} CE(z_i^s, y). xreview: Σ_{a→b} T_r²·mean KL(z_a^s ‖ z_b^s), z_a a constant.
    """

    fields: ClassVar[Mapping[str, Rule]] = {
        "scd": Rule("choice", "gap", choices=("gap", "cwd"), about="what of a map is compared: means or positions"),
        "stages": Rule("choice", "all", choices=("all", "last2"), about="which of the student's stages take part"),
        "review": Rule(
            "choice",
            "adjacent",
            choices=("adjacent", "deepest", "shallow", "all"),
            about="who teaches whom: the next deeper stage, the deepest one, the next shallower one, all each other",
        ),
        "temperature": Rule("float", 4.0, 0.5, 50.0, about=TEMPERATURE),
        "review_temperature": Rule("float", 4.0, 0.5, 50.0, about="the same between the student's stages"),
        "channel_temperature": Rule("float", 4.0, 0.5, 50.0, about="of the softmax over positions, with cwd"),
        "lambda_c": Rule("float", 1.0, 0.0, 100.0, about="weight of scd; 20 is usual with cwd"),
        "lambda_r": Rule("float", 1.0, 0.0, 100.0, about="weight of srd"),
        "lambda_h": Rule("float", 1.0, 0.0, 100.0, about="weight of the heads' cross-entropies"),
        "lambda_x": Rule("float", 0.1, 0.0, 100.0, about="weight of xreview"),
    }
    needs: ClassVar[frozenset[str]] = frozenset({"logits", "stages"})
    recorded: ClassVar[frozenset[str] | None] = frozenset({"logits", "aux.stage", "aux.pooled"})
    teacher_heads: ClassVar[frozenset[str]] = frozenset({"stage"})
    dials: ClassVar[frozenset[str]] = frozenset(
        {
            "temperature",
            "review_temperature",
            "channel_temperature",
            "lambda_c",
            "lambda_r",
            "lambda_h",
            "lambda_x",
        }
    )
    divergence: ClassVar[bool] = False  # freshly drawn heads stand between equal networks

    def __init__(
        self,
        *,
        scd: str = "gap",
        stages: str = "all",
        review: str = "adjacent",
        temperature: float = 4.0,
        review_temperature: float = 4.0,
        channel_temperature: float = 4.0,
        lambda_c: float = 1.0,
        lambda_r: float = 1.0,
        lambda_h: float = 1.0,
        lambda_x: float = 0.1,
    ) -> None:
        super().__init__()
        self.scd, self.stages, self.review = scd, stages, review
        self.temperature, self.review_temperature = temperature, review_temperature
        self.channel_temperature = channel_temperature
        self.lambda_c, self.lambda_r, self.lambda_h, self.lambda_x = lambda_c, lambda_r, lambda_h, lambda_x
        self.pairs: tuple[tuple[int, int], ...] = ()

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Draw the student's heads, and φ where channels differ."""
        require_stages("mtkd_ssr", student, teacher)
        require_heads("mtkd_ssr", "stage", teacher)
        if self.scd == "cwd":
            require_positions("mtkd_ssr", compared_sizes(student, teacher))
        self.pairs = self._compared(student, teacher)
        self.heads = stage_heads(student, first=self.pairs[0][0])
        widths = [(student.stages[i][0], teacher.stages[j][0]) for i, j in self.pairs]
        kind = nn.Linear if self.scd == "gap" else _pointwise
        self.adaptors = nn.ModuleList(nn.Identity() if a == b else kind(a, b) for a, b in widths)

    def of_teacher(self, student: Shapes, teacher: Shapes) -> frozenset[str]:
        """Means of stages, or maps for cwd; the heads of those stages that are not the last."""
        pairs = self._compared(student, teacher)
        heads = {"aux.stage"} if any(j < len(teacher.stages) - 1 for _, j in pairs) else set[str]()
        return frozenset({"logits", "aux.pooled" if self.scd == "gap" else "stages", *heads})

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        maps = [student.stages[i] for i, _ in self.pairs]
        own = [*(head(each) for head, each in zip(self.heads, maps[:-1], strict=True)), student.logits]
        last = max(j for _, j in self.pairs)
        told = [teacher.logits if j == last else teacher.aux["stage"][j] for _, j in self.pairs]
        srd = [kl_rows(a, b, self.temperature).mean() for a, b in zip(own, told, strict=True)]
        parts = {
            "scd": self.lambda_c * _sum(self._channels(maps, teacher)),
            "srd": self.lambda_r * self.temperature**2 * _sum(srd),
        }
        if len(own) > 1:
            t = self.review_temperature
            review = [kl_rows(own[b], own[a].detach(), t).mean() for a, b in review_pairs(len(own), self.review)]
            parts["hce"] = self.lambda_h * _sum([functional.cross_entropy(each, batch.y) for each in own[:-1]])
            parts["xreview"] = self.lambda_x * t**2 * _sum(review)
        return parts

    def _compared(self, student: Shapes, teacher: Shapes) -> tuple[tuple[int, int], ...]:
        pairs = stage_pairs(len(student.stages), len(teacher.stages))
        return pairs if self.stages == "all" else pairs[-2:]

    def _channels(self, maps: Sequence[Tensor], teacher: Outputs) -> list[Tensor]:
        """scd of every pair."""
        t, found = self.channel_temperature, []
        for own, adaptor, (_, j) in zip(maps, self.adaptors, self.pairs, strict=True):
            if self.scd == "gap":
                found.append((adaptor(own.mean((2, 3))) - teacher.aux["pooled"][j]).square().mean())
            else:
                found.append(t**2 * channel_gap(adaptor(own), teacher.stages[j], t))
        return found


def review_pairs(stages: int, review: str) -> tuple[tuple[int, int], ...]:
    """(teaching stage, learning stage), from input to output.

    >>> review_pairs(3, "adjacent"), review_pairs(3, "deepest")
    (((1, 0), (2, 1)), ((2, 0), (2, 1)))
    """
    last = stages - 1
    return {
        "adjacent": tuple((k + 1, k) for k in range(last)),
        "deepest": tuple((last, k) for k in range(last)),
        "shallow": tuple((k, k + 1) for k in range(last)),
        "all": tuple((a, b) for a in range(stages) for b in range(stages) if a != b),
    }[review]


def channel_gap(student: Tensor, teacher: Tensor, temperature: float | Tensor) -> Tensor:
    """Mean over rows and channels of KL(q_t ‖ q_s), q a channel's softmax over positions; maps (N, C, H, W), without T²."""
    own, other = (each.flatten(2).flatten(0, 1) for each in at_equal_size(student, teacher))
    return kl_rows(own, other, temperature).mean()


def _pointwise(channels: int, wanted: int) -> nn.Conv2d:
    return nn.Conv2d(channels, wanted, kernel_size=1)


def _sum(terms: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()


# ---- hsakd


class HSAKD(Objective):
    """Σ_l T²·mean KL(q_j^t ‖ q_l^s) over all rotated rows. Yang et al., IJCAI 2021; the authors' code was read.

    q (N, 4C) are the logits of class and rotation that a head on stage l gives, label 4y + k for a turn by 90k degrees; (l, j) stages at
    equal relative depth. The student's heads have no cross-entropy of their own: they learn from the teacher's. The rest of the
    published loss is the recipe's: a kd term, and a cross-entropy with `ce_rows` "original".
    """

    fields: ClassVar[Mapping[str, Rule]] = {"temperature": Rule("float", 3.0, 0.5, 50.0, about=TEMPERATURE)}
    needs: ClassVar[frozenset[str]] = frozenset({"stages"})
    recorded: ClassVar[frozenset[str] | None] = frozenset({"logits", "aux.joint"})
    teacher_heads: ClassVar[frozenset[str]] = frozenset({"joint"})
    rotations: ClassVar[bool] = True
    dials: ClassVar[frozenset[str]] = frozenset({"temperature"})
    weight_range: ClassVar[tuple[float, float]] = (0.1, 3.0)
    divergence: ClassVar[bool] = False  # freshly drawn heads stand between equal networks

    def __init__(self, *, temperature: float = 3.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.pairs: tuple[tuple[int, int], ...] = ()

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Draw the student's heads."""
        require_stages("hsakd", student, teacher)
        require_heads("hsakd", "joint", teacher)
        self.pairs = stage_pairs(len(student.stages), len(teacher.stages))
        self.heads = joint_heads(student)

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        told = [teacher.aux["joint"][j] for _, j in self.pairs]
        own = [head(stage) for head, stage in zip(self.heads, student.stages, strict=True)]
        each = [kl_rows(a, b, self.temperature).mean() for a, b in zip(own, told, strict=True)]
        return {"hsakd": self.temperature**2 * _sum(each)}


def joint_labels(batch: Batch) -> Tensor:
    """(N,) label of class y turned k times: 4y + k."""
    return TURNS * batch.y + batch.view


def class_probabilities(joint: Tensor) -> Tensor:
    """What joint logits (N, 4C) say of the classes alone, (N, C): probabilities summed over rotations.

    The authors' code sums logits instead, which is no distribution.
    """
    return joint.softmax(1).unflatten(1, (-1, TURNS)).sum(2)


# ---- sskd


class SSKD(Objective):
    """kd·KD on images as they are + transformed·KD on kept rotated rows + similarity·SS. Xu et al., ECCV 2020; the authors' code was read.

    KD is T²·mean KL(p_t ‖ p_s). SS is T_ss²·mean over kept rotated rows of KL(softmax(A^t/T_ss) ‖ softmax(A^s/T_ss)), A_nm the cosine
    of projections of a rotated row n and an image m as it is; a softmax runs over the images of the batch. The student's
    projection learns with it, the teacher's was trained first. Of the rotated rows all are kept for which the teacher's first answer is true (the label
    for the second part, the row's own image for the third), and of the others the share `…_ratio` whose true answer it ranks highest.
    The cross-entropy is the recipe's, with `ce_rows` "original" and weight 0.1; a kd term beside this one would be over all rows.
    """

    fields: ClassVar[Mapping[str, Rule]] = {
        "kd": Rule("float", 0.9, 0.0, 100.0, about="weight of the logits of images as they are"),
        "transformed": Rule("float", 2.7, 0.0, 100.0, about="weight of the logits of rotated rows"),
        "similarity": Rule("float", 10.0, 0.0, 100.0, about="weight of the similarities"),
        "temperature": Rule("float", 4.0, 0.5, 50.0, about=TEMPERATURE),
        "transformed_temperature": Rule("float", 4.0, 0.5, 50.0, about="the same for rotated rows"),
        "similarity_temperature": Rule("float", 0.5, 0.05, 50.0, about="what similarities are divided by"),
        "transformed_ratio": Rule("float", 1.0, 0.0, 1.0, about="share of rows with a wrong class that is kept"),
        "similarity_ratio": Rule("float", 0.75, 0.0, 1.0, about="share of rows with a wrong image that is kept"),
    }
    needs: ClassVar[frozenset[str]] = frozenset({"logits", "embedding"})
    recorded: ClassVar[frozenset[str] | None] = frozenset({"logits", "aux.projection"})
    teacher_heads: ClassVar[frozenset[str]] = frozenset({"projection"})
    rotations: ClassVar[bool] = True
    dials: ClassVar[frozenset[str]] = frozenset(fields)
    divergence: ClassVar[bool] = False  # a freshly drawn projection stands between equal networks

    def __init__(
        self,
        *,
        kd: float = 0.9,
        transformed: float = 2.7,
        similarity: float = 10.0,
        temperature: float = 4.0,
        transformed_temperature: float = 4.0,
        similarity_temperature: float = 0.5,
        transformed_ratio: float = 1.0,
        similarity_ratio: float = 0.75,
    ) -> None:
        super().__init__()
        self.kd, self.transformed, self.similarity = kd, transformed, similarity
        self.temperature, self.transformed_temperature = temperature, transformed_temperature
        self.similarity_temperature = similarity_temperature
        self.transformed_ratio, self.similarity_ratio = transformed_ratio, similarity_ratio

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Draw the student's projection."""
        require_embedding("sskd", student, teacher)
        require_heads("sskd", "projection", teacher)
        self.projection = projection(student.embedding)

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        t, hot, base = self.temperature, self.transformed_temperature, batch.view == 0
        own = self.projection(embedding_of("sskd", student))
        classes = torch.arange(teacher.logits.shape[1], device=base.device)
        known = ranks(teacher.logits, batch.y, classes, torch.ones_like(classes, dtype=torch.bool))
        kept = kept_rows(known, ~base, _keys(batch), self.transformed_ratio)
        plain = mean_over(base, kl_rows(student.logits, teacher.logits, t))
        turned = mean_over(kept, kl_rows(student.logits, teacher.logits, hot))
        similar = similarity_gap(
            own, teacher.aux["projection"][0], batch, self.similarity_temperature, self.similarity_ratio
        )
        return {
            "kd": self.kd * t**2 * plain,
            "tf": self.transformed * hot**2 * turned,
            "ss": self.similarity * similar,
        }


def similarity_gap(
    student: Tensor, teacher: Tensor, batch: Batch, temperature: float | Tensor, ratio: float | Tensor = 1.0
) -> Tensor:
    """SS of projections (N, D) and (N, D'), T² included, over the rotated rows that are kept."""
    base = batch.view == 0
    own, other = similarities(student, batch), similarities(teacher, batch)
    found = ranks(other, batch.parent, _keys(batch), base)
    kept = kept_rows(found, ~base, _keys(batch), ratio)
    return temperature**2 * mean_over(kept, kl_rows(own, other, temperature))


def similarities(projections: Tensor, batch: Batch) -> Tensor:
    """A (N, N): cosines of every row with the images as they are, NOWHERE in the columns of rotated ones."""
    unit = functional.normalize(projections, dim=1)
    return (unit @ unit.T).masked_fill(batch.view != 0, NOWHERE)


def ranks(scores: Tensor, true: Tensor, order: Tensor, counts: Tensor) -> Tensor:
    """Rank of the true column (N,) in each row of scores (N, M), 0 the first: how many of the columns that count come before it.

    Of equal scores that of the lower `order` (M,) comes first, as in a stable sort.
    """
    score = scores.gather(1, true[:, None])
    before = (scores > score) | ((scores == score) & (order < order[true][:, None]))
    return (before & counts).sum(1)


def kept_rows(rank: Tensor, among: Tensor, order: Tensor, ratio: float | Tensor) -> Tensor:
    """Mask (N,) of the rows `among` (N,) with rank 0, and of the share `ratio` of the others that is ranked best.

    That share is rounded down; of equal ranks that of the lower `order` (N,) comes first.
    """
    right = (among & (rank == 0)).sum()
    most = right + (ratio * (among.sum() - right).float()).floor()
    before = (rank[None] < rank[:, None]) | ((rank[None] == rank[:, None]) & (order[None] < order[:, None]))
    return among & ((before & among).sum(1) < most)


def _keys(batch: Batch) -> Tensor:
    """(N,) a number for each row that does not depend on where in the batch it stands."""
    return TURNS * batch.index + batch.view
