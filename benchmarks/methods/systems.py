"""The recipes that are compared: each published system's own, with the common student and optimiser in place of the paper's."""

from __future__ import annotations

from autokd.arguments import vocabulary
from autokd.recipe import Recipe
from autokd.space import Space, shipped_spaces
from benchmarks.methods.worlds import OPTIM, STUDENT

PAPERS = "papers/"
PLAIN, KD = "no distillation", "kd"


def systems() -> dict[str, Recipe]:
    """By name, the two controls first."""
    plain = Recipe(student=STUDENT, optim=OPTIM)
    named = [name for name in shipped_spaces() if name.startswith(PAPERS)]
    published = {name.removeprefix(PAPERS): as_published(name) for name in named}
    return {PLAIN: plain, KD: plain.with_default_kd(), **{name: each for name, each in published.items() if name != KD}}


def as_published(space: str) -> Recipe:
    """The prior of a paper's space, which is its recipe, for the common student."""
    chosen = Space.load(space, vocabulary())
    recipe = chosen.recipe(chosen.prior_point())
    return recipe.model_copy(update={"student": STUDENT, "optim": OPTIM})
