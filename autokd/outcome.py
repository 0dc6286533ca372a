"""What search and distill hand back: a run folder with its student, or one recipe trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from autokd import __version__
from autokd.constraints import Cost
from autokd.delivery import Delivered, load_delivered
from autokd.errors import RunFolderError
from autokd.recipe import Recipe
from autokd.result import Result
from autokd.run_folder import RunFolder
from autokd.teacher import Teacher


class SearchResult(Result):
    """What a search found. Reads the run folder; the student comes with weights, in eval mode."""

    def __init__(self, run_dir: str | Path) -> None:
        super().__init__(run_dir)
        self._delivered: dict[Path, Delivered] = {}

    def student(self, prefer: str | None = None) -> nn.Module:
        """The best student: (N, *input_shape) float rows -> (N, classes) logits. Raises RunFolderError if there is none yet.

        With several goals, the preferred one of the front. Raises GoalError without a preference, stated here or for the search.
        """
        return self._student(prefer).module

    def report(self, folder: str | Path | None = None) -> Path:
        """Write one self-contained HTML page and PNGs, by default into the run folder. Returns the page's path."""
        from autokd.report import write_report

        return write_report(self, Path(folder) if folder is not None else RunFolder(self.run_dir).report)

    def export(self, path: str | Path, *, overwrite: bool = False, prefer: str | None = None) -> Path:
        """Write the student as .onnx, .pt2 or .safetensors, checked against the module. Raises ExportError; `prefer` as for `student`."""
        from autokd.export import export_student

        delivered = self._student(prefer)
        metadata = {**delivered.about, "recipe": delivered.recipe.to_dict(), "autokd": __version__}
        example = np.zeros((1, *delivered.about["input_shape"]), np.float32)
        return export_student(delivered.module, example, path, metadata=metadata, overwrite=overwrite)

    def _student(self, prefer: str | None) -> Delivered:
        folder, winner = RunFolder(self.run_dir).student, self.history.winner
        if prefer is None:
            self.check_preferred()
        elif (chosen := self.choose(prefer).trial) != winner:
            folder = folder / chosen
            if not folder.exists():
                raise RunFolderError(f"{chosen} was not retrained within the budget; give it more with autokd.resume")
        if folder not in self._delivered:
            self._delivered[folder] = load_delivered(folder)
        return self._delivered[folder]


@dataclass(frozen=True)
class Distilled:
    """One recipe, trained."""

    recipe: Recipe
    student: nn.Module  # eval mode
    epochs: int
    seed: int
    metric: str
    metrics: dict[str, float]  # validation
    test: dict[str, float]
    history: list[dict[str, Any]]  # one entry an epoch: loss, terms, metrics, seconds
    cost: Cost

    def headline(self) -> str:
        """The result in one sentence."""
        validation, test = self.metrics[self.metric], self.test[self.metric]
        return f"a student of {self.cost.params:,} parameters after {self.epochs} epochs: {validation:.2%} validation, {test:.2%} test {self.metric}"

    def to_dict(self) -> dict[str, Any]:
        """A summary that json.dumps takes."""
        plain = {name: value for name, value in vars(self).items() if name not in ("student", "recipe", "cost")}
        return {**plain, "recipe": self.recipe.to_dict(), "params": self.cost.params, "flops": self.cost.flops}


def saved_teacher(folder: RunFolder) -> Teacher:
    """The teacher kept in a run folder. Raises RunFolderError if it was a module of the user's own."""
    if not folder.teacher.exists():
        raise RunFolderError(f"{folder.path} does not hold its teacher (a module of your own); pass teacher=")
    return Teacher.load(folder.teacher)
