"""Which changes to the winner are worth training, and whether the budget pays for them.

Each distillation loss off, each knob back at its default; the student stays as it is, as in the controls. Losses first, then knobs by
importance. One seed of all changes before a second of any, with the seeds of the winner's finals, so that every pair is paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from autokd import words
from autokd.ablation import ROLE, SOURCE, change_of
from autokd.errors import RecipeError, SpaceError
from autokd.history import History, Trial
from autokd.importance import importance
from autokd.recipe import Recipe
from autokd.rules import Value
from autokd.space import Space

When = bool | Literal["auto"]
ASKED_SHARE = 0.1  # of the budget, beside the finals' share, where an ablation was asked for
SPARE_SHARE = 0.03  # of the budget, of what the finals leave of their share, where it was not
WORTHWHILE = 3  # changes that must be affordable for an ablation that was not asked for


@dataclass(frozen=True)
class Change:
    """One thing changed in the winner's recipe."""

    name: str  # "without kd", "optim.lr=0.1"
    recipe: Recipe

    @property
    def source(self) -> str:
        return SOURCE + self.name


class Planner:
    """What to train of an ablation, in order. Remembers the changes of one winner; all else is in the history."""

    def __init__(self, space: Space, when: When) -> None:
        self.space, self.when = space, when
        self._known: tuple[str, tuple[Change, ...]] = ("", ())

    @property
    def share(self) -> float:
        """Of the budget that the ablation may have."""
        return {True: ASKED_SHARE, "auto": SPARE_SHARE, False: 0.0}[self.when]

    @property
    def fewest(self) -> int:
        """Trainings that must be affordable for an ablation to begin."""
        return 1 if self.when is True else WORTHWHILE

    def kept(self, amount: float, spare: float, needed: float) -> float:
        """What of a budget is kept back: of `spare`, which the finals leave of theirs, and only if that pays what is `needed`."""
        if self.when is True:
            return self.share * amount
        found = min(self.share * amount, spare)
        return found if found >= needed else 0.0

    def wanted(self, history: History) -> list[tuple[Change, int]]:
        """Changes and seeds that have not begun, the next one first."""
        if self.when is False:
            return []
        begun = {(change_of(trial), trial.seed) for trial in history.finals(ROLE)}
        seeds = [trial.seed for trial in history.finals("winner") if trial.state == "complete"]
        pairs = ((change, seed) for seed in seeds for change in self._changes(history))
        return [(change, seed) for change, seed in pairs if (change.name, seed) not in begun]

    def _changes(self, history: History) -> tuple[Change, ...]:
        winner = history.trials[history.winner or ""]
        if self._known[0] != winner.id:
            found = importance(history)
            order = [entry.name for entry in found.fields] if found else []
            self._known = winner.id, changes(winner, self.space, order)
        return self._known[1]


def changes(winner: Trial, space: Space, order: Sequence[str] = ()) -> tuple[Change, ...]:
    """Every single change that makes another recipe; knobs in the given order, others after it in the space's."""
    names = [field.name for field in space.fields]
    ranked = sorted(names, key=lambda name: order.index(name) if name in order else len(order) + names.index(name))
    found: dict[str, Change] = {}
    for change in (*_losses_off(winner.recipe), *_knobs_back(winner.point, space, ranked)):
        if change.recipe.id != winner.recipe.id:
            found.setdefault(change.recipe.id, change)
    return tuple(found.values())


def _losses_off(recipe: Recipe) -> Iterator[Change]:
    """Cross-entropy has weight 1 where it is all that is left: its weight was one beside other losses."""
    for gone in recipe.terms:
        left = tuple(term for term in recipe.terms if term != gone)
        weights = {} if left else {"ce_weight": 1.0}
        yield Change(f"without {gone.objective}", recipe.model_copy(update={"terms": left, **weights}))


def _knobs_back(point: Mapping[str, Value], space: Space, names: Sequence[str]) -> Iterator[Change]:
    """The student is left alone; what exists only after the change takes its default too."""
    defaults = {field.name: field.default() for field in space.fields if not field.name.startswith("student.")}
    for name in names:
        if name not in defaults or name not in point or point[name] == defaults[name]:
            continue
        try:
            recipe = space.recipe(space.complete({**point, name: defaults[name]}))
        except (RecipeError, SpaceError):  # such a recipe does not exist
            continue
        yield Change(f"{name}={words.value(defaults[name])}", recipe)
