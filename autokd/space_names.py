"""Which names and values a space may hold, and which recipe field each name stands for.

    select.<word>               in the space only: a choice that conditions refer to
    student.<family>.<field>    the recipe's student.<field>, where that family is chosen
    terms.<objective>.<field>   as in the recipe's flat form; likewise ce_weight, augment.*, peers.count, optim.*
    peers.<system>.<field>      the recipe's peers.<field>, where that system is chosen

Families and objectives may be a user's own, "module:attribute".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from autokd.errors import RecipeError, nearest
from autokd.recipe import FLAT_NAMES, Recipe
from autokd.rules import Rule, Value, Vocabulary
from autokd.space_fields import same

TERM_FIELDS = ("weight", "schedule", "share", "floor")  # of every term, beside its objective's own


DECIDERS = {
    "student": "student.family",
    "peers": "peers.system",
}  # section -> the field that says whose fields exist there
OWNED = {
    "student": "student family",
    "terms": "objective",
    "peers": "system of peers",
}  # section -> whose fields it holds


class Name(NamedTuple):
    """A field's name in parts; `owner` is the family, objective or system, or empty."""

    section: str  # "student", "terms", "peers", "select", …; empty for ce_weight
    owner: str
    field: str


def split(name: str) -> Name:
    """The parts of a field's name.

    >>> split("terms.my.losses:Angle.weight")
    Name(section='terms', owner='my.losses:Angle', field='weight')
    """
    section, dot, rest = name.partition(".")
    if not dot:
        return Name("", "", name)
    owner, _, field = rest.rpartition(".") if section in OWNED else ("", "", rest)
    return Name(section, owner, field)


def unknown_name(name: str, vocabulary: Vocabulary) -> str | None:
    """What is wrong with a field's name, with the nearest known one; None if it is known."""
    section, owner, field = split(name)
    if name in FLAT_NAMES or (section == "select" and field):
        return None
    if section not in OWNED or (section == "peers" and not owner):
        of_systems = (f"peers.{system}.{rule}" for system, rules in vocabulary.systems.items() for rule in rules)
        return (
            f"unknown field {name!r}; {nearest(name, (*FLAT_NAMES, *of_systems, 'select.…', 'student.…', 'terms.…'))}"
        )
    owners, what = _owners(section, vocabulary), OWNED[section]
    if owner not in owners:
        if not owner:
            return f"unknown field {name!r}; write {section}.<{what}>.{field or 'field'} ({nearest(field, owners)})"
        return f"unknown {what} {owner!r} in {name!r}; {nearest(owner, owners)}"
    known = (*owners[owner], *(TERM_FIELDS if section == "terms" else ()))
    return None if field in known else f"{what} {owner!r} has no field {field!r}; {nearest(field, known)}"


def illegal_value(name: str, value: Value, vocabulary: Vocabulary) -> str | None:
    """What is wrong with `value` for the field of a known name, or None."""
    if name.startswith("select."):
        return (
            None if isinstance(value, str) else f"a selector must choose between words, got {value!r}; put it in quotes"
        )
    if name in DECIDERS.values():
        section = name.partition(".")[0]
        owners = _owners(section, vocabulary)
        known = isinstance(value, str) and value in owners
        return None if known else f"unknown {OWNED[section]} {value!r}; {nearest(value, owners)}"
    rule = rule_of(name, vocabulary)
    if rule is not None:
        broken = rule.broken_by(value)
        return None if broken is None else f"must be {broken}, got {value!r}; stay inside"
    return _breaks_recipe(name, value)


def recipe_values(point: Mapping[str, Value], vocabulary: Vocabulary) -> dict[str, Value]:
    """A point in the recipe's flat form: without selectors, and with floats where the recipe wants floats."""
    values: dict[str, Value] = {}
    for name, value in point.items():
        section, _, field = split(name)
        if section == "select":
            continue
        rule = rule_of(name, vocabulary)
        real = rule is not None and rule.kind == "float"
        values[f"{section}.{field}" if section in DECIDERS else name] = float(value) if real else value
    return values


def rule_of(name: str, vocabulary: Vocabulary) -> Rule | None:
    """The rule that a family, an objective or a system has for one of its own fields."""
    section, owner, field = split(name)
    owners = _owners(section, vocabulary)
    return owners[owner].get(field) if owner in owners else None


def _owners(section: str, vocabulary: Vocabulary) -> Mapping[str, Mapping[str, Rule]]:
    return {"student": vocabulary.families, "terms": vocabulary.objectives, "peers": vocabulary.systems}.get(
        section, {}
    )


def _breaks_recipe(name: str, value: Value) -> str | None:
    """Try the value in a recipe that is otherwise in order."""
    fine: dict[str, Value] = {"student.family": "any", "terms.any.weight": 1.0}
    if name.startswith("terms."):
        fine |= {f"terms.{split(name).owner}.weight": 1.0, f"terms.{split(name).owner}.schedule": "decay"}
    try:
        held = Recipe.from_flat(fine | {name: value}).flat()[name]
    except RecipeError as error:
        return f"{str(error).partition(': ')[2] or error}; stay inside"
    return None if same(held, value) else f"must be {type(held).__name__}, got {value!r}; write it without quotes"
