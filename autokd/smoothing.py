"""`purf`: a teacher made smoother before it teaches, stage 0 of a distillation with any loss.

A design of ours, inspired by a title alone (PURF, Applied Soft Computing 2024; level D): **not a reproduction of it**. The
penalties `lip` and `time` are those of SoTeacher (Dong, Liu, Shang, ICLR 2024, arXiv:2206.06661; level A, the authors' code was
read), the others are ours. `smoothed.py` smooths what a frozen teacher says, without training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from autokd.augment.base import base_view
from autokd.core.core import TrainingCore
from autokd.core.data import batch_of, order, steps, to_float
from autokd.core.device import Setting, cpu_count, default_device
from autokd.core.fingerprint import fingerprint
from autokd.core.optim import learning_rate, optimiser, set_learning_rate
from autokd.data import Data
from autokd.errors import TeacherError
from autokd.protocols import Outputs, seed_everything
from autokd.recipe import AugmentSpec, OptimSpec
from autokd.smoothed import copied
from autokd.students.tap import Tap
from autokd.teacher import FIT_EPOCHS, Teacher, evaluate, from_cache

VERSION = 1  # raised whenever the same knobs give another teacher, so that none is taken from the cache that was made otherwise
VIEW = 1.0  # weight of that penalty
LR = 0.005  # a tenth of what `Teacher.fit` trains with
STEP = 0.01  # ε of the difference quotients, in units of the data's value range
OTHER_VIEW = 1  # number of the second view; the base view is 0
KEPT = ("family", "spec", "epochs", "data_fingerprint")  # of a teacher's description: what its copy can be built from
OnEpoch = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Knobs:
    """Weights of the penalties and how long, how fast and with which random numbers they are at work."""

    lip: float
    view: float
    time: float
    jac: float
    tv: float
    epochs: int
    lr: float
    seed: int

    @property
    def weights(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("lip", "view", "time", "jac", "tv")}

    @property
    def wanted(self) -> frozenset[str]:
        """What of the teacher's outputs is read."""
        readers = {"logits": True, "embedding": bool(self.view or self.jac), "stages": bool(self.tv)}
        return frozenset(name for name, read in readers.items() if read)


def smooth(
    teacher: Teacher,
    *,
    lip: float = 1e-5,
    view: float = VIEW,
    time: float = 0.0,
    jac: float = 0.0,
    tv: float = 0.0,
    share: float = 0.15,
    epochs: int | None = None,
    lr: float = LR,
    seed: int = 0,
    cache: bool = True,
    on_epoch: OnEpoch | None = None,
) -> Teacher:
    """A copy of `teacher`, fine-tuned with `CE + lip·Ω_lip + view·Ω_view + time·Ω_time + jac·Ω_jac + tv·Ω_tv` on the base views.

    It is trained for the `share` of `epochs`, the schedule of the original (by default what it was fitted for, else 30), at learning
    rate `lr`, with Nesterov momentum 0.9, weight decay 5e-4 and a cosine to 0. e: embedding (D numbers), p: softmax of the logits.

        Ω_lip   Σ_conv ‖W‖₁ + Σ_bn max_c |γ_c|/√(σ²_c + ε) + Σ_linear max_in Σ_out |W|           SoTeacher
        Ω_view  ⟨‖e(x') − e(x'')‖²/D⟩, x'' a second base view without gradient                    ours
        Ω_time  ⟨‖p(x_n) − q_n‖²⟩, q_n the mean of p(x_n) over the epochs before; its weight in
                epoch k = 0, 1, … of E is time·(k + 1)/E, 0 in the first                          SoTeacher
        Ω_jac   ⟨‖e(x + ε·u) − e(x)‖²⟩/ε², u a random direction of unit length                    ours
        Ω_tv    Σ_stages (mean |difference of rows| + mean |difference of columns|)               ours

    Data without crops and mirrors (vectors) have no second view: `view` counts as 0 there. Without any penalty nothing is trained and
    the copy says what the original says. The result's `about["smoothed"]` tells the knobs and the original's fingerprint. It is cached
    as fitted teachers are, if it can be saved. Raises TeacherError for knobs out of range, for a penalty on what the
    teacher does not have, and for a loss that is no longer a number.
    """
    knobs = _knobs(teacher, Knobs(lip, view, time, jac, tv, 0, lr, seed), share, epochs)
    about = {name: teacher.about[name] for name in KEPT if name in teacher.about}
    about["smoothed"] = {**asdict(knobs), "of": teacher.fingerprint, "version": VERSION}

    def make() -> Teacher:
        module = copied(teacher.module)
        if any(knobs.weights.values()):
            _train(module, teacher, knobs, on_epoch)
        name = f"{teacher.name}-smooth"
        return Teacher(module, teacher.data, name=name, task=teacher.task.name, builder=teacher.builder, about=about)

    if not (cache and teacher.can_be_saved):
        return make()
    key = {**about, "builder": teacher.builder, "name": teacher.name, "network": fingerprint(teacher.module)}
    return from_cache(key, teacher.data, make)


def _knobs(teacher: Teacher, asked: Knobs, share: float, epochs: int | None) -> Knobs:
    """As they are at work on this teacher. Raises TeacherError."""
    for name, weight in asked.weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise TeacherError(f"the weight of a penalty must be 0 or more, got {name}={weight}; 0 leaves it out")
    if not (math.isfinite(asked.lr) and asked.lr > 0):
        raise TeacherError(f"lr must be above 0, got {asked.lr}; leave it out for {LR}")
    fitted = teacher.about.get("epochs")
    whole = epochs if epochs is not None else fitted if isinstance(fitted, int) else FIT_EPOCHS
    if not (0 < share <= 1 and whole >= 1):
        raise TeacherError(f"a teacher is smoothed for a share in (0, 1] of its epochs, got share={share} of {whole}")
    knobs = Knobs(
        **{**asdict(asked), "epochs": max(1, round(share * whole)), "view": asked.view * _moves(teacher.data)}
    )
    if knobs.time and knobs.epochs < 2:
        raise TeacherError(f"time compares epochs, and share={share} of {whole} is one; raise epochs or share")
    if "embedding" in knobs.wanted and not teacher.shapes.embedding:
        raise TeacherError(
            "view and jac compare embeddings, and the teacher has no nn.Linear of its classes; set both to 0"
        )
    if "stages" in knobs.wanted and not teacher.shapes.stages:
        raise TeacherError("tv smooths stage maps, and the teacher has none; set it to 0")
    return knobs


def _moves(data: Data) -> bool:
    """Whether base views differ from each other."""
    return len(data.input_shape) == 3 and (data.pad > 0 or data.flip)


# ---- training


def _train(module: nn.Module, teacher: Teacher, knobs: Knobs, on_epoch: OnEpoch | None) -> None:
    """Fine-tune `module` in place. Torch's generators are left as they were."""
    setting = Setting(device=default_device(), threads=cpu_count())
    devices = range(torch.cuda.device_count()) if setting.on_gpu else ()
    with setting.on_its_threads(), torch.random.fork_rng(devices):
        core = TrainingCore(teacher.data, None, "", setting, teacher.task.name)
        try:
            fine_tuning = FineTuning(module, core, knobs)
            for epoch in range(knobs.epochs):
                if not math.isfinite(fine_tuning.train_epoch(epoch)):
                    raise TeacherError(
                        f"the loss of smoothing was no longer a number in epoch {epoch + 1}; lower lr or the penalties' weights"
                    )
                if on_epoch is not None:
                    metrics = evaluate(module, teacher.data, teacher.data.val, teacher.task.name)
                    on_epoch(epoch + 1, knobs.epochs, metrics[teacher.task.metric])
        finally:
            core.close()
    module.to("cpu")


class FineTuning:
    """A network on its way to being smoother, an epoch at a time."""

    def __init__(self, module: nn.Module, core: TrainingCore, knobs: Knobs) -> None:
        """Its rows, task, device and threads are those of `core`."""
        self.module, self.core, self.knobs = module.to(core.setting.device), core, knobs
        for parameter in module.parameters():
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        rows, data = len(core.rows), core.rows.data
        self.augment = AugmentSpec(policy="base" if len(data.input_shape) == 3 else "none")
        self.optim = OptimSpec(lr=knobs.lr, batch=64 if rows < 10_000 else 128, warmup=0.0)
        self.optimiser = optimiser(module.parameters(), self.optim, core.setting.device)
        self.low, self.high = data.value_range
        kept = rows if knobs.time else 0
        self.remembered = torch.zeros(
            kept, data.classes, device=core.setting.device
        )  # q: of every row, its mean so far

    def train_epoch(self, epoch: int) -> float:
        """The mean loss."""
        knobs, rows, device = self.knobs, self.core.rows, self.core.setting.device
        count, total = steps(len(rows), self.optim.batch), torch.zeros((), device=device)
        seed_everything(knobs.seed * 100_003 + epoch)
        self.module.to(device).train()
        tap = Tap(self.module, self.core.example, want=knobs.wanted)
        try:
            batches = order(len(rows), self.optim.batch, knobs.seed, epoch, device)
            for number, (index, picked) in enumerate(zip(batches, rows.fetch(batches), strict=True)):
                set_learning_rate(self.optimiser, learning_rate(self.optim, (epoch + number / count) / knobs.epochs))
                loss = torch.stack(list(self._losses(tap, picked, index, epoch).values())).sum()
                self.optimiser.zero_grad(set_to_none=True)
                loss.backward()
                self.optimiser.step()
                total += loss.detach()
        finally:
            tap.close()
            self.module.eval()
        return float(total) / count

    def _losses(self, tap: Tap, picked: tuple[Tensor, Tensor], index: Tensor, epoch: int) -> dict[str, Tensor]:
        """The cross-entropy and the penalties, each times its weight."""
        knobs, data = self.knobs, self.core.rows.data
        batch = batch_of(data, picked, index, self.augment, knobs.seed, epoch, None)
        seen = tap(batch.x).float()
        losses = {"ce": self.core.task.loss(seen, batch)}
        if knobs.lip:
            losses["lip"] = knobs.lip * lipschitz(self.module)
        if knobs.view:
            other = base_view(picked[0], knobs.seed, epoch, index, OTHER_VIEW, data.pad, data.flip)
            with torch.no_grad():
                same = _embedding(tap(to_float(other)))
            losses["view"] = knobs.view * (_embedding(seen) - same).square().mean()
        if knobs.time:
            likely = seen.logits.softmax(1)
            past = self.remembered[index]
            if epoch > 0:
                losses["time"] = knobs.time * (epoch + 1) / knobs.epochs * (likely - past).square().sum(1).mean()
            self.remembered[index] = running_mean(past, likely.detach(), epoch)
        if knobs.jac:
            moved = batch.x + STEP * (self.high - self.low) * directions(batch.x)
            losses["jac"] = knobs.jac * slope(_embedding(tap(moved)), _embedding(seen))
        if knobs.tv:
            losses["tv"] = knobs.tv * variation(seen.stages)
        return losses


def _embedding(outputs: Outputs) -> Tensor:
    assert outputs.embedding is not None  # `_knobs` has seen to it
    return outputs.embedding.float()


# ---- the penalties


def lipschitz(module: nn.Module) -> Tensor:
    """Ω_lip: a sum over layers of norms that bound how fast the network may change.

    Of convolutions the sum of absolute weights, of batch norms the largest slope |γ|/√(σ² + ε) with running variances, of linear layers
    the largest sum of absolute weights over outputs. Batch norms without running variances have no slope of their own and are left out.
    """
    norms = [norm for part in module.modules() if (norm := _norm(part)) is not None]
    return torch.stack(norms).sum() if norms else torch.zeros((), device=next(module.parameters()).device)


def _norm(part: nn.Module) -> Tensor | None:
    if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return part.weight.abs().sum()
    if isinstance(part, nn.Linear):
        return part.weight.abs().sum(0).max()
    if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and part.running_var is not None:
        slopes = (part.running_var + part.eps).rsqrt()
        return (slopes if part.weight is None else slopes * part.weight.abs()).max()
    return None


def running_mean(mean: Tensor, new: Tensor, visit: int) -> Tensor:
    """The mean after visit number 0, 1, …: of those before, and `new`. What was there before the first does not count."""
    return mean + (new - mean) / (1 + visit)


def directions(x: Tensor) -> Tensor:
    """A random direction of unit length for each row of x (N, …)."""
    random = torch.randn_like(x)
    lengths = random.flatten(1).norm(dim=1).view(-1, *(1 for _ in x.shape[1:]))
    return random / lengths.clamp_min(torch.finfo(x.dtype).tiny)


def slope(moved: Tensor, at: Tensor) -> Tensor:
    """Ω_jac of embeddings (N, D) at x + ε·u and at x, ε being STEP: ⟨‖difference‖²⟩/ε²."""
    return (moved - at).square().sum(1).mean() / STEP**2


def variation(stages: Sequence[Tensor]) -> Tensor:
    """Ω_tv of maps (N, C, H, W): mean absolute differences of neighbouring rows and columns, summed over stages."""
    differences = [stage.diff(dim=dim).abs().mean() for stage in stages for dim in (2, 3) if stage.shape[dim] > 1]
    return torch.stack(differences).sum() if differences else stages[0].sum() * 0
