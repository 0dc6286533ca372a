"""Malformed recipes, spaces and budgets: one InputError each, one line long, naming the place and a remedy."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from spaces import SMALL, VOCABULARY

from autokd.budget import Budget
from autokd.errors import BudgetError, InputError, RecipeError, SpaceError
from autokd.recipe import Recipe
from autokd.space import Space

BUDGETS: list[Any] = [
    "", " ", "s", "0s", "-5m", "0 trials", "0 epochs", "-3 trials", "1.5 trials", "2.5 epochs", "ten minutes", "1h 30",
    "30m1h", "1h1h", "5 weeks", "200trails", "5000 epoch s", "nan", "inf", "nan s", "inf h", "1e400s", "9" * 400 + "s",
    "9" * 400 + " trials", "1,5h", "1:30", "90", "1_000 epochs", "٣٠s", "90s\n30m", "\x00", "s" * 5000,
    90, 0, -1, 1.5, math.nan, math.inf, 10**400, 10**5000, True, None, [], {}, b"90s", timedelta(0),
    timedelta(hours=-1),
]  # fmt: skip

RECIPES = [
    "",
    "{",
    "null",
    "[]",
    "3",
    '"kd"',
    "{}",
    '{"student": null}',
    '{"student": "resnet"}',
    '{"student": {}}',
    '{"student": {"family": 3}}',
    '{"student": {"family": "resnet", "width": null}}',
    '{"student": {"family": "resnet", "width": [8]}}',
    '{"student": {"family": "resnet", "width": NaN}}',
    '{"student": {"family": "resnet", "width": 1e999}}',
    '{"student": {"family": "resnet", "width": 3}}',
    '{"student": {"family": "resnet", "width": "8"}}',
    '{"student": {"family": "resnet", "widht": 8}}',
    '{"student": {"family": "resnet", "a\\nb": 8}}',
    '{"student": {"family": "resnte"}}',
    '{"student": {"family": "res\\nnet"}}',
    '{"version": 2, "student": {"family": "resnet"}}',
    '{"version": "1\\n", "student": {"family": "resnet"}}',
    '{"version": null, "student": {"family": "resnet"}}',
    '{"student": {"family": "resnet"}, "unknown": 1}',
    '{"student": {"family": "resnet"}, "x\\ny": 1}',
    '{"student": {"family": "resnet"}, "terms": {}}',
    '{"student": {"family": "resnet"}, "terms": [3]}',
    '{"student": {"family": "resnet"}, "terms": [{"objective": "kd"}]}',
    '{"student": {"family": "resnet"}, "terms": [{"weight": 1}]}',
    '{"student": {"family": "resnet"}, "terms": [{"objective": "kd", "weight": 0}]}',
    '{"student": {"family": "resnet"}, "terms": [{"objective": "kd", "weight": -1}]}',
    '{"student": {"family": "resnet"}, "terms": [{"objective": "kd", "weight": Infinity}]}',
    '{"student": {"family": "resnet"}, "terms": [{"objective": "kd", "weight": 1, "share": 2}]}',
    '{"student": {"family": "resnet"}, "terms": [{"objective": "kd", "weight": 1, "temperature": 0.1}]}',
    '{"student": {"family": "resnet"}, "terms": [{"objective": "kd", "weight": 1, "temperature": NaN}]}',
    '{"student": {"family": "resnet"}, "terms": [{"objective": "kdd", "weight": 1}]}',
    '{"student": {"family": "resnet"}, "terms": [{"objective": "fitnet", "weight": 1, "stage": "mid"}]}',
    '{"student": {"family": "resnet"}, "terms": [{"objective": "at", "weight": 1}, {"objective": "at", "weight": 2}]}',
    '{"student": {"family": "resnet"}, "terms": [{"objective": "kd", "weight": 1}, {"objective": "dkd", "weight": 2}]}',
    '{"student": {"family": "resnet"}, "ce_weight": 0}',
    '{"student": {"family": "resnet"}, "ce_weight": -1}',
    '{"student": {"family": "resnet"}, "ce_weight": "much\\nmore"}',
    '{"student": {"family": "resnet"}, "augment": {"policy": "jada"}}',
    '{"student": {"family": "resnet"}, "augment": {"rho": 1}}',
    '{"student": {"family": "resnet"}, "augment": {"row": 0.5}}',
    '{"student": {"family": "resnet"}, "peers": {"count": 4}}',
    '{"student": {"family": "resnet"}, "peers": {"count": 1, "system": "fcl"}}',
    '{"student": {"family": "resnet"}, "peers": {"count": 1, "system": 3}}',
    '{"student": {"family": "resnet"}, "peers": {"count": 1, "gamma": 1}}',
    '{"student": {"family": "resnet"}, "peers": {"count": 1, "system": "ffcl", "gamma": 11}}',
    '{"student": {"family": "resnet"}, "peers": {"count": 1, "system": "ffcl", "gamma": [1]}}',
    '{"student": {"family": "resnet"}, "peers": {"count": 1.5}}',
    '{"student": {"family": "resnet"}, "optim": {"lr": 0}}',
    '{"student": {"family": "resnet"}, "optim": {"lr": NaN}}',
    '{"student": {"family": "resnet"}, "optim": {"momentum": 1}}',
    '{"student": {"family": "resnet"}, "optim": {"batch": 1}}',
    '{"student": {"family": "resnet"}, "optim": {"name": "adam"}}',
    "[" * 100_000,
    '{"student": {"family": "resnet", "width": ' + "9" * 5000 + "}}",
    '{"student": {"family": "resnet"}, "optim": {"batch": ' + "9" * 400 + "}}",
]

WITHOUT = object()


def changed(old: str, new: object) -> tuple[str, int]:
    """The small space with one line changed, and that line's number."""
    lines = SMALL.splitlines()
    place = next(number for number, line in enumerate(lines) if line.strip().startswith(old))
    indent = " " * (len(lines[place]) - len(lines[place].lstrip()))
    lines[place : place + 1] = [] if new is WITHOUT else [f"{indent}{new}"]
    return "\n".join(lines) + "\n", place + 1


SPACES: list[tuple[str, object, str]] = [  # a line of the small space, what stands there instead, the complaint
    ("version", "version: 2", "version must be 1, got 2"),
    ("version", "version: one", "version must be 1, got 'one'"),
    ("version", "version: true", "version must be 1"),
    ("version", "versoin: 1", "did you mean 'version'"),
    ("about", "about: [a]", "about must be text"),
    ("about", "about: yes", "about must be text, got True"),
    ("about", "version: 1", "each key may appear once"),
    ("about", "? [a, b]\n: 3", "a key must be a word"),
    ("about", "3: 4", "a key must be a word, got 3"),
    ("about", "about: 'open", "must be YAML"),
    ("about", "\tabout: x", "must be YAML"),
    ("about", "about: !!python/object/apply:os.getcwd []", "without a tag"),
    ("about", "about: !mine x", "without a tag"),
    ("about", "about: !!bool x", "without a tag"),
    ("about", "about: !!set {x}", "without a tag"),
    ("about", "about: 2026-13-45", "a value must be readable, got '2026-13-45'"),
    ("about", "<<: {about: x}", "a value must be readable, got '<<'"),
    ("about", "about: *anchor", "must be YAML, got a reference"),
    ("about", "about: " + "[" * 200 + "]" * 200, "more than 20 levels"),
    ("about", "name: x", "has no key 'name'"),
    ("epochs", "epochs: {max: 0}", "epochs.max must be a whole number of at least 1, got 0"),
    ("epochs", "epochs: {max: 1.5}", "epochs.max must be a whole number"),
    ("epochs", "epochs: 60", "epochs must be a mapping, got 60"),
    ("epochs", "epochs: {}", "epochs must hold 'max'"),
    ("epochs", "epochs: {max: 60, mx: 3}", "did you mean 'max'"),
    ("select.logits", "select.logits: {choice: []}", "list at least one"),
    ("select.logits", "select.logits: {choice: kd}", "must be choice: [a, b"),
    ("select.logits", "select.logits: {choice: [kd, kd]}", "must differ, got 'kd'"),
    ("select.logits", "select.logits: {choice: [none, kd, dkd, kdd]}", "did you mean 'kd'"),
    ("select.logits", "select.logits: {choice: [none, kd, dkd, rkd]}", "terms.rkd.weight, got none; add it"),
    ("select.logits", "select.logits: {float: [0, 1]}", "must choose between words"),
    ("select.logits", "select.logits: {choice: [none, kd], prior: dkd}", "prior of 'select.logits' must be one of"),
    ("select.hints", "select.hints: {choice: [none, at, kd]}", "alone offer them"),
    ("student.family", "student.family: {choice: [resnte, mlp]}", "did you mean 'resnet'"),
    ("student.family", "student.family: {choice: [resnet, 3]}", "unknown student family 3"),
    ("student.resnet.width", "student.resnte.width: 8", "did you mean 'resnet'"),
    ("student.resnet.width", "student.resnet.widht: 8", "did you mean 'width'"),
    ("student.resnet.width", "student.width: 8", "write student.<student family>.width"),
    ("student.resnet.width", "student.plain.width: 8", "a student.family that offers 'plain', got resnet, mlp"),
    ("student.resnet.width", "student.resnet.width: {int: [64, 4]}", "low < high must hold"),
    ("student.resnet.width", "student.resnet.width: {int: [8, 8]}", "to fix the value, write"),
    ("student.resnet.width", "student.resnet.width: {int: [1, 64]}", "must be int in [4, 256], got 1"),
    ("student.resnet.width", "student.resnet.width: {int: [4, 512]}", "must be int in [4, 256], got 512"),
    ("student.resnet.width", "student.resnet.width: {int: [4.0, 64.0]}", "must be a whole number"),
    ("student.resnet.width", "student.resnet.width: {float: [4, 64]}", "must be int in [4, 256], got 4.0"),
    ("student.resnet.width", "student.resnet.width: {int: [4]}", "must be int: [low, high], got [4]"),
    ("student.resnet.width", "student.resnet.width: {int: [true, 64]}", "must be a whole number"),
    ("student.resnet.width", "student.resnet.width: {int: [null, 64]}", "got None"),
    ("student.resnet.width", "student.resnet.width: {int: 4}", "must be int: [low, high]"),
    ("student.resnet.width", f"student.resnet.width: {{int: [4, {'9' * 400}]}}", "must be a whole number"),
    ("student.resnet.width", "student.resnet.width: {int: [4, 64], prior: 2}", "prior of 'student.resnet.width'"),
    ("student.resnet.width", "student.resnet.width: {int: [4, 64], prior: 8.5}", "must be int in [4, 64], got 8.5"),
    ("student.resnet.width", "student.resnet.width: {int: [4, 64], log: 1}", "log of 'student.resnet.width' must be"),
    ("student.resnet.width", "student.resnet.width: {int: [4, 64], spread: 0}", "spread of"),
    ("student.resnet.width", "student.resnet.width: {int: [4, 64], lgo: true}", "did you mean 'log'"),
    ("student.resnet.width", "student.resnet.width: {itn: [4, 64]}", "did you mean 'int'"),
    ("student.resnet.width", "student.resnet.width: {int: [4, 64], choice: [4]}", "must have one of the keys"),
    ("student.resnet.width", "student.resnet.width: {}", "must have one of the keys"),
    ("student.resnet.width", "student.resnet.width: [4, 64]", "must be a number, a word or true/false"),
    ("student.resnet.width", "student.resnet.width: null", "must be a number, a word or true/false"),
    ("student.resnet.width", "student.resnet.width: '8'", "must be int in [4, 256], got '8'"),
    ("student.resnet.width", "student.resnet.width: 2026-01-01", "must be a number, a word or true/false"),
    ("student.resnet.width", "student.resnet.width: {fixed: 8, prior: 8}", "has no key 'prior'"),
    ("student.resnet.width", "student.resnet.width: {int: [4, 64], when: {student.family: mlp}}", "drop that"),
    ("student.resnet.depth1", "student.resnet.depth1: {int: [1, 9], step: 0}", "step of"),
    ("student.resnet.depth1", "student.resnet.depth1: {int: [1, 9], step: 3}", "must divide high - low"),
    ("student.resnet.depth1", "student.resnet.depth1: {int: [1, 9], step: 2, log: true}", "not stand beside log"),
    ("ce_weight", "ce_weight: {float: [0, 2], log: true}", "a log range must begin above 0"),
    ("ce_weight", "ce_weight: {float: [-1, 2]}", "greater than or equal to 0"),
    ("ce_weight", "ce_weight: {float: [.nan, 2]}", "must be a number, got"),
    ("ce_weight", "ce_weight: {float: [0.1, .inf]}", "must be a number, got"),
    ("ce_weight", "ce_weight: {float: ['0.1', 2]}", "without quotes"),
    ("ce_weight", "ce_weight: '0.5'", "without quotes"),
    ("ce_weight", "ce_weight: true", "must be float, got True"),
    ("ce_weight", "ce_weigth: 1", "did you mean 'ce_weight'"),
    ("terms.kd.weight", WITHOUT, "'terms.kd.weight' must exist wherever 'terms.kd.temperature' exists, got none"),
    ("terms.kd.weight", "terms.kdd.weight: 1", "unknown objective 'kdd'"),
    ("terms.kd.weight", "terms.kd: 1", "unknown field 'terms.kd'"),
    ("terms.kd.weight", "terms.kd.wieght: 1", "did you mean 'weight'"),
    ("terms.kd.weight", "terms.kd.weight: {float: [0, 1]}", "greater than 0"),
    ("terms.kd.weight", "terms.kd.weight: {float: [1, 2], when: {student.family: mlp}}", "2 conditions, not all"),
    ("terms.kd.temperature", "terms.kd.temperature: {float: [0.1, 20]}", "must be float in [0.5, 50.0], got 0.1"),
    ("terms.dkd.beta", "terms.dkd.share: {float: [0, 2]}", "less than or equal to 1"),
    ("augment.policy", "augment.policy: {choice: [base, jada]}", "got 'jada'"),
    ("augment.policy", "augment.poilcy: base", "did you mean 'augment.policy'"),
    ("augment.rho", "augment.rho: {choice: [0.5], when: {augment.poicy: jda}}", "did you mean 'augment.policy'"),
    ("augment.rho", "augment.rho: {choice: [0.5], when: {optim.name: sgd}}", "earlier in the file, got 'optim.name'"),
    ("augment.rho", "augment.rho: {choice: [0.5], when: {augment.rho: 0.5}}", "earlier in the file, got 'augment.rho'"),
    ("augment.rho", "augment.rho: {choice: [0.5], when: {augment.policy: none}}", "one of base, jda, got 'none'"),
    ("augment.rho", "augment.rho: {choice: [0.5], when: {augment.policy: []}}", "one of base, jda, got []"),
    ("augment.rho", "augment.rho: {choice: [0.5], when: {ce_weight: 0.5}}", "a choice or an int"),
    ("augment.rho", "augment.rho: {choice: [0.5], when: jda}", "when of 'augment.rho' must be a mapping"),
    ("augment.rho", "augment.rho: {choice: [0.8]}", "less than or equal to 0.75"),
    ("augment.ccd", "augment.ccd: {choice: [0, 1]}", "must be bool, got 0"),
    ("augment.ccd", "augment.ccd: {choice: [[false]]}", "must be a number, a word or true/false"),
    ("peers.count", "peers.count: {int: [0, 4]}", "less than or equal to 3"),
    ("peers.count", "peers.count: {float: [0, 3]}", "'peers.count': Input should be a valid integer"),
    ("peers.count", "peers.system: {choice: [dml, fcl]}", "unknown system of peers 'fcl'; did you mean 'ffcl'"),
    ("peers.count", "peers.system: {choice: [dml, 3]}", "unknown system of peers 3"),
    ("peers.count", "peers.fcl.gamma: 1", "unknown system of peers 'fcl' in 'peers.fcl.gamma'; did you mean 'ffcl'"),
    ("peers.count", "peers.gamma: 1", "unknown field 'peers.gamma'; did you mean 'peers.ffcl.gamma'"),
    ("peers.count", "peers.ffcl.gama: 1", "system of peers 'ffcl' has no field 'gama'; did you mean 'gamma'"),
    ("peers.count", "peers.ffcl.weight: 1", "system of peers 'ffcl' has no field 'weight'"),
    ("peers.count", "peers.ffcl.gamma: 1", "after a peers.system that offers 'ffcl', got none before it"),
    ("peers.count", "peers.system: dml\n  peers.ffcl.gamma: 1", "that offers 'ffcl', got dml; add it there"),
    ("peers.count", "peers.system: ffcl\n  peers.ffcl.gamma: {float: [0, 20]}", "float in [0.0, 10.0], got 20"),
    ("peers.count", "peers.system: ffcl\n  peers.ffcl.fusion: {choice: [add, sum]}", "one of depthwise, add, off, got 'sum'"),
    ("peers.count", "peers.system: {choice: [dml, ffcl]}\n  peers.ffcl.gamma: {fixed: 1, when: {peers.system: dml}}", "drop that"),
    ("optim.name", "optim.name: \"sg\\nd\"", "got 'sg\\nd'"),
    ("optim.name", "\"optim.na\\nme\": sgd", "unknown field 'optim.na\\nme'"),
    ("optim.lr", "optim.lr: {float: [0.1, 1e-2]}", "low < high"),
    ("first:", "first:\n  - 3", "an entry of first must be a mapping"),
    ("- name: DKD", "- nmae: DKD", "did you mean 'name'"),
    ("- name: DKD", "- name: 3", "name must be text"),
    ("set: {select.logits: dkd", "set: [select.logits]", "must be a mapping"),
    ("set: {select.logits: dkd", "set: {select.logit: dkd}", "did you mean 'select.logits'"),
    ("set: {select.logits: dkd", "set: {select.logits: at}", "must be one of none, kd, dkd, got 'at'"),
    ("set: {select.logits: dkd", "set: {ce_weight: 3}", "'ce_weight' must be float in [0.05, 2.0], got 3"),
    ("set: {select.logits: dkd", "set: {terms.dkd.beta: 8}", "exists only where select.logits is dkd"),
]  # fmt: skip

HEAD = "version: 1\nepochs: {max: 1}\n"
WHOLE_TEXTS = [
    "",
    "# nothing",
    "3",
    "[]",
    "a: b: c",
    "version: 1",
    "\x00",
    "--- 1\n--- 2",
    HEAD + "fields: {}",
    HEAD + "fields: {ce_weight: 1}",
    HEAD + "fields: [a]",
    HEAD + "fields: {student.family: mlp, student.mlp.width: {}}",
    HEAD + "fields: {student.family: mlp, ce_weight: 0, select.a: {choice: [none, kd]}, terms.kd.weight: 1}",
]


def complaint(kind: type[InputError], call: Any) -> str:
    """The one line of the one error that `call` raises."""
    with pytest.raises(InputError) as caught:
        call()
    assert type(caught.value) is kind
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and text.isprintable(), repr(text)
    assert len(text) < 1000
    assert caught.value.__cause__ is None and (caught.value.__suppress_context__ or caught.value.__context__ is None)
    return text


def test_there_are_enough() -> None:
    assert len(BUDGETS) + len(RECIPES) + len(SPACES) + len(WHOLE_TEXTS) >= 100


@pytest.mark.parametrize("value", BUDGETS, ids=range(len(BUDGETS)))
def test_budgets(value: Any) -> None:
    assert "write for example '90s'" in complaint(BudgetError, lambda: Budget.parse(value))


STORED_BUDGETS: list[Any] = [
    None,
    3,
    {},
    {"kind": "seconds"},
    {"kind": "hours", "amount": 1},
    {"kind": "trials", "amount": "3"},
    {"kind": [], "amount": 1},
]


@pytest.mark.parametrize("data", STORED_BUDGETS, ids=range(len(STORED_BUDGETS)))
def test_stored_budgets(data: Any) -> None:
    complaint(BudgetError, lambda: Budget.from_dict(data))


@pytest.mark.parametrize("text", RECIPES, ids=range(len(RECIPES)))
def test_recipes(text: str) -> None:
    complaint(RecipeError, lambda: Recipe.from_json(text).check(VOCABULARY))


@pytest.mark.parametrize(("old", "new", "message"), SPACES, ids=range(len(SPACES)))
def test_spaces(old: str, new: object, message: str) -> None:
    text, _ = changed(old, new)
    found = complaint(SpaceError, lambda: Space.parse(text, VOCABULARY, origin="my/space.yaml"))
    assert message in found and found.startswith("my/space.yaml:")


@pytest.mark.parametrize(("old", "new", "message"), SPACES, ids=range(len(SPACES)))
def test_spaces_name_the_line(old: str, new: object, message: str) -> None:
    text, line = changed(old, new)
    found = complaint(SpaceError, lambda: Space.parse(text, VOCABULARY, origin="s.yaml"))
    named = int(found.split(":")[1])
    elsewhere = ("did you mean 'version'", "unexpected end of stream")  # missing, or seen at the end only
    if not any(word in found for word in elsewhere):
        assert abs(named - line) <= 1, found


@pytest.mark.parametrize("text", WHOLE_TEXTS, ids=range(len(WHOLE_TEXTS)))
def test_space_texts(text: str) -> None:
    assert complaint(SpaceError, lambda: Space.parse(text, VOCABULARY, origin="s.yaml")).startswith("s.yaml:")


@pytest.mark.parametrize(
    "source", ["digts", "no such\nspace", "missing.yaml", "x" * 5000, "a\x00.yaml", "", 3, None, Path("x.txt")]
)
def test_space_sources(source: Any) -> None:
    complaint(SpaceError, lambda: Space.load(source, VOCABULARY))


def test_a_misspelt_space_is_told_the_nearest() -> None:
    assert "did you mean 'digits'" in complaint(SpaceError, lambda: Space.load("digts", VOCABULARY))


def test_space_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"about: caf\xe9")
    for name in ("folder.yaml", "latin.yaml", "gone.yaml"):
        assert "must be readable" in complaint(SpaceError, lambda name=name: Space.load(tmp_path / name, VOCABULARY))


STORED_SPACES: list[Any] = [
    None,
    3,
    [],
    {},
    {"fields": {}},
    {"fields": [3]},
    {"fields": [{"name": 3}]},
    {"fields": [{"name": "a"}, {"name": "a"}]},
    {"version": 1, "fields": []},
    {"version": 1, "epochs": {"max": 1}, "fields": [{"name": "ce_weight", "fixed": 1}]},
    {"version": 1, "epochs": {"max": math.nan}, "fields": [{"name": "student.family", "fixed": "mlp"}]},
]


@pytest.mark.parametrize("data", STORED_SPACES, ids=range(len(STORED_SPACES)))
def test_stored_spaces(data: Any) -> None:
    complaint(SpaceError, lambda: Space.from_dict(data, VOCABULARY))
