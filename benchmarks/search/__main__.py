"""The benchmark of the search engine: recorded trainings, so that a search takes a second.

    python -m benchmarks.search [--short] [--methods a,b] [--tasks held-out] [--seeds 10] [--most 50] [--unit seconds]

What was measured before with the same code is read from --results; a run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.search import judge, tasks
from benchmarks.search.grid import BUDGETS, Store, fill, grid
from benchmarks.search.methods import METHODS
from benchmarks.search.replay import UNITS

QUICK = tuple(name for name in METHODS if name != "optuna-gp")


def main() -> None:
    arguments = _arguments()
    begun = time.perf_counter()
    store = Store(arguments.results / "results.jsonl")
    cells = grid(arguments.methods, arguments.tasks, arguments.seeds, arguments.unit, arguments.most)
    with _progress() as progress:
        fill(store, cells, arguments.data, arguments.processes, progress)
    print(report(judge.regrets(store.of(cells)), arguments.unit))
    print(f"\n{(time.perf_counter() - begun) / 60:.1f} minutes")


def report(regrets: judge.Regrets, unit: str) -> str:
    parts = [f"# Normalised regret by budget\n\nBudgets in full trainings, counted in {unit}."]
    for half, names in {**tasks.HALVES, "all": regrets.tasks}.items():
        part = regrets.on(names)
        if part.tasks:
            title = f"## {half}: {len(part.tasks)} tasks, {part.values.shape[2]} seeds"
            parts += [title, judge.regret_table(part), judge.rank_table(part)]
            parts += [judge.difference_table(part)] if "random" in part.methods else []
    return "\n\n".join(parts)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--short", action="store_true", help="less than ten minutes: some tasks, three seeds, up to 20 trainings, no GP"
    )
    parser.add_argument("--methods", type=_methods, help=f"of {','.join(METHODS)}")
    parser.add_argument("--tasks", type=_tasks, help="names, or development, held-out, short, all (default)")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--most", type=int, choices=BUDGETS, help="largest budget, full trainings")
    parser.add_argument("--unit", choices=UNITS, default="epochs")
    parser.add_argument(
        "--data", type=Path, default=tasks.BESIDE, help="where the recorded searches lie; default: ../shared/data/hpo"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("runs/search-benchmark"), help="folder of what was measured"
    )
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    short = arguments.short
    arguments.methods = arguments.methods or (QUICK if short else tuple(METHODS))
    arguments.tasks = arguments.tasks or (tasks.SHORT if short else tasks.DEVELOPMENT + tasks.HELD_OUT)
    arguments.seeds = arguments.seeds or (3 if short else 10)
    arguments.most = arguments.most or (20 if short else BUDGETS[-1])
    return arguments


def _methods(text: str) -> tuple[str, ...]:
    return _known(text.split(","), tuple(METHODS))


def _tasks(text: str) -> tuple[str, ...]:
    every = tasks.DEVELOPMENT + tasks.HELD_OUT
    groups = {**tasks.HALVES, "short": tasks.SHORT, "all": every}
    return groups[text] if text in groups else _known(text.split(","), every)


def _known(names: Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    wrong = [name for name in names if name not in known]
    if wrong:
        raise argparse.ArgumentTypeError(f"'{wrong[0]}' is none of {', '.join(known)}")
    return tuple(names)


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


if __name__ == "__main__":
    main()
