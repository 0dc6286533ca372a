"""The numbers of a recipe that a search varies most, as scalars on the device: trials that differ in nothing else share a recorded step.

Dials are the learning rate, weight decay, the weights of cross-entropy, terms and peers, the peers' temperature, and those
fields of objectives that `Objective.dials` names. Schedule and warm-ups are not part of a step: they decide on the host
what the learning rate and the terms' ramps are set to. All the rest, momentum included, is `structure`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autokd.objectives import resolve
from autokd.peers import resolve as resolve_system
from autokd.recipe import Recipe, TermSpec
from autokd.rules import Value

Number = float | Tensor
PLAIN = ("ce_weight", "label_smoothing", "peers.weight", "peers.temperature", "optim.lr", "optim.weight_decay")
PEERS = "peers."
OF_VIEWS = {  # which fields have an effect, by policy
    "jda": ("chain", "p", "rho", "magnitude", "ccd", "ccd_normalise", "ccd_form", "ccd_power", "ccd_temperature"),
    "rotations": ("crops",),
}
ON_HOST = ("optim.schedule", "optim.milestones", "optim.warmup", "optim.restart")


@dataclass(frozen=True)
class Factors:
    """What a step multiplies its losses by, and what it divides its peers' logits by."""

    ce_weight: Number
    smoothing: Number
    weights: tuple[Number, ...]  # of the terms
    peer_weight: Number
    peer_temperature: Number


def factors_of(recipe: Recipe) -> Factors:
    """As plain numbers."""
    weights = tuple(term.weight for term in recipe.terms)
    return Factors(recipe.ce_weight, recipe.label_smoothing, weights, recipe.peers.weight, recipe.peers.temperature)


def structure(recipe: Recipe) -> tuple[tuple[str, Value], ...]:
    """What is left of a recipe without dials and schedules: equal for trials that can share a recorded step."""
    left_out = {*PLAIN, *ON_HOST, *_of_terms(recipe), *_of_peers(recipe)}
    left_out |= {f"terms.{term.objective}.{name}" for term in recipe.terms for name in term.timing}
    counts = ("policy", *OF_VIEWS.get(recipe.augment.policy, ()))
    left_out |= {f"augment.{name}" for name in type(recipe.augment).model_fields if name not in counts}
    if recipe.optim.name != "sgd":
        left_out.add("optim.momentum")
    objectives = tuple(("objective", term.objective) for term in recipe.terms)
    return *objectives, *((name, value) for name, value in recipe.flat().items() if name not in left_out)


class Dials:
    """The scalars of one recorded step, in one buffer that stays where it is. `turn` sets them to a trial's numbers."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        names = [*PLAIN, *_of_terms(recipe), *_of_peers(recipe)]
        self._values = torch.zeros(len(names), device=device)
        self._dials = dict(zip(names, self._values.unbind(), strict=True))
        weights = tuple(self._dials[f"terms.{term.objective}.weight"] for term in recipe.terms)
        plain = [self._dials[name] for name in PLAIN]
        ce_weight, smoothing, peer_weight, peer_temperature, self.lr, self.weight_decay = plain
        self.factors = Factors(ce_weight, smoothing, weights, peer_weight, peer_temperature)

    def lend(self, recipe: Recipe, objectives: Iterable[nn.Module], system: nn.Module | None) -> None:
        """From now on one network's objectives, and the system of peers, read their fields here."""
        for term, objective in zip(recipe.terms, objectives, strict=True):
            for name in _fields(term):
                setattr(objective, name, self._dials[f"terms.{term.objective}.{name}"])
        for name in _of_peers(recipe):
            setattr(system, name.removeprefix(PEERS), self._dials[name])

    def turn(self, recipe: Recipe, objectives: Iterable[nn.Module], system: nn.Module | None) -> None:
        """To the numbers of a recipe of the same structure; `objectives` and `system` are those built for it."""
        numbers = _numbers(recipe, objectives, system)
        self._values.copy_(torch.tensor([numbers[name] for name in self._dials]))


def _of_terms(recipe: Recipe) -> list[str]:
    """Flat names of the terms' dials."""
    return [f"terms.{term.objective}.{name}" for term in recipe.terms for name in ("weight", *_fields(term))]


def _fields(term: TermSpec) -> list[str]:
    """The dials that a term's class names itself: what one derived from it does with these fields is not known."""
    return sorted(vars(resolve(term.objective)).get("dials", ()))


def _of_peers(recipe: Recipe) -> list[str]:
    """Flat names of the dials of its system of peers."""
    if not recipe.peers.count:
        return []
    return sorted(f"{PEERS}{name}" for name in vars(resolve_system(recipe.peers.system)).get("dials", ()))


def _numbers(recipe: Recipe, objectives: Iterable[nn.Module], system: nn.Module | None) -> Mapping[str, float]:
    """The value of every dial. Fields that a recipe leaves to their defaults are known to the objectives alone."""
    flat = recipe.flat()
    numbers = {name: float(flat[name]) for name in PLAIN}
    for term, objective in zip(recipe.terms, objectives, strict=True):
        numbers[f"terms.{term.objective}.weight"] = term.weight
        for name in _fields(term):
            numbers[f"terms.{term.objective}.{name}"] = float(getattr(objective, name))
    numbers |= {name: float(getattr(system, name.removeprefix(PEERS))) for name in _of_peers(recipe)}
    return numbers
