"""Searches by method, task and seed, on all cores, kept as JSON lines: what was measured with the same code is not measured again."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks.search import tasks
from benchmarks.search.methods import METHODS
from benchmarks.search.replay import BudgetSpent, Replay, Trajectory

BUDGETS = (2, 5, 10, 20, 50)  # full trainings
Line = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One method on one task with one seed, at all budgets."""

    method: str
    task: str
    seed: int
    unit: str = "epochs"
    most: int = BUDGETS[-1]  # the largest budget

    def key(self) -> tuple[Any, ...]:
        return (*asdict(self).values(), METHODS[self.method].fingerprint(tasks.suite_of(self.task)))


def grid(methods: Iterable[str], names: Sequence[str], seeds: int, unit: str, most: int) -> list[Cell]:
    """Seed by seed, so that a run that is stopped leaves whole comparisons."""
    methods = list(methods)
    return [Cell(m, name, seed, unit, most) for seed in range(seeds) for name in names for m in methods]


def measure(cell: Cell, folder: Path) -> Line:
    """Normalised regret at every budget, and the course of every search as [spent, regret] pairs; `cpu` in seconds."""
    begun = time.process_time()
    table, method = tasks.load(cell.task, folder), METHODS[cell.method]
    budgets = [budget for budget in BUDGETS if budget <= cell.most]
    searches = {budget: _search(cell, folder, budget) for budget in (budgets if method.planned else budgets[-1:])}
    nothing = table.reference.median  # before anything is trained: as good as an untried student
    found = {b: searches[b if method.planned else budgets[-1]].at(b, nothing) for b in budgets}
    return {
        **asdict(cell),
        "fingerprint": method.fingerprint(table.suite),
        "regret": {str(budget): table.regret(value) for budget, value in found.items()},
        "course": {str(budget): _course(search, table.regret) for budget, search in searches.items()},
        "cpu": time.process_time() - begun,
    }


def _search(cell: Cell, folder: Path, budget: int) -> Trajectory:
    replay = Replay(tasks.load(cell.task, folder), cell.seed, budget, cell.unit)
    with suppress(BudgetSpent):
        METHODS[cell.method].search(replay)
    return replay.trajectory


def _course(search: Trajectory, regret: Any) -> list[list[float]]:
    return [[round(spent, 4), round(regret(value), 6)] for spent, value in zip(search.spent, search.found, strict=True)]


class Store:
    """A file of measured lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        self.lines = {_key(line): line for line in map(json.loads, text[: text.rfind("\n") + 1].splitlines())}
        if not text.endswith("\n") and text:  # torn when a run was killed
            path.write_text(text[: text.rfind("\n") + 1])

    def add(self, line: Line) -> None:
        self.lines[_key(line)] = line
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def __contains__(self, cell: Cell) -> bool:
        return self._line(cell) is not None

    def of(self, cells: Iterable[Cell]) -> list[Line]:
        """Lines of those cells that were measured, up to the budget they ask for."""
        found = ((cell, self._line(cell)) for cell in cells)
        return [_up_to(cell.most, line) for cell, line in found if line is not None]

    def _line(self, cell: Cell) -> Line | None:
        """What was measured of a cell, or of the same with a larger budget."""
        keys = (replace(cell, most=most).key() for most in BUDGETS if most >= cell.most)
        return next((self.lines[key] for key in keys if key in self.lines), None)


def _up_to(most: int, line: Line) -> Line:
    return {**line, "regret": {budget: value for budget, value in line["regret"].items() if int(budget) <= most}}


def _key(line: Line) -> tuple[Any, ...]:
    return tuple(line[name] for name in (*Cell.__dataclass_fields__, "fingerprint"))


def fill(store: Store, cells: list[Cell], folder: Path, processes: int, progress: Progress) -> None:
    """Measure what is missing."""
    missing = [cell for cell in cells if cell not in store]
    bar = progress.add_task("searches", total=len(missing))
    for line in _measured(missing, folder, processes):
        store.add(line)
        progress.advance(bar)


def _measured(cells: list[Cell], folder: Path, processes: int) -> Iterator[Line]:
    if not cells:
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for done in as_completed([pool.submit(measure, cell, folder) for cell in cells]):
            yield done.result()
