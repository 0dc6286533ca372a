"""The recipes that are compared: each published system's own, with the common student, optimiser and base views in place of the paper's."""

from __future__ import annotations

from autokd.arguments import vocabulary
from autokd.recipe import AugmentSpec, Recipe
from autokd.space import Space, shipped_spaces
from benchmarks.methods.worlds import OPTIM, STUDENT

PAPERS = "papers/"
PLAIN, KD = "no distillation", "kd"
AS_THEY_ARE = AugmentSpec(policy="none")


def systems() -> dict[str, Recipe]:
    """By name, the two controls first, then the same on images as they are: what is neither cropped nor mirrored is learned sooner."""
    plain = Recipe(student=STUDENT, optim=OPTIM)
    controls = {PLAIN: plain, KD: plain.with_default_kd()}
    bare = {f"{name}, no crops": each.model_copy(update={"augment": AS_THEY_ARE}) for name, each in controls.items()}
    named = [name for name in shipped_spaces() if name.startswith(PAPERS)]
    published = {name.removeprefix(PAPERS): as_published(name) for name in named}
    return {**controls, **bare, **{name: each for name, each in published.items() if name != KD}}


def as_published(space: str) -> Recipe:
    """The prior of a paper's space, which is its recipe, for the common student. One without views of its own has everyone's.

    A recipe of two stages keeps them: the schedule begins anew where its own does.
    """
    chosen = Space.load(space, vocabulary())
    recipe = chosen.recipe(chosen.prior_point())
    augment = AugmentSpec() if recipe.augment == AS_THEY_ARE else recipe.augment
    optim = OPTIM.model_copy(update={"restart": recipe.optim.restart})
    return recipe.model_copy(update={"student": STUDENT, "optim": optim, "augment": augment})
