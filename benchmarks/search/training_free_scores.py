"""What untrained students look like: similarity to a teacher (DisWOT), gradient norm, and how well rows can be told apart.

    relation    DisWOT, Dong et al., CVPR 2023: Gram matrix of the batch in the last maps, student's against teacher's
    semantic    the same paper: Gram matrix of the classes in the gradient of the classifier's weights
    channels    the semantic score as in the README of its authors' repository: Gram matrices of the channels, class by class;
                only for a student as wide as its teacher
    diswot      relation + semantic
    gradient    sum over layers of the norm of the cross-entropy's gradient (Abdelfattah et al., ICLR 2021)
    nwot        log-determinant of how often two rows agree in their ReLUs (Mellor et al., ICML 2021)

Rows of a Gram matrix have unit norm; a similarity is minus the mean squared distance of a row. Higher is better for all of them.
A network is run once, forwards and backwards, in train mode: batch norm without statistics of its own has nothing else to go by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from autokd.students.norm import BatchNorm
from autokd.students.tap import Tap


class Seen(NamedTuple):
    """Of one network and one batch. N rows, C classes, D channels under the classifier."""

    rows: Tensor  # (N, N), Gram matrix in the last maps
    classes: Tensor  # (C, C), Gram matrix in the classifier's gradient
    gradient: Tensor  # (C, D), of the classifier's weights
    codes: Tensor  # (N, N), in how many ReLUs two rows agree


def look(network: nn.Module, x: Tensor, y: Tensor) -> Seen:
    """Runs the network in the mode it is in; leaves gradients of the cross-entropy where parameters take them."""
    with _agreement(network, len(x)) as codes:
        tap = Tap(network, x[:2])
        seen = tap(x)
        tap.close()
    loss = functional.cross_entropy(seen.logits, y)
    if loss.requires_grad:
        loss.backward()
    embedding = seen.embedding.detach()
    errors = seen.logits.detach().softmax(1) - functional.one_hot(y, seen.logits.shape[1])
    gradient = errors.T @ embedding / len(x)
    maps = seen.stages[-1].detach().flatten(1) if seen.stages else embedding
    return Seen(_gram(maps), _gram(gradient), gradient, codes)


def similarities(student: Seen, teacher: Seen) -> dict[str, float]:
    """The scores that need a teacher."""
    relation, semantic = _likeness(student.rows, teacher.rows), _likeness(student.classes, teacher.classes)
    same = student.gradient.shape == teacher.gradient.shape
    channels = _by_channel(student.gradient, teacher.gradient) if same else float("nan")
    return {"relation": relation, "semantic": semantic, "channels": channels, "diswot": relation + semantic}


def own(student: nn.Module, seen: Seen) -> dict[str, float]:
    """The scores that need none; `student` has the gradients that `look` left."""
    layers = [part for part in student.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    norms = [float(layer.weight.grad.norm()) for layer in layers if layer.weight.grad is not None]
    return {"gradient": sum(norms), "nwot": float(torch.linalg.slogdet(seen.codes).logabsdet)}


def unit_normal(network: nn.Module) -> nn.Module:
    """Weights as DisWOT's authors draw them, standard normal everywhere: batch norm undoes it but in the classifier."""
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.normal_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return network


DRAWS: Mapping[str, Callable[[nn.Module], nn.Module]] = {"": lambda network: network, "normal": unit_normal}


def _gram(x: Tensor) -> Tensor:
    return functional.normalize(x @ x.T)


def _likeness(student: Tensor, teacher: Tensor) -> float:
    return -float((student - teacher).square().sum(1).mean())


def _by_channel(student: Tensor, teacher: Tensor) -> float:
    """For each class the D x D outer product with itself: its normalised rows are +-1 times the unit vector."""
    s, t = functional.normalize(student), functional.normalize(teacher)
    signs = (student.sign() * teacher.sign()).mean(1)
    return -float((2 - 2 * signs * (s * t).sum(1)).mean())


@contextmanager
def _agreement(network: nn.Module, rows: int) -> Iterator[Tensor]:
    """(N, N), filled by calls with that many rows."""
    agreed = torch.zeros(rows, rows, dtype=torch.float64)

    def count(_: nn.Module, __: object, output: Tensor) -> None:
        if len(output) == rows:
            on = (output.detach().flatten(1) > 0).float()
            agreed.add_(on @ on.T + (1 - on) @ (1 - on).T)

    relus = [m for m in network.modules() if isinstance(m, nn.ReLU) or (isinstance(m, BatchNorm) and m.relu)]
    handles = [part.register_forward_hook(count) for part in relus]
    try:
        yield agreed
    finally:
        for handle in handles:
            handle.remove()
