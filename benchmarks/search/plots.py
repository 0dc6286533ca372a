"""Pictures of what was measured: regret against budget."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.search.judge import Regrets, interval


def regret_plot(parts: dict[str, Regrets], path: Path) -> None:
    """Mean normalised regret of every method, one panel for each part of the tasks; bands are 95 % intervals."""
    import numpy as np

    figure, axes = plt.subplots(1, len(parts), figsize=(5.5 * len(parts), 4), sharey=True, squeeze=False)
    for panel, (title, regrets) in zip(axes[0], parts.items(), strict=True):
        rng = np.random.default_rng(0)
        for method, values in zip(regrets.methods, regrets.values, strict=True):
            low, high = interval(values, rng)
            ours = method.startswith("autokd")
            line = panel.plot(
                regrets.budgets, values.mean(axis=(0, 1)), marker="o", lw=2.5 if ours else 1.2, label=method
            )
            panel.fill_between(regrets.budgets, low, high, alpha=0.12, color=line[0].get_color())
        panel.set(xscale="log", xlabel="budget, full trainings", title=title)
        panel.set_xticks(regrets.budgets, [str(budget) for budget in regrets.budgets])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    axes[0][0].set_ylabel("mean normalised regret")
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
