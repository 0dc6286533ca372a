"""Spaces: what they draw is legal, conditions hold, priors pull, and smaller spaces stay whole."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spaces import SMALL, VOCABULARY, space_texts

from autokd import space_file
from autokd.arguments import vocabulary
from autokd.errors import SpaceError
from autokd.objectives import OBJECTIVES
from autokd.peers import SYSTEMS
from autokd.recipe import Recipe
from autokd.space import Space, shipped_spaces, spaces_folder

SPACE = Space.parse(SMALL, VOCABULARY)
SHIPPED = ("classification", "digits", "images", "vectors")
DEFAULT_KD = {"terms.kd.weight": 0.9, "terms.kd.temperature": 4.0, "ce_weight": 0.1}


def units(space: Space, seed: int) -> list[float]:
    draw = random.Random(seed)
    return [draw.random() for _ in space.fields]


def assert_is_point(space: Space, point: dict[str, Any]) -> None:
    """Exactly the fields that exist there, in order, each with a value it can take; and a recipe."""
    assert list(point) == [field.name for field in space.active(point)]
    assert all(field.misfit(point[field.name]) is None for field in space.active(point))
    recipe = space.recipe(point)
    assert Recipe.from_json(recipe.to_json()).to_json() == recipe.to_json()


# ---- properties of any space


@settings(max_examples=60, deadline=None)
@given(space_texts(), st.integers(0, 2**32))
def test_whatever_a_space_draws_is_a_recipe(text: str, seed: int) -> None:
    space = Space.parse(text, VOCABULARY)
    for prior in (False, True):
        assert_is_point(space, space.quantile(units(space, seed), prior=prior))
    assert_is_point(space, space.prior_point())
    point = space.quantile(units(space, seed))
    assert space.complete(point) == point


@settings(max_examples=30, deadline=None)
@given(space_texts())
def test_a_space_survives_json(text: str) -> None:
    space = Space.parse(text, VOCABULARY)
    again = Space.from_dict(json.loads(json.dumps(space.to_dict())), VOCABULARY)
    assert again == space
    assert again.to_dict() == space.to_dict()


@settings(max_examples=30, deadline=None)
@given(space_texts(), st.booleans(), st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=8))
def test_numbers_grow_with_u(text: str, prior: bool, us: list[float]) -> None:
    for field in Space.parse(text, VOCABULARY).fields:
        if field.kind != "choice":
            values = [field.quantile(u, prior) for u in sorted(us)]
            assert values == sorted(values)


@settings(max_examples=15, deadline=None)
@given(space_texts(), st.integers(0, 2**31))
def test_optuna_walks_a_space(text: str, seed: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = Space.parse(text, VOCABULARY)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    point = space.suggest(trial)
    assert_is_point(space, point)
    assert len(trial.params) == space.dimension(point)
    assert trial.params == {name: point[name] for name in trial.params}


# ---- distributions


def test_u_spans_the_range_evenly_in_its_own_scale() -> None:
    lr = next(field for field in SPACE.fields if field.name == "optim.lr")
    assert [lr.quantile(u) for u in (0, 0.5)] == pytest.approx([0.01, math.sqrt(0.01 * 0.3)])
    depth = next(field for field in SPACE.fields if field.name == "student.resnet.depth1")
    assert Counter(depth.quantile((n + 0.5) / 50) for n in range(50)) == dict.fromkeys((1, 3, 5, 7, 9), 10)
    width = next(field for field in SPACE.fields if field.name == "student.resnet.width")
    assert (width.quantile(0), width.quantile(1 - 1e-12)) == (4, 64)


def test_a_prior_draws_half_to_itself() -> None:
    weight = next(field for field in SPACE.fields if field.name == "terms.kd.weight")
    draws = [float(weight.quantile((n + 0.5) / 1000, prior=True)) for n in range(1000)]
    near = sum(0.9 / 4 < value < 0.9 * 4 for value in draws) / 1000  # +-4x is 46 % of the log range, 2.3 sd
    assert near == pytest.approx(0.5 * 0.46 + 0.5 * 0.98, abs=0.02)
    logits = SPACE.fields[0]
    assert Counter(logits.quantile((n + 0.5) / 100, prior=True) for n in range(100)) == {
        "kd": 50,
        "none": 25,
        "dkd": 25,
    }
    assert Counter(logits.quantile((n + 0.5) / 99) for n in range(99)) == {"none": 33, "kd": 33, "dkd": 33}


def test_the_middle_stands_in_for_a_missing_prior() -> None:
    point = SPACE.complete({"student.family": "mlp", "augment.policy": "jda", "peers.count": 1})
    assert point["student.mlp.width"] == round(math.sqrt(7.5 * 256.5))
    assert point["peers.weight"] == pytest.approx(2.05)
    assert point["augment.ccd"] is False


# ---- conditions and names


def test_only_what_exists_is_in_a_point() -> None:
    point = SPACE.complete({"student.family": "mlp", "student.resnet.width": 8, "select.logits": "none"})
    assert "student.resnet.width" not in point and "student.mlp.width" in point
    assert not any(name.startswith("terms.") for name in point)
    assert "augment.rho" not in point and "peers.weight" not in point
    assert {"select.logits", "select.hints"} <= set(point)


def test_a_field_whose_decider_does_not_exist_does_not_exist() -> None:
    text = SMALL.replace(
        "optim.name: sgd", "optim.name: sgd\n  optim.batch: {choice: [2, 4], when: {augment.rho: 0.5}}"
    )
    space = Space.parse(text, VOCABULARY)
    assert "optim.batch" not in space.complete({"augment.policy": "base"})
    assert "optim.batch" in space.complete({"augment.policy": "jda", "augment.rho": 0.5})


def test_a_point_becomes_a_recipe_under_the_recipes_own_names() -> None:
    recipe = SPACE.recipe(SPACE.complete({"select.hints": "at", "terms.kd.temperature": 4}))
    flat = recipe.flat()
    assert (flat["student.family"], flat["student.width"]) == ("resnet", 16)
    assert [term.objective for term in recipe.terms] == ["at", "kd"]
    assert isinstance(flat["terms.kd.temperature"], float)
    assert flat["optim.name"] == "sgd"


def test_names_may_be_a_users_own() -> None:
    text = """
    version: 1
    epochs: {max: 2}
    fields:
      select.own: {choice: [none, "my.losses:Angle"], prior: "my.losses:Angle"}
      student.family: my.nets:Tiny
      student.my.nets:Tiny.width: {int: [1, 9]}
      terms.my.losses:Angle.weight: 2
      terms.my.losses:Angle.scale: {int: [1, 9]}
    """
    space = Space.parse(text, VOCABULARY)
    recipe = space.recipe(space.prior_point())
    assert recipe.student.family == "my.nets:Tiny" and recipe.student.fields == {"width": 5}
    assert recipe.terms[0].objective == "my.losses:Angle" and recipe.terms[0].fields["scale"] == 5
    assert isinstance(recipe.terms[0].fields["scale"], float)  # as the objective wants it
    assert space.restrict(["my.losses:Angle"]) == space


PEERS = """\
  peers.system: {choice: [dml, ffcl], when: {peers.count: 1}}
  peers.ffcl.gamma: {float: [0.01, 1], log: true, prior: 0.1}
  peers.ffcl.fusion: {choice: [depthwise, "off"]}
"""
TAUGHT = Space.parse(SMALL.replace("  peers.weight", f"{PEERS}  peers.weight"), VOCABULARY)


def test_fields_of_a_system_of_peers_exist_where_it_is_chosen() -> None:
    own = {"peers.system", "peers.ffcl.gamma", "peers.ffcl.fusion"}
    for chosen, expected in (
        ({"peers.count": 0}, set()),
        ({"peers.count": 2, "peers.system": "ffcl"}, set()),
        ({"peers.count": 1}, {"peers.system"}),
        ({"peers.count": 1, "peers.system": "ffcl"}, own),
    ):
        point = TAUGHT.complete(chosen)
        assert own & set(point) == expected
        assert_is_point(TAUGHT, point)
        assert TAUGHT.recipe(point).peers.system == point.get("peers.system", "dml")


def test_a_system_of_peers_is_in_the_recipe_under_its_own_names() -> None:
    recipe = TAUGHT.recipe(TAUGHT.complete({"peers.count": 1, "peers.system": "ffcl", "peers.ffcl.fusion": "off"}))
    assert recipe.peers.fields == {"fusion": "off", "gamma": 0.1}
    flat = recipe.flat()
    assert (flat["peers.system"], flat["peers.gamma"], flat["peers.fusion"]) == ("ffcl", 0.1, "off")
    assert Recipe.from_flat(flat) == recipe and Recipe.from_json(recipe.to_json()) == recipe
    fixed = Space.parse(
        SMALL.replace("  peers.weight", "  peers.system: ffcl\n  peers.ffcl.gamma: 1\n  peers.weight"), VOCABULARY
    )
    gamma = fixed.recipe(fixed.prior_point()).peers.fields["gamma"]
    assert gamma == 1 and isinstance(gamma, float), "as the system wants it"


def test_draws_and_smaller_spaces_keep_what_peers_are_taught() -> None:
    systems = Counter[str]()
    for seed in range(60):
        point = TAUGHT.quantile(units(TAUGHT, seed))
        assert_is_point(TAUGHT, point)
        systems[TAUGHT.recipe(point).peers.system] += 1
    assert set(systems) == {"dml", "ffcl"}
    assert Space.from_dict(json.loads(json.dumps(TAUGHT.to_dict())), VOCABULARY) == TAUGHT
    for smaller in (TAUGHT.with_families(["mlp"]), TAUGHT.restrict(["kd"])):
        point = smaller.complete({"peers.count": 1, "peers.system": "ffcl", "peers.ffcl.gamma": 0.5})
        assert smaller.recipe(point).peers.fields["gamma"] == 0.5


def test_numbers_with_an_exponent_are_numbers() -> None:
    assert next(field for field in SPACE.fields if field.name == "terms.at.weight").high == 1e4


def test_complete_refuses_what_the_space_does_not_hold() -> None:
    with pytest.raises(SpaceError, match="did you mean 'select.logits'"):
        SPACE.complete({"select.logit": "kd"})
    with pytest.raises(SpaceError, match=r"'student.resnet.width' must be int in \[4, 64\], got 65"):
        SPACE.complete({"student.resnet.width": 65})
    with pytest.raises(SpaceError, match="1 plus a multiple of 2"):
        SPACE.complete({"student.resnet.depth1": 2})
    with pytest.raises(SpaceError, match="augment.ccd"):
        SPACE.complete({"augment.policy": "jda", "augment.ccd": 1})


def test_dimension_counts_what_is_searched_there() -> None:
    none = SPACE.dimension(SPACE.complete({"select.logits": "none"}))
    assert SPACE.dimension(SPACE.complete({"select.logits": "kd"})) == none + 2
    assert SPACE.dimension(SPACE.complete({"select.logits": "dkd"})) == none + 1  # its weight is fixed


# ---- published recipes, smaller spaces


def test_published_recipes_come_with_priors_filled_in() -> None:
    names = [name for name, _ in SPACE.first]
    assert names == ["KD (Hinton 2015)", "DKD (Zhao 2022)", "KD + AT"]
    assert dict(SPACE.first)["DKD (Zhao 2022)"]["student.resnet.width"] == 16
    assert dict(SPACE.first)["KD + AT"]["terms.at.weight"] == 1000


def test_restricting_removes_other_objectives_and_what_activates_them() -> None:
    space = SPACE.restrict(["dkd"])
    assert space.objectives == ("dkd",)
    selectors = {field.name: field.choices for field in space.fields if field.name.startswith("select.")}
    assert selectors == {"select.logits": ("none", "dkd"), "select.hints": ("none",)}
    assert [name for name, _ in space.first] == ["DKD (Zhao 2022)"]
    ccd = next(field for field in space.fields if field.name == "augment.ccd")
    assert dict(ccd.when)["select.logits"] == ("dkd",)
    assert Space.from_dict(space.to_dict(), VOCABULARY) == space
    for seed in range(20):
        terms = space.recipe(space.quantile(units(space, seed))).terms
        assert {term.objective for term in terms} <= {"dkd"}


def test_restricting_to_nothing_leaves_the_labels() -> None:
    space = SPACE.restrict([])
    assert space.first == () and space.recipe(space.prior_point()).terms == ()
    assert "augment.ccd" not in [field.name for field in space.fields]


def test_restricting_names_the_remedy() -> None:
    with pytest.raises(SpaceError, match="did you mean 'dkd'"):
        SPACE.restrict(["dkdd"])
    with pytest.raises(SpaceError, match=r"no field terms.rkd.weight in .*; add one \(it has kd, dkd, at\)"):
        SPACE.restrict(["rkd"])


def test_families_can_be_replaced() -> None:
    space = SPACE.with_families(["my.nets:Tiny", "mlp"])
    assert next(field for field in space.fields if field.name == "student.family").choices == ("my.nets:Tiny", "mlp")
    assert "student.resnet.width" not in [field.name for field in space.fields]
    assert space.recipe(space.prior_point()).student.fields == {}
    assert len(space.first) == 3
    assert Space.from_dict(space.to_dict(), VOCABULARY) == space
    with pytest.raises(SpaceError, match="did you mean 'mobilenet'"):
        SPACE.with_families(["mobilnet"])
    with pytest.raises(SpaceError, match="at least one"):
        SPACE.with_families([])


# ---- files


def test_loads_by_name_by_path_and_as_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(SMALL, encoding="utf-8")
    space = Space.load(path, VOCABULARY)
    assert space.name == "mine" and space.epochs == 9 and space.text == SMALL and space.about == "for tests"
    assert Space.load(str(path), VOCABULARY) == space
    assert Space.load(space, VOCABULARY) is space
    assert Space.load("digits", VOCABULARY).name == "digits"


def test_the_format_is_described_by_a_space_that_works() -> None:
    described = (space_file.__doc__ or "").partition("\n\n")[2]
    space = Space.parse(described, VOCABULARY)
    assert space.epochs == 60 and space.first[0][1]["terms.kd.weight"] == 0.9


def test_ships_these() -> None:
    assert [name for name in shipped_spaces() if not name.startswith("papers/")] == sorted(SHIPPED)
    assert all((spaces_folder() / f"{name}.yaml").is_file() for name in SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_spaces_hold_over_many_draws(name: str) -> None:
    space = Space.load(name, vocabulary())
    for seed in range(200):
        assert_is_point(space, space.quantile(units(space, seed), prior=seed % 2 == 0))
    assert Space.from_dict(json.loads(json.dumps(space.to_dict())), vocabulary()) == space


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_spaces_begin_with_default_kd(name: str) -> None:
    space = Space.load(name, vocabulary())
    first = space.recipe(space.first[0][1])
    assert {key: first.flat()[key] for key in DEFAULT_KD} == DEFAULT_KD
    assert first.with_default_kd().flat().items() <= first.flat().items()
    assert len({space.recipe(point).id for _, point in space.first}) == len(space.first) >= 5


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_spaces_offer_each_objective_alone(name: str) -> None:
    space = Space.load(name, vocabulary())
    for objective in space.objectives:
        assert space.restrict([objective]).objectives == (objective,)


def test_the_joint_space_offers_every_method_that_any_view_will_do_for() -> None:
    space = Space.load("classification", vocabulary())
    turned = {name for name, objective in OBJECTIVES.items() if objective.rotations}
    assert set(space.objectives) == set(OBJECTIVES) - turned - {"triplet_embedding"}  # a variant of triplet
    systems = next(field for field in space.fields if field.name == "peers.system")
    assert set(systems.choices) == set(SYSTEMS)
