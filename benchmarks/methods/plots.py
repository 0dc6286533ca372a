"""Accuracy against a knob."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

Found = Mapping[tuple[str, float], Sequence[float]]  # (arm, value of the knob) -> accuracies


def curves(panels: Mapping[str, Found], path: Path) -> None:
    """One panel a knob: means over seeds with their standard deviations, a line an arm."""
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 3.6), sharey=True, squeeze=False)
    for axis, (title, found) in zip(axes[0], panels.items(), strict=True):
        for arm in dict.fromkeys(arm for arm, _ in found):
            values = sorted(value for other, value in found if other == arm and found[arm, value])
            each = [found[arm, value] for value in values]
            noise = [100 * stdev(scores) if len(scores) > 1 else 0.0 for scores in each]
            axis.errorbar(values, [100 * mean(scores) for scores in each], noise, marker="o", capsize=3, label=arm)
        axis.set_xlabel(title)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("test accuracy in %, mean ± sd over seeds")
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
