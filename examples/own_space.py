"""A search space in a YAML file, with a loss of your own in it. Run it with  python examples/own_space.py"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

import autokd
from autokd.rules import Rule

SPACE = Path(__file__).with_suffix(".yaml")


class SquaredLogits(autokd.Objective):
    """Mean squared difference of logits, with or without their mean over the classes (Ba and Caruana, NeurIPS 2014).

    own_space.yaml names it `own_space:SquaredLogits`, so it must be importable where the search runs: the folder of this
    script is on the path when it is run as a script.
    """

    fields = {"centred": Rule("choice", True, choices=(True, False))}

    def __init__(self, centred: bool = True) -> None:
        super().__init__()
        self.centred = centred

    def forward(
        self, student: autokd.Outputs, teacher: autokd.Outputs, batch: autokd.Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        difference = student.logits - teacher.logits
        if self.centred:
            difference = difference - difference.mean(1, keepdim=True)
        per_row = difference.square().mean(1)
        return {"squared": (per_row if row_weight is None else row_weight * per_row).mean()}


def main(budget: str = "90s", **options: Any) -> autokd.SearchResult:
    teacher = autokd.Teacher.fit("digits")
    result = autokd.search(teacher, budget, space=SPACE, **options)
    board = result.leaderboard()
    board["loss"] = [
        "squared logits" if weight > 0 else "KD" for weight in board["terms.own_space:SquaredLogits.weight"]
    ]
    print(board[["trial", "loss", "student.family", "epoch", "value", "params"]].head(10))
    return result


if __name__ == "__main__":
    main()
