"""Pairs of teacher and student by their FLOPs, and the recipes they are trained with.

All networks are autokd's residual networks with two blocks to a stage, on both sides of every comparison. Weights are random: what a step
costs does not depend on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from autokd.recipe import AugmentSpec, OptimSpec, PeerSpec, Recipe, StudentSpec, TermSpec
from autokd.rules import Value
from autokd.students import FAMILIES
from autokd.students.describe import describe
from autokd.students.normalise import set_normalisation
from benchmarks.core.images import Images

BATCH = 128
SETTLING_ROWS = 256  # rows from which a random teacher's batch statistics are taken
TEMPERATURE, CE_WEIGHT, KD_WEIGHT = 4.0, 0.1, 0.9  # RepDistiller's and mdistiller's defaults
LR, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 5e-4


@dataclass(frozen=True)
class Pair:
    """Widths of a teacher and of its student."""

    name: str
    teacher: int
    student: int


SIXTEEN = Pair("16:1", 64, 16)
FOUR = Pair("4:1", 32, 16)
FOUR_WIDE = Pair("4:1 wide", 64, 32)
PAIRS = (SIXTEEN, FOUR, FOUR_WIDE)


def spec(width: int) -> dict[str, Value]:
    return {"width": width, "depth1": 2, "depth2": 2, "depth3": 2}


def flops(width: int, images: Images) -> int:
    """Of one forward pass for one image."""
    return describe(FAMILIES["resnet"], spec(width), images.x.shape[1:], images.classes, "resnet").flops


def flops_ratio(pair: Pair, images: Images) -> float:
    return flops(pair.teacher, images) / flops(pair.student, images)


def network(width: int, images: Images, seed: int, *, normalises: bool) -> nn.Module:
    """A new network. `normalises`: takes images in [0, 1]; otherwise rows that the loader has standardised, as is usual."""
    with _seeded(seed):
        module = FAMILIES["resnet"].build(spec(width), images.x.shape[1:], images.classes)
    if normalises:
        set_normalisation(module, *images.moments)
    else:
        module.normalise = nn.Identity()
    return module


def teacher(pair: Pair, images: Images, *, normalises: bool) -> nn.Module:
    """The pair's teacher: random weights, batch statistics of real images so that logits are of a usual size; frozen."""
    module = network(pair.teacher, images, seed=1, normalises=True).train()
    with torch.no_grad():
        for rows in torch.from_numpy(images.x[:SETTLING_ROWS].copy()).split(BATCH):
            module(rows.float() / 255)
    if not normalises:
        module.normalise = nn.Identity()
    return module.eval().requires_grad_(False)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


# ---- recipes of our side


def bare(pair: Pair) -> Recipe:
    """No distillation: cross-entropy on cropped and mirrored images. The limit of what a trial can cost."""
    return Recipe(
        student=StudentSpec.model_validate({"family": "resnet", **spec(pair.student)}),
        augment=AugmentSpec(policy="base"),
        optim=OptimSpec(
            batch=BATCH, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, schedule="constant", warmup=0
        ),
    )


def kd(pair: Pair, temperature: float = TEMPERATURE, weight: float = KD_WEIGHT, lr: float = LR) -> Recipe:
    """Hinton's distillation, on the same views as `bare`."""
    term = TermSpec.model_validate({"objective": "kd", "weight": weight, "temperature": temperature})
    plain = bare(pair)
    optim = plain.optim.model_copy(update={"lr": lr})
    return plain.model_copy(update={"terms": (term,), "ce_weight": CE_WEIGHT, "optim": optim})


def jda_ccd(pair: Pair) -> Recipe:
    """With one augmented row for each image, weighed by the teacher's confidence: twice the rows."""
    return kd(pair).model_copy(update={"augment": AugmentSpec(policy="jda", rho=0.5, ccd=True)})


def with_peers(pair: Pair, count: int) -> Recipe:
    """`kd` with so many more students that learn from each other."""
    return kd(pair).model_copy(update={"peers": PeerSpec(count=count)})


def twenty(pair: Pair) -> list[Recipe]:
    """Twenty recipes of distillation: what a user would try by hand."""
    settings = [
        (temperature, weight, lr) for temperature in (1, 2, 4, 8, 16) for weight in (0.5, 0.9) for lr in (0.03, 0.1)
    ]
    return [kd(pair, float(temperature), weight, lr) for temperature, weight, lr in settings]
