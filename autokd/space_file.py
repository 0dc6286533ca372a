"""What a search-space file says: its fields, conditions, priors and published recipes, each checked on its own line.

version: 1                                            # of this format
about: one sentence
task: classification
epochs: {max: 60}                                     # of a full training
fields:
  select.logits: {choice: [none, kd], prior: kd}      # offers an objective: its terms.* exist where it is chosen
  student.family: {choice: [resnet, mlp]}
  student.resnet.width: {int: [4, 64], log: true, prior: 16}     # exists where the family is resnet
  terms.kd.weight: {float: [0.05, 20], log: true, prior: 0.9}
  ce_weight: {float: [0.05, 2], log: true}
  peers.count: {int: [0, 3], prior: 0}
  peers.weight: {float: [0.1, 4], log: true, when: {peers.count: [1, 2, 3]}}
  optim.name: sgd                                     # fixed
first:                                                # tried first; what an entry leaves out takes its prior
  - {name: KD, set: {select.logits: kd, terms.kd.weight: 0.9, ce_weight: 0.1}}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from autokd.errors import SpaceError, nearest
from autokd.rules import Value, Vocabulary
from autokd.space_fields import LARGEST, SPREAD, Conditions, Field, among, complete
from autokd.space_names import DECIDERS, illegal_value, split, unknown_name
from autokd.space_yaml import Item, fail

VERSION = 1
KEYS = ("version", "about", "task", "epochs", "fields", "first")
OPTIONS = {  # what may stand beside each kind
    "float": ("log", "prior", "spread", "when"),
    "int": ("log", "step", "prior", "spread", "when"),
    "choice": ("prior", "when"),
    "fixed": ("when",),
}


@dataclass(frozen=True)
class Published:
    """A recipe to be tried first: the values it sets, by field."""

    name: str
    values: tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class Content:
    """What a space file says."""

    about: str
    task: str
    epochs: int
    fields: tuple[Field, ...]
    published: tuple[Published, ...]


def read_content(root: Item, origin: str, vocabulary: Vocabulary) -> Content:
    """Read and check a whole space. Raises SpaceError, "origin:line: rule, value; remedy"."""
    return _Reader(origin, vocabulary).content(root)


def misplaced(entry: Published, fields: Sequence[Field]) -> str | None:
    """Why a published recipe is not a point of the space, or None."""
    try:
        point = complete(fields, dict(entry.values))
    except SpaceError as error:
        return str(error)
    lost = [field for field in fields if field.name in dict(entry.values) and field.name not in point]
    if not lost:
        return None
    needs = " and ".join(f"{other} is {' or '.join(map(str, values))}" for other, values in lost[0].when)
    return f"{lost[0].name!r} exists only where {needs}, got it set elsewhere; set that too"


@dataclass(frozen=True)
class _Reader:
    origin: str
    vocabulary: Vocabulary

    def content(self, root: Item) -> Content:
        top = self.mapping(root, "a space", KEYS, required=("version", "epochs", "fields"))
        version = top["version"]
        self.need(among(version.value, [VERSION]), version, f"version must be {VERSION}", f"write version: {VERSION}")
        fields = self.fields(top["fields"])
        self.check_terms(fields)
        self.check_selectors(fields)
        return Content(
            about=self.word(top.get("about", Item("")), "about"),
            task=self.word(top.get("task", Item("classification")), "task"),
            epochs=self.epochs(top["epochs"]),
            fields=tuple(fields.values()),
            published=tuple(self.published(top["first"], fields)) if "first" in top else (),
        )

    def epochs(self, item: Item) -> int:
        most = self.mapping(item, "epochs", ("max",), required=("max",))["max"]
        return self.whole(most, "epochs.max", low=1)

    # ---- fields

    def fields(self, item: Item) -> dict[str, Field]:
        filled = isinstance(item.value, dict) and len(item.value) > 0
        self.need(filled, item, "fields must be a mapping of names", "begin with student.family")
        known: dict[str, Field] = {}
        for name, spec in item.value.items():
            problem = unknown_name(name, self.vocabulary)
            if problem is not None:
                self.fail(spec, problem)
            known[name] = self.field(name, spec, known)
        remedy = "add student.family: {choice: […]}"
        self.need("student.family" in known, item, "fields must hold student.family", remedy, got=", ".join(known))
        return known

    def field(self, name: str, item: Item, earlier: Mapping[str, Field]) -> Field:
        spec = item if isinstance(item.value, dict) else Item({"fixed": item}, item.line)
        kinds = [kind for kind in OPTIONS if kind in spec.value]
        strange = [key for key in spec.value if key not in OPTIONS["int"]]
        remedy = nearest(strange[0], OPTIONS) if strange and not kinds else "a fixed value stands alone, name: value"
        self.need(len(kinds) == 1, item, f"{name!r} must have one of the keys {', '.join(OPTIONS)}", remedy)
        self.mapping(spec, repr(name), (kinds[0], *OPTIONS[kinds[0]]))
        read = self.choice if kinds[0] in ("choice", "fixed") else self.range
        field = read(name, kinds[0], spec.value)
        for value in _probes(field):
            problem = illegal_value(name, value, self.vocabulary)
            if problem is not None:
                self.fail(spec.value[kinds[0]], f"{name!r}: {problem}")
        field = self.with_prior(field, spec.value.get("prior"))
        return replace(field, line=item.line, when=self.conditions(field, spec, earlier))

    def range(self, name: str, kind: Any, spec: Mapping[str, Item]) -> Field:
        ends = spec[kind]
        pair = isinstance(ends.value, list) and len(ends.value) == 2
        self.need(pair, ends, f"{name!r} must be {kind}: [low, high]", "give two numbers")
        read = self.whole if kind == "int" else self.number
        low, high = (read(end, f"a bound of {name!r}", at=ends) for end in ends.value)
        self.need(low < high, ends, f"low < high must hold for {name!r}", f"to fix the value, write {name}: {low}")
        log = spec.get("log", Item(False))
        self.need(isinstance(log.value, bool), log, f"log of {name!r} must be true or false", "write log: true")
        self.need(
            not log.value or low > 0, ends, f"a log range must begin above 0 for {name!r}", "raise low or drop log"
        )
        spread = self.number(spec.get("spread", Item(SPREAD)), f"spread of {name!r}", low=0.001, high=1)
        step = self.whole(spec["step"], f"step of {name!r}", low=1) if "step" in spec else 1
        if step != 1:
            whole_steps = not log.value and (high - low) % step == 0
            rule = f"step of {name!r} must divide high - low and not stand beside log"
            self.need(whole_steps, spec["step"], rule, "change high, or drop one")
        return Field(name, kind, low=low, high=high, log=log.value, step=step, spread=spread)

    def choice(self, name: str, kind: str, spec: Mapping[str, Item]) -> Field:
        offered = spec[kind].value if kind == "choice" else [spec[kind]]
        filled = isinstance(offered, list) and len(offered) > 0
        self.need(filled, spec[kind], f"{name!r} must be choice: [a, b, …]", "list at least one value")
        values: list[Value] = []
        for entry in offered:
            scalar = isinstance(entry.value, Value) and not _endless(entry.value)
            self.need(scalar, entry, f"{name!r} must be a number, a word or true/false", "put quotes around a word")
            self.need(not among(entry.value, values), entry, f"choices of {name!r} must differ", "remove the second")
            values.append(entry.value)
        return Field(name, "choice", choices=tuple(values))

    def with_prior(self, field: Field, item: Item | None) -> Field:
        if item is None:
            return field
        rule = field.misfit(item.value)
        self.need(rule is None, item, f"prior of {field.name!r} must be {rule}", "choose one inside")
        return replace(field, prior=field.canonical(item.value)) if field.searched else field

    # ---- conditions

    def conditions(self, field: Field, spec: Item, earlier: Mapping[str, Field]) -> Conditions:
        """Those written, and those the name implies: a family's field needs the family, a term its selector."""
        item = spec.value.get("when", Item({}, spec.line))
        written = self.mapping(item, f"when of {field.name!r}", None)
        found = {other: self.condition(field.name, other, values, earlier) for other, values in written.items()}
        section, owner, _ = split(field.name)
        if section in DECIDERS and owner:
            name = DECIDERS[section]
            decider = earlier.get(name)
            rule = f"{field.name!r} must come after a {name} that offers {owner!r}"
            offered = decider is not None and among(owner, decider.choices)
            self.need(offered, spec, rule, "add it there or remove this field", got=_offers(decider))
            rule = f"{field.name!r} exists only where {name} is {owner!r}"
            self.need(found.setdefault(name, (owner,)) == (owner,), item, rule, "drop that condition")
        if section == "terms":
            for selector in earlier.values():
                if selector.name.startswith("select.") and among(owner, selector.choices):
                    found.setdefault(selector.name, (owner,))
        return tuple(found.items())

    def condition(self, name: str, other: str, item: Item, earlier: Mapping[str, Field]) -> tuple[Value, ...]:
        rule = f"a condition of {name!r} must be on a field earlier in the file"
        self.need(other in earlier, item, rule, nearest(other, earlier), got=repr(other))
        decider = earlier[other]
        entries = item.value if isinstance(item.value, list) and item.value else [item]
        for entry in entries:
            wrong = "a choice or an int" if decider.kind == "float" else decider.misfit(entry.value)
            rule = f"a condition of {name!r} must name a value that {other!r} can take, {wrong}"
            self.need(wrong is None, entry, rule, "name one of these")
        return tuple(decider.canonical(entry.value) for entry in entries)

    def check_terms(self, fields: Mapping[str, Field]) -> None:
        """Each term has a weight wherever it has anything."""
        for field in fields.values():
            section, owner, _ = split(field.name)
            if section == "terms":
                weight = fields.get(f"terms.{owner}.weight")
                where = f"wherever {field.name!r} exists"
                whole = weight is not None and _implies(field.when, weight.when)
                rule = f"'terms.{owner}.weight' must exist {where}"
                got = "none" if weight is None else f"{len(weight.when)} conditions, not all of them here"
                self.need(whole, Item(None, field.line), rule, "add it under the same conditions", got=got)

    def check_selectors(self, fields: Mapping[str, Field]) -> None:
        """Each word of a selector decides something (in a file; a stored space may have lost what it decided)."""
        offered: dict[Value, str] = {}
        for selector in (field for field in fields.values() if field.name.startswith("select.")):
            line = Item(None, selector.line)
            for word in (choice for choice in selector.choices if choice != "none"):
                weight = fields.get(f"terms.{word}.weight")
                if weight is not None:
                    rule = f"{selector.name!r} must come before the terms it offers, and alone offer them"
                    alone = word not in offered and selector.name in dict(weight.when)
                    self.need(alone, line, rule, "move it up, or remove the word elsewhere", got=repr(word))
                    offered[word] = selector.name
                elif word in self.vocabulary.objectives:
                    rule = f"an objective that {selector.name!r} offers must have a field terms.{word}.weight"
                    self.need(False, line, rule, "add it", got="none")
                elif selector.line is not None and not _decides(selector.name, word, fields.values()):
                    rule = f"{selector.name!r} offers {word!r}, which decides nothing and is no objective"
                    self.fail(line, f"{rule}; {nearest(word, ('none', *self.vocabulary.objectives))}")

    # ---- published recipes

    def published(self, item: Item, fields: Mapping[str, Field]) -> Iterable[Published]:
        self.need(isinstance(item.value, list), item, "first must be a list", "begin each entry with - name:")
        for entry in item.value:
            keys = self.mapping(entry, "an entry of first", ("name", "set"), required=("name", "set"))
            title = self.word(keys["name"], "name")
            settings = self.mapping(keys["set"], f"set of {title!r}", None)
            values = tuple((name, self.setting(title, name, value, fields)) for name, value in settings.items())
            found = Published(title, values)
            problem = misplaced(found, tuple(fields.values()))
            if problem is not None:
                self.fail(entry, f"first entry {title!r}: {problem}")
            yield found

    def setting(self, title: str, name: str, item: Item, fields: Mapping[str, Field]) -> Value:
        rule = f"first entry {title!r} must set fields of the space"
        self.need(name in fields, item, rule, nearest(name, fields), got=repr(name))
        rule = f"first entry {title!r}: {name!r} must be {fields[name].misfit(item.value)}"
        self.need(fields[name].misfit(item.value) is None, item, rule, "choose a value inside")
        return fields[name].canonical(item.value)

    # ---- small checks

    def mapping(
        self, item: Item, what: str, known: Sequence[str] | None, required: Sequence[str] = ()
    ) -> dict[str, Item]:
        """The entries of a mapping that holds `required` and nothing but `known` (None: anything)."""
        entries: dict[str, Item] = item.value
        remedy = f"it may hold {', '.join(known)}" if known else "write {name: value}"
        self.need(isinstance(entries, dict), item, f"{what} must be a mapping", remedy)
        for key in entries:
            if known is not None and key not in known:
                self.fail(entries[key], f"{what} has no key {key!r}; {nearest(key, known)}")
        for key in required:
            self.need(key in entries, item, f"{what} must hold {key!r}", "add it", got=", ".join(entries) or "nothing")
        return entries

    def number(
        self, item: Item, what: str, low: float = -LARGEST, high: float = LARGEST, at: Item | None = None
    ) -> float:
        number = isinstance(item.value, int | float) and not isinstance(item.value, bool) and low <= item.value <= high
        rule = f"{what} must be a number{_between(low, high)}"
        self.need(number, at or item, rule, "write a finite number without quotes", str(item))
        return float(item.value)

    def whole(self, item: Item, what: str, low: int = -LARGEST, high: int = LARGEST, at: Item | None = None) -> int:
        whole = isinstance(item.value, int) and not isinstance(item.value, bool) and low <= item.value <= high
        rule = f"{what} must be a whole number{_between(low, high)}"
        self.need(whole, at or item, rule, "write it without a point or quotes", str(item))
        return int(item.value)

    def word(self, item: Item, what: str) -> str:
        self.need(isinstance(item.value, str), item, f"{what} must be text", "put quotes around it")
        return str(item.value)

    def need(self, holds: bool, item: Item, rule: str, remedy: str, got: str | None = None) -> None:
        """Fail with "rule, got value; remedy" unless `holds`."""
        if not holds:
            self.fail(item, f"{rule}, got {item if got is None else got}; {remedy}")

    def fail(self, item: Item, problem: str) -> NoReturn:
        fail(self.origin, item.line, problem)


def _between(low: float, high: float) -> str:
    """The bounds in words, as far as there are any."""
    if high < LARGEST:
        return f" in [{low}, {high}]"
    return f" of at least {low}" if low > -LARGEST else ""


def _decides(selector: str, word: Value, fields: Iterable[Field]) -> bool:
    """Whether some condition asks for this word."""
    return any(among(word, dict(field.when).get(selector, ())) for field in fields)


def _endless(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _offers(field: Field | None) -> str:
    return "none before it" if field is None else ", ".join(map(str, field.choices))


def _implies(narrow: Conditions, wide: Conditions) -> bool:
    """Whether `wide` holds wherever `narrow` does, as far as their texts tell."""
    given = dict(narrow)
    return all(name in given and all(among(value, values) for value in given[name]) for name, values in wide)


def _probes(field: Field) -> tuple[Value, ...]:
    """Values that show whether a range is legal: its ends, and a broken number between them for floats."""
    if field.kind == "choice":
        return field.choices
    if field.kind == "int":
        return int(field.low), int(field.high)
    return field.low, field.high, field.low + 0.381966 * (field.high - field.low)
