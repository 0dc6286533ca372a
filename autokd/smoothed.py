"""What a frozen teacher says, made smoother without training: the mean over shifted views, blurred stage maps, a graph over the batch.

Designs of ours for `purf`, which is known by its title alone (level D): no reproduction. `smoothing.py` trains a smoother teacher.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autokd.errors import TeacherError
from autokd.students.tap import logits_of, places

SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))  # rows down, columns right


class Smoothed(nn.Module):
    """A copy of `module` that says something smoother; with views 1, sigma 0 and mu 0 it says the same.

        views      logits are the mean over this many of: the rows, and the rows shifted by one pixel (reflected) to each side and
                   corner. Embedding and stages stay those of the rows as they are
        sigma      what losses read as stages is blurred by a Gaussian of this deviation, in places of each map (borders repeated);
                   the network itself goes on with its own maps
        mu         embeddings E (N, D) become Ẽ = (I + mu·L)⁻¹·E before the last linear layer, so that logits are W·Ẽ + b. L is the
                   Laplacian (symmetric, unnormalised) of the batch's graph: rows are joined where one is among the other's
                   `neighbours` nearest. It keeps the mean of E and never raises tr(EᵀLE)

    `example` are two rows as the network sees them. With mu the outputs depend on the batch: such a teacher is never recorded on a tape
    but runs live, and its accuracy depends on how rows are gathered into batches. Raises TeacherError for numbers out of range, for
    `views` of what are no images, for `mu` without a last linear layer and `sigma` without stage maps.
    """

    knobs: Tensor  # (4,): part of what the teacher is known by

    def __init__(
        self,
        module: nn.Module,
        example: Tensor,
        *,
        views: int = 1,
        sigma: float = 0.0,
        mu: float = 0.0,
        neighbours: int = 5,
    ) -> None:
        super().__init__()
        _check(example, views, sigma, mu, neighbours)
        self.module, self.views = copied(module), views
        self.register_buffer("knobs", torch.tensor([views, sigma, mu, neighbours], dtype=torch.float64))
        own_names = getattr(module, "stage_names", None)
        if own_names is not None:
            self.stage_names = tuple(f"module.{name}" for name in own_names)
        classifier, stages = places(self, example)
        if mu:
            if classifier is None:
                raise TeacherError(
                    "mu smooths what enters the last nn.Linear of logits, and there is none; set it to 0"
                )
            self.set_submodule(classifier, Diffused(self.get_submodule(classifier), mu, neighbours))
        if sigma:
            if not stages:
                raise TeacherError("sigma blurs stage maps, and the teacher has none; set it to 0")
            self.stage_names = self._blur(stages, sigma)

    def forward(self, x: Tensor) -> object:
        """Whatever the network returns for one view, else the mean logits (N, C)."""
        if self.views == 1:
            return self.module(x)
        # the rows themselves come last: a Tap keeps what it has seen last
        logits = [logits_of(self.module(shifted(x, down, right))) for down, right in reversed(SHIFTS[: self.views])]
        return torch.stack(logits).mean(0)

    def _blur(self, stages: Sequence[str], sigma: float) -> tuple[str, ...]:
        """Let a blur look at each of these maps, from within: the blurs' names."""
        blurs: dict[str, nn.Module] = {}
        inner_first = sorted(set(stages), key=lambda name: -name.count("."))  # wrapping a whole renames its parts
        for name in inner_first:
            watched = Watched(self.get_submodule(name), Blur(sigma))
            self.set_submodule(name, watched)
            blurs[name] = watched.blur
        names = {part: name for name, part in self.named_modules()}
        return tuple(names[blurs[name]] for name in stages)


def copied(module: nn.Module) -> nn.Module:
    """A network of its own. Raises TeacherError where it holds what cannot be copied."""
    try:
        return copy.deepcopy(module)
    except Exception as error:  # the module is the user's own: whatever it raises is reported in one line
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TeacherError(f"a teacher must be copied to be made smoother, and copying it raised: {text}") from error


def _check(example: Tensor, views: int, sigma: float, mu: float, neighbours: int) -> None:
    if not 1 <= views <= len(SHIFTS):
        raise TeacherError(f"views must be from 1 to {len(SHIFTS)}, got {views}; 1 leaves the rows alone")
    if views > 1 and (example.dim() != 4 or min(example.shape[2:]) < 2):
        raise TeacherError(
            f"views are shifted images of 2x2 or more, got rows of shape {tuple(example.shape[1:])}; set views to 1"
        )
    for name, value in (("sigma", sigma), ("mu", mu)):
        if not (math.isfinite(value) and value >= 0):
            raise TeacherError(f"{name} must be 0 or more, got {value}; 0 leaves it out")
    if neighbours < 1:
        raise TeacherError(f"neighbours must be at least 1, got {neighbours}; set mu to 0 for no graph")


# ---- views


def shifted(x: Tensor, down: int, right: int) -> Tensor:
    """Images (N, C, H, W) moved by at most one pixel each way; what comes from outside is the reflected continuation."""
    if not (down or right):
        return x
    height, width = x.shape[2:]
    around = functional.pad(x, (1, 1, 1, 1), mode="reflect")
    return around[:, :, 1 - down : 1 - down + height, 1 - right : 1 - right + width]


# ---- stage maps


class Blur(nn.Module):
    """A Gaussian of deviation sigma on each channel of (N, C, H, W), cut off at 3·sigma; borders are repeated, so constants stay."""

    kernel: Tensor  # (2·radius + 1,)

    def __init__(self, sigma: float) -> None:
        super().__init__()
        radius = math.ceil(3 * sigma)
        places = torch.arange(-radius, radius + 1) / sigma
        self.register_buffer("kernel", (-places.square() / 2).softmax(0))

    def forward(self, x: Tensor) -> Tensor:
        radius, channels = len(self.kernel) // 2, x.shape[1]
        weights = self.kernel.to(x.dtype).expand(channels, 1, 1, -1)
        x = functional.pad(x, (radius,) * 4, mode="replicate")
        return functional.conv2d(functional.conv2d(x, weights, groups=channels), weights.mT, groups=channels)


class Watched(nn.Module):
    """A part of a network that puts out what it did, while `blur` is shown its maps: a Tap can catch them there."""

    def __init__(self, part: nn.Module, blur: nn.Module) -> None:
        super().__init__()
        self.part, self.blur = part, blur

    def forward(self, *args: Any, **named: Any) -> Any:
        out = self.part(*args, **named)
        if isinstance(out, Tensor) and out.dim() == 4:
            self.blur(out)
        return out


# ---- the graph over the batch


class Diffused(nn.Module):
    """A linear layer that hears embeddings (N, …) smoothed over the batch's graph."""

    batch_dependent = True  # nothing it says may be recorded

    def __init__(self, linear: nn.Module, mu: float, neighbours: int) -> None:
        super().__init__()
        self.linear, self.mu, self.neighbours = linear, mu, neighbours

    def forward(self, embedding: Tensor) -> Any:
        with torch.autocast(embedding.device.type, enabled=False):
            rows = embedding.flatten(1).to(torch.promote_types(embedding.dtype, torch.float32))
            smooth = diffused(rows, laplacian(rows, self.neighbours), self.mu)
        return self.linear(smooth.to(embedding.dtype).view_as(embedding))


def laplacian(rows: Tensor, neighbours: int) -> Tensor:
    """(N, N): degrees − edges of the graph that joins rows (N, D) where one is among the other's nearest; unnormalised."""
    near = torch.cdist(rows, rows).fill_diagonal_(torch.inf)
    nearest = near.topk(min(neighbours, len(rows) - 1), largest=False).indices
    edges = torch.zeros_like(near).scatter_(1, nearest, 1.0)
    edges = torch.maximum(edges, edges.T)
    return edges.sum(1).diag() - edges


def diffused(rows: Tensor, laplacian: Tensor, mu: float) -> Tensor:
    """(I + mu·L)⁻¹·E of rows E (N, D)."""
    return torch.linalg.solve(torch.eye(len(rows), dtype=rows.dtype, device=rows.device) + mu * laplacian, rows)
