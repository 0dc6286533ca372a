"""Recipes: JSON and the flat form lose nothing, equal recipes are one recipe, and names are checked."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spaces import VOCABULARY

from autokd.errors import RecipeError
from autokd.recipe import FLAT_NAMES, Recipe
from autokd.rules import Rule

POSITIVE = st.floats(1e-6, 1e6)


def legal(rule: Rule) -> st.SearchStrategy[Any]:
    """Values that keep a rule with both bounds."""
    if rule.kind == "choice":
        return st.sampled_from(rule.choices)
    if rule.kind == "int":
        return st.integers(int(rule.low or 0), int(rule.high or 0))
    return st.floats(rule.low, rule.high)


SCHEDULES = ("constant", "linear", "sigmoid", "decay", "off")


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Any legal recipe over the vocabulary of these tests."""
    family = draw(st.sampled_from(sorted(VOCABULARY.families)))
    student = {name: draw(legal(rule)) for name, rule in VOCABULARY.families[family].items() if draw(st.booleans())}
    names = draw(st.lists(st.sampled_from(sorted(VOCABULARY.objectives)), unique=True, max_size=3))
    terms = [
        {"objective": name, "weight": draw(POSITIVE), "schedule": draw(st.sampled_from(SCHEDULES))}
        | {"share": draw(st.floats(0, 1)), "floor": draw(st.floats(0, 1))}
        | {field: draw(legal(rule)) for field, rule in VOCABULARY.objectives[name].items()}
        for name in names
        if name != "dkd" or "kd" not in names
    ]
    data = {
        "student": {"family": family, **student},
        "terms": terms,
        "ce_weight": draw(POSITIVE),
        "stage0": draw(st.sampled_from(["none", "smooth"])),
        "ce_rows": draw(st.sampled_from(["all", "original"])),
        "term_scale": draw(st.sampled_from(["own", "initial"])),
        "label_smoothing": draw(st.floats(0, 0.5)),
        "augment": {"policy": draw(st.sampled_from(["none", "base", "jda"])), "rho": draw(st.floats(0, 0.75))},
        "peers": {"count": draw(st.integers(0, 3)), "weight": draw(st.floats(0, 1e6))},
        "optim": {"lr": draw(POSITIVE), "batch": draw(st.integers(2, 65536)), "momentum": draw(st.floats(0, 0.99))},
    }
    return Recipe.from_dict(data)


@given(recipes())
def test_survives_json_flat_form_pickle_and_copy(recipe: Recipe) -> None:
    others = (
        Recipe.from_json(recipe.to_json()),
        Recipe.from_flat(recipe.flat()),
        pickle.loads(pickle.dumps(recipe)),
        copy.deepcopy(recipe),
    )
    for other in others:
        assert other == recipe
        assert hash(other) == hash(recipe)
        assert other.id == recipe.id
        assert other.to_json() == recipe.to_json()


@given(recipes())
def test_is_legal_and_its_flat_names_are_known(recipe: Recipe) -> None:
    assert recipe.check(VOCABULARY) is recipe
    assert all(name in FLAT_NAMES or name.startswith(("student.", "terms.")) for name in recipe.flat())


@given(recipes(), st.randoms())
def test_the_order_of_terms_does_not_matter(recipe: Recipe, random: Any) -> None:
    data = recipe.to_dict()
    random.shuffle(data["terms"])
    assert Recipe.from_dict(data).id == recipe.id


@given(recipes(), recipes())
def test_ids_differ_unless_recipes_are_equal(one: Recipe, other: Recipe) -> None:
    assert (one.id == other.id) == (one == other)


@given(recipes())
def test_controls_keep_the_student_and_the_optimiser(recipe: Recipe) -> None:
    plain, default = recipe.without_distillation(), recipe.with_default_kd()
    for control in (plain, default):
        assert (control.student, control.optim) == (recipe.student, recipe.optim)
        assert control.peers.count == 0
        assert control.augment.policy != "jda"
    assert plain.terms == () and plain.ce_weight == 1
    assert default.flat()["terms.kd.temperature"] == 4 and default.ce_weight == 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": {"family": "resnte"}}, "did you mean 'resnet'"),
        ({"student": {"family": "resnet", "widht": 8}}, "did you mean 'width'"),
        ({"student": {"family": "resnet", "width": 3}}, r"int in \[4, 256\], got 3"),
        ({"student": {"family": "resnet", "width": 8.0}}, "int in"),
        ({"student": {"family": "resnet", "width": True}}, "int in"),
        ({"terms": [{"objective": "kdd", "weight": 1}]}, "did you mean 'kd'"),
        ({"terms": [{"objective": "kd", "weight": 1, "temprature": 4}]}, "did you mean 'temperature'"),
        ({"terms": [{"objective": "fitnet", "weight": 1, "stage": "mid"}]}, "one of first, middle, last"),
    ],
)
def test_names_and_ranges_are_checked_against_the_vocabulary(change: dict[str, Any], message: str) -> None:
    recipe = Recipe.from_dict({"student": {"family": "resnet"}} | change)
    with pytest.raises(RecipeError, match=message):
        recipe.check(VOCABULARY)
