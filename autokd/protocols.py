"""The seams of training: what a batch, a network's outputs, a loss, a student family and a task look like to the others.

B base images, N rows (base rows first, then augmented ones), C classes, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from autokd.rules import Rule, Value


@dataclass(frozen=True)
class Batch:
    """Rows of one step. Everything about a row is explicit; nothing is implied by its position."""

    x: Tensor  # (N, ...) float, in the data's own units (uint8 images are divided by 255)
    y: Tensor  # (N, …), what the task wants: (N,) int64 for classification
    index: Tensor  # (N,) int64, position in the training split
    view: Tensor  # (N,) int64, 0 = base view, 1, 2, … = augmented views
    parent: Tensor  # (N,) int64, row of the base view of the same image; own row for base views
    fired: Tensor | None = None  # (N, L) bool, operations of the JDA chain that changed the row


@dataclass(frozen=True)
class Shapes:
    """What a network puts out, without the batch axis."""

    classes: int
    embedding: int
    stages: tuple[tuple[int, ...], ...] = ()  # (channels, height, width), from input to output
    aux: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # kind of heads -> numbers each of them puts out


@dataclass(frozen=True)
class Outputs:
    """The same type for student, teacher and peers, live or replayed."""

    logits: Tensor  # (N, C)
    embedding: Tensor | None = None  # (N, D), input of the last linear layer
    stages: tuple[Tensor, ...] = ()  # (N, channels, height, width) after each stage
    attention: tuple[Tensor, ...] = ()  # (N, height, width) of each stage, unit norm: small enough to be recorded
    aux: Mapping[str, tuple[Tensor, ...]] = field(
        default_factory=dict
    )  # a teacher's, each (N, …), needed as "aux.<kind>":
    # "pooled": the mean over positions of each stage; the rest what its heads of that kind say, see core/headed.py

    def map(self, change: Callable[[Tensor], Tensor]) -> Outputs:
        """Every tensor changed in the same way."""
        embedding = None if self.embedding is None else change(self.embedding)
        stages, attention = tuple(map(change, self.stages)), tuple(map(change, self.attention))
        aux = {kind: tuple(map(change, each)) for kind, each in self.aux.items()}
        return Outputs(change(self.logits), embedding, stages, attention, aux)

    def only(self, fields: frozenset[str]) -> Outputs:
        """The logits, and of the rest what is named: nobody hears what was asked for by others."""
        return Outputs(
            self.logits,
            self.embedding if "embedding" in fields else None,
            self.stages if "stages" in fields else (),
            self.attention if "attention" in fields else (),
            {kind: each for kind, each in self.aux.items() if f"aux.{kind}" in fields},
        )

    def detach(self) -> Outputs:
        return self.map(Tensor.detach)

    def float(self) -> Outputs:
        """In float32: losses are computed in it whatever the networks run in."""
        return self.map(Tensor.float)


@dataclass(frozen=True)
class Samples:
    """The training split, as far as a loss may know it before training."""

    y: Tensor  # (n, …), on the run's device
    value_range: tuple[float, float] = (0.0, 1.0)  # of pixels as a network sees them

    def __len__(self) -> int:
        return len(self.y)


class Ask(Protocol):
    """What an objective that `asks` may have beside the rows of the step. Each call costs what it says."""

    def student(self, x: Tensor) -> Outputs:
        """What this network says of other rows (M, …), in training mode and with gradients: a pass of its own, with its own batch statistics."""

    def teacher(self, x: Tensor) -> Outputs:
        """What the live teacher says of them, detached: a pass of the teacher. Raises TrialFailure without a teacher."""

    def slope(self, x: Tensor, of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The teacher's logits (M, C) of these rows, and the gradient of the scalar `of(logits)` by them, (M, …): two to three passes of the teacher."""

    def base(self, index: Tensor) -> Tensor:
        """The base views (M, …) of these training samples in this epoch."""

    def uniform(self, *counters: Tensor | int) -> Tensor:
        """Numbers in [0, 1) that depend on the trial's seed, the epoch and these counters alone; begin with one of `Stream`."""


class Objective(nn.Module):
    """One distillation loss. Returns means over its units; knows nothing of weights, schedules or detaching.

    A temperature-softened KL is multiplied by T². `row_weight` (N,), mean not necessarily 1, multiplies per-row terms before
    the mean over rows; an objective whose units are not rows ignores it and says `row_weighted = False`.

    One that says `listens = False` learns from labels or from the network itself; its `forward` must not read `teacher`, which may be
    the student's own outputs. One that says `asks = True` has a last argument more, `ask`.
    """

    fields: ClassVar[Mapping[str, Rule]] = {}  # keyword arguments of __init__
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})  # of {"logits", "embedding", "stages"}, from both networks
    recorded: ClassVar[frozenset[str] | None] = (
        None  # what to record of a teacher instead of that: {"attention"} is smaller, {"aux.stage"} is its heads'
    )
    row_weighted: ClassVar[bool] = False
    dials: ClassVar[frozenset[str]] = (
        frozenset()  # float fields that `forward` reads as attributes and only computes with: a 0-dim tensor does as well
    )
    default_weight: ClassVar[float] = 1.0
    weight_range: ClassVar[tuple[float, float]] = (0.03, 30.0)  # log-uniform search range of the weight
    divergence: ClassVar[bool] = True  # zero when student equals teacher
    listens: ClassVar[bool] = True  # to the teacher
    asks: ClassVar[bool] = False  # for other rows than those of the step
    teacher_heads: ClassVar[frozenset[str]] = frozenset()  # kinds of heads the teacher must have: see autokd/heads.py
    rotations: ClassVar[bool] = (
        False  # needs views of that policy: four rows per image, turned by 90 degrees times `view`
    )

    own_unit: ClassVar[bool] = False  # its loss before training says little: its weight never counts in units of it

    def know(self, samples: Samples) -> None:
        """Before `build`: the training split, for those that remember or draw samples."""

    def adopt(self, network: nn.Module) -> None:
        """After `build`: the network this loss is for, before it is trained. To keep it would make it a part of this one: keep a copy."""

    def begin_epoch(self, network: nn.Module, progress: float) -> None:
        """Before each epoch, at `progress` in [0, 1] of the whole training."""

    def build(self, student: Shapes, teacher: Shapes) -> None:
        """Create adaptors (as submodules) for these shapes. Raises RecipeError if they cannot be compared."""

    def of_teacher(self, student: Shapes, teacher: Shapes) -> frozenset[str]:
        """What `forward` reads of the teacher's outputs: `recorded` where these shapes allow it, else `needs`."""
        return self.recorded or self.needs

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Scalar terms by name, in float32; their sum is what the framework weighs."""
        raise NotImplementedError


@runtime_checkable
class StudentFamily(Protocol):
    """Architectures of one kind: a spec of names and numbers -> module."""

    fields: Mapping[str, Rule]

    def misfit(self, input_shape: tuple[int, ...]) -> str | None:
        """Why this family cannot take such inputs, or None."""

    def build(self, spec: Mapping[str, Value], input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """A new module, randomly initialised from torch's global generator: (N, *input_shape) -> (N, classes)."""


class TeacherSignal(Protocol):
    """Where a step gets the teacher's outputs: the live network, or what was recorded of it."""

    def outputs(self, batch: Batch) -> Outputs:
        """Detached outputs for the rows of `batch`, float32."""


class Task(Protocol):
    """What is learned."""

    name: str
    metric: str  # of `value`; higher is better

    def loss(
        self, outputs: Outputs, batch: Batch, row_weight: Tensor | None = None, smoothing: float | Tensor = 0.0
    ) -> Tensor:
        """Supervised loss, a mean over rows of row_weight (N,) times each row's; `smoothing` of a label is spread over all classes."""

    def evaluate(self, forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> dict[str, float]:
        """Metrics of logits; holds `metric` and "loss"."""

    def chance(self, y: Tensor) -> float:
        """The metric of the best guess that does not look at x."""


def seed_everything(seed: int) -> None:
    """Torch's global generators, used for initial weights and dropout only; views and batches have counters of their own."""
    torch.manual_seed(seed)
