"""Earlier searches as an MLflow server tells them: of each search's run its task, of each trial's run its recipe and value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from autokd.errors import RecipeError, WarmStartError
from autokd.recipe import PLAIN, Recipe
from autokd.tracking.address import check, redact
from autokd.tracking.mirror import Unreachable, client_of, reaching

MOST = 1000  # runs of one experiment that are read, the newest

Trials = tuple[tuple[str, Recipe, tuple[int, float] | None], ...]


def past_searches(experiment: str, tracking_uri: str | None) -> list[tuple[str, dict[str, Any], Trials]]:
    """Name, task and trials of every search of the experiment. Raises WarmStartError."""
    uri = check(tracking_uri)
    try:
        with reaching():
            client = client_of(uri)
            known = client.get_experiment_by_name(experiment)
            runs = [] if known is None else list(client.search_runs([known.experiment_id], max_results=MOST))
    except Unreachable as error:
        raise WarmStartError(f"MLflow at {redact(uri)} cannot be read: {error}; check tracking_uri") from None
    if known is None:
        raise WarmStartError(
            f"MLflow at {redact(uri)} has no experiment '{experiment}'; see `autokd ui` for their names"
        )
    searches = {
        run.info.run_id: run
        for run in runs
        if "autokd.search_id" in run.data.tags and "autokd.trial_id" not in run.data.tags
    }
    found = []
    for run_id, run in searches.items():
        ours = [each for each in runs if each.data.tags.get("mlflow.parentRunId") == run_id]
        trials = [_trial(each) for each in ours if each.data.tags.get("autokd.role") == "search"]
        name = f"{run.info.run_name or 'search'} in MLflow"
        found.append((name, _head(run.data.params), tuple(trial for trial in trials if trial is not None)))
    if not found:
        raise WarmStartError(
            f"MLflow's experiment '{experiment}' must hold a search of autokd, got {len(runs)} runs; name another"
        )
    return found


def _head(params: Mapping[str, str]) -> dict[str, Any]:
    """The task, as a ledger's head has it."""
    read = {name: _value(text) for name, text in params.items()}
    data = {"classes": read.get("data.classes"), "input_shape": read.get("data.input_shape")}
    data["sizes"] = {"train": read.get("data.sizes.train")}
    return {"data": data, "teacher": {"flops": read.get("teacher.flops")}, "space": {"name": params.get("space")}}


def _trial(run: Any) -> tuple[str, Recipe, tuple[int, float] | None] | None:
    """A trial's recipe and standing; None for one that neither has a value nor failed, or cannot be read."""
    tags, name = run.data.tags, str(run.data.tags.get("autokd.trial_id"))
    sections = ("student.", "terms.", "augment.", "peers.", "optim.")
    flat = {key: _value(text) for key, text in run.data.params.items() if key in PLAIN or key.startswith(sections)}
    try:
        recipe = Recipe.from_flat(flat)
    except RecipeError:
        return None
    if tags.get("autokd.state") == "failed":
        return name, recipe, None
    value, rung = run.data.metrics.get("value"), str(tags.get("autokd.rung", ""))
    return (name, recipe, (int(rung), float(value))) if value is not None and rung.isdecimal() else None


def _value(text: str) -> Any:
    """MLflow keeps words only: numbers, truth values and lists are read back."""
    if text in ("True", "False"):
        return text == "True"
    try:
        return json.loads(text)
    except ValueError:
        return text
