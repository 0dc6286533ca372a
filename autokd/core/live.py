"""The teacher itself, run on the rows of a step: what a tape is recorded from, and what serves where none can."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

import torch
from torch import Tensor, nn

from autokd.core.device import Setting
from autokd.core.headed import HEADS, Headed, said, with_heads
from autokd.core.payload import POOLED, widths
from autokd.core.replay import Replay, to_record
from autokd.objectives.features import attention
from autokd.protocols import Batch, Outputs, Shapes
from autokd.students.norm import switch
from autokd.students.tap import Tap

LOGITS = frozenset({"logits"})
READ = {"attention": "stages", POOLED: "stages"}  # what is computed from what
READ |= {f"aux.{kind}": read for kind, read in HEADS.items()}
BLOCK = {"cpu": 64, "cuda": 4096}  # rows per pass where the number is free
SAME = 1e-3  # relative difference of two passes over the same rows that is rounding, and no dropout
FEW = 4  # rows of another batch: a teacher that normalises by its batch says something else of them
AGREE, ROUNDING = 0.1, 0.01  # of the logits' spread, and of themselves: far above rounding, far below another teacher


class LiveTeacher:
    """The frozen network: eval mode, no gradients."""

    def __init__(self, module: nn.Module, example: Tensor, setting: Setting) -> None:
        self.setting, self._example = setting, example
        self.module = module.to(setting.device).to(memory_format=setting.memory_format).eval().requires_grad_(False)
        switch(self.module, setting.fused_norm)
        self._taps: dict[frozenset[str], Tap] = {}
        self._one_at_a_time = Lock()  # lanes of one GPU share the teacher
        self._network: nn.Module = module.backbone if isinstance(module, Headed) else module
        self._heads = dict(module.heads.items()) if isinstance(module, Headed) else {}
        self.shapes: Shapes = with_heads(self._tap(LOGITS).shapes, self._heads)

    def outputs(self, x: Tensor, needs: frozenset[str] = LOGITS) -> Outputs:
        """Detached outputs for float rows (N, …), float32; of all but the logits those in `needs`."""
        with self._one_at_a_time, torch.no_grad(), self.setting.autocast(teacher=True):
            self.module.eval()  # a module shared with its owner may have been set to train
            found = self._tap(needs)(x.contiguous(memory_format=self._format(x)))
            aux = self._aux(found, needs)
        maps = tuple(attention(stage.float()) for stage in found.stages) if "attention" in needs else ()
        return Outputs(found.logits, found.embedding, found.stages, maps, aux).only(needs).float()

    def slope(self, x: Tensor, of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (N, C) of float rows and the gradient of the scalar `of(logits)` by the rows, (N, …); both detached, float32."""
        rows = x.detach().contiguous(memory_format=self._format(x)).requires_grad_()
        with self._one_at_a_time, torch.enable_grad(), self.setting.autocast(teacher=True):
            self.module.eval()
            logits = self._tap(LOGITS)(rows).logits.float()
            (gradient,) = torch.autograd.grad(of(logits), rows)
        return logits.detach(), gradient.float()

    def repeats_itself(self, x: Tensor) -> bool:
        """Whether passes over the same rows agree, among all of them and among a few: what is not so must not be recorded.

        A part that is known to depend on the batch says `batch_dependent = True`: it may do so by less than can be told from rounding.
        """
        if any(getattr(part, "batch_dependent", False) for part in self.module.modules()):
            return False
        first, second, few = self.outputs(x).logits, self.outputs(x).logits, self.outputs(x[:FEW]).logits
        near = SAME * float(first[first.isfinite()].abs().max()) if first.isfinite().any() else 0.0
        return torch.allclose(first, second, rtol=0, atol=near, equal_nan=True) and agree(few, first[:FEW])

    def close(self) -> None:
        """Take the hooks off the module and leave its batch norms to torch: it is the user's."""
        switch(self.module, False)
        for tap in self._taps.values():
            tap.close()
        self._taps.clear()

    def _aux(self, found: Outputs, needs: frozenset[str]) -> dict[str, tuple[Tensor, ...]]:
        """What is asked for of the teacher's heads, and the means of its stages. A kind it has no heads of is left out."""
        aux = {kind: said(heads, kind, found) for kind, heads in self._heads.items() if f"aux.{kind}" in needs}
        if POOLED in needs:
            aux["pooled"] = tuple(stage.float().mean((2, 3)) for stage in found.stages)
        return aux

    def _format(self, x: Tensor) -> torch.memory_format:
        return self.setting.memory_format if x.dim() == 4 else torch.contiguous_format

    def _tap(self, needs: frozenset[str]) -> Tap:
        if needs not in self._taps:
            want = LOGITS.union(READ.get(need, need) for need in needs)
            self._taps[needs] = Tap(self._network, self._example, want=want)
        return self._taps[needs]


class Live:
    """The live teacher as the signal of an epoch."""

    def __init__(self, teacher: LiveTeacher, needs: frozenset[str]) -> None:
        self._teacher, self._needs = teacher, needs

    def outputs(self, batch: Batch) -> Outputs:
        return self._teacher.outputs(batch.x, self._needs)


class Rehearsal:
    """Random outputs of a teacher's shapes that cost nothing: for measuring what a student's steps cost on a tape."""

    def __init__(self, shapes: Shapes, needs: frozenset[str], device: str) -> None:
        self._shapes, self._needs, self._device = shapes, needs, device
        self._known: dict[int, Outputs] = {}  # by rows: drawing them would cost more than the step

    def outputs(self, batch: Batch) -> Outputs:
        return self.of_rows(len(batch.index))

    def of_rows(self, rows: int) -> Outputs:
        """Drawn once for each number of rows."""
        if rows not in self._known:
            self._known[rows] = self._drawn(rows)
        return self._known[rows]

    def _drawn(self, rows: int) -> Outputs:
        def made(field: str, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
            return tuple(torch.rand(rows, *shape, device=self._device) for shape in shapes if field in self._needs)

        shapes = self._shapes
        embedding = made("embedding", (shapes.embedding,))
        maps = made("attention", *(stage[1:] for stage in shapes.stages))
        aux = {kind: made(f"aux.{kind}", *((width,) for width in each)) for kind, each in widths(shapes).items()}
        logits = torch.rand(rows, shapes.classes, device=self._device)
        told = Outputs(logits, embedding[0] if embedding else None, made("stages", *shapes.stages), maps, aux)
        return told.only(self._needs)


def rehearsed_tape(shapes: Shapes, needs: frozenset[str], rows: int, device: str) -> Replay:
    """The same as an epoch of `rows` samples on tape, all equal, so that it takes no memory until it is held."""
    fields = to_record(Rehearsal(shapes, needs, device).of_rows(1))
    base = {name: field.to(device).expand(rows, *field.shape[1:]) for name, field in fields.items()}
    return Replay({0: base}, needs, device)


def agree(told: Tensor, kept: Tensor) -> bool:
    """Whether two logits (N, …) of the same rows are one teacher's, up to rounding; not-a-numbers are equal."""
    if not torch.equal(told.isnan(), kept.isnan()):
        return False
    told, kept = told.nan_to_num(), kept.nan_to_num()
    spread = AGREE * (told - told.mean()).norm() + ROUNDING * told.norm()
    return bool((told - kept).norm() <= spread)
