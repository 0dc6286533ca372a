"""Student families of the user's own: what may be given in place of a registered name, and how it becomes a family."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from autokd.errors import InputError
from autokd.protocols import StudentFamily
from autokd.rules import Rule, Value

REMEDY = "give an object with fields, misfit and build, or a function or nn.Module class that makes a new module"
CLASSES = ("classes", "num_classes")  # the second is torchvision's and timm's word


class FactoryFamily:
    """One architecture: whatever `factory` makes. It has no fields, so only how it is trained is searched.

    `factory` is called with `classes` (or `num_classes`), and with `input_shape`, where its signature has them.
    """

    def __init__(self, factory: Callable[..., Any]) -> None:
        self.factory = factory
        self.fields: Mapping[str, Rule] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FactoryFamily) and self.factory is other.factory

    def __hash__(self) -> int:
        return id(self.factory)

    @property
    def name(self) -> str:
        return getattr(self.factory, "__qualname__", type(self.factory).__name__)

    def misfit(self, input_shape: tuple[int, ...]) -> str | None:
        """None: only the module itself knows, and `describe` asks it."""
        return None

    def build(self, spec: Mapping[str, Value], input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """A new module. Raises InputError if the factory makes anything else."""
        if spec:
            raise InputError(
                f"student '{self.name}' has no fields, got {', '.join(spec)}; make it a family to search them"
            )
        module = self._call(input_shape, classes)
        if not isinstance(module, nn.Module):
            raise InputError(f"student '{self.name}' must make an nn.Module, got {type(module).__name__}")
        return module

    def _call(self, input_shape: tuple[int, ...], classes: int) -> object:
        try:
            parameters = inspect.signature(self.factory).parameters
        except ValueError:  # a builtin tells no signature
            return self.factory()
        shape = {"input_shape": input_shape} if "input_shape" in parameters else {}
        needed = [
            p.name
            for p in parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        unmet = [name for name in needed if name not in (*CLASSES, "input_shape")]
        if unmet:
            wrapped = f"lambda classes: {self.name}(…, {unmet[0]}=…)"
            raise InputError(
                f"student '{self.name}' needs '{', '.join(unmet)}', which autokd does not know; give {wrapped}"
            )
        for word in CLASSES:
            if word in parameters:
                return self.factory(**{word: classes}, **shape)
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return self._first_accepted(classes, shape)
        return self.factory(**shape)

    def _first_accepted(self, classes: int, shape: dict[str, Any]) -> object:
        """A factory that hands **kwargs on, as torchvision's do, shows its word for the classes only when called."""
        for word in CLASSES:
            try:
                return self.factory(**{word: classes}, **shape)
            except TypeError as error:
                if f"'{word}'" not in str(error):
                    raise
        return self.factory(**shape)


def as_family(source: object, name: str) -> StudentFamily:
    """`source` itself if it is a family, or a family made of it. `name` is for the message. Raises InputError."""
    if isinstance(source, nn.Module):
        raise InputError(
            f"student '{name}' is one module, but each trial needs a new one; give its class or lambda: Net(…)"
        )
    if inspect.isclass(source) and issubclass(source, nn.Module):
        return FactoryFamily(source)
    has = [part for part in ("fields", "misfit", "build") if hasattr(source, part)]
    if "build" in has:
        return _checked(source, name, has)
    if callable(source):
        return FactoryFamily(source)
    raise InputError(f"student '{name}' is a {type(source).__name__}; {REMEDY}")


def _checked(source: Any, name: str, has: list[str]) -> StudentFamily:
    missing = [part for part in ("fields", "misfit", "build") if part not in has]
    if missing:
        raise InputError(f"student family '{name}' has no '{missing[0]}'; {REMEDY}")
    if inspect.isclass(source):
        try:
            source = source()
        except TypeError as error:
            raise InputError(
                f"student family '{name}' cannot be made without arguments ({error}); give an object"
            ) from None
    rules = source.fields
    if not (isinstance(rules, Mapping) and all(isinstance(rule, Rule) for rule in rules.values())):
        raise InputError(f"student family '{name}': fields must map names to autokd.rules.Rule, got {rules!r:.60}")
    return source


def load(name: str) -> StudentFamily:
    """The family that "module:attribute" names. Raises InputError."""
    module_name, _, attribute = name.partition(":")
    try:
        found: object = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's own: whatever it raises is reported in one line
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            f"student '{name}': module '{module_name}' cannot be imported ({told}); is it on sys.path?"
        ) from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise InputError(f"student '{name}': '{module_name}' has no '{attribute}'; write module:attribute")
        found = getattr(found, part)
    return as_family(found, name)
