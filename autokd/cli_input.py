"""What stands on a command line -> teachers, limits and lists of names. Wrong input is told before a teacher is trained."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autokd.errors import InputError, TeacherError, nearest
from autokd.telling import fitting

if TYPE_CHECKING:
    from autokd.data import Data
    from autokd.teacher import Teacher

METRIC = "accuracy"  # of the one task there is
TEACHERS = ("digits", "fit", "fit:mlp", "fit:resnet", "fit:plain", "fit:mobilenet", "models:/")


def check_before_teacher(
    budget: str,
    limits: dict[str, object] | None,
    *,
    objectives: list[str] | None,
    students: list[str] | None,
    goals: list[str] | None,
    prefer: str | None,
    warm_start: list[str] | None,
    space: str | None,
    run_dir: str | None,
    tracking: bool,
    tracking_uri: str | None,
    tape: bool | str,
    tape_limit: str | None,
    **settings: Any,
) -> None:
    """Whatever can be wrong without a teacher is said before one is trained."""
    from autokd.arguments import check_names, check_settings
    from autokd.budget import Budget
    from autokd.constraints import Cost, parse_limits
    from autokd.goals import check_preference, parse_goals
    from autokd.probe import parse_probe
    from autokd.run_folder import RunFolder
    from autokd.taping import tape_place
    from autokd.warm_start import check_sources

    Budget.parse(budget)
    check_settings(**settings)
    check_names(space, objectives, students)
    parse_limits(limits, Cost(1, 1, 1, 1))
    parse_probe(limits, parse_goals(goals, METRIC))
    check_preference(prefer, METRIC)
    tape_place(tape, tape_limit)
    check_sources(warm_start or ())
    if run_dir is not None:
        RunFolder.check_new(run_dir)
    if tracking:
        from autokd.tracking import check

        check(tracking_uri)


def tape_of(value: str | None) -> bool | str:
    """What --tape says: a folder, False for "off", True (the user's cache) where it is left out."""
    return True if value is None else value if value != "off" else False


def ablation_of(word: str) -> bool | str:
    """What --ablation says: "auto", or True for "on" and False for "off"."""
    known: dict[str, bool | str] = {"auto": "auto", "on": True, "off": False}
    if word not in known:
        raise InputError(f"--ablation must be auto, on or off, got '{word}'; {nearest(word, known)}")
    return known[word]


def teacher_of(source: str, data: str | None, root: str | None, verbose: bool, smoother: bool = False) -> Teacher:
    """The teacher named on a command line, made smoother if that is asked for."""
    teacher = _teacher_of(source, data, root, verbose)
    if not smoother:
        return teacher
    from autokd.smoothing import smooth

    with fitting(verbose, "smoothing the teacher") as on_epoch:
        return smooth(teacher, on_epoch=on_epoch)


def _teacher_of(source: str, data: str | None, root: str | None, verbose: bool) -> Teacher:
    from autokd.data import Data
    from autokd.teacher import Teacher

    if source == "digits" and data not in (None, "digits"):
        raise TeacherError(f"--teacher digits is made for the digits, got --data {data}; use --teacher fit with --data")
    if source.partition(":")[0] == "fit" and data is None:
        raise TeacherError("--teacher fit needs the data to fit it to; add --data")
    rows = None if data is None else Data.load(data, root)
    if source == "digits" or source.partition(":")[0] == "fit":
        family = "resnet" if source in ("digits", "fit") else source.partition(":")[2]
        with fitting(verbose) as on_epoch:
            return Teacher.fit(rows or "digits", family, on_epoch=on_epoch)
    if source.startswith(("models:/", "runs:/")) or Path(source).is_dir():
        return Teacher.load(source, rows)
    if ":" in source:
        return _own_teacher(source, rows)
    raise TeacherError(f"unknown teacher '{source}'; {nearest(source, TEACHERS)}; or a folder, or module:attribute")


def _own_teacher(source: str, data: Data | None) -> Teacher:
    """A Teacher, a module, or a function without arguments that makes one."""
    from torch import nn

    from autokd.teacher import Teacher

    module, _, attribute = source.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module is the user's own: whatever it raises is reported in one line
        raise TeacherError(
            f"--teacher {source} must name something importable: {_told(error)}; run where {module or 'your module'}.py lies"
        ) from None
    builder = None
    if not isinstance(found, nn.Module | Teacher) and callable(found):
        builder = source
        try:
            found = found()
        except Exception as error:  # so is the function
            raise TeacherError(
                f"--teacher {source} is called without arguments, and raised {_told(error)}; call it yourself"
            ) from None
    if isinstance(found, Teacher):
        return found
    if data is None:
        raise TeacherError(f"--teacher {source} is a module without data; add --data")
    return Teacher(found, data, name=attribute, builder=builder)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def names_of(option: str, text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"--{option} must name at least one, got '{text}'; leave it out for all")
    return names


def constraints_of(pairs: tuple[str, ...]) -> dict[str, object] | None:
    if not pairs:
        return None
    read: dict[str, object] = {}
    for pair in pairs:
        name, equals, limit = pair.partition("=")
        if not equals:
            raise InputError(f"--constraint must be NAME=LIMIT, got '{pair}'; write for example params=50k")
        read[name.strip()] = limit.strip()
    return read
