"""The benchmark of the search engine: recorded trainings, so that a search takes a second.

    python -m benchmarks.search [--short] [--only regret,priors,lanes,speed,limits] [--methods a,b] [--tasks held-out]
                                [--seeds 10] [--most 50] [--unit seconds] [--data FOLDER] [--results FOLDER]

What was measured before with the same code is read from --results; a run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.progress import bars
from benchmarks.search import judge, limits, scale, speed, tasks
from benchmarks.search.grid import BUDGETS, Line, Store, fill, grid
from benchmarks.search.methods import COMPARED, METHODS
from benchmarks.search.plots import regret_plot
from benchmarks.search.priors import PRIORS
from benchmarks.search.replay import UNITS
from benchmarks.search.tables import Table

SLOW = ("optuna-gp", "smac")  # a second and more for a proposal
QUICK = tuple(name for name in COMPARED if name not in SLOW)
RIVAL, RIVAL_AT = "optuna-asha-sane", 20  # whose regret there is to be reached with less
WITH_COSTS = (
    "diswot",
    "kd-digits",
    "kd-fashion_mnist",
    "lcbench-126026",
    "lcbench-167185",
)  # tables that know their networks


def main() -> None:
    arguments = _arguments()
    begun = time.perf_counter()
    if arguments.absent:
        print(f"Not measured, since they are not in {arguments.data}: {', '.join(arguments.absent)}.\n")
    for part in arguments.only if arguments.tasks else ():
        print(PARTS[part](arguments), flush=True)
    print(f"\n{(time.perf_counter() - begun) / 60:.1f} minutes")


# ---- parts


def regret(arguments: argparse.Namespace) -> str:
    """Every method on every task."""
    lines = _lines(arguments, arguments.methods)
    whole = judge.regrets(lines)
    halves = {half: whole.on(names) for half, names in {**tasks.HALVES, "all": whole.tasks}.items()}
    halves = {half: part for half, part in halves.items() if part.tasks}
    parts = [f"# Normalised regret by budget\n\nBudgets in full trainings, counted in {arguments.unit}; one lane."]
    for half, part in halves.items():
        parts += [f"## {half}: {len(part.tasks)} tasks, {part.values.shape[2]} seeds"]
        parts += [judge.regret_table(part), judge.rank_table(part)]
        parts += [judge.difference_table(part)] if "random" in part.methods else []
    if {"autokd", RIVAL} <= set(whole.methods) and RIVAL_AT in whole.budgets:
        parts += [_needed(lines, halves)]
    regret_plot(halves, arguments.results / f"regret-{arguments.unit}.png")
    return "\n\n".join(parts)


def _needed(lines: Sequence[Line], halves: dict[str, judge.Regrets]) -> str:
    said = []
    for half, part in halves.items():
        budget = judge.needed([line for line in lines if line["task"] in part.tasks], "autokd", RIVAL, RIVAL_AT)
        said.append([half, "more than that" if budget is None else f"{budget:.1f}"])
    return judge.markdown(["tasks", f"trainings autokd needs for the mean regret of {RIVAL} at {RIVAL_AT}"], said)


def priors(arguments: argparse.Namespace) -> str:
    """The engine with a good prior, a misleading one, and none."""
    whole = judge.regrets(_lines(arguments, tuple(PRIORS)))
    table = judge.difference_table(whole, against="autokd-no-prior")
    return "\n\n".join(["# Priors: a recipe of the best or the worst decile", judge.regret_table(whole), table])


def lanes(arguments: argparse.Namespace) -> str:
    table = _plain(arguments)
    return scale.report(table, scale.SHORT_SIZES if arguments.short else scale.SIZES)


def deciding(arguments: argparse.Namespace) -> str:
    table = _plain(arguments)
    return speed.report(table, speed.SHORT_SIZES if arguments.short else speed.SIZES)


def _plain(arguments: argparse.Namespace) -> Table:
    """A table that answers at once: recorded, not a surrogate, if there is one."""
    recorded = [name for name in arguments.tasks if tasks.suite_of(name) == "taskset"]
    return tasks.load([*recorded, *arguments.tasks][0], arguments.data)


def constraints(arguments: argparse.Namespace) -> str:
    names = [name for name in WITH_COSTS if name in arguments.tasks]
    if not names:
        return f"# Limits\n\nNot measured: none of {', '.join(WITH_COSTS)} is among the tasks."
    return limits.report([tasks.load(name, arguments.data) for name in names], 20, arguments.seeds)


PARTS: dict[str, Callable[[argparse.Namespace], str]] = {
    "regret": regret,
    "priors": priors,
    "lanes": lanes,
    "speed": deciding,
    "limits": constraints,
}


def _lines(arguments: argparse.Namespace, methods: Sequence[str]) -> list[Line]:
    store = Store(arguments.results / "results.jsonl")
    cells = grid(methods, arguments.tasks, arguments.seeds, arguments.unit, arguments.most)
    with bars() as progress:
        fill(store, cells, arguments.data, arguments.processes, progress)
    return store.of(cells)


# ---- the command line


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    small = f"less than ten minutes: some tasks, three seeds, up to 20 trainings, without {' and '.join(SLOW)}"
    parser.add_argument("--short", action="store_true", help=small)
    parser.add_argument("--only", type=_parts, help=f"of {','.join(PARTS)}")
    parser.add_argument("--methods", type=_methods, help=f"of {','.join(COMPARED)}")
    parser.add_argument("--tasks", type=_tasks, help="names, or development, held-out, short, all (default)")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--most", type=int, choices=BUDGETS, help="largest budget, full trainings")
    parser.add_argument("--unit", choices=UNITS, default="epochs")
    beside = "where the recorded searches lie; default: ../shared/data/hpo"
    parser.add_argument("--data", type=Path, default=tasks.BESIDE, help=beside)
    kept = "folder of what was measured"
    parser.add_argument("--results", type=Path, default=Path("runs/search-benchmark"), help=kept)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    short = arguments.short
    arguments.only = arguments.only or tuple(PARTS)
    arguments.methods = arguments.methods or (QUICK if short else COMPARED)
    every = tasks.SHORT if short else tasks.DEVELOPMENT + tasks.HELD_OUT
    arguments.absent = [] if arguments.tasks else [n for n in every if not tasks.path_of(n, arguments.data).exists()]
    arguments.tasks = arguments.tasks or [name for name in every if name not in arguments.absent]
    _check(parser, arguments)
    arguments.seeds = arguments.seeds or (3 if short else 10)
    arguments.most = arguments.most or (20 if short else BUDGETS[-1])
    return arguments


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Leave by an error if something is not there."""
    for name in arguments.methods:
        package = METHODS[name].missing()
        if package is not None:
            parser.error(f"{name} needs the package {package}; install autokd[bench], or name others with --methods")
    for name in arguments.tasks:
        path = tasks.path_of(name, arguments.data)
        if not path.exists():
            parser.error(f"{name} must lie in {path}; name the folder with --data, or other tasks with --tasks")


def _parts(text: str) -> tuple[str, ...]:
    return _known(text.split(","), tuple(PARTS))


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


if __name__ == "__main__":
    main()
