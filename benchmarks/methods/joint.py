"""A search over all methods at once, as a user starts it: which of them came far, which won, and what mattered."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import autokd
from autokd.errors import RunFolderError
from autokd.finals import standing
from autokd.history import Trial
from autokd.outcome import SearchResult
from autokd.summary import tally_words
from autokd.words import recipe_words
from benchmarks.methods.options import Options
from benchmarks.methods.worlds import world
from benchmarks.search.judge import markdown

SPACE = "classification"
SHOWN = 10  # best recipes


def joint(options: Options) -> str:
    """Four tables in words. What was searched before is told again."""
    result = _searched(options)
    tried = result.history.in_role("search")
    failed = Counter(trial.reason for trial in result.history.trials.values() if trial.state == "failed")
    importance = result.importance()
    methods = [list(tally_words(entry, result.metric)) for entry in result.methods()]
    ranked = sorted((trial for trial in tried if trial.values), key=standing, reverse=True)
    return "\n\n".join(
        [
            result.headline() + ".",
            *(f"{gain.sentence(result.metric)}" for gain in result.gains() if gain.split == "test"),
            f"{len(tried)} recipes begun, {sum(trial.state == 'complete' for trial in tried)} trained to the end; rungs {result.history.rungs}; "
            f"failed: {', '.join(f'{count} {reason}' for reason, count in failed.items()) or 'none'}.",
            markdown(
                ["part", "method", "begun", "past the first rung", "to the end", "beats at the first rung", "best"],
                methods,
            ),
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


def _told(trial: Trial) -> list[str]:
    return [str(trial.epoch), f"{trial.value or 0.0:.2%}", f"{recipe_words(trial.recipe)} ({trial.source})"]
