"""A search space: a distribution over recipes, with conditions and priors.

A *point* gives a value to every field that exists there; `space.recipe(point)` is the recipe it stands for. Spaces are
read from YAML (see space_file.py for the format) by shipped name or path, and survive a JSON round trip.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autokd.errors import RecipeError, SpaceError, nearest
from autokd.recipe import Recipe
from autokd.rules import Value, Vocabulary
from autokd.space_fields import Field, Point, Suggests, among, complete
from autokd.space_file import VERSION, Published, misplaced, read_content
from autokd.space_names import recipe_values, split
from autokd.space_yaml import Item, as_items, one_line, read_yaml

TRIED = 64  # points turned into recipes when a space is read


@dataclass(frozen=True)
class Space:
    """Fields in the order in which they are decided; conditions look back only."""

    name: str
    about: str
    task: str
    epochs: int  # of a full training, unless the budget says less
    fields: tuple[Field, ...]
    published: tuple[Published, ...]  # what the file sets; `first` has the whole points
    text: str  # the file, for the record
    vocabulary: Vocabulary = field(compare=False, repr=False)

    # ---- reading and writing

    @classmethod
    def load(cls, source: str | Path | Space, vocabulary: Vocabulary) -> Space:
        """A shipped space by name, or a file by path. Raises SpaceError."""
        if isinstance(source, Space):
            return source
        if not isinstance(source, str | Path):
            raise SpaceError(f"a space must be a name or a path, got {type(source).__name__}; {_shipped_hint()}")
        path = Path(source)
        if isinstance(source, str) and source in shipped_spaces():
            path = spaces_folder() / f"{source}.yaml"
        elif path.suffix not in (".yaml", ".yml"):
            raise SpaceError(
                f"unknown space {Item(str(source))}; {nearest(source, shipped_spaces())}; or a path to a .yaml"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text or not a path"
            raise SpaceError(f"{one_line(path)}: a space file must be readable: {reason}; {_shipped_hint()}") from None
        return cls.parse(text, vocabulary, origin=str(path))

    @classmethod
    def parse(cls, text: str, vocabulary: Vocabulary, origin: str = "<text>") -> Space:
        """A space from YAML. Raises SpaceError, which begins with `origin` and the line."""
        name = Path(origin).stem if origin.endswith((".yaml", ".yml")) else origin
        return cls._read(read_yaml(text, origin), vocabulary, origin, name, text)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: `Space.from_dict(space.to_dict(), space.vocabulary) == space`."""
        return {
            "version": VERSION,
            "name": self.name,
            "about": self.about,
            "task": self.task,
            "epochs": {"max": self.epochs},
            "fields": [entry.to_dict() for entry in self.fields],
            "first": [{"name": entry.name, "set": dict(entry.values)} for entry in self.published],
            "text": self.text,
        }

    @classmethod
    def from_dict(cls, data: object, vocabulary: Vocabulary) -> Space:
        """The inverse of `to_dict`, with the checks of a file. Raises SpaceError."""
        origin = "stored space"
        if not isinstance(data, Mapping) or not isinstance(data.get("fields"), list):
            raise SpaceError(
                f"{origin}: must be an object with a list of fields, got {as_items(data)}; use space.to_dict()"
            )
        named: dict[str, Any] = {}
        for entry in data["fields"]:
            if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str) or entry["name"] in named:
                raise SpaceError(
                    f"{origin}: each field must have a name of its own, got {as_items(entry)}; use space.to_dict()"
                )
            named[entry["name"]] = {key: value for key, value in entry.items() if key != "name"}
        read = {key: value for key, value in data.items() if key not in ("name", "text")}
        root = as_items({**read, "fields": named})
        return cls._read(root, vocabulary, origin, str(data.get("name", origin)), str(data.get("text", "")))

    @classmethod
    def _read(cls, root: Item, vocabulary: Vocabulary, origin: str, name: str, text: str) -> Space:
        content = read_content(root, origin, vocabulary)
        about, task, epochs = content.about, content.task, content.epochs
        space = cls(name, about, task, epochs, content.fields, content.published, text, vocabulary)
        space._try_points(origin)
        return space

    def _try_points(self, origin: str) -> None:
        """Turn some points into recipes, to catch rules that join several fields."""
        draw = random.Random(0)
        sampled = (self.quantile([draw.random() for _ in self.fields]) for _ in range(TRIED))
        for point in (self.prior_point(), *(point for _, point in self.first), *sampled):
            try:
                self.recipe(point)
            except RecipeError as error:
                remedy = "add a condition or narrow a range"
                raise SpaceError(f"{origin}: a point of the space is no recipe: {one_line(error)}; {remedy}") from None

    # ---- points

    def active(self, point: Mapping[str, Value]) -> tuple[Field, ...]:
        """The fields that exist at `point`."""
        return tuple(entry for entry in self.fields if entry.active(point))

    def dimension(self, point: Mapping[str, Value]) -> int:
        """How many existing fields are searched there."""
        return sum(entry.searched for entry in self.active(point))

    def complete(self, partial: Mapping[str, Value]) -> Point:
        """A whole point: what does not exist is dropped, what is missing takes its prior. Raises SpaceError."""
        return complete(self.fields, partial)

    def prior_point(self) -> Point:
        """Every field at its prior, or in the middle of its range."""
        return self.complete({})

    @property
    def first(self) -> tuple[tuple[str, Point], ...]:
        """Published recipes, to be tried first: name and point."""
        return tuple((entry.name, self.complete(dict(entry.values))) for entry in self.published)

    def quantile(self, u: Sequence[float], prior: bool = False) -> Point:
        """The point at `u`, one number in [0, 1) per field: uniform over the ranges, or drawn to the priors."""
        point: Point = {}
        for entry, share in zip(self.fields, u, strict=True):
            if entry.active(point):
                point[entry.name] = entry.quantile(share, prior)
        return point

    def suggest(self, trial: Suggests) -> Point:
        """Ask an Optuna-like trial for every searched field that exists, in order."""
        point: Point = {}
        for entry in self.fields:
            if entry.active(point):
                point[entry.name] = entry.suggest(trial)
        return point

    def recipe(self, point: Mapping[str, Value]) -> Recipe:
        """The recipe a point stands for, checked. Raises RecipeError."""
        return Recipe.from_flat(recipe_values(point, self.vocabulary)).check(self.vocabulary)

    # ---- smaller spaces

    @property
    def objectives(self) -> tuple[str, ...]:
        """Objectives that have a weight in this space."""
        parts = [split(entry.name) for entry in self.fields]
        return tuple(part.owner for part in parts if part.section == "terms" and part.field == "weight")

    def restrict(self, objectives: Sequence[str]) -> Space:
        """Only these objectives; terms of others and the choices that activate them are removed. Raises SpaceError."""
        for name in objectives:
            if name not in self.vocabulary.objectives:
                raise SpaceError(f"unknown objective {name!r}; {nearest(name, self.vocabulary.objectives)}")
            if name not in self.objectives:
                has = ", ".join(self.objectives) or "none"
                raise SpaceError(
                    f"objective {name!r} has no field terms.{name}.weight in '{self.name}'; add one (it has {has})"
                )
        gone = set(self.objectives) - set(objectives)
        kept = [
            entry for entry in self.fields if not (entry.name.startswith("terms.") and split(entry.name).owner in gone)
        ]
        for place, entry in enumerate(kept):
            if entry.name.startswith("select."):
                kept[place] = entry.with_choices([word for word in entry.choices if word not in gone] or ["none"])
        return self._with_fields(kept)

    def with_families(self, names: Sequence[str]) -> Space:
        """Only these student families; one without fields takes its defaults. Raises SpaceError if one is unknown."""
        for name in names:
            if name not in self.vocabulary.families:
                raise SpaceError(f"unknown student family {name!r}; {nearest(name, self.vocabulary.families)}")
        if not names or len(set(names)) < len(names):
            raise SpaceError(f"families must be a list of different names, got {list(names)}; name at least one")
        kept = [e for e in self.fields if split(e.name)[0] != "student" or split(e.name).owner in ("", *names)]
        return self._with_fields([e.with_choices(names) if e.name == "student.family" else e for e in kept])

    def _with_fields(self, fields: Iterable[Field]) -> Space:
        """The space with fewer fields or choices; conditions and published recipes that cannot hold any more go too."""
        kept: dict[str, Field] = {}
        for entry in fields:
            when = tuple((name, _possible(kept.get(name), values)) for name, values in entry.when)
            if all(values for _, values in when):
                kept[entry.name] = replace(entry, when=when)
        left = tuple(kept.values())
        published = tuple(entry for entry in self.published if misplaced(entry, left) is None)
        return replace(self, fields=left, published=published)


def _possible(decider: Field | None, values: tuple[Value, ...]) -> tuple[Value, ...]:
    """Those of a condition's values that the field it looks at can still take."""
    if decider is None or decider.kind != "choice":
        return values if decider is not None else ()
    return tuple(value for value in values if among(value, decider.choices))


def spaces_folder() -> Path:
    """Where the shipped spaces lie: inside the installed package, else beside it in the source tree."""
    inside = Path(__file__).parent / "search_spaces"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "search_spaces"


def shipped_spaces() -> list[str]:
    """Names that `Space.load` knows; "papers/…" hold one published system each."""
    folder = spaces_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def _shipped_hint() -> str:
    return f"shipped spaces: {', '.join(shipped_spaces()) or '(none)'}"
