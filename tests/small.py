"""The public functions with everything expensive made small, so that what is shown to users can be run as it stands."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import autokd
from autokd.teacher import Teacher

SMALL = {"epochs": 1, "executor": "inline", "tracking": False, "verbose": False}


@cache
def small_teacher(data: Any = "digits", *_: Any, **__: Any) -> Teacher:
    """Three quick epochs of a fully connected network of 90,000 parameters."""
    return FIT(data, "mlp", spec={"width": 256, "depth": 2}, epochs=3, cache=False)


FIT = Teacher.fit


def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small networks are not slowed down by threads that wait for a core others use."""
    torch.set_num_threads(1)
    monkeypatch.setattr("autokd.teacher.cpu_count", lambda: 1)


def nothing_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which setting is fastest is for the clock to say; here the simplest one is."""
    monkeypatch.setattr("autokd.core.materials.fastest", lambda timings: "fp32")
    monkeypatch.setattr("autokd.core.calibration.MARGIN", 0.0)


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One trial of one epoch for every search; arguments are still checked as they stand."""
    one_thread(monkeypatch)
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
