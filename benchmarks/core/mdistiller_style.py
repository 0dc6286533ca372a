"""The usual loop as mdistiller (Zhao et al., CVPR 2022) sets it: its settings and what it does in a step, in our own words.

Batches of 64 from two workers, none dropped, items with their index; the student before the live teacher; plain SGD at 0.05; in every step
top-1 and top-5 of the batch, the loss brought to the CPU, and a line of progress made. Workers persist here, although its own do not: on
an epoch of 50,000 images starting them is nothing, on the few thousand of a benchmark it would count.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, Dataset

from benchmarks.core import pairs
from benchmarks.core.images import Source, load
from benchmarks.core.measure import Repetition
from benchmarks.core.pairs import Pair
from benchmarks.core.usual_loop import kd_loss, train_set

BATCH, WORKERS, LR = 64, 2, 0.05


class Indexed(Dataset[tuple[Tensor, int, int]]):
    """Items of another data set, each with its index."""

    def __init__(self, inner: Dataset[tuple[Tensor, int]]) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        image, label = self.inner[index]
        return image, label, index


class Mean:
    """A running mean."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, value: float, count: int) -> None:
        self.total, self.count = self.total + value * count, self.count + count

    @property
    def value(self) -> float:
        return self.total / max(1, self.count)


def top(logits: Tensor, y: Tensor, ranks: tuple[int, ...]) -> list[Tensor]:
    """Percent of rows whose label is among the first 1, 5, … classes."""
    best = logits.topk(min(max(ranks), logits.shape[1]), dim=1).indices.t()
    hits = best.eq(y[None])
    return [hits[:rank].reshape(-1).float().sum() * (100 / len(y)) for rank in ranks]


def train_epoch(
    student: nn.Module, teacher: nn.Module, loader: DataLoader[tuple[Tensor, int, int]], optim: Optimizer
) -> tuple[int, str]:
    """One epoch; (images, the last line of progress)."""
    student.train()
    losses, first, fifth = Mean(), Mean(), Mean()
    line, begun = "", time.time()
    for x, y, _ in loader:
        optim.zero_grad()
        logits = student(x.float())
        with torch.no_grad():
            taught = teacher(x)
        ce = pairs.CE_WEIGHT * functional.cross_entropy(logits, y)
        loss = ce + pairs.KD_WEIGHT * kd_loss(logits, taught, pairs.TEMPERATURE)
        loss.backward()
        optim.step()
        top1, top5 = top(logits, y, (1, 5))
        losses.add(float(loss.cpu().detach().numpy().mean()), len(y))
        first.add(float(top1), len(y))
        fifth.add(float(top5), len(y))
        spent = time.time() - begun
        line = f"Time {spent:.3f} | Loss {losses.value:.4f} | Top-1 {first.value:.3f} | Top-5 {fifth.value:.3f}"
    return losses.count, line


def prepare(pair: Pair, source: Source) -> Repetition:
    """For the measurement: one epoch at each call."""
    images = load(source)
    teacher = pairs.teacher(pair, images, normalises=False)
    student = pairs.network(pair.student, images, seed=0, normalises=False)
    loader = DataLoader(
        Indexed(train_set(images)), batch_size=BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True
    )
    optim = SGD(student.parameters(), lr=LR, momentum=pairs.MOMENTUM, weight_decay=pairs.WEIGHT_DECAY)
    return lambda: train_epoch(student, teacher, loader, optim)[0]
