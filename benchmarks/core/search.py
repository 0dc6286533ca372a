"""A whole search of twenty fixed recipes: trials per hour, ours against Ray Tune with the usual loop as a function trainable.

Both have the same teacher, images, recipes, epochs and two cores, both run on Ray with two trials at a time, and both begin with nothing: the
clock runs from before Ray is started to the last trial's last report. Ours includes choosing the precision and recording the tape. The
other side is what a good user writes: one CPU and one thread for each trial, no loader processes, data and teacher put into the object store
once, and processes that are kept from trial to trial. Each search runs in a process of its own, in turns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.progress import Progress
from torch import nn

from autokd.constraints import Cost
from autokd.core.materials import Materials
from autokd.engine.engine import Finish, Start, Wait
from autokd.history import History
from autokd.ledger import Ledger
from autokd.orchestrate.cluster import connect
from autokd.orchestrate.director import Director
from autokd.recipe import Recipe
from autokd.session import open_lanes
from autokd.teacher import Teacher
from benchmarks.core import pairs, usual_loop
from benchmarks.core.figures import Bar, Part, holds, spread
from benchmarks.core.images import Images, Source, as_data, choose, load
from benchmarks.core.measure import fresh_process
from benchmarks.core.options import Options
from benchmarks.core.ours import (
    blueprint,
)  # (Teacher, [Recipe], Path of a new folder, epochs, what a lane measured) -> builder of a lane's core
from benchmarks.core.pairs import SIXTEEN, Pair
from benchmarks.core.usual_loop import Settings

LANES = 2
BAR = 8.0
POLL = 0.5  # seconds


class Outcome(NamedTuple):
    """Of one search: seconds from nothing to the last report, and the validation accuracy of each trial that finished."""

    seconds: float
    accuracies: list[float]

    @property
    def per_hour(self) -> float:
        return 3600 * len(self.accuracies) / self.seconds


def run(options: Options, progress: Progress) -> Part:
    """Each side in turns, `options.searches` times. Raises Absent if the images asked for are not here."""
    source = choose(options.images, options.search_rows, options.folder)
    recipes, epochs = pairs.twenty(SIXTEEN), options.search_epochs
    with fresh_process(threads=0) as pool:
        task = progress.add_task("fitting the teacher, once", total=None)
        pool.submit(teacher_of, SIXTEEN, source, options.teacher_epochs).result()
        progress.remove_task(task)
    task = progress.add_task("searches", total=2 * options.searches * len(recipes))
    found: dict[str, list[Outcome]] = {"ours": [], "Ray Tune with the usual loop": []}
    for _ in range(options.searches):
        for (name, outcomes), search in zip(found.items(), (our_search, usual_search), strict=True):
            progress.update(task, description=f"search: {name}")
            outcomes.append(_watched(search, progress, task, recipes, SIXTEEN, source, epochs, options.teacher_epochs))
    return _part(found, source, recipes, epochs)


def teacher_of(pair: Pair, source: Source, epochs: int) -> Teacher:
    """Fitted at the first call on a machine, then taken from the cache."""
    return Teacher.fit(as_data(load(source)), "resnet", spec=pairs.spec(pair.teacher), epochs=epochs)


def _watched(search: Callable[..., Outcome], progress: Progress, task: Any, *arguments: Any) -> Outcome:
    """Runs a search in a fresh process and shows each of its trials as it ends."""
    already = progress.tasks[progress.task_ids.index(task)].completed
    with tempfile.TemporaryDirectory() as scratch, fresh_process(threads=1) as pool:
        ended = Path(scratch) / "ended"
        ended.touch()
        future: Future[Outcome] = pool.submit(search, *arguments, ended)
        while not future.done():
            time.sleep(POLL)
            progress.update(task, completed=already + ended.stat().st_size)
        return future.result()


def _tick(ended: Path) -> None:
    """One more trial has ended: one byte, whichever process writes it."""
    with open(ended, "ab") as file:
        file.write(b".")


# ---- ours


class Fixed:
    """In the engine's place: these recipes, each trained to the end, in order."""

    def __init__(self, recipes: Sequence[Recipe], epochs: int) -> None:
        self.recipes, self.epochs = recipes, epochs

    def propose(self, history: History, elapsed: float) -> Start | Wait | Finish:
        begun = len(history.in_role("search"))
        if begun < len(self.recipes):
            name = f"t{begun + 1:04d}"
            return Start(name, "search", self.recipes[begun], "fixed", seed=0, to=self.epochs, cost=Cost(0, 0))
        return Wait() if history.running else Finish("all done")

    def deadline(self, history: History) -> None:
        return None


def our_search(
    recipes: list[Recipe], pair: Pair, source: Source, epochs: int, teacher_epochs: int, ended: Path
) -> Outcome:
    """From nothing: Ray, calibration, cores, tape, trials."""
    teacher = teacher_of(pair, source, teacher_epochs)
    begun = time.time()
    materials = Materials(teacher.data, teacher.module)
    with tempfile.TemporaryDirectory() as scratch, open_lanes("ray", None, LANES, materials, "cpu") as lanes:
        measured = lanes.measure(recipes[0])
        folder = Path(scratch)
        ledger = Ledger(folder / "ledger.jsonl")
        budget = {"kind": "trials", "amount": len(recipes)}
        ledger.append("search", rungs=[epochs], budget=budget, seed=0)
        director = Director(Fixed(recipes, epochs), ledger)  # type: ignore[arg-type]
        ledger.append("session", budget=budget)
        ledger.listen(lambda event: _tick(ended) if event["event"] in ("rung", "fail") else None)
        lanes.run(director, blueprint(teacher, recipes, folder, epochs, measured), folder)
        reports = [event for event in ledger.events if event["event"] == "rung"]
        ledger.close()
    return Outcome(max(event["time"] for event in reports) - begun, [event["value"] for event in reports])


# ---- theirs


def usual_search(
    recipes: list[Recipe], pair: Pair, source: Source, epochs: int, teacher_epochs: int, ended: Path
) -> Outcome:
    """From nothing: Ray, Tune, trials."""
    from ray import tune

    images, teacher = load(source), teacher_of(pair, source, teacher_epochs)
    begun = time.time()
    with tempfile.TemporaryDirectory() as scratch, connect(None, LANES):
        shared = {
            "pair": pair,
            "images": images,
            "weights": teacher.module.state_dict(),
            "epochs": epochs,
            "ended": str(ended),
        }
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_trial, **shared), {"cpu": 1}),
            param_space={"settings": tune.grid_search([asdict(_as_settings(recipe)) for recipe in recipes])},
            tune_config=tune.TuneConfig(metric="accuracy", mode="max", max_concurrent_trials=LANES, reuse_actors=True),
            run_config=tune.RunConfig(storage_path=scratch, verbose=0),
        )
        grid = tuner.fit()
        results = [grid[index] for index in range(len(grid))]
    failed = [result.error for result in results if result.error is not None]
    if failed:
        raise failed[0]
    last = [result.metrics or {} for result in results]
    return Outcome(max(each["at"] for each in last) - begun, [each["accuracy"] for each in last])


def _trial(
    config: dict[str, Any], pair: Pair, images: Images, weights: dict[str, torch.Tensor], epochs: int, ended: str
) -> None:
    """What Tune runs: the usual loop with one recipe's settings."""
    from ray import tune

    torch.set_num_threads(1)
    settings = Settings(**config["settings"])
    teacher = pairs.network(pair.teacher, images, seed=1, normalises=True)
    teacher.load_state_dict(weights)
    teacher.normalise = nn.Identity()  # the loader standardises
    teacher.eval().requires_grad_(False)
    student = pairs.network(pair.student, images, seed=0, normalises=False)
    loader = usual_loop.train_loader(images, settings)
    held = torch.utils.data.DataLoader(usual_loop.val_set(images), batch_size=256)
    optim = usual_loop.optimiser(student, settings)
    for _ in range(epochs):
        usual_loop.train_epoch(student, teacher, loader, optim, settings)
        tune.report({"accuracy": usual_loop.accuracy(student, held), "at": time.time()})
    _tick(Path(ended))


def _as_settings(recipe: Recipe) -> Settings:
    term = recipe.terms[0]
    return replace(
        Settings(workers=0),
        batch=recipe.optim.batch,
        lr=recipe.optim.lr,
        temperature=term.fields["temperature"],
        ce_weight=recipe.ce_weight,
        kd_weight=term.weight,
    )


# ---- what came out


HEADS = (
    "search",
    "trials per hour",
    "seconds, from nothing to the last report",
    "trials finished",
    "median accuracy of a trial",
)


def _part(found: dict[str, list[Outcome]], source: Source, recipes: list[Recipe], epochs: int) -> Part:
    work = f"{epochs} epochs of {source.rows:,} images of {source.name}"
    part = Part(f"A search of {len(recipes)} recipes, {work}, 16:1, {LANES} at a time")
    part.tables.append((HEADS, [_row(name, outcomes) for name, outcomes in found.items()]))
    mine, usual = found.values()
    gains = tuple(a.per_hour / b.per_hour for a, b in zip(mine, usual, strict=True))
    claim = "trials per hour, ours / Ray Tune with the usual loop"
    met = holds(BAR, median(gains), at_most=False)
    part.bars.append(Bar(claim, f"at least {BAR:g}x", f"{spread(gains).text()}x", met, gains))
    part.raw = {"searches": {name: [each._asdict() for each in outcomes] for name, outcomes in found.items()}}
    return part


def _row(name: str, outcomes: list[Outcome]) -> tuple[str, ...]:
    hourly = spread([each.per_hour for each in outcomes])
    seconds = spread([each.seconds for each in outcomes])
    finished = ", ".join(str(len(each.accuracies)) for each in outcomes)
    accuracy = 100 * median(value for each in outcomes for value in each.accuracies)
    return name, hourly.text(0), seconds.text(1), finished, f"{accuracy:.1f} %"
