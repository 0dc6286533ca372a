"""What may stand for a student family, and what each wrong thing is told."""

from __future__ import annotations

import functools
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from autokd.errors import InputError
from autokd.protocols import StudentFamily
from autokd.rules import Rule
from autokd.students import FAMILIES, resolve
from autokd.students.describe import describe

torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self, classes: int, width: int = 6) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(4, width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Family:
    fields = {"width": Rule("int", 4, 2, 9)}

    def misfit(self, input_shape):
        return None

    def build(self, spec, input_shape, classes):
        return Net(classes, spec.get("width", 4))


def handed_on(**kwargs):
    """As torchvision's builders: the word for the classes shows only when it is called."""
    return _num_classes_only(**kwargs)


def _num_classes_only(num_classes: int) -> nn.Module:
    return Net(num_classes)


@pytest.fixture
def own_module(monkeypatch):
    module = ModuleType("own_students")
    module.Net, module.family, module.number = Net, Family(), 3
    monkeypatch.setitem(sys.modules, "own_students", module)


@pytest.mark.parametrize("name", FAMILIES)
def test_registered_names(name):
    assert resolve(name) is FAMILIES[name]


@pytest.mark.parametrize(
    "source",
    [
        Net,
        Family,
        Family(),
        lambda classes: Net(classes),
        lambda: Net(3),
        lambda num_classes: Net(num_classes),
        lambda input_shape, classes: Net(classes, input_shape[0]),
        handed_on,
        functools.partial(Net, width=5),
        "own_students:Net",
        "own_students:family",
        "own_students:family.build.__self__",
    ],
)
def test_everything_that_makes_a_module_becomes_a_family(source, own_module):
    family = resolve(source)
    assert isinstance(family, StudentFamily)
    assert family.misfit((4,)) is None
    module = family.build({}, (4,), 3)
    assert module(torch.rand(2, 4)).shape == (2, 3)
    assert module is not family.build({}, (4,), 3)
    assert describe(family, {}, (4,), 3).params == sum(p.numel() for p in module.parameters())


def test_fields_of_a_users_family_reach_its_build(own_module):
    assert describe(resolve("own_students:family"), {"width": 9}, (4,), 3).params == 9 * 5 + 3 * 10


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("resnte", "unknown student family 'resnte'; did you mean 'resnet'"),
        ("no_such_module:Net", "module 'no_such_module' cannot be imported"),
        ("own_students:Nett", "'own_students' has no 'Nett'"),
        ("own_students:number", "is a int; give an object with fields"),
        (":Net", "module '' cannot be imported"),
        (Net(3), "is one module, but each trial needs a new one"),
        (7, "student 'int' is a int; give an object with fields"),
        (type("Half", (), {"build": None})(), "has no 'fields'"),
        (type("Odd", (Family,), {"fields": {"width": 3}})(), "fields must map names to autokd.rules.Rule"),
        (type("Needy", (Family,), {"__init__": lambda self, a: None}), "cannot be made without arguments"),
    ],
    ids=str,
)
def test_wrong_things_are_told_in_one_line(source, message, own_module):
    with pytest.raises(InputError, match=message) as caught:
        resolve(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: 5, "must make an nn.Module, got int"),
        (lambda a, b: Net(3), "needs 'a, b', which autokd does not know"),
    ],
)
def test_factories_that_do_not_fit_are_told_when_built(source, message):
    with pytest.raises(InputError, match=message):
        resolve(source).build({}, (4,), 3)


def test_a_factory_has_no_fields():
    with pytest.raises(InputError, match="has no fields, got width"):
        resolve(Net).build({"width": 3}, (4,), 3)


def test_a_type_error_inside_a_factory_is_not_swallowed():
    def broken(**kwargs):
        raise TypeError("unsupported operand")

    with pytest.raises(TypeError, match="unsupported operand"):
        resolve(broken).build({}, (4,), 3)
