"""The end of a search: the winner's weights are chosen by validation, the test split is read once, the student is saved."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from autokd.arguments import vocabulary
from autokd.core import checkpoint
from autokd.core.run import load_student
from autokd.data import Data
from autokd.engine.controls import ROLES
from autokd.engine.rungs import leader
from autokd.errors import CheckpointError, RecipeError, RunFolderError
from autokd.history import History, Trial
from autokd.ledger import Ledger
from autokd.recipe import Recipe
from autokd.run_folder import RunFolder
from autokd.space import Space, shipped_spaces
from autokd.teacher import Teacher, evaluate

WEIGHTS, RECIPE, ABOUT = "student.safetensors", "recipe.json", "student.json"


@dataclass(frozen=True)
class Delivered:
    """A student out of a run folder."""

    module: nn.Module  # eval mode
    recipe: Recipe
    about: dict


def deliver(history: History, folder: RunFolder, ledger: Ledger, teacher: Teacher) -> Delivered | None:
    """Measure teacher, winner and controls on the test split, and save the winner's best seed. None if nothing succeeded.

    What was measured before (the search is being resumed after its finish) is not measured again.
    """
    chosen = _chosen(history)
    if chosen is None:
        return None
    measured = {(event["role"], event["trial"]) for event in ledger.events if event["event"] == "test"}
    if ("teacher", None) not in measured:
        ledger.append(
            "test", role="teacher", trial=None, value=teacher.evaluate(teacher.data.test)[teacher.task.metric]
        )
    finals = [trial for role in ROLES for trial in history.finals(role) if trial.state == "complete"]
    tested = [("winner" if trial is chosen else trial.role, trial) for trial in finals]
    others = [(name, history.finals("winner", of=name)) for name in history.front]
    tested += [("front", trial) for _, retrained in others for trial in retrained if trial.state == "complete"]
    for role, trial in tested if chosen in finals else [("winner", chosen), *tested]:
        if (role, trial.id) not in measured:
            module = student_of(trial, folder, teacher.data)
            value = evaluate(module, teacher.data, teacher.data.test, teacher.task.name)[teacher.task.metric]
            ledger.append("test", role=role, trial=trial.id, value=value)
    for name, retrained in others:
        best = _best_seed(retrained)
        if best is not None:
            _save(best, history, folder, teacher.data, folder.student / name)
    return _save(chosen, history, folder, teacher.data, folder.student)


def student_of(trial: Trial, folder: RunFolder, data: Data) -> nn.Module:
    """The student in a trial's checkpoint, in eval mode."""
    tensors, _ = checkpoint.load(folder.checkpoints / (trial.checkpoint or ""))
    return load_student(trial.recipe, data.input_shape, data.classes, tensors)


def load_delivered(folder: Path) -> Delivered:
    """The saved student of a finished search. Raises RunFolderError if there is none."""
    try:
        about = json.loads((folder / ABOUT).read_text())
        recipe = Recipe.from_json((folder / RECIPE).read_text())
        tensors, _ = checkpoint.load(folder / WEIGHTS)
    except (OSError, CheckpointError, json.JSONDecodeError) as error:
        raise RunFolderError(
            f"{folder} holds no student: {error}; finish the search with autokd.resume first"
        ) from None
    module = load_student(recipe, tuple(about["input_shape"]), about["classes"], tensors)
    return Delivered(module, recipe, about)


def read_recipe(source: Recipe | Mapping[str, Any] | str | Path) -> tuple[Recipe, int | None]:
    """The recipe, and its epochs: of the winner it was, if it lies beside one, or of the space that has it for its prior.

    Raises RecipeError, SpaceError.
    """
    if isinstance(source, Recipe):
        return source, None
    if isinstance(source, Mapping):
        return Recipe.from_dict(dict(source)), None
    path = Path(source)
    if source in shipped_spaces() or path.suffix in (".yaml", ".yml"):
        space = Space.load(source, vocabulary())
        return space.recipe(space.prior_point()), space.epochs
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise RecipeError(f"recipe file {path} cannot be read: {reason}; give a recipe.json") from None
    beside = path.with_name(ABOUT)
    known = int(json.loads(beside.read_text())["epochs"]) if beside.exists() else None
    return Recipe.from_json(text), known


def _chosen(history: History) -> Trial | None:
    """The winner's final seed with the best validation value; without finals, the leader of the search."""
    return _best_seed(history.finals("winner")) or leader(history)


def _best_seed(finals: Iterable[Trial]) -> Trial | None:
    """The one with the best validation value of those trained to the end."""
    complete = [trial for trial in finals if trial.state == "complete"]
    return max(complete, key=lambda trial: trial.values[trial.epoch], default=None)


def _save(trial: Trial, history: History, folder: RunFolder, data: Data, place: Path) -> Delivered:
    tensors, _ = checkpoint.load(folder.checkpoints / (trial.checkpoint or ""))
    student = {name: tensor for name, tensor in tensors.items() if name.startswith("parts.0.")}
    about = {
        "trial": trial.id,
        "seed": trial.seed,
        "epochs": history.rungs[-1],
        "params": trial.params,
        "flops": trial.flops,
        "validation": trial.metrics,
        "classes": data.classes,
        "class_names": data.class_names,
        "input_shape": list(data.input_shape),
        "input": "uint8 images divided by 255"
        if data.train.x.dtype == "uint8"
        else "float rows in the data's own units",
        "data_fingerprint": data.fingerprint,
    }
    checkpoint.save(place / WEIGHTS, student, {"trial": trial.id})
    (place / RECIPE).write_text(json.dumps(trial.recipe.to_dict(), indent=1))
    (place / ABOUT).write_text(json.dumps(about, indent=1))
    return Delivered(load_student(trial.recipe, data.input_shape, data.classes, tensors), trial.recipe, about)
