"""One training step of one run: forward, losses, backward, update.

What changes between steps is read from tensors only (rows, teacher's outputs, learning rate, ramps), and nothing is read back from
the device, so that a step can be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autokd.augment.views import ccd_weight
from autokd.core.device import Setting
from autokd.core.dials import Dials, factors_of
from autokd.core.optim import decay, learning_rate, set_learning_rate
from autokd.errors import TrialFailure
from autokd.peers.base import PeerSystem
from autokd.protocols import Ask, Batch, Objective, Outputs, Task
from autokd.recipe import Recipe

LEAST_UNIT = 1e-6  # a term whose loss before training is smaller keeps its own unit: it says nothing yet
Forward = Callable[[Tensor], list[Outputs]]  # rows -> what each network says of them, the student first


class TermScales(nn.Module):
    """Each network's terms before training, as units of their weights: so one range of weights serves losses of any size."""

    units: Tensor

    def __init__(self, networks: int, own: Sequence[bool]) -> None:
        """`own`: for each term, whether it keeps its own unit whatever its loss is."""
        super().__init__()
        self._own = tuple(own)
        self.register_buffer("units", torch.ones(networks, len(self._own)))

    def fit(self, found: Sequence[Sequence[Sequence[Tensor]]]) -> None:
        """To the medians over batches of [batch][network][term]; 1 for those that say nothing yet."""
        each = torch.stack([torch.stack([torch.stack(list(terms)) for terms in networks]) for networks in found])
        units = each.median(0).values.abs()
        kept = (units < LEAST_UNIT) | torch.tensor(self._own, device=units.device)
        self.units.copy_(torch.where(kept, 1.0, units))


class Step:
    """Trains the student (the first network) and its peers on one batch per call; `sums` adds up the student's own losses."""

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        forward: Forward,
        objectives: Sequence[Iterable[Any]],
        optimiser: torch.optim.Optimizer,
        setting: Setting,
        dials: Dials | None = None,
        system: PeerSystem | None = None,
        asks: Sequence[Ask | None] = (),
        scales: TermScales | None = None,
    ) -> None:
        """With `dials`, which `optimiser` has its learning rate from, the recipe's numbers are read there in every step.

        `objectives` are each network's, in the order of the recipe's terms; `system` are the losses between the networks; `asks` is what each
        network's objectives may ask, None or no entry: nothing; `scales` are the units of the terms' weights, if not those of the losses.
        """
        self.recipe, self.task, self.setting, self.dials = recipe, task, setting, dials
        self._factors = factors_of(recipe) if dials is None else dials.factors
        self.forward, self.objectives, self.optimiser = forward, objectives, optimiser
        self.system, self._asks, self.scales = system, tuple(asks) or (None,) * len(objectives), scales
        self._ramps = torch.ones(max(1, len(recipe.terms)), device=setting.device)  # of the terms' weights, in [0, 1]
        self._names: list[str] = []
        self._sums = torch.zeros(0, device=setting.device)

    def dial(self, progress: float) -> None:
        """Learning rate and ramps for the next call, at `progress` in [0, 1] of the whole training."""
        set_learning_rate(self.optimiser, learning_rate(self.recipe.optim, progress))
        for number, term in enumerate(self.recipe.terms):
            if term.schedule != "constant":
                self._ramps[number].fill_(term.factor(progress))

    def __call__(self, batch: Batch, taught: Outputs | None) -> None:
        factors = self._factors

        # 1. every network once
        outputs = self._outputs(batch)

        # 2. losses of every network by name, in float32
        losses = [
            {"ce": factors.ce_weight * cross_entropy(self.recipe, self.task, each, batch, factors.smoothing), **terms}
            for each, terms in zip(outputs, self._weighted(outputs, batch, taught), strict=True)
        ]
        losses.append(self._of_peers(outputs, batch, losses))

        # 3. one backward, one update
        loss = torch.stack([term for parts in losses for term in parts.values()]).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.dials is not None:
            decay(self.optimiser, self.dials.lr, self.dials.weight_decay)
        self.optimiser.step()
        self._add({**losses[0], "all": loss})  # the student's own are the ones logged

    def measure_terms(self, batches: Iterable[tuple[Batch, Outputs | None]]) -> None:
        """Set `scales` to what each term of each network is on these batches, before training."""
        if self.scales is not None:
            with torch.no_grad():
                found = [self._terms(self._outputs(batch), batch, taught) for batch, taught in batches]
            self.scales.fit([[[_total(parts) for parts in each] for each in terms] for terms in found])

    def begin(self) -> None:
        """Of an epoch: nothing is summed up yet."""
        self._sums.zero_()

    def take_over(self, other: Step) -> None:
        """The trial of another step of the same structure: its schedules, and what it has summed up in this epoch."""
        self.recipe = other.recipe
        self._ramps.fill_(1.0)
        if other._names and not self._names:
            self._names, self._sums = list(other._names), other._sums.clone()
        elif other._names:
            self._sums.copy_(other._sums)
        else:
            self._sums.zero_()

    @property
    def sums(self) -> dict[str, float]:
        """Read from the device, which waits for it: once an epoch."""
        return dict(zip(self._names, self._sums.tolist(), strict=True))

    def _outputs(self, batch: Batch) -> list[Outputs]:
        with self.setting.autocast():
            outputs = self.forward(batch.x)
        return [each.float() for each in outputs]

    def _terms(
        self, outputs: Sequence[Outputs], batch: Batch, taught: Outputs | None
    ) -> list[list[Mapping[str, Tensor]]]:
        """The parts of every term of every network, not weighted."""
        weight = row_weights(self.recipe, taught, batch)
        return [
            [parts_of(objective, own, taught, batch, weight, ask) for objective in objectives]
            for own, objectives, ask in zip(outputs, self.objectives, self._asks, strict=True)
        ]

    def _weighted(
        self, outputs: Sequence[Outputs], batch: Batch, taught: Outputs | None
    ) -> Iterator[dict[str, Tensor]]:
        """The terms of each network by name, "<objective>" or "<objective>.<part>"."""
        for network, of_network in enumerate(self._terms(outputs, batch, taught)):
            losses = {}
            for number, (term, parts) in enumerate(zip(self.recipe.terms, of_network, strict=True)):
                factor = self._factors.weights[number] * self._ramps[number]
                factor = factor if self.scales is None else factor / self.scales.units[network, number]
                for name, part in parts.items():
                    full = term.objective if name == term.objective else f"{term.objective}.{name}"
                    losses[full] = factor * part
            yield losses

    def _of_peers(
        self, outputs: Sequence[Outputs], batch: Batch, losses: Sequence[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Add what the networks teach each other to the losses of each; what belongs to none of them is given back."""
        if self.system is None:
            return {}
        weight, mutual = self._factors.peer_weight, self.system(outputs, batch, self._factors.peer_temperature)
        for own, parts in zip(losses, mutual.own, strict=True):
            own |= {_of_system(name): weight * part for name, part in parts.items()}
        return {name: weight * part for name, part in mutual.shared.items()}

    def _add(self, losses: Mapping[str, Tensor]) -> None:
        if not self._names:
            self._names = list(losses)
            self._sums = torch.zeros(len(losses), device=self._sums.device)
        self._sums += torch.stack([loss.detach() for loss in losses.values()])


def _total(parts: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum()


def _of_system(name: str) -> str:
    return name if name == "peers" else f"peers.{name}"


def cross_entropy(recipe: Recipe, task: Task, student: Outputs, batch: Batch, smoothing: float | Tensor) -> Tensor:
    """The supervised loss, a mean over the rows that have one."""
    if recipe.ce_rows == "all":
        return task.loss(student, batch, None, smoothing)
    original = (batch.view == 0).float()
    return task.loss(student, batch, original / original.mean(), smoothing)


def parts_of(
    objective: Objective,
    student: Outputs,
    teacher: Outputs | None,
    batch: Batch,
    row_weight: Tensor | None,
    ask: Ask | None = None,
) -> Mapping[str, Tensor]:
    if teacher is None and objective.listens:
        raise TrialFailure("exception", "a recipe with distillation terms needs a teacher; pass one")
    heard, weight = (student if teacher is None else teacher), (row_weight if objective.row_weighted else None)
    return objective(student, heard, batch, weight, ask) if objective.asks else objective(student, heard, batch, weight)


def row_weights(recipe: Recipe, teacher: Outputs | None, batch: Batch) -> Tensor | None:
    """Cosine confidence of the teacher in the augmented rows, if the recipe asks for it."""
    augment = recipe.augment
    if teacher is None or augment.policy != "jda" or not augment.ccd:
        return None
    return ccd_weight(
        teacher.logits, batch, augment.ccd_normalise, augment.ccd_form, augment.ccd_power, augment.ccd_temperature
    )
