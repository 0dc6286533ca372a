"""How a student is run fastest on this device: a few real steps of each candidate, measured once per shape and remembered.

Precision first, then the layout of images in memory, then (on a GPU, where the remaining steps pay for it) a compiled forward pass.
A trial too short to pay for its own measurement takes that of its family.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from autokd.core.device import Setting, candidates
from autokd.recipe import Recipe

MARGIN = 0.95  # a candidate replaces the simpler one if it saves at least 5 %: timings are noisy
STEPS = 4  # steps of one candidate, the first to warm up; the fastest counts, since noise only ever adds
WORTH = 0.04  # share of a trial's remaining steps that its own measurement may take
COMPILE_SECONDS = 60.0  # what compiling a small network may take; tried only where it can be saved
COMPILE_GAIN = 0.3  # of a step, at most, that a compiled forward pass saves

Measure = Callable[[Recipe, Setting, int], list[float]]  # seconds of each of some steps
CHOICE = ("precision", "layout", "compiled")


class Calibrator:
    """Chooses the setting of each student. What it found lies in `folder`, one small file a shape, for all lanes of a search."""

    def __init__(self, base: Setting, measure: Measure, folder: Path | None = None) -> None:
        self.base, self._measure, self._folder = base, measure, folder
        self.notes: list[str] = []  # what was chosen for the first student of each family, in words
        self._known: dict[str, dict[str, Any]] = {}

    def setting_for(self, recipe: Recipe, steps_left: int) -> Setting:
        """The remembered or measured choice for this student. Raises whatever the student raises when it is trained."""
        own, family = _key(recipe, self.base), _key(recipe, self.base, family_only=True)
        found = self._recall(own)
        if found is None and STEPS * self._most_candidates > WORTH * steps_left:
            found = self._recall(family)
        if found is None:
            found = self._chosen(recipe, steps_left)
            self._remember(own, found)
            if self._recall(family) is None:
                self._remember(family, found)
                self._tell(recipe, found)
        return replace(self.base, **{name: found[name] for name in CHOICE})

    @property
    def _most_candidates(self) -> int:
        return len(candidates(self.base.device)) + 1

    def _chosen(self, recipe: Recipe, steps_left: int) -> dict[str, Any]:
        """Candidates against the best so far, one after the other."""
        table: dict[str, float] = {}

        def seconds(setting: Setting) -> float:
            table[str(setting)] = min(self._measure(recipe, setting, STEPS))
            return table[str(setting)]

        best = replace(self.base, precision="fp32", layout="channels_last", compiled=False)
        fastest = seconds(best)
        for precision in candidates(self.base.device)[1:]:
            best, fastest = _better(best, fastest, replace(best, precision=precision), seconds)
        best, fastest = _better(best, fastest, replace(best, layout="contiguous"), seconds)
        if self._may_compile(fastest * steps_left):
            best, fastest = _better(best, fastest, replace(best, compiled=True), seconds)
        return {**{name: asdict(best)[name] for name in CHOICE}, "milliseconds": {k: 1e3 * v for k, v in table.items()}}

    def _may_compile(self, seconds_left: float) -> bool:
        """On a CPU a compiled forward pass of a convolutional student saves nothing (6 % measured, for 38 s): not tried."""
        return self.base.device.startswith("cuda") and COMPILE_GAIN * seconds_left > COMPILE_SECONDS

    def _tell(self, recipe: Recipe, found: dict[str, Any]) -> None:
        chosen = replace(self.base, **{name: found[name] for name in CHOICE})
        measured = "; ".join(f"{name}: {each:.1f} ms a step" for name, each in found["milliseconds"].items())
        self.notes.append(f"{recipe.student.family} students run in {chosen} ({measured})")

    # ---- memory

    def _recall(self, key: str) -> dict[str, Any] | None:
        if key not in self._known and self._folder is not None:
            with suppress(OSError, ValueError):  # not there, or torn: measured again
                found = json.loads((self._folder / f"{key}.json").read_text())
                if isinstance(found, dict) and all(name in found for name in CHOICE):
                    self._known[key] = found
        return self._known.get(key)

    def _remember(self, key: str, found: dict[str, Any]) -> None:
        self._known[key] = found
        if self._folder is None:
            return
        with suppress(OSError):  # nothing is lost but a measurement
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = self._folder / f"{key}.{os.getpid()}.tmp"
            temporary.write_text(json.dumps(found))
            os.replace(temporary, self._folder / f"{key}.json")


def _better(
    best: Setting, fastest: float, other: Setting, seconds: Callable[[Setting], float]
) -> tuple[Setting, float]:
    taken = seconds(other)
    return (other, taken) if taken < MARGIN * fastest else (best, fastest)


def _key(recipe: Recipe, base: Setting, family_only: bool = False) -> str:
    """Of what decides a step's cost on this machine."""
    student: Any = recipe.student.family if family_only else recipe.student.model_dump()
    rows = None if family_only else [recipe.optim.batch, recipe.augment.policy == "jda", recipe.peers.count]
    text = json.dumps([student, rows, base.device, base.threads, torch.__version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def timed_steps(step: Callable[[], None], steps: int, device: str) -> list[float]:
    """Seconds of each of `steps` calls, the first left out."""
    taken = []
    for _ in range(steps):
        begun = time.perf_counter()
        step()
        if device.startswith("cuda"):
            torch.cuda.current_stream().synchronize()  # of the whole device, it would spoil another lane's capture
        taken.append(time.perf_counter() - begun)
    return taken[1:] or taken
