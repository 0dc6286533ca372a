"""Trials trained by whole recorded steps, and the same ones by launches, on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import KD, images, order, recipe, taped
from torch import Tensor

from autokd.core import checkpoint
from autokd.core.core import TrainingCore
from autokd.core.graphs import CudaCapture
from autokd.core.pool import Pool, Pools
from autokd.core.recording import Replay, Twin
from autokd.orders import Report
from autokd.recipe import Recipe

SMALL: dict[str, Any] = {"batch": 6}  # 39 rows: seven steps, of six rows and of five
ADAMW: dict[str, Any] = {**SMALL, "name": "adamw", "lr": 0.005}
JDA = {"policy": "jda", "rho": 0.5, "ccd": True}
MANY = tuple(
    {"objective": name, "weight": 0.5, "schedule": "linear", "share": 0.5}
    for name in ("kd", "dist", "fitnet", "at", "rkd")
)
CASES: dict[str, dict[str, Any]] = {
    "kd": {"terms": (KD,)},
    "kd, adamw": {"terms": (KD,), "optim": ADAMW},
    "kd, no momentum": {"terms": (KD,), "optim": {**SMALL, "momentum": 0.0, "schedule": "constant"}},
    "whole views": {"terms": (KD,), "augment": JDA},
    "two whole views": {"terms": (KD,), "augment": {**JDA, "rho": 0.667, "ccd_normalise": True, "ccd_form": "centred"}},
    "a peer": {"terms": (KD,), "peers": {"count": 1, "temperature": 2.0}},
    "no teacher": {"terms": ()},
    "many objectives": {"terms": MANY},
    "taught by itself": {"terms": tuple({"objective": name, "weight": 0.5} for name in ("byot", "past", "tfkd_reg"))},
    "decoupled": {"terms": ({"objective": "dkd", "weight": 0.5},)},
    "plain rows": {"terms": (KD,), "augment": {"policy": "none"}},
}


class Counting(Twin):
    """Counts recordings, replays, and recordings that were freed."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.records, self.replays, self.freed = error, 0, 0, 0

    def record(self, work: Callable[[], None]) -> Replay:
        self.records += 1
        if self.error is not None:
            raise self.error
        return _Counted(super().record(work), self)


class _Counted:
    def __init__(self, recording: Replay, of: Counting) -> None:
        self.recording, self.of = recording, of

    def replay(self) -> None:
        self.of.replays += 1
        self.recording.replay()

    def reset(self) -> None:
        self.of.freed += 1
        self.recording.reset()


def small(**fields: Any) -> Recipe:
    return recipe(**{"optim": SMALL, **fields})


def launched(folder: Path, **more: Any) -> TrainingCore:
    """A core without whole steps, its tape beside it."""
    its_core = taped(folder, more.pop("tape", folder / "tape"), more.pop("data", None) or images(60), **more)
    its_core.pools = None
    return its_core


def recorded(folder: Path, capture: Twin | None = None, most: int = 8, **more: Any) -> TrainingCore:
    """The same with whole steps: CUDA graphs on a GPU, else by their twin."""
    its_core = launched(folder, **more)
    device = its_core.setting.device
    make = partial(CudaCapture, device) if its_core.setting.on_gpu else lambda: capture or Twin()
    its_core.pools = Pools(make, most)
    return its_core


def pool_of(its_core: TrainingCore) -> Pool:
    """Of a lane on a CPU."""
    assert its_core.pools is not None
    return its_core.pools.of(None)


def train(its_core: TrainingCore, of: Recipe, to: int, start: int = 0, trial: str = "t", seed: int = 0) -> Report:
    return its_core.advance(replace(order(of, to=to, start=start, total=4, seed=seed), trial=trial))


def state(its_core: TrainingCore, trial: str = "t") -> dict[str, Tensor]:
    """Weights, statistics and optimiser state in a trial's checkpoint."""
    return checkpoint.load(its_core.checkpoint_path(trial))[0]


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 2e-5) -> None:
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def losses(report: Report) -> list[float]:
    return [row["loss"] for row in report.history]


def alone(folder: Path, of: Sequence[Recipe], epochs: int, **more: Any) -> list[dict[str, Tensor]]:
    """Where each recipe ends when it is trained without the others and without recordings."""
    ends = []
    for number, each in enumerate(of):
        its_core = launched(folder / str(number), tape=folder / "tape", **more)
        train(its_core, each, epochs)
        ends.append(state(its_core))
    return ends


def in_turns(its_core: TrainingCore, of: Sequence[Recipe], epochs: int) -> list[Report]:
    """Every recipe a trial, each an epoch at a time, from checkpoint to checkpoint."""
    for epoch in range(epochs):
        reports = [train(its_core, each, epoch + 1, epoch, trial=str(n)) for n, each in enumerate(of)]
    return reports


def two_trials(how: str) -> list[Recipe]:
    """Of one structure, with other numbers wherever there are dials, and another schedule."""
    fields = CASES[how]
    optim = {**SMALL, **fields.get("optim", {})}
    other = {"objective": "kd", "weight": 0.4, "temperature": 2.5, "schedule": "linear", "share": 0.5}
    terms = tuple({**other} if term["objective"] == "kd" else {**term, "weight": 0.2} for term in fields["terms"])
    optim_of_other = {**optim, "lr": 0.3 * optim.get("lr", 0.05), "weight_decay": 0.02, "schedule": "constant"}
    peers = {**fields.get("peers", {}), "weight": 0.3, "temperature": 3.0}
    second = {**fields, "terms": terms, "optim": optim_of_other, "peers": peers, "ce_weight": 0.6}
    return [recipe(**{**fields, "optim": optim}), recipe(**second)]


def never_at_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few epochs: whether a student has learned enough is not the question."""
    monkeypatch.setattr("autokd.core.core.SETTLED", 100)
