"""What a comparison is run with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from autokd.recipe import Recipe
from benchmarks.methods.trainings import Cell, Line, trained


@dataclass(frozen=True)
class Options:
    images: str
    data: Path
    epochs: int
    seeds: int
    lanes: int
    results: Path
    budget: str = "30m"  # of the joint search

    def cells(
        self, system: str, recipe: Recipe, epochs: int = 0, share: float = 1.0, teacher: str = "plain"
    ) -> list[Cell]:
        """One for each seed."""
        return [
            Cell(system, recipe.to_json(), seed, epochs or self.epochs, self.images, share, teacher)
            for seed in range(self.seeds)
        ]

    def trained(self, cells: Sequence[Cell]) -> dict[Cell, Line]:
        return trained(cells, self.data, self.results / "trainings.jsonl", self.lanes)


def scores(lines: Sequence[Line]) -> list[float]:
    """Test accuracies of those that did not fail."""
    return [line["accuracy"] for line in lines if "accuracy" in line]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, in per cent."""
    if not values:
        return "failed"
    return f"{mean(values):.2%}" + (f" ± {100 * stdev(values):.2f}" if len(values) > 1 else "")


def paired(lines: Sequence[Line], others: Sequence[Line]) -> str:
    """Mean difference and its standard deviation over the seeds, in points."""
    gains = [
        100 * (one["accuracy"] - other["accuracy"])
        for one, other in zip(lines, others, strict=True)
        if "accuracy" in one and "accuracy" in other
    ]
    return f"{mean(gains):+.2f}" + (f" ± {stdev(gains):.2f}" if len(gains) > 1 else "") if gains else "-"
