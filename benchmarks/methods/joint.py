"""A search over all methods at once, as a user starts it: which of them came far, which won, and what mattered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import autokd
from autokd.errors import RunFolderError
from autokd.finals import standing
from autokd.history import Trial
from autokd.outcome import SearchResult
from autokd.recipe import Recipe
from autokd.words import recipe_words
from benchmarks.methods.options import Options
from benchmarks.methods.worlds import world
from benchmarks.search.judge import markdown

SPACE = "classification"
SHOWN = 10  # best recipes
PARTS: dict[str, Callable[[Recipe], Sequence[str]]] = {
    "loss": lambda recipe: [term.objective for term in recipe.terms] or ["no distillation"],
    "peers": lambda recipe: [recipe.peers.system if recipe.peers.count else "none"],
    "views": lambda recipe: ["jda + ccd" if recipe.augment.ccd else recipe.augment.policy],
    "teacher": lambda recipe: ["as given" if recipe.stage0 == "none" else recipe.stage0],
    "student": lambda recipe: [recipe.student.family],
}


def joint(options: Options) -> str:
    """Four tables in words. What was searched before is told again."""
    result = _searched(options)
    tried = result.history.in_role("search")
    failed = Counter(trial.reason for trial in result.history.trials.values() if trial.state == "failed")
    importance = result.importance()
    ranked = sorted((trial for trial in tried if trial.values), key=standing, reverse=True)
    return "\n\n".join(
        [
            result.headline(),
            f"{len(tried)} recipes begun, {sum(trial.state == 'complete' for trial in tried)} trained to the end; rungs {result.history.rungs}; "
            f"failed: {', '.join(f'{count} {reason}' for reason, count in failed.items()) or 'none'}.",
            markdown(["", "begun", "past the first rung", "to the end", "best validation"], _reached(tried)),
            "" if importance is None else f"What mattered, {importance.sentence()}.",
            markdown(["epoch", "validation", "recipe"], [_told(trial) for trial in ranked[:SHOWN]]),
        ]
    )


def _searched(options: Options) -> SearchResult:
    folder = options.results / f"joint-{options.images}"
    try:
        found = SearchResult(folder)
        if found.history.finished:
            return found
        return autokd.resume(folder)
    except RunFolderError:  # none yet
        return autokd.search(
            world(options.images, options.data),
            options.budget,
            space=SPACE,
            epochs=options.epochs,
            run_dir=folder,
            lanes=options.lanes,
            executor="ray" if options.lanes > 1 else "inline",
            tracking_uri=f"sqlite:///{Path(options.results).resolve() / 'mlflow.db'}",
        )


def _reached(tried: Sequence[Trial]) -> list[list[str]]:
    """How far each method came, those with the best students first within their part."""
    rows = []
    for part, named in PARTS.items():
        names = {name for trial in tried for name in named(trial.recipe)}
        having = {name: [trial for trial in tried if name in named(trial.recipe)] for name in names}
        best = {name: max((trial.value or 0.0 for trial in each), default=0.0) for name, each in having.items()}
        for name in sorted(names, key=lambda name: -best[name]):
            each = having[name]
            further = sum(len(trial.values) > 1 for trial in each)
            done = sum(trial.state == "complete" for trial in each)
            rows.append([f"{part}: {name}", str(len(each)), str(further), str(done), f"{best[name]:.2%}"])
    return rows


def _told(trial: Trial) -> list[str]:
    return [str(trial.epoch), f"{trial.value or 0.0:.2%}", f"{recipe_words(trial.recipe)} ({trial.source})"]
