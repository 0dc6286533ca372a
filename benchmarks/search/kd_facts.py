"""What the KD table is like, in the tables of KD_TABLE.md: sizes, noise, early ranks, what matters, failures.

python -m benchmarks.search.kd_facts [--table FILE] [--into KD_TABLE.md]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr
from sklearn.ensemble import RandomForestRegressor

from autokd.arguments import vocabulary
from autokd.errors import InputError
from autokd.space import Space
from autokd.space_fields import Point
from autokd.space_names import split
from benchmarks.search.kd_table import PATH, KDTable

Array = NDArray[np.float64]
EARLY = (1, 3, 9)  # epochs
TREES, FOREST_SEEDS = 300, 5
KINDS: dict[str, Callable[[Point], bool]] = {  # of recipes, by what the student hears
    "all": lambda point: True,
    "labels alone": lambda point: point["select.logits"] == "none" and point.get("select.beside", "none") == "none",
    "kd": lambda point: point["select.logits"] == "kd",
    "dkd": lambda point: point["select.logits"] == "dkd",
    "dist": lambda point: point["select.logits"] == "dist",
    "at beside": lambda point: point.get("select.beside") == "at",
    "rkd beside": lambda point: point.get("select.beside") == "rkd",
    "peers": lambda point: point.get("select.company") == "mutual",
    "jda": lambda point: point["augment.policy"] == "jda",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", default=str(PATH), metavar="FILE")
    parser.add_argument("--into", metavar="FILE", help="a page whose text after each heading of these is replaced")
    arguments = parser.parse_args()
    table = KDTable.load(arguments.table)
    told = {title: markdown(*part(table)) for title, part in PARTS.items()}
    if arguments.into:
        page = Path(arguments.into)
        page.write_text(filled(page.read_text(), told))
    else:
        print("\n\n".join(f"## {title}\n\n{text}" for title, text in told.items()))


def filled(page: str, told: Mapping[str, str]) -> str:
    """The page with these tables in place of those that follow the headings of their names."""
    for title, text in told.items():
        head, found, rest = page.partition(f"## {title}\n\n")
        if not found:
            raise InputError(f"the page must have a heading '## {title}', got none; add it")
        _, _, after = rest.partition("\n\n")
        page = f"{head}{found}{text}\n\n{after}"
    return page


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---- what is measured


def scores(table: KDTable, problem: int, epoch: int) -> Array:
    """(R, S) accuracy after an epoch; a training that has failed by then is below all others."""
    values = table.curves[problem, :, :, epoch - 1].astype(float)
    return np.where(np.isnan(values), -1.0, values)


def final(table: KDTable, problem: int) -> Array:
    """(R,) mean over the seeds after the last epoch."""
    return scores(table, problem, table.curves.shape[-1]).mean(1)


def seed_noise(table: KDTable, problem: int, chosen: NDArray[np.bool_]) -> float:
    """Standard deviation of one training around its recipe's mean, pooled over those recipes of which no seed failed."""
    values = table.curves[problem, chosen, :, -1].astype(float)
    return float(np.sqrt(np.nanmean(values[~np.isnan(values).any(1)].var(1, ddof=1))))


def importance_of(table: KDTable, problem: int, space: Space) -> dict[str, float]:
    """Out-of-bag share of the variance of final ranks that a forest explains from all fields, the student's, or the others."""
    ranks = rankdata(final(table, problem))
    columns = {field.name: _column(table, field.name) for field in space.fields if field.searched}
    student = [name for name in columns if split(name).section == "student"]
    others = [name for name in columns if name not in student]
    found = {}
    for what, names in (("all", list(columns)), ("student", student), ("others", others)):
        x = np.column_stack([columns[name] for name in names])
        found[what] = float(np.mean([_explained(x, ranks, seed) for seed in range(FOREST_SEEDS)]))
    return found


def _explained(x: Array, y: Array, seed: int) -> float:
    forest = RandomForestRegressor(TREES, oob_score=True, min_samples_leaf=2, max_features=0.5, random_state=seed)
    return float(forest.fit(x, y).oob_score_)


def _column(table: KDTable, name: str) -> Array:
    """A field as a forest sees it: numbers as they are, words in the order of the alphabet, -1 where it does not exist."""
    values = [point.get(name) for point in table.points]
    words = sorted({value for value in values if isinstance(value, str)})
    return np.array([words.index(v) if isinstance(v, str) else -1.0 if v is None else float(v) for v in values])


# ---- tables


def sizes(table: KDTable) -> tuple[list[str], list[list[str]]]:
    heads = [
        "problem",
        "training rows",
        "validation rows",
        "teacher",
        "its rows",
        "best recipe",
        "median",
        "seconds of an epoch, median and most",
    ]
    rows = []
    for at, about in enumerate(table.about["problems"]):
        ends, teacher = final(table, at), about["teacher"]
        cost = [f"{np.nanmedian(table.seconds[at]):.3f}", f"{np.nanmax(table.seconds[at]):.3f}"]
        rows.append(
            [
                about["name"],
                f"{about['rows']:,}",
                f"{about['validation_rows']:,}",
                f"{teacher['accuracy']:.1%}",
                f"{teacher['rows']:,}",
                f"{ends.max():.1%}",
                f"{np.median(ends):.1%}",
                " and ".join(cost),
            ]
        )
    return heads, rows


def noise(table: KDTable) -> tuple[list[str], list[list[str]]]:
    heads = ["problem", "recipes", "sd between recipes", "sd between seeds", "ratio", "rank correlation of the seeds"]
    rows = []
    for at, name in enumerate(table.problems):
        ends = final(table, at)
        for label, share in (("all", 0.0), ("best half", 0.5), ("best tenth", 0.9)):
            chosen = ends >= np.quantile(ends, share)
            spread, between = float(ends[chosen].std(ddof=1)), seed_noise(table, at, chosen)
            pair = scores(table, at, table.curves.shape[-1])[chosen]
            same = spearmanr(pair[:, 0], pair[:, 1]).statistic
            cells = [f"{spread:.4f}", f"{between:.4f}", f"{spread / between:.1f}", f"{same:.2f}"]
            rows.append([name, f"{label} ({chosen.sum()})", *cells])
    return heads, rows


def early(table: KDTable) -> tuple[list[str], list[list[str]]]:
    """Rank correlation of early epochs of one seed with the last epoch of the other: what a search could know."""
    heads = ["recipes", *(f"{name}, epoch {epoch}" for name in table.problems for epoch in EARLY)]
    rows = []
    for kind, belongs in KINDS.items():
        chosen = np.array([belongs(point) for point in table.points])
        cells = [
            f"{_early_correlation(table, at, epoch, chosen):.2f}"
            for at in range(len(table.problems))
            for epoch in EARLY
        ]
        rows.append([f"{kind} ({chosen.sum()})", *cells])
    return heads, rows


def _early_correlation(table: KDTable, problem: int, epoch: int, chosen: NDArray[np.bool_]) -> float:
    now, last = (scores(table, problem, at)[chosen] for at in (epoch, table.curves.shape[-1]))
    return float(np.mean([spearmanr(now[:, 0], last[:, 1]).statistic, spearmanr(now[:, 1], last[:, 0]).statistic]))


def importance(table: KDTable) -> tuple[list[str], list[list[str]]]:
    heads = ["problem", "all fields", "the student's alone", "the others alone", "rest: both together"]
    space, rows = Space.parse(table.space, vocabulary()), []
    for at, name in enumerate(table.problems):
        found = importance_of(table, at, space)
        together = found["all"] - found["student"] - found["others"]
        rows.append([name, *(f"{found[key]:.0%}" for key in ("all", "student", "others")), f"{together:.0%}"])
    return heads, rows


def failures(table: KDTable) -> tuple[list[str], list[list[str]]]:
    heads = ["problem", "trainings", "nan", "chance", "exception", "median epoch of nan", "last below 2 x chance"]
    rows = []
    for at, about in enumerate(table.about["problems"]):
        kinds, epochs = table.failed[at], table.failed_epoch[at]
        counts = [int((kinds == reason).sum()) for reason in ("nan", "chance", "exception")]
        ended = f"{np.median(epochs[kinds == 'nan']):.0f}" if counts[0] else "-"
        poor = int((scores(table, at, table.curves.shape[-1]) < 2 * about["chance"]).sum())
        rows.append(
            [about["name"], str(kinds.size), *(f"{n} ({n / kinds.size:.1%})" for n in counts), ended, str(poor)]
        )
    return heads, rows


PARTS: dict[str, Callable[[KDTable], tuple[list[str], list[list[str]]]]] = {  # by their headings in the page
    "Sizes": sizes,
    "Noise": noise,
    "Early epochs": early,
    "What matters": importance,
    "Failures": failures,
}

if __name__ == "__main__":
    main()
