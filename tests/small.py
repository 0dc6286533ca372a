"""The public functions with everything expensive made small, so that what is shown to users can be run as it stands."""

from __future__ import annotations

from typing import Any

import pytest

import autokd
from autokd.teacher import Teacher

SMALL = {"epochs": 1, "executor": "inline", "tracking": False, "verbose": False}


def small_teacher(data: Any = "digits", *_: Any, **__: Any) -> Teacher:
    """Two quick epochs of a fully connected network of half a million parameters."""
    return FIT(data, "mlp", epochs=2, cache=False)


FIT = Teacher.fit


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One trial of one epoch for every search; arguments are still checked as they stand."""
    search, resume, distill = autokd.search, autokd.resume, autokd.distill

    def small_search(teacher: Teacher, budget: str, **rest: Any) -> autokd.SearchResult:
        autokd.Budget.parse(budget)
        return search(teacher, "1 trial", **{"students": ["mlp"], **rest, **SMALL})

    def small_resume(run_dir: Any, budget: str, **rest: Any) -> autokd.SearchResult:
        autokd.Budget.parse(budget)
        return resume(run_dir, "1 trial", **{**rest, "verbose": False})

    def small_distill(teacher: Teacher, recipe: Any, **rest: Any) -> autokd.Distilled:
        return distill(teacher, recipe, **{**rest, "epochs": 1, "verbose": False})

    for name, function in {"search": small_search, "resume": small_resume, "distill": small_distill}.items():
        monkeypatch.setitem(vars(autokd), name, function)
    monkeypatch.setattr(Teacher, "fit", small_teacher)
