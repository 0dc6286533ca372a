"""The training loop of distillation that people write today, written as a careful user would.

PIL images, torchvision transforms, a DataLoader with two persistent workers, the teacher in eval mode under no_grad on every batch, float32,
SGD with Nesterov momentum, Hinton's loss, and the loss read once a step for the progress line. With `workers=0` and one thread it is
what such a user runs several times at once, one on each core.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.core import pairs
from benchmarks.core.images import Images, Source, load
from benchmarks.core.measure import Repetition
from benchmarks.core.pairs import Pair


@dataclass(frozen=True)
class Settings:
    """What a user sets at the top of the script."""

    batch: int = pairs.BATCH
    workers: int = 2
    lr: float = pairs.LR
    momentum: float = pairs.MOMENTUM
    weight_decay: float = pairs.WEIGHT_DECAY
    temperature: float = pairs.TEMPERATURE
    ce_weight: float = pairs.CE_WEIGHT
    kd_weight: float = pairs.KD_WEIGHT


class PILImages(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's data sets give them: an array in memory, a PIL image and its transforms for each item."""

    def __init__(self, x: np.ndarray, y: np.ndarray, transform: transforms.Compose) -> None:
        self.images = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        self.targets, self.transform = y.tolist(), transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        array = self.images[index]
        image = Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0])
        return self.transform(image), self.targets[index]


def train_set(images: Images) -> PILImages:
    """Cropped, mirrored, standardised."""
    mirror = [transforms.RandomHorizontalFlip()] if images.flip else []
    crop = transforms.RandomCrop(images.x.shape[-1], padding=images.pad)
    steps = [crop, *mirror, transforms.ToTensor(), transforms.Normalize(*images.moments)]
    return PILImages(images.x, images.y, transforms.Compose(steps))


def val_set(images: Images) -> PILImages:
    steps = [transforms.ToTensor(), transforms.Normalize(*images.moments)]
    return PILImages(images.val_x, images.val_y, transforms.Compose(steps))


def train_loader(images: Images, settings: Settings) -> DataLoader[tuple[Tensor, int]]:
    return DataLoader(
        train_set(images),
        batch_size=settings.batch,
        shuffle=True,
        num_workers=settings.workers,
        drop_last=True,
        persistent_workers=settings.workers > 0,
    )


def optimiser(student: nn.Module, settings: Settings) -> Optimizer:
    return SGD(
        student.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=True,
    )


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Hinton, Vinyals, Dean 2015: KL of the softened distributions times T², mean over rows."""
    soft_student = functional.log_softmax(student / temperature, dim=1)
    soft_teacher = functional.softmax(teacher / temperature, dim=1)
    return functional.kl_div(soft_student, soft_teacher, reduction="batchmean") * temperature**2


def train_epoch(
    student: nn.Module,
    teacher: nn.Module,
    loader: DataLoader[tuple[Tensor, int]],
    optim: Optimizer,
    settings: Settings,
) -> tuple[int, float]:
    """One epoch; (images, mean loss)."""
    student.train()
    seen, total = 0, 0.0
    for x, y in loader:
        with torch.no_grad():
            taught = teacher(x)
        logits = student(x)
        loss = settings.ce_weight * functional.cross_entropy(logits, y) + settings.kd_weight * kd_loss(
            logits, taught, settings.temperature
        )
        optim.zero_grad()
        loss.backward()
        optim.step()
        seen += len(y)
        total += loss.item() * len(y)  # for the progress line
    return seen, total / seen


def accuracy(student: nn.Module, loader: DataLoader[tuple[Tensor, int]]) -> float:
    student.eval()
    right = seen = 0
    with torch.no_grad():
        for x, y in loader:
            right += int((student(x).argmax(1) == y).sum())
            seen += len(y)
    return right / seen


def prepare(pair: Pair, source: Source, settings: Settings) -> Repetition:
    """For the measurement: one epoch at each call."""
    images = load(source)
    teacher = pairs.teacher(pair, images, normalises=False)
    student = pairs.network(pair.student, images, seed=0, normalises=False)
    loader, optim = train_loader(images, settings), optimiser(student, settings)
    return lambda: train_epoch(student, teacher, loader, optim, settings)[0]
