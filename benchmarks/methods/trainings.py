"""Trainings, each in a lane of its own, as a user would start them: `autokd.distill`. What has been trained is kept and not trained again."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import autokd
from autokd.recipe import Recipe
from benchmarks.methods.worlds import world
from benchmarks.progress import bars


@dataclass(frozen=True)
class Cell:
    """One training."""

    system: str
    recipe: str  # JSON
    seed: int
    epochs: int
    data: str
    share: float = 1.0  # of the student's rows
    teacher: str = "plain"

    @property
    def key(self) -> str:
        told = {**asdict(self), "recipe": Recipe.from_json(self.recipe).id, "system": ""}
        return json.dumps(told, sort_keys=True)


Line = dict[str, Any]  # accuracy on the test split, seconds of training, and the cell's key; or failed


def trained(cells: Sequence[Cell], folder: Path, results: Path, lanes: int) -> dict[Cell, Line]:
    """Every cell's line. `results` is a file of lines to which new ones are added."""
    known = _known(results)
    missing = list({cell.key: cell for cell in cells if cell.key not in known}.values())
    if missing:
        results.parent.mkdir(parents=True, exist_ok=True)
        for place in sorted({(cell.data, cell.share, cell.teacher) for cell in missing}):
            world(place[0], folder, place[1], place[2])  # teachers are trained here, once, and then found
        with results.open("a") as file:
            for line in _in_lanes(missing, folder, results.with_name("tape"), lanes):
                file.write(json.dumps(line) + "\n")
                file.flush()
                known[line["key"]] = line
    return {cell: known[cell.key] for cell in cells}


def _known(results: Path) -> dict[str, Line]:
    if not results.exists():
        return {}
    lines = map(json.loads, results.read_text().splitlines())
    return {line["key"]: line for line in lines}


def _in_lanes(cells: Sequence[Cell], folder: Path, tape: Path, lanes: int) -> Iterable[Line]:
    """As they end; one lane is this process."""
    if lanes == 1:
        yield from (train(cell, folder, tape) for cell in cells)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(lanes, mp_context=context) as pool, bars() as progress:
        bar = progress.add_task("trainings", total=len(cells))
        for done in as_completed([pool.submit(train, cell, folder, tape) for cell in cells]):
            progress.advance(bar)
            yield done.result()


def train(cell: Cell, folder: Path, tape: Path) -> Line:
    """A training that fails is a result, too."""
    teacher = world(cell.data, folder, cell.share, cell.teacher)
    line: Line = {"key": cell.key, "system": cell.system, "seed": cell.seed, "epochs": cell.epochs}
    try:
        done = autokd.distill(
            teacher, Recipe.from_json(cell.recipe), epochs=cell.epochs, seed=cell.seed, tape=tape, verbose=False
        )
    except autokd.errors.TrialFailure as failure:
        return {**line, "failed": str(failure)}
    return {**line, "accuracy": done.test["accuracy"], "seconds": sum(log["seconds"] for log in done.history)}
