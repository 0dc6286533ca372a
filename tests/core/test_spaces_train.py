"""What the shipped spaces say is trained: published recipes learn, and whatever the joint space draws ends with a score or a failure that is one."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from tiny import EVERYTHING, expert, headed, images, order, taped
from tiny import tape_plan as plan_in

from autokd.arguments import vocabulary
from autokd.errors import TrialFailure
from autokd.orders import Report
from autokd.recipe import OptimSpec, Recipe, StudentSpec
from autokd.space import Space, shipped_spaces
from autokd.stage0 import STAGES0

SMALL = StudentSpec.model_validate({"family": "resnet", "width": 4})
WHOLE = Space.load("classification", vocabulary())
ETA = "terms.msst.eta: {choice: [0, 0.5, 2], prior: 0}"  # needs four classes, and these data have three
SPACE = Space.parse(WHOLE.text.replace(ETA, "terms.msst.eta: 0"), vocabulary())


TEACHERS = {stage0: headed(expert(), seed) for seed, stage0 in enumerate(STAGES0)}


def drawn(seed: int) -> Recipe:
    """Uniform over the space, with a small student."""
    draw = random.Random(seed)
    recipe = SPACE.recipe(SPACE.quantile([draw.random() for _ in SPACE.fields]))
    return recipe.model_copy(update={"student": SMALL, "optim": OptimSpec(batch=16, lr=0.02)})


@pytest.mark.parametrize("seed", range(16))
def test_whatever_is_drawn_ends_with_a_score_or_a_scored_failure(tmp_path: Path, seed: int) -> None:
    its_core = taped(tmp_path / "run", plan_in(tmp_path / "tape", EVERYTHING | {"aux.stage"}), images(60), TEACHERS)
    (answer,) = its_core.advance_together([order(drawn(seed), to=2, total=2)])
    assert isinstance(answer, Report) or (isinstance(answer, TrialFailure) and answer.reason in ("nan", "chance")), (
        answer
    )
    its_core.close()


def test_draws_reach_every_part_of_the_space() -> None:
    assert ETA in WHOLE.text
    recipes = [drawn(seed) for seed in range(16)]
    assert len({term.objective for recipe in recipes for term in recipe.terms}) >= 12
    assert {recipe.stage0 for recipe in recipes} == set(STAGES0)
    assert {recipe.augment.policy for recipe in recipes} == {"base", "jda"}
    assert len({recipe.peers.system for recipe in recipes if recipe.peers.count}) >= 3
    assert {recipe.term_scale for recipe in recipes} == {"own", "initial"}


@pytest.mark.parametrize("name", [name for name in shipped_spaces() if name.startswith("papers/")])
def test_every_published_recipe_trains(tmp_path: Path, name: str) -> None:
    """As it is published, but with a small student and for two epochs."""
    space = Space.load(name, vocabulary())
    recipe = space.recipe(space.prior_point()).model_copy(update={"student": SMALL})
    its_core = taped(tmp_path / "run", plan_in(tmp_path / "tape"), images(60), TEACHERS)
    report = its_core.advance(order(recipe, to=2, total=2))
    assert report.epoch == 2 and all(math.isfinite(value) for value in report.history[-1]["terms"].values())
    its_core.close()
