"""What can be checked of a search's arguments before there is a teacher, so that none is trained for a search that cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autokd.errors import BudgetError, InputError, nearest
from autokd.objectives import objective_rules
from autokd.objectives import resolve as resolve_objective
from autokd.peers import system_rules
from autokd.rules import OpenRules, Vocabulary
from autokd.space import Space
from autokd.students import families_rules
from autokd.students import resolve as resolve_family

EXECUTORS = ("ray", "inline")
DEVICES = ("cpu", "cuda")


def vocabulary() -> Vocabulary:
    """The names recipes and spaces may use: the registered ones, and "module:attribute" of your own."""
    return Vocabulary(
        OpenRules(families_rules(), lambda name: resolve_family(name).fields),
        OpenRules(objective_rules(), lambda name: resolve_objective(name).fields),
        system_rules(),
        lambda name: resolve_objective(name).rotations,
    )


def check_settings(
    executor: str | None = None,
    lanes: int | None = None,
    epochs: int | None = None,
    seed: int = 0,
    device: str | None = None,
    name: str | None = None,
    ray_address: str | None = None,
    ablation: object = "auto",
) -> None:
    """Raise InputError for what no search can be run with. None is always fine: it asks for the default."""
    if executor is not None and executor not in EXECUTORS:
        raise InputError(f"unknown executor '{executor}'; {nearest(executor, EXECUTORS)}")
    if executor == "inline" and ray_address is not None:
        raise InputError("the inline executor has no cluster: leave out ray_address, or use executor='ray'")
    if lanes is not None and lanes < 1:
        raise InputError(f"lanes must be at least 1, got {lanes}; leave it out for one per core")
    if executor == "inline" and lanes is not None and lanes > 1:
        raise InputError(f"the inline executor has one lane, got lanes={lanes}; leave it out, or use executor='ray'")
    if epochs is not None and epochs < 1:
        raise BudgetError(f"epochs must be at least 1, got {epochs}; leave it out to let the budget decide")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32 - 2000:
        raise InputError(f"a seed must be a whole number from 0 to four billion, got {seed!r}; use 0")
    if name is not None and ("/" in name or "\0" in name or name in ("", ".", "..") or len(name) > 100):
        raise InputError(f"a name must do for a folder, got {name[:110]!r}; leave out slashes, use 1 to 100 characters")
    if not isinstance(ablation, bool) and ablation != "auto":
        raise InputError(f"ablation must be 'auto', True or False, got {ablation!r:.60}; leave it out for 'auto'")
    if device is not None:
        check_device(device)


def check_device(device: str) -> None:
    """Raise InputError unless this machine has the device, "cpu", "cuda" or "cuda:1"."""
    kind, _, index = device.partition(":")
    if kind not in DEVICES or (index and not index.isdecimal()):
        raise InputError(f"unknown device '{device}'; {nearest(kind, DEVICES)}")
    if kind == "cuda":
        from torch import cuda

        count = cuda.device_count()
        if int(index or 0) >= count:
            raise InputError(f"device '{device}' is not there: this machine has {count} GPUs; leave it out")


def check_names(
    space: str | Path | Space | None = None,
    objectives: Sequence[str] | None = None,
    students: Sequence[object] | None = None,
) -> None:
    """Raise InputError for a space, objectives or student families that do not exist, whatever the data."""
    if space is not None:
        Space.load(space, vocabulary())
    for objective in objectives or ():
        resolve_objective(objective)
    for student in students or ():
        resolve_family(student)
