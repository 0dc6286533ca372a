"""YAML as plain values that know their line, and the errors that name it.

A space file holds values, ranges, branches and nothing callable: no tags, no references, no duplicate keys. Every
problem is a SpaceError on one line, "file:line: rule, value; remedy". Data that come from JSON become the same items,
without lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import yaml

from autokd.errors import SpaceError

EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")  # YAML 1.1 takes 5e-4 for a word; nobody means one
DEEPEST = 20  # levels; a space has five


@dataclass(frozen=True)
class Item:
    """A value and its line: a scalar, a list of items, or a dict of items."""

    value: Any
    line: int | None = None

    def __str__(self) -> str:
        """At most 60 characters of the value, on one line, for error messages."""
        try:
            text = repr(self.plain())
        except ValueError:  # an integer of too many digits to print
            text = f"a very large {type(self.value).__name__}"
        return text if len(text) <= 60 else text[:57] + "..."

    def plain(self) -> Any:
        """The value without lines."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        return [item.plain() for item in self.value] if isinstance(self.value, list) else self.value


def fail(origin: str, line: int | None, problem: str) -> NoReturn:
    """Raise the SpaceError for a place in a file."""
    where = origin if line is None else f"{origin}:{line}"
    raise SpaceError(f"{where}: {one_line(problem)}") from None  # the cause is in the message


def one_line(text: object) -> str:
    """Without line breaks and other control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def as_items(data: object, depth: int = 0) -> Item:
    """JSON data as items without lines. Raises SpaceError if they nest too deeply."""
    if depth > DEEPEST:
        raise SpaceError(f"a space nests at most {DEEPEST} levels, got more; write one with space.to_dict()")
    if isinstance(data, Mapping):
        return Item({str(key): as_items(value, depth + 1) for key, value in data.items()})
    return Item([as_items(value, depth + 1) for value in data] if isinstance(data, list | tuple) else data)


def read_yaml(text: str, origin: str) -> Item:
    """The one document in `text`. Raises SpaceError."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        fail(origin, mark.line + 1 if mark else None, f"must be YAML, got {error.problem}; check the syntax here")
    except yaml.YAMLError as error:
        fail(origin, None, f"must be YAML, got {error}; write plain UTF-8 text")
    return Item(None, 1) if node is None else _item(loader, node, origin)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses what can nest without end."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            self._refuse("a reference (*name), which is not allowed")
        if self.depth > DEEPEST:
            self._refuse(f"more than {DEEPEST} levels")
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def _refuse(self, problem: str) -> NoReturn:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)


def _item(loader: _Loader, node: yaml.Node, origin: str) -> Item:
    line = node.start_mark.line + 1
    if node.tag != loader.resolve(type(node), node.value, (getattr(node, "style", None) is None, True)):
        fail(origin, line, f"a value must stand without a tag, got {node.tag!r}; remove it or use quotes")
    if isinstance(node, yaml.MappingNode):
        return Item(_entries(loader, node, origin), line)
    if isinstance(node, yaml.SequenceNode):
        return Item([_item(loader, child, origin) for child in node.value], line)
    return Item(_scalar(loader, node, origin), line)


def _entries(loader: _Loader, mapping: yaml.MappingNode, origin: str) -> dict[str, Item]:
    """Keys with their values; the line of a value is that of its key."""
    entries: dict[str, Item] = {}
    for key_node, value_node in mapping.value:
        line = key_node.start_mark.line + 1
        key = _item(loader, key_node, origin)
        if not isinstance(key.value, str):
            fail(origin, line, f"a key must be a word, got {key}; put quotes around it")
        if key.value in entries:
            first = entries[key.value].line
            fail(origin, line, f"each key may appear once, got {key} again; remove it here or in line {first}")
        entries[key.value] = replace(_item(loader, value_node, origin), line=line)
    return entries


def _scalar(loader: _Loader, node: yaml.Node, origin: str) -> Any:
    plain_word = node.tag == "tag:yaml.org,2002:str" and node.style is None
    if plain_word and EXPONENT.fullmatch(node.value):
        return float(node.value)
    try:
        return loader.construct_object(node)
    except (ValueError, yaml.YAMLError):  # a date that does not exist, a number of thousands of digits, "<<"
        fail(
            origin, node.start_mark.line + 1, f"a value must be readable, got {Item(node.value)}; put quotes around it"
        )
