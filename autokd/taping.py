"""Where a search's tape lies and what goes onto it, decided before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from autokd.core.headed import with_heads
from autokd.core.payload import TapePlan, plan_payload
from autokd.core.tape_store import default_folder, default_limit, parse_size, size_words
from autokd.errors import InputError
from autokd.objectives import resolve
from autokd.space import Space
from autokd.teacher import Teacher

COHORT = 4  # trials that share a live teacher: at T = 5·S they take 9/24 of the time
VIEWS = ("optim.batch", *(f"augment.{name}" for name in ("policy", "chain", "p", "rho", "magnitude", "crops")))


@dataclass(frozen=True)
class TapePlace:
    folder: Path
    limit: int  # bytes


@dataclass(frozen=True)
class Told:
    """The plan in words."""

    words: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.words


def tape_place(tape: bool | str | Path, limit: str | int | None) -> TapePlace | None:
    """The folder and its size, None for no tape. Raises InputError for a size that is none, or what is no folder."""
    if tape is False:
        if limit is not None:
            raise InputError(f"tape_limit={limit!r} needs a tape, got tape=False; leave one of them out")
        return None
    folder = default_folder() if tape is True else _folder(tape)
    return TapePlace(folder, default_limit(folder) if limit is None else parse_size(limit))


def _folder(named: object) -> Path:
    """Raises InputError for what cannot be a folder."""
    if not isinstance(named, str | Path) or not str(named).strip():
        raise InputError(f"tape must be a folder, True or False, got {named!r}; leave it out for the user's cache")
    try:
        folder = Path(named).expanduser().resolve()
        there = folder.exists()
    except (OSError, RuntimeError, ValueError) as error:  # no rights, no such user, no possible name
        raise InputError(f"tape must be a folder that can be used, got {str(named)!r}: {error}; name another") from None
    if there and not folder.is_dir():
        raise InputError(f"tape must be a folder, got the file {folder}; name another place or leave it out")
    return folder


def tape_plan(
    teacher: Teacher, objectives: Iterable[str], epochs: int, place: TapePlace | None
) -> tuple[TapePlan | None, Told]:
    """What is recorded for these objectives and trainings of `epochs` epochs, and what that is in words."""
    if place is None:
        return None, Told("none: the teacher runs in every trial")
    classes = [resolve(name) for name in objectives]
    wanted = frozenset[str]().union(*(each.recorded or each.needs for each in classes))
    rows = len(teacher.data.train.y)
    shapes = with_heads(teacher.shapes, frozenset[str]().union(*(each.teacher_heads for each in classes)))
    payload = plan_payload(shapes, wanted, rows, epochs, place.limit)
    if not payload.fields:
        return None, Told("none: the teacher runs in every trial", payload.notes)
    plan = TapePlan(str(place.folder), place.limit, payload.fields, teacher.name)
    each = size_words(payload.bytes_per_row * rows)
    words = f"{', '.join(sorted(payload.fields))}; {each} an epoch in {place.folder}, at most {size_words(place.limit)}"
    return plan, Told(words, payload.notes)


def cohort_size(space: Space, plan: TapePlan | None) -> int:
    """How many trials a lane takes at a time, so that those which read the teacher live can share it.

    More than one only where such trials always agree in their batches: a space with one batch size and one view policy. Elsewhere
    few would meet, and the others would wait for each other.
    """
    recorded = plan.payload if plan else frozenset[str]()
    classes = [resolve(name) for name in space.objectives]
    some_live = any(not (each.recorded or each.needs) <= recorded for each in classes)
    alike = not any(field.searched for field in space.fields if field.name in VIEWS)
    return COHORT if some_live and alike else 1
