"""Data and networks so small that an epoch takes milliseconds."""

from __future__ import annotations

import copy
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from autokd.core import checkpoint
from autokd.core.core import TrainingCore
from autokd.core.device import Setting
from autokd.core.headed import HEADS, Headed, new_heads
from autokd.core.payload import TapePlan
from autokd.core.run import load_student
from autokd.core.teachings import Teachers
from autokd.data import Data
from autokd.orders import Order
from autokd.protocols import seed_everything
from autokd.recipe import Recipe
from autokd.students import FAMILIES, name_of
from autokd.students.tap import Tap

SHAPE, CLASSES = (1, 8, 8), 3


def images(rows: int = 150, seed: int = 0, noise: float = 40.0) -> Data:
    """uint8 images of three classes: bright left, bright top, bright middle."""
    draw = np.random.default_rng(seed)
    y = np.arange(rows) % CLASSES
    x = np.full((rows, *SHAPE), 60.0)
    x[y == 0, :, :, :4] += 120
    x[y == 1, :, :4, :] += 120
    x[y == 2, :, 2:6, 2:6] += 120
    x += draw.normal(0, noise, x.shape)
    return Data(x.clip(0, 255).astype(np.uint8), y, name="tiny")


def network(family: str = "resnet", seed: int = 1, **spec: Any) -> nn.Module:
    """An untrained network of a registered family for these images."""
    seed_everything(seed)
    return FAMILIES[family].build({"width": 8, **spec}, SHAPE, CLASSES)


def recipe(family: str = "resnet", width: int = 4, terms: tuple[dict[str, Any], ...] = (), **more: Any) -> Recipe:
    """Quick to train; sections are given as dicts."""
    optim = {"lr": 0.05, "batch": 16, **more.pop("optim", {})}
    student = {"family": family, **({"width": width} if family in FAMILIES else {})}
    return Recipe.from_dict({"student": student, "terms": list(terms), "optim": optim, **more})


KD = {"objective": "kd", "weight": 0.9, "temperature": 4.0}


def order(of: Recipe, to: int = 1, start: int = 0, total: int = 3, **more: Any) -> Order:
    return Order(trial="t", recipe=of, seed=more.pop("seed", 0), to=to, total=total, start=start, **more)


def core(folder: Path, data: Data | None = None, teacher: nn.Module | None = None, **setting: Any) -> TrainingCore:
    data = images() if data is None else data
    return TrainingCore(data, network() if teacher is None else teacher, folder, Setting(**setting))


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


# ---- a teacher that knows something, and its tape

ROWS = 39  # training rows of images(60)
EVERYTHING = frozenset({"logits", "embedding", "attention", "stages"})


@cache
def _trained() -> nn.Module:
    of = recipe(width=8, optim={"batch": 8})
    with tempfile.TemporaryDirectory() as folder:
        alone = TrainingCore(images(60), None, folder, Setting())
        alone.advance(order(of, to=6, total=6))
        tensors, _ = checkpoint.load(alone.checkpoint_path("t"))
    return load_student(of, SHAPE, CLASSES, tensors)


def expert() -> nn.Module:
    """A residual network that knows `images` well, trained once for all tests; a new copy each time."""
    return copy.deepcopy(_trained())


def headed(backbone: nn.Module | None = None, seed: int = 3) -> Headed:
    """A teacher with untrained heads of every kind, with statistics of their own."""
    backbone = expert() if backbone is None else backbone
    tap = Tap(backbone, torch.rand(2, *SHAPE))
    tap.close()
    torch.manual_seed(seed)
    heads = {kind: new_heads(kind, tap.shapes) for kind in HEADS}
    for part in (part for each in heads.values() for part in each.modules()):
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return Headed(backbone, nn.ModuleDict(heads)).eval()


def tape_plan(folder: Path, payload: frozenset[str] = EVERYTHING, limit: int = 10**9) -> TapePlan:
    return TapePlan(str(folder), limit, payload)


def taped(
    folder: Path,
    tape: Path | TapePlan | None,
    data: Data | None = None,
    teacher: Teachers = None,
    **setting: Any,
) -> TrainingCore:
    """A core with its checkpoints in `folder` and a tape of everything in the folder `tape`."""
    data, teacher = images(60) if data is None else data, expert() if teacher is None else teacher
    plan = tape_plan(tape) if isinstance(tape, Path) else tape
    return TrainingCore(data, teacher, folder, Setting(**setting), tape=plan)


def passes_of(its_core: TrainingCore) -> list[int]:
    """Rows of every pass through the core's teacher from now on; a recording is one of all ROWS."""
    rows: list[int] = []
    its_core.teaching.live.module.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))  # type: ignore[union-attr]
    return rows


def segments(tape: Path) -> set[str]:
    """What is recorded: source/policy-view-epoch.fields, by name."""
    return {str(path.relative_to(tape)) for path in tape.rglob("*.safetensors") if not path.name.startswith(".")}


class Coarse(nn.Module):
    """Stages of 3x3 and 2x2, smaller than those of `expert`, whose maps must be pooled to be compared with these."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, stride=2), nn.Conv2d(4, 6, 2)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))
        return logits


class CoarseFamily:
    """A family of them."""

    fields: dict[str, Any] = {}

    def misfit(self, input_shape: tuple[int, ...]) -> str | None:
        return None

    def build(self, spec: Any, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        return Coarse()


def coarse() -> str:
    """Its name in recipes."""
    return name_of(CoarseFamily())
