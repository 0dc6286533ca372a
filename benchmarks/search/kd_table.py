"""The KD table: real distillation trainings of a conditional space, on two problems, with two seeds. One .npz without pickle.

Axes: P problems, R recipes, S seeds, E epochs.

    curves        (P, R, S, E) float16   validation accuracy after each epoch; NaN once a training has failed
    losses        (P, R, S, E) float16   validation cross-entropy in nats, at most 60,000; the engine's tiebreak is its negative
    seconds       (P, R, S) float32      of the processor for an epoch, one thread, median over the training; NaN where no epoch ended
    seconds_min   (P, R, S) float32      of its fastest epoch
    flops         (P, R) float32         of an epoch: student and peers, forward and backward, teacher on tape
    student_flops (P, R) float32         of the student for one image, forward
    params        (P, R) int32           of the student
    failed        (P, R, S) text         "", "nan", "chance" or "exception"
    failed_epoch  (P, R, S) int16        the epoch that did not end with numbers; the last one for "chance"; 0: none
    points, names (R,) text              the point of the space as JSON; its published name or ""
    problems      (P,) text
    space         text                   the YAML
    about         text                   JSON: problems with their teachers, versions
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autokd.errors import InputError
from autokd.space_fields import Point

PATH = Path(__file__).with_name("kd_table.npz")
LARGEST = 60_000.0  # loss that float16 still holds
Array = NDArray[Any]


@dataclass(frozen=True)
class KDTable:
    """What the file holds; arrays as in the module's text."""

    curves: Array
    losses: Array
    seconds: Array
    seconds_min: Array
    flops: Array
    student_flops: Array
    params: Array
    failed: Array
    failed_epoch: Array
    points: tuple[Point, ...]
    names: tuple[str, ...]
    problems: tuple[str, ...]
    space: str
    about: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path = PATH) -> KDTable:
        """Raises InputError where there is no such file."""
        if not Path(path).is_file():
            raise InputError(f"the KD table must be a file, got {path}; make it with benchmarks.search.make_kd_table")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return cls(
            **{name: arrays[name] for name in NUMBERS},
            points=tuple(json.loads(text) for text in arrays["points"]),
            names=tuple(map(str, arrays["names"])),
            problems=tuple(map(str, arrays["problems"])),
            space=str(arrays["space"]),
            about=json.loads(str(arrays["about"])),
        )


NUMBERS = (
    "curves",
    "losses",
    "seconds",
    "seconds_min",
    "flops",
    "student_flops",
    "params",
    "failed",
    "failed_epoch",
)


def pack(about: Mapping[str, Any], trained: Sequence[Mapping[str, Any]], out: Path, partial: bool) -> int:
    """Write the table of what `make_kd_table train` left; how many recipes it has. Raises InputError if some are missing."""
    problems, seeds = [each["name"] for each in about["problems"]], range(about["seeds"])
    by_key = {(each["problem"], each["recipe"], each["seed"]): each for each in trained}
    whole = [
        number
        for number, recipe in enumerate(about["recipes"])
        if all((name, recipe, seed) in by_key for name in problems for seed in seeds)
    ]
    if len(whole) < len(about["recipes"]) and not partial:
        raise InputError(
            f"all {len(about['recipes'])} recipes must be trained, got {len(whole)}; go on with train, or give --partial"
        )
    rows = [[[by_key[name, about["recipes"][number], seed] for seed in seeds] for number in whole] for name in problems]
    prices = np.array(about["prices"])[:, whole]
    np.savez_compressed(
        out,
        **_trainings(rows, about),
        params=prices[..., 0].astype(np.int32),
        student_flops=prices[..., 1].astype(np.float32),
        flops=prices[..., 2].astype(np.float32),
        points=np.array([json.dumps(about["points"][number]) for number in whole]),
        names=np.array([about["names"][number] for number in whole]),
        problems=np.array(problems),
        space=np.array(about["space"]),
        about=np.array(json.dumps({key: about[key] for key in ("epochs", "seeds", "problems", "versions")})),
    )
    return len(whole)


def _trainings(rows: Sequence[Sequence[Sequence[Mapping[str, Any]]]], about: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays with an axis of seeds."""
    epochs, shape = about["epochs"], (len(rows), len(rows[0]), about["seeds"])
    curves, losses = (np.full((*shape, epochs), np.nan) for _ in range(2))
    seconds, fastest = (np.full(shape, np.nan, np.float32) for _ in range(2))
    failed, failed_epoch = np.full(shape, "", dtype="U9"), np.zeros(shape, np.int16)
    for at in np.ndindex(*shape):
        each = rows[at[0]][at[1]][at[2]]
        ended = len(each["accuracy"])
        curves[at][:ended], losses[at][:ended] = each["accuracy"], each["loss"]
        if ended:
            seconds[at], fastest[at] = np.median(each["seconds"]), np.min(each["seconds"])
        if each["failed"]:
            failed[at], failed_epoch[at] = each["failed"]["reason"], ended + 1
        elif each["accuracy"][-1] <= about["problems"][at[0]]["chance"]:
            failed[at], failed_epoch[at] = "chance", epochs
    return {
        "curves": curves.astype(np.float16),
        "losses": np.minimum(losses, LARGEST).astype(np.float16),
        "seconds": seconds,
        "seconds_min": fastest,
        "failed": failed,
        "failed_epoch": failed_epoch,
    }
