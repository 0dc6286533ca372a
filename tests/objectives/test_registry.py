"""Names of objectives: registered, a user's own, and wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autokd.errors import RecipeError
from autokd.objectives import OBJECTIVES, name_of, objective_rules, resolve
from autokd.objectives.logits import KD
from autokd.protocols import Batch, Objective, Outputs
from autokd.recipe import Recipe
from autokd.rules import Rule, Value, Vocabulary

OWN = """
from autokd.protocols import Objective
from autokd.rules import Rule


class Gap(Objective):
    fields = {"scale": Rule("float", 1.0, 0.0, 10.0)}

    def __init__(self, *, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, student, teacher, batch, row_weight=None):
        return {"gap": self.scale * (student.logits - teacher.logits).square().mean()}


class Deaf(Objective):
    fields = {"scale": Rule("float", 1.0, 0.0, 10.0)}


class Shelf:
    Gap = Gap


number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_losses_of_a_user.py").write_text(OWN)
    (tmp_path / "own_torn_module.py").write_text("def (:")
    monkeypatch.syspath_prepend(tmp_path)
    return "own_losses_of_a_user"


def test_registered_names_resolve_to_their_class() -> None:
    assert resolve("kd") is KD
    assert all(resolve(name) is cls and name_of(cls) == name for name, cls in OBJECTIVES.items())


def test_an_own_objective_is_found_by_module_and_attribute(own: str) -> None:
    found = resolve(f"{own}:Gap")
    assert issubclass(found, Objective) and resolve(f"{own}:Shelf.Gap") is found
    rows = torch.arange(2)
    batch = Batch(torch.zeros(2, 1), rows, rows, torch.zeros_like(rows), rows)
    terms = found(scale=2.0)(Outputs(torch.ones(2, 3)), Outputs(torch.zeros(2, 3)), batch)
    assert float(terms["gap"]) == 2.0
    assert name_of(found) == f"{own}:Gap"


def test_rules_are_those_a_recipe_is_checked_against(own: str) -> None:
    rules = objective_rules(["kd", resolve(f"{own}:Gap")])
    assert set(rules) == {"kd", f"{own}:Gap"} and rules["kd"]["temperature"].default == 4.0
    assert set(objective_rules()) == set(OBJECTIVES)
    vocabulary = Vocabulary(families={"mlp": {"width": Rule("int", 8, 1, 64)}}, objectives=rules)
    flat: dict[str, Value] = {
        "student.family": "mlp",
        "student.width": 8,
        f"terms.{own}:Gap.weight": 1.0,
        f"terms.{own}:Gap.scale": 2.0,
    }
    assert Recipe.from_flat(flat).check(vocabulary).terms[0].objective == f"{own}:Gap"
    with pytest.raises(RecipeError, match=r"'scale' must be float in \[0.0, 10.0\], got 11"):
        Recipe.from_flat({**flat, f"terms.{own}:Gap.scale": 11.0}).check(vocabulary)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dkdd", r"unknown objective 'dkdd'; did you mean 'dkd'\?"),
        ("no_such_module_at_all:Loss", "must be importable"),
        ("own_torn_module:Loss", "must be importable"),
        ("own_losses_of_a_user:Gapp", r"no 'Gapp' in it; did you mean 'Gap'\?"),
        ("own_losses_of_a_user:number", "must be a subclass of autokd.protocols.Objective, got 3"),
        ("own_losses_of_a_user:Shelf", "must be a subclass of autokd.protocols.Objective"),
        ("own_losses_of_a_user:Deaf", "'scale' is not taken"),
        (":Gap", "must be named 'module:attribute'"),
        ("own_losses_of_a_user:", "must be named 'module:attribute'"),
        ("a/b.py:Loss", "must be named 'module:attribute'"),
    ],
)
def test_wrong_names_give_one_clear_line(own: str, name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        resolve(name)
    assert "\n" not in str(caught.value)


def test_a_class_that_no_other_process_could_import_is_refused() -> None:
    class Local(Objective):
        pass

    with pytest.raises(RecipeError, match="top level of a module"):
        name_of(Local)
