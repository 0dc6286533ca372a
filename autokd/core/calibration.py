"""How a student is run fastest on this device: a few real steps of each candidate, measured once per shape and remembered.

Precision first, then the layout of images in memory, then (on a GPU, where the remaining steps pay for it) a compiled forward pass.
A trial too short to pay for its own measurement takes that of its family.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from autokd.core.device import Setting, candidates
from autokd.core.tape_folder import held
from autokd.recipe import Recipe

MARGIN = 0.95  # a candidate replaces the simpler one if it saves at least 5 %: timings are noisy
STEPS = 4  # steps of one candidate, the first to warm up; the fastest counts, since noise only ever adds
WORTH = 0.04  # share of a trial's remaining steps that its own measurement may take
COMPILE_SECONDS = 60.0  # what compiling a small network may take; tried only where it can be saved
COMPILE_GAIN = 0.3  # of a step, at most, that a compiled forward pass saves
FOLDER = "calibration"  # in a search's folder of checkpoints
PATIENCE, PAUSE = 120.0, 0.05  # seconds to wait for a lane that measures the same, and between two looks

Measure = Callable[[Recipe, Setting, int], list[float]]  # seconds of each of some steps
CHOICE = ("precision", "layout", "compiled")


class Calibrator:
    """Chooses the setting of each student. What it found lies in `folder`, one small file a shape, for all lanes of a search."""

    def __init__(self, base: Setting, measure: Measure, folder: Path | None = None) -> None:
        self.base, self._measure, self._memory = base, measure, _Memory(folder)
        self.notes: list[str] = []  # what was chosen for the first student of each family, in words

    def setting_for(self, recipe: Recipe, steps_left: int) -> Setting:
        """The remembered or measured choice for this student. Raises whatever the student raises when it is trained."""
        keys: tuple[str, ...] = _keys(recipe, self.base)
        if STEPS * self._most_candidates <= WORTH * steps_left:
            keys = keys[:1]  # its own measurement pays
        found = self._memory.recall(*keys)
        if found is None:
            with self._memory.claim(keys[-1]):
                found = self._memory.recall(*keys) or self._measured(recipe, steps_left)
        return replace(self.base, **{name: found[name] for name in CHOICE})

    def found(self, recipe: Recipe) -> Mapping[str, Any] | None:
        """What is remembered of this very shape."""
        return self._memory.recall(_keys(recipe, self.base)[0])

    @property
    def _most_candidates(self) -> int:
        return len(candidates(self.base.device)) + 1

    def _measured(self, recipe: Recipe, steps_left: int) -> Mapping[str, Any]:
        found = self._chosen(recipe, steps_left)
        if self._memory.keep(recipe, self.base, found):
            self._tell(recipe, found)
        return found

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
        if may_compile(self.base, fastest * steps_left):
            best, fastest = _better(best, fastest, replace(best, compiled=True), seconds)
        return {**{name: asdict(best)[name] for name in CHOICE}, "milliseconds": {k: 1e3 * v for k, v in table.items()}}

    def _tell(self, recipe: Recipe, found: Mapping[str, Any]) -> None:
        chosen = replace(self.base, **{name: found[name] for name in CHOICE})
        measured = "; ".join(f"{name}: {each:.1f} ms a step" for name, each in found["milliseconds"].items())
        self.notes.append(f"{recipe.student.family} students run in {chosen} ({measured})")


def hand_on(folder: Path, base: Setting, recipe: Recipe, found: Mapping[str, Any], seconds: float) -> None:
    """Leave in `folder`, for the lanes, what was measured before there was one.

    Not where a training of so many `seconds` would pay for trying to compile, which is measured only there.
    """
    if not may_compile(base, seconds):
        _Memory(folder).keep(recipe, base, found)


def may_compile(base: Setting, seconds_left: float) -> bool:
    """On a CPU a compiled forward pass of a convolutional student saves nothing (6 % measured, for 38 s): not tried."""
    return base.on_gpu and COMPILE_GAIN * seconds_left > COMPILE_SECONDS


# ---- memory


class _Memory:
    """What was found, by key: in this process, and in the folder if there is one."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._known: dict[str, Mapping[str, Any]] = {}

    def recall(self, *keys: str) -> Mapping[str, Any] | None:
        """What is known under the first of these keys that has something."""
        return next((found for found in map(self._recalled, keys) if found is not None), None)

    def keep(self, recipe: Recipe, base: Setting, found: Mapping[str, Any]) -> bool:
        """Remember it of this shape, and of its family if it is the first there, which is the answer."""
        own, family = _keys(recipe, base)
        self._remember(own, found)
        if self.recall(family) is not None:
            return False
        self._remember(family, found)
        return True

    @contextmanager
    def claim(self, key: str) -> Iterator[None]:
        """One lane at a time. It is not waited for without end: who measures may have been stopped."""
        until = time.monotonic() + PATIENCE
        with ExitStack() as stack:
            while not self._claimed(stack, key) and time.monotonic() < until:
                time.sleep(PAUSE)
            yield

    def _claimed(self, stack: ExitStack, key: str) -> bool:
        if self._folder is None:
            return True
        try:
            return stack.enter_context(held(self._folder / f"{key}.lock"))
        except OSError:  # no locks to be had: each measures for itself
            return True

    def _recalled(self, key: str) -> Mapping[str, Any] | None:
        if key not in self._known and self._folder is not None:
            with suppress(OSError, ValueError):  # not there, or torn: measured again
                found = json.loads((self._folder / f"{key}.json").read_text())
                if isinstance(found, dict) and all(name in found for name in CHOICE):
                    self._known[key] = found
        return self._known.get(key)

    def _remember(self, key: str, found: Mapping[str, Any]) -> None:
        self._known[key] = found
        if self._folder is None:
            return
        with suppress(OSError):  # nothing is lost but a measurement
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = self._folder / f"{key}.{os.getpid()}.tmp"
            temporary.write_text(json.dumps(dict(found)))
            os.replace(temporary, self._folder / f"{key}.json")


def _better(
    best: Setting, fastest: float, other: Setting, seconds: Callable[[Setting], float]
) -> tuple[Setting, float]:
    taken = seconds(other)
    return (other, taken) if taken < MARGIN * fastest else (best, fastest)


def _keys(recipe: Recipe, base: Setting) -> tuple[str, str]:
    """Of what decides a step's cost on this machine, and of the student's family."""
    more_rows = {"none": False, "base": False, "jda": True}.get(recipe.augment.policy, recipe.augment.policy)
    shape = [recipe.optim.batch, more_rows, recipe.peers.count]
    return _key(recipe.student.model_dump(), shape, base), _key(recipe.student.family, None, base)


def _key(student: Any, shape: list[Any] | None, base: Setting) -> str:
    text = json.dumps([student, shape, base.device, base.threads, torch.__version__], sort_keys=True)
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
