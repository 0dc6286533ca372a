"""Whether scores of untrained students tell more about what they are worth after distillation than their size does.

    python -m benchmarks.search.training_free [--cases diswot,digits,fashion_mnist] [--inits 6] [--work FOLDER] [--data FOLDER]

Prints four tables: rank correlation with the final accuracy, what a score adds to the size in a prediction, what is lost by picking one of a few
candidates by it, and noise and cost. Everything that was trained or measured is kept in the folder --work.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import comb
from scipy.stats import kendalltau, rankdata

from benchmarks.core.images import BESIDE
from benchmarks.search import training_free_cases as cases
from benchmarks.search.judge import CONFIDENCE, markdown
from benchmarks.search.training_free_cases import Array, Case, Known, Scores

SIZES = ("params", "FLOPs")
CANDIDATES = (4, 8)
RESAMPLES = 1000
INITS = 6


class Evidence(NamedTuple):
    """One set of trainings, and all that could have ranked them: `predictors` by name, (trainings,), higher is better."""

    known: Known
    predictors: dict[str, Array]
    family: NDArray[np.str_]  # (trainings,)


@dataclass(frozen=True)
class Measured:
    """A case with its scores."""

    case: Case
    scores: Scores
    seconds: Array
    evidence: list[Evidence]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    measured = [_measured(name, arguments) for name in arguments.cases]
    evidence = [each for one in measured for each in one.evidence]
    for title, told in (
        ("Kendall's tau with the final accuracy", correlations(evidence)),
        ("Tau of a prediction from size and family, and what a score adds to it", additions(evidence)),
        (f"Normalised regret of the best of {' and '.join(map(str, CANDIDATES))} by each", picks(evidence)),
        ("Noise and cost", noise_and_cost(measured)),
    ):
        print(f"\n## {title}\n\n{told}", flush=True)


def _measured(name: str, arguments: argparse.Namespace) -> Measured:
    maker = cases.diswot if name == "diswot" else lambda folder: cases.kd(name, arguments.work, folder)
    case, known = maker(arguments.data)
    file = arguments.work / f"{name}-{arguments.inits}.npz"
    if not file.exists():
        scores, seconds = cases.measure(case, arguments.inits)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **{"seconds of one": seconds}, **scores)
    with np.load(file) as kept:
        scores = {key: kept[key] for key in kept.files}
    seconds = scores.pop("seconds of one")
    return Measured(case, scores, seconds, [evidence_of(case, scores, each) for each in known])


def evidence_of(case: Case, scores: Scores, known: Known) -> Evidence:
    """Sizes, scores averaged over initialisations, and accuracies early in the training."""
    of_student = cases.sizes(case) | {name: values.mean(0) for name, values in scores.items()}
    predictors = {name: values[known.student] for name, values in of_student.items()}
    predictors |= {f"accuracy, epoch {epoch}": values for epoch, values in known.early.items()}
    families = np.array([spec.family for spec in case.students])
    return Evidence(known, predictors, families[known.student])


# ---- three questions


def tau(x: Array, y: Array) -> float:
    """Kendall's tau-b; NaN where a score does not exist."""
    return float("nan") if np.isnan(x).any() else float(kendalltau(x, y).statistic)


def correlations(evidence: Iterable[Evidence]) -> str:
    columns = {}
    for each in evidence:
        columns[each.known.name] = {name: _with_interval(each, x, tau) for name, x in each.predictors.items()}
        if np.isfinite(each.known.seeds):
            columns[each.known.name]["(one seed with the other)"] = f"{each.known.seeds:.2f}"
    return table(columns)


def additions(evidence: Iterable[Evidence]) -> str:
    """First the prediction without a score, then the difference that one makes."""
    columns = {}
    for each in evidence:
        plain = left_out(each)
        cells = {"size and family": _with_interval(each, plain, tau)}
        for name, x in each.predictors.items():
            if name not in SIZES and not np.isnan(x).any():
                cells[name] = _with_interval(each, np.stack([left_out(each, x), plain]), _gain, sign="+")
        columns[each.known.name] = cells
    return table(columns)


def left_out(evidence: Evidence, score: Array | None = None) -> Array:
    """Ranks as predicted by least squares from the other architectures: logarithms of the sizes, their squares, family, and a score's rank."""
    columns = [np.log(evidence.predictors[name]) for name in SIZES]
    columns = [(column - column.mean()) / column.std() for column in columns]
    columns += [column**2 for column in columns]
    columns += [(evidence.family == family).astype(float) for family in np.unique(evidence.family)]
    if score is not None:
        columns.append(rankdata(score) / len(score))
    x, y = np.stack(columns, axis=1), rankdata(evidence.known.values)
    predicted = np.empty(len(y))
    for student in np.unique(evidence.known.student):
        out = evidence.known.student == student
        predicted[out] = x[out] @ np.linalg.lstsq(x[~out], y[~out])[0]
    return predicted


def picks(evidence: Iterable[Evidence]) -> str:
    """A mark says where the regret with the most candidates differs from that of params, its paired interval excluding 0."""
    columns = {}
    for each in evidence:
        regret, params = _regret(each.known.values), each.predictors["params"]
        columns[each.known.name] = {"at random": f"{regret.mean():.2f}"}
        for name, x in each.predictors.items():
            if not np.isnan(x).any():
                means = " ".join(f"{picked(x, regret, k):.2f}" for k in CANDIDATES)
                columns[each.known.name][name] = means + _mark(*interval(each, partial(_behind, x, params, regret)))
    return table(columns)


def picked(score: Array, values: Array, k: int) -> float:
    """Expected value of the best by score of k drawn without replacement; exact, ties are decided at random."""
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    means = np.bincount(place, values) / counts
    at_most = comb(np.concatenate([[0], counts.cumsum()]), k)
    return float(means @ np.diff(at_most) / at_most[-1])


def _regret(values: Array) -> Array:
    return (values.max() - values) / (values.max() - np.median(values))


def _behind(score: Array, params: Array, regret: Array, rows: NDArray[np.int64]) -> float:
    score, params, regret = score[rows], params[rows], regret[rows]
    return picked(score, regret, CANDIDATES[-1]) - picked(params, regret, CANDIDATES[-1])


def _mark(low: float, high: float) -> str:
    return " better" if high < 0 else " worse" if low > 0 else ""


def _gain(x: Array, y: Array) -> float:
    return tau(x[0], y) - tau(x[1], y)


# ---- noise and cost


def noise_and_cost(measured: Iterable[Measured]) -> str:
    """Tau between two initialisations, mean over pairs; seconds of all scores together from one initialisation."""
    columns = {}
    for each in measured:
        whole = {name: x for name, x in each.scores.items() if not np.isnan(x).any()}
        rows = {name: f"{np.mean([tau(a, b) for a, b in combinations(x, 2)]):.2f}" for name, x in whole.items()}
        rows["seconds, one initialisation: median, most"] = f"{np.median(each.seconds):.3f}, {each.seconds.max():.3f}"
        if np.isfinite(each.case.epoch_seconds):
            rows["seconds, one epoch of training: median"] = f"{each.case.epoch_seconds:.3f}"
        columns[each.case.name] = rows
    return table(columns)


# ---- intervals and tables


def interval(evidence: Evidence, statistic: Callable[[NDArray[np.int64]], float]) -> tuple[float, float]:
    """95 %, architectures drawn with replacement, each with all its trainings. `statistic` takes positions of trainings."""
    rng, student = np.random.default_rng(0), evidence.known.student
    own = [np.flatnonzero(student == each) for each in np.unique(student)]
    found = [
        statistic(np.concatenate([own[place] for place in rng.integers(len(own), size=len(own))]))
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(found, CONFIDENCE)
    return float(low), float(high)


def _with_interval(evidence: Evidence, x: Array, statistic: Callable[[Array, Array], float], sign: str = "") -> str:
    y = evidence.known.values
    found = statistic(x, y)
    if np.isnan(found):
        return "-"
    low, high = interval(evidence, lambda rows: statistic(x[..., rows], y[rows]))
    return f"{found:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def table(columns: Mapping[str, Mapping[str, str]]) -> str:
    names = dict.fromkeys(name for cells in columns.values() for name in cells)
    return markdown(["", *columns], [[name, *(cells.get(name, "-") for cells in columns.values())] for name in names])


# ---- the command line


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=lambda text: text.split(","), default=["diswot", "digits", "fashion_mnist"])
    parser.add_argument("--inits", type=int, default=INITS, help="initialisations that scores are averaged over")
    parser.add_argument("--work", type=Path, default=Path("runs/training-free"), help="what was trained and measured")
    parser.add_argument("--data", type=Path, default=BESIDE, help="where images and recorded searches lie")
    return parser.parse_args()


if __name__ == "__main__":
    main()
