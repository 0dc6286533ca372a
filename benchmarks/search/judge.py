"""What measured lines say: regret, ranks, differences to random search, budget needed. Intervals are bootstrapped, 95 %.

A bootstrap draws tasks with replacement, and for each the seeds with replacement: both are samples of what could have been met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student_t

from benchmarks.search.grid import Line

DRAWS = 2000
CONFIDENCE = (2.5, 97.5)
TIED = 1e-9  # regrets closer than this


@dataclass(frozen=True)
class Regrets:
    """values (methods, tasks, seeds, budgets): the cells in which every method was measured with the same seeds."""

    values: np.ndarray
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    budgets: tuple[int, ...]

    def on(self, tasks: Sequence[str]) -> Regrets:
        """Those tasks only."""
        kept = [place for place, name in enumerate(self.tasks) if name in tasks]
        return Regrets(self.values[:, kept], self.methods, tuple(self.tasks[k] for k in kept), self.budgets)

    def of(self, method: str) -> np.ndarray:
        return self.values[self.methods.index(method)]


def regrets(lines: Sequence[Line]) -> Regrets:
    """From lines; tasks or seeds that some method lacks are left out."""
    found = {(line["method"], line["task"], line["seed"]): line["regret"] for line in lines}
    methods = tuple(dict.fromkeys(line["method"] for line in lines))
    names = tuple(dict.fromkeys(line["task"] for line in lines))
    seeds = sorted({line["seed"] for line in lines})
    whole = [s for s in seeds if all((m, t, s) in found for m in methods for t in names)]
    budgets = tuple(map(int, next(iter(found.values())))) if found else ()
    values = [[[list(found[m, t, s].values()) for s in whole] for t in names] for m in methods]
    return Regrets(np.array(values).reshape(len(methods), len(names), len(whole), -1), methods, names, budgets)


def ranks(regrets: Regrets) -> np.ndarray:
    """Of the methods in every cell, 1 is best, ties share."""
    return rankdata(np.round(regrets.values / TIED) * TIED, axis=0)


def interval(values: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of the mean over tasks and seeds, the first two axes of `values`."""
    tasks, seeds = values.shape[:2]
    means = []
    for _ in range(DRAWS):
        drawn = rng.integers(tasks, size=(tasks, 1))
        means.append(values[drawn, rng.integers(seeds, size=(tasks, seeds))].mean(axis=(0, 1)))
    low, high = np.percentile(means, CONFIDENCE, axis=0)
    return low, high


def least_difference(values: np.ndarray) -> np.ndarray:
    """The lower end of Student's interval of the mean over seeds, the first axis; -inf where one seed says nothing."""
    seeds = len(values)
    if seeds < 2:
        return np.full(values.shape[1:], -np.inf)
    width = student_t.ppf(CONFIDENCE[1] / 100, seeds - 1) * values.std(axis=0, ddof=1) / np.sqrt(seeds)
    return np.asarray(values.mean(axis=0) - width)


# ---- tables in markdown


def regret_table(regrets: Regrets) -> str:
    """Mean normalised regret with its interval, and the median."""
    rng = np.random.default_rng(0)
    rows = []
    for method, values in zip(regrets.methods, regrets.values, strict=True):
        low, high = interval(values, rng)
        mean, middle = values.mean(axis=(0, 1)), np.median(values, axis=(0, 1))
        rows.append(
            [
                method,
                *(f"{m:.3f} [{a:.3f}, {b:.3f}] ({q:.3f})" for m, a, b, q in zip(mean, low, high, middle, strict=True)),
            ]
        )
    return markdown(["mean [95 %] (median)", *(f"{budget}x" for budget in regrets.budgets)], rows)


def rank_table(regrets: Regrets) -> str:
    """Mean rank at every budget and over all, with intervals."""
    rng = np.random.default_rng(0)
    rows = []
    for method, values in zip(regrets.methods, ranks(regrets), strict=True):
        values = np.concatenate([values, values.mean(axis=-1, keepdims=True)], axis=-1)
        low, high = interval(values, rng)
        rows.append(
            [
                method,
                *(f"{m:.2f} [{a:.2f}, {b:.2f}]" for m, a, b in zip(values.mean(axis=(0, 1)), low, high, strict=True)),
            ]
        )
    head = [f"mean rank of {len(regrets.methods)}", *(f"{budget}x" for budget in regrets.budgets), "all"]
    return markdown(head, rows)


def difference_table(regrets: Regrets, against: str = "random") -> str:
    """Regret minus that of another method, paired over tasks and seeds; below 0 is better. Tasks that are worse beyond noise are named."""
    rng = np.random.default_rng(0)
    rows, other = [], regrets.of(against)
    for method in regrets.methods:
        if method == against:
            continue
        values = regrets.of(method) - other
        low, high = interval(values, rng)
        cells = [f"{m:+.3f} [{a:+.3f}, {b:+.3f}]" for m, a, b in zip(values.mean(axis=(0, 1)), low, high, strict=True)]
        rows.append([method, *cells, worse_beyond_noise(regrets, method, against) or "none"])
    return markdown([f"minus {against}", *(f"{budget}x" for budget in regrets.budgets), "worse beyond noise on"], rows)


def worse_beyond_noise(regrets: Regrets, method: str, against: str = "random") -> str:
    """Tasks and budgets at which a method's regret exceeds the other's by more than seeds explain.

    An interval for each: of k comparisons without any difference about k/40 are named by chance.
    """
    named = []
    for place, task in enumerate(regrets.tasks):
        least = least_difference(regrets.of(method)[place] - regrets.of(against)[place])
        budgets = [f"{budget}x" for budget, low in zip(regrets.budgets, least, strict=True) if low > TIED]
        named += [f"{task} {' '.join(budgets)}"] if budgets else []
    return ", ".join(named)


# ---- the budget that is needed


def mean_course(lines: Sequence[Line], budgets: np.ndarray, of: int) -> np.ndarray:
    """(lines, budgets) regret in the course of the searches with a budget of `of`; 1 before anything was found."""
    rows = []
    for line in lines:
        searched = line["course"].get(str(of)) or next(iter(line["course"].values()))
        spent, found = np.array(searched).reshape(-1, 2).T if searched else (np.array([]), np.array([]))
        place = np.searchsorted(spent, budgets + TIED, side="right")
        rows.append(np.concatenate([[1.0], found])[place])
    return np.array(rows)


def needed(lines: Sequence[Line], method: str, against: str, at: int) -> float | None:
    """The budget from which a method's mean regret is at most what the other's is `at` that budget; None if it never is.

    Looked up in the course of searches with that same budget, on the tasks and seeds that both have.
    """
    mine, other = ({(x["task"], x["seed"]): x for x in lines if x["method"] == name} for name in (method, against))
    both = sorted(mine.keys() & other.keys())
    target = np.mean([other[key]["regret"][str(at)] for key in both])
    budgets = np.linspace(0, at, 20 * at + 1)
    enough = mean_course([mine[key] for key in both], budgets, at).mean(axis=0) <= target + TIED
    return float(budgets[enough.argmax()]) if enough.any() else None


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
