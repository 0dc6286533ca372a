"""Heads on a teacher, trained before any student: what some losses compare beside its own outputs.

The teacher itself stays as it is, in eval mode; only its heads learn, from what it puts out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from autokd.core import checkpoint
from autokd.core.data import Resident, Rows, batch_of, order, steps, to_float
from autokd.core.device import Setting, cpu_count, default_device
from autokd.core.fingerprint import fingerprint
from autokd.core.headed import HEADS, Headed, new_heads, said
from autokd.core.live import LiveTeacher
from autokd.core.optim import learning_rate, optimiser, set_learning_rate
from autokd.core.streamed import Streamed
from autokd.errors import CheckpointError, InputError, TeacherError
from autokd.objectives import resolve
from autokd.objectives.staged import joint_labels, similarities
from autokd.protocols import Batch, seed_everything
from autokd.recipe import AugmentSpec, OptimSpec
from autokd.teacher import FIT_EPOCHS, Teacher, cache_folder

VERSION = 1  # of the heads and their training: raised whenever others come out
VIEWS = {  # what each kind is trained on
    "stage": AugmentSpec(policy="base"),
    "joint": AugmentSpec(policy="rotations", crops="shared"),
    "projection": AugmentSpec(policy="rotations", crops="own"),
}
OPTIM = OptimSpec(batch=64, lr=0.05, weight_decay=1e-4)
SHARE = {  # one epoch for so many of the teacher's own: forward passes alone, of four rows per image with rotations, a fifth in all
    "stage": 3,
    "joint": 9,
    "projection": 9,
}
SEED = 0
ALL_CORES = 10_000  # training rows from which on all cores are used


def kinds_for(objectives: Iterable[str]) -> frozenset[str]:
    """The kinds of heads that these objectives want on their teacher."""
    return frozenset[str]().union(*(resolve(name).teacher_heads for name in objectives))


def default_epochs(teacher: Teacher, kind: str) -> int:
    """Of training heads, at about a fifth of what the teacher's own training cost, as far as that is known."""
    known = teacher.about.get("epochs")
    return max(1, (known if isinstance(known, int) else FIT_EPOCHS) // SHARE[kind])


def with_fitted_heads(teacher: Teacher, kinds: Iterable[str], device: str, say: Callable[[str], None]) -> nn.Module:
    """The teacher's module, with heads of these kinds if there are any; `say` hears what is trained before it begins."""
    heads = {}
    for kind in sorted(kinds):
        epochs = default_epochs(teacher, kind)
        if not _place(teacher, kind, epochs, SEED).exists():
            say(f"teacher heads ({kind}): {epochs} epoch{'s' if epochs > 1 else ''}")
        heads[kind] = fit_heads(teacher, kind, epochs=epochs, device=device)
    return Headed(teacher.module, nn.ModuleDict(heads)).eval() if heads else teacher.module


def fit_heads(
    teacher: Teacher,
    kind: str,
    *,
    epochs: int | None = None,
    seed: int = SEED,
    cache: bool = True,
    device: str | None = None,
) -> nn.ModuleList:
    """Train heads of a kind on a teacher, or take them from the cache if they were trained before.

    "stage" learns classes on base views; "joint" class and rotation on rotations that share a crop; "projection" which image of the batch a
    rotated row is of: cross-entropy of cosines against it, without temperature. `epochs` by default about a fifth of the teacher's
    own cost. Raises TeacherError for a teacher without what they read, InputError for rotations of what is no square image.
    """
    heads = _untrained(teacher, kind, seed)
    epochs = default_epochs(teacher, kind) if epochs is None else epochs
    if epochs < 1:
        raise InputError(f"heads need at least 1 epoch, got {epochs}; leave it out for the default")
    path = _place(teacher, kind, epochs, seed)
    if not (cache and _restored(heads, path)):
        heads = _trained(teacher, kind, epochs, seed, device or default_device())
        if cache:
            with suppress(CheckpointError):  # a cache that cannot be written costs time, not the heads
                checkpoint.save(path, heads.state_dict(), {"teacher": teacher.name, "kind": kind, "epochs": epochs})
    return heads.eval().requires_grad_(False)


def _place(teacher: Teacher, kind: str, epochs: int, seed: int) -> Path:
    """Where they are kept: named after all that decides them."""
    of = [VERSION, teacher.fingerprint, fingerprint(teacher.module), kind, epochs, seed]
    return cache_folder() / "heads" / f"{hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]}.safetensors"


def _restored(heads: nn.ModuleList, path: Path) -> bool:
    """Whether sound weights of theirs were found and put into them."""
    try:
        heads.load_state_dict(checkpoint.load(path)[0])
    except (CheckpointError, RuntimeError):  # none, torn, or of another version
        return False
    return True


def _untrained(teacher: Teacher, kind: str, seed: int) -> nn.ModuleList:
    with torch.random.fork_rng(devices=[]):
        seed_everything(seed)
        return new_heads(kind, teacher.shapes)


def _trained(teacher: Teacher, kind: str, epochs: int, seed: int, device: str) -> nn.ModuleList:
    """SGD with Nesterov momentum along a cosine, on features that do not learn."""
    data = teacher.data
    setting = Setting(device, threads=cpu_count() if len(data.train.y) >= ALL_CORES else 1)
    heads = _untrained(teacher, kind, seed).to(device)
    parameters = list(heads.parameters())
    if not parameters:  # of a teacher with one stage
        return heads
    rows: Rows = Resident(data, setting.device) if data.source is None else Streamed(data, setting.device)
    live = LiveTeacher(teacher.module, to_float(torch.as_tensor(data.train.x[:2])).to(setting.device), setting)
    update, count = optimiser(parameters, OPTIM, setting.device), steps(len(rows), OPTIM.batch)
    try:
        with setting.on_its_threads():
            for epoch in range(epochs):
                heads.train()
                batches = order(len(rows), OPTIM.batch, seed, epoch, setting.device)
                for number, (index, picked) in enumerate(zip(batches, rows.fetch(batches), strict=True)):
                    batch = batch_of(data, picked, index, VIEWS[kind], seed, epoch, None)
                    told = said(heads, kind, live.outputs(batch.x, frozenset({HEADS[kind]})))
                    set_learning_rate(update, learning_rate(OPTIM, (epoch + number / count) / epochs))
                    update.zero_grad(set_to_none=True)
                    torch.stack([_loss(kind, each, batch) for each in told]).sum().backward()
                    update.step()
    finally:
        live.close()
        rows.close()
        teacher.module.to("cpu")  # where a teacher waits for whoever needs it
    if not all(bool(tensor.isfinite().all()) for tensor in heads.state_dict().values()):
        raise TeacherError(f"heads of kind '{kind}' could not be trained: their weights are no longer numbers")
    return heads.to("cpu")


def _loss(kind: str, told: Tensor, batch: Batch) -> Tensor:
    """What one head learns from, a mean over rows."""
    if kind == "stage":
        return functional.cross_entropy(told, batch.y)
    if kind == "joint":
        return functional.cross_entropy(told, joint_labels(batch))
    turned = batch.view != 0
    return functional.cross_entropy(similarities(told, batch)[turned], batch.parent[turned])
