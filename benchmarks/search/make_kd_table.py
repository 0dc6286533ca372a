"""Makes the KD table: trains every recipe on both problems with two seeds, and packs what came out.

    python -m benchmarks.search.make_kd_table train --work FOLDER [--data FOLDER] [--recipes 420] [--lanes 2]
    python -m benchmarks.search.make_kd_table assemble --work FOLDER [--partial]

`train` may be stopped and begun again at any time: what has been trained is in FOLDER/trainings.jsonl and is not trained again. Recipes go
one after the other through both problems and seeds, so that a table of what is finished is of use at any time.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from scipy.stats import qmc

import autokd
from autokd.arguments import vocabulary
from autokd.errors import AutokdError, InputError
from autokd.space import Space
from autokd.space_fields import Point
from benchmarks.core.images import BESIDE
from benchmarks.core.measure import fresh_process
from benchmarks.search.kd_problems import READ
from benchmarks.search.kd_table import PATH, pack
from benchmarks.search.kd_training import Job, Place, describe, price, train

SPACE = Path(__file__).with_name("kd_space.yaml")
RECIPES, SEEDS = 420, 2
SOBOL_SEED, SOBOL_POINTS = 0, 1024  # a power of two, of which the first are used: fewer recipes are the same recipes
SAY_EVERY = 60.0  # seconds between two lines of progress where there is no terminal


def main() -> None:
    arguments = _arguments()
    try:
        if arguments.command == "train":
            place = Place(Path(arguments.data), Path(arguments.work))
            make(place, arguments.recipes, arguments.lanes)
        else:
            assemble(Path(arguments.work), Path(arguments.out), arguments.partial)
    except AutokdError as error:
        raise SystemExit(f"error: {error}") from None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train what has not been trained yet")
    training.add_argument("--data", default=str(BESIDE), metavar="FOLDER", help="where the images lie")
    training.add_argument("--recipes", type=int, default=RECIPES, help=f"how many of them; default {RECIPES}")
    training.add_argument("--lanes", type=int, default=2, help="trainings at a time, a process and a thread each")
    assembling = commands.add_parser("assemble", help="pack what has been trained")
    assembling.add_argument("--partial", action="store_true", help="only the recipes that are finished so far")
    assembling.add_argument("--out", default=str(PATH), metavar="FILE")
    for each in (training, assembling):
        each.add_argument("--work", required=True, metavar="FOLDER", help="what is trained so far, and the tape")
    return parser.parse_args()


# ---- which recipes


def points(space: Space, count: int) -> list[tuple[str, Point]]:
    """Name and point: the published recipes, the space's own defaults, then quasi-random ones, uniform over the ranges, each once."""
    sobol = qmc.Sobol(len(space.fields), seed=SOBOL_SEED).random(SOBOL_POINTS)
    drawn = (("", space.quantile(list(u))) for u in sobol)
    found: dict[str, tuple[str, Point]] = {}
    for name, point in (*space.first, ("defaults of the space", space.prior_point()), *drawn):
        found.setdefault(space.recipe(point).id, (name, point))
        if len(found) == count:
            return list(found.values())
    raise InputError(f"recipes must be at most {len(found)}, got {count}; draw more points (SOBOL_POINTS)")


# ---- training


def make(place: Place, count: int, lanes: int) -> None:
    """Train all that is missing."""
    place.work.mkdir(parents=True, exist_ok=True)
    text = SPACE.read_text()
    space = Space.parse(text, vocabulary(), str(SPACE))
    chosen = points(space, count)
    recipes = [space.recipe(point) for _, point in chosen]
    with fresh_process(threads=1, count=lanes) as pool:
        about = _about(space, chosen, place, pool)
        _keep(place.work / "about.json", about)
        names = list(READ)
        jobs = [
            Job(name, number, recipe, seed)
            for number, recipe in enumerate(recipes)
            for seed in range(SEEDS)
            for name in names
        ]
        done = {_key(each) for each in finished(place.work)}
        missing = [job for job in jobs if (job.problem, job.recipe.id, job.seed) not in done]
        _train_all(missing, len(jobs), space.epochs, place, pool)


def _about(
    space: Space, chosen: Sequence[tuple[str, Point]], place: Place, pool: ProcessPoolExecutor
) -> dict[str, Any]:
    """All of the table but the trainings."""
    recipes = [space.recipe(point) for _, point in chosen]
    problems = [pool.submit(describe, name, place) for name in READ]
    told = [each.result() for each in problems]
    prices = [pool.submit(price, name, recipes, place).result() for name in READ]
    return {
        "space": space.text,
        "epochs": space.epochs,
        "seeds": SEEDS,
        "problems": told,
        "names": [name for name, _ in chosen],
        "points": [point for _, point in chosen],
        "recipes": [recipe.id for recipe in recipes],
        "prices": prices,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "autokd": autokd.__version__,
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _keep(path: Path, about: dict[str, Any]) -> None:
    """Written at the first start; later ones may have more recipes of the same space, problems and teachers."""
    if path.exists():
        before = json.loads(path.read_text())
        changed = [key for key in ("space", "problems") if before[key] != about[key]]
        if changed:
            raise InputError(f"{path} must be of the same {' and '.join(changed)}, got others; give another --work")
    path.write_text(json.dumps(about))


def finished(work: Path) -> list[dict[str, Any]]:
    """What has been trained; a torn last line, of a process that was killed, is left out."""
    path, found = work / "trainings.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _key(trained: dict[str, Any]) -> tuple[str, str, int]:
    return trained["problem"], trained["recipe"], trained["seed"]


def _train_all(missing: Sequence[Job], total: int, epochs: int, place: Place, pool: ProcessPoolExecutor) -> None:
    with (place.work / "trainings.jsonl").open("a") as file, _progress(total, total - len(missing)) as advance:
        file.write("\n" if file.tell() else "")  # after a torn line
        waiting = [pool.submit(train, job, epochs, place) for job in missing]
        try:
            for each in _as_they_end(waiting):
                file.write(json.dumps(each) + "\n")
                file.flush()
                advance()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _as_they_end(waiting: Iterable[Future[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for future in as_completed(list(waiting)):
        yield future.result()


@contextmanager
def _progress(total: int, done: int) -> Iterator[Any]:
    """A bar with the time left; without a terminal, a line a minute."""
    columns = (
        TextColumn("trainings"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    begun = said = time.monotonic()
    already = done
    with Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=600) as progress:
        task = progress.add_task("", total=total, completed=done)

        def advance() -> None:
            nonlocal done, said
            done += 1
            progress.advance(task)
            now = time.monotonic()
            if not console.is_terminal and (now - said > SAY_EVERY or done == total):
                said = now
                left = (now - begun) / (done - already) * (total - done)
                print(
                    f"{done} of {total} trainings, {(now - begun) / 60:.1f} min, {left / 60:.0f} min left", flush=True
                )

        yield advance


# ---- packing


def assemble(work: Path, out: Path, partial: bool) -> None:
    """Write the table of all recipes, or with `partial` of those that are finished on every problem with every seed."""
    about = json.loads((work / "about.json").read_text())
    size = pack(about, finished(work), out, partial)
    print(f"{out}: {size} recipes, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
