"""Student families: a spec of names and numbers becomes a module. The table of them, and the way to a user's own."""

from __future__ import annotations

from collections.abc import Mapping

from autokd.errors import InputError, nearest
from autokd.protocols import StudentFamily
from autokd.rules import Rule
from autokd.students import own
from autokd.students.mlp import MLPFamily
from autokd.students.mobilenet import MobileNetFamily
from autokd.students.plain import PlainFamily
from autokd.students.resnet import ResNetFamily
from autokd.students.zoo import ZOO

FAMILIES: dict[str, StudentFamily] = {
    "resnet": ResNetFamily(),  # He et al., 2016
    "plain": PlainFamily(),  # Simonyan and Zisserman, 2015
    "mobilenet": MobileNetFamily(),  # Sandler et al., 2018
    "mlp": MLPFamily(),
    **ZOO,  # published networks, without fields
}


GIVEN: dict[str, StudentFamily] = {}  # families handed over as objects in this process, by the name recipes know


def name_of(source: object) -> str:
    """What recipes call a family: a name as it is; an object "module:name", remembered in GIVEN. Raises InputError."""
    if isinstance(source, str):
        return source
    maker = source if hasattr(source, "__qualname__") else type(source)
    name = f"{maker.__module__}:{maker.__qualname__}"
    GIVEN[name] = own.as_family(source, name)
    return name


def families_rules() -> dict[str, Mapping[str, Rule]]:
    """The fields of every registered family, for `Vocabulary.families`."""
    return {name: family.fields for name, family in FAMILIES.items()}


def resolve(source: object) -> StudentFamily:
    """A family from a registered name, "module:attribute", a family, or whatever makes modules. Raises InputError."""
    if not isinstance(source, str):
        return own.as_family(source, getattr(source, "__name__", type(source).__name__))
    if source in FAMILIES:
        return FAMILIES[source]
    if source in GIVEN:
        return GIVEN[source]
    if ":" in source:
        return own.load(source)
    raise InputError(f"unknown student family '{source}'; {nearest(source, FAMILIES)}; or your own as module:attribute")
