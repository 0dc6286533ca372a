"""What each figure of a report shows, as plain numbers; how it is drawn is not known here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autokd import words
from autokd.ablation import ROLE as ABLATION
from autokd.ablation import Ablation
from autokd.finals import Row
from autokd.history import Trial
from autokd.importance import FieldImportance
from autokd.result import Result
from autokd.rules import Value

MOST_CURVES = 150  # drawn; of more, those that came far and an even choice of the rest
MOST_STRIPS = 8
MOST_FIELDS = 14  # of an importance
FEWEST = 6  # trials that make a strip worth looking at
FILES = {
    "pareto": "accuracy_vs_parameters.png",
    "timeline": "best_over_time.png",
    "curves": "learning_curves.png",
    "importance": "importance.png",
    "ablation": "ablation.png",
    "strips": "recipe_values.png",
    "finals": "finals.png",
    "costs": "budget.png",
}


@dataclass(frozen=True)
class Scale:
    """How values of the metric are put on an axis: accuracy in percent, everything else as it is."""

    metric: str

    @property
    def factor(self) -> float:
        return 100.0 if self.metric == "accuracy" else 1.0

    def label(self, split: str = "validation") -> str:
        return f"{split} {self.metric}" + (" (%)" if self.metric == "accuracy" else "")


@dataclass(frozen=True)
class Point:
    """A trial at its last epoch; `value` in axis units."""

    trial: str
    role: str
    family: str
    params: int
    epoch: int
    value: float
    recipe: str  # in words


@dataclass(frozen=True)
class Timeline:
    """Every rung value of the search over its seconds, and the best so far. `finals` is when the finals began."""

    points: list[tuple[float, Point]]
    best: list[tuple[float, float]]  # (seconds, value), where it rises, and at the end
    finals: float | None


@dataclass(frozen=True)
class Curve:
    """Validation values of one trial by epoch."""

    trial: str
    role: str
    family: str
    epochs: list[int]
    values: list[float]
    recipe: str


@dataclass(frozen=True)
class Strip:
    """One recipe value against the metric, over trials compared at the same epoch."""

    name: str
    xs: list[Value]
    points: list[Point]
    strength: float  # |rank correlation|, or for words the root of the variance share between groups
    correlation: float | None  # Spearman's, for numbers

    @property
    def numeric(self) -> bool:
        return self.correlation is not None

    @property
    def ticks(self) -> list[Value]:
        """The few values there are, in order; empty for a continuous axis."""
        distinct = sorted(set(self.xs), key=lambda x: x if isinstance(x, int | float) else str(x))
        return distinct if len(distinct) <= 6 or not self.numeric else []

    @property
    def log(self) -> bool:
        """Whether a logarithmic axis shows more: positive numbers over more than a decade."""
        numbers = [float(x) for x in self.xs if self.numeric]
        return bool(numbers) and min(numbers) > 0 and max(numbers) / min(numbers) > 10


def cloud(result: Result) -> list[Point]:
    """All trials that have a value."""
    return [_point(trial, trial.epoch, result.metric) for trial in result.history.trials.values() if trial.values]


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front of the search: no smaller trial is as good. By rising parameters."""
    found: list[Point] = []
    for point in sorted((p for p in points if p.role == "search"), key=lambda p: (p.params, -p.value)):
        if not found or point.value > found[-1].value:
            found.append(point)
    return found


def families(points: Sequence[Point]) -> list[str]:
    """Student families, most frequent first, which is the order of their colours."""
    return [family for family, _ in Counter(point.family for point in points).most_common()]


def teacher_value(result: Result) -> float | None:
    """The teacher's validation value in axis units."""
    value = result.teacher.get("value")
    return None if value is None else value * Scale(result.metric).factor


def timeline(result: Result) -> Timeline:
    """Rung values of search trials as they came in."""
    points: list[tuple[float, Point]] = []
    best: list[tuple[float, float]] = []
    factor, finals = Scale(result.metric).factor, None
    for event in result.events:
        finals = event["elapsed"] if event["event"] == "finals" else finals
        trial = result.history.trials.get(event.get("trial") or "") if event["event"] == "rung" else None
        if trial is None or trial.role != "search":
            continue
        value = event["value"] * factor
        points.append((event["elapsed"], _point(trial, event["epoch"], result.metric, value)))
        if not best or value > best[-1][1]:
            best.append((event["elapsed"], value))
    if best:
        best.append((result.history.elapsed, best[-1][1]))
    return Timeline(points, best, finals)


def curves(result: Result, most: int = MOST_CURVES) -> list[Curve]:
    """Learning curves, at most `most` of them."""
    trials = [trial for trial in result.history.trials.values() if trial.values]
    trials.sort(key=lambda trial: (trial.role != "search", trial.epoch), reverse=True)
    if len(trials) > most:
        kept = trials[: most // 2]
        rest = trials[most // 2 :]
        trials = kept + [rest[i] for i in np.linspace(0, len(rest) - 1, most - len(kept)).astype(int)]
    return [_curve(trial, result.metric) for trial in trials]


def strips(result: Result, most: int = MOST_STRIPS) -> tuple[int, list[Strip]]:
    """(epoch, strips): how recipe values relate to the metric, strongest first.

    Compared at the highest rung that enough search trials have reached, each at its value there, so that no trial gains
    from having been trained longer.
    """
    search = result.history.in_role("search")
    epoch = _common_rung(search)
    points = [(trial, _point(trial, epoch, result.metric)) for trial in search if epoch in trial.values]
    flat = {trial.id: trial.recipe.flat() for trial, _ in points}
    names = sorted({name for values in flat.values() for name in values})
    found = [
        strip
        for name in names
        if (strip := _strip(name, [(flat[t.id][name], point) for t, point in points if name in flat[t.id]])) is not None
    ]
    return epoch, sorted(found, key=lambda strip: -strip.strength)[:most]


def important(result: Result, most: int = MOST_FIELDS) -> list[FieldImportance]:
    """The fields that stand out, and the first of the others, at most `most`."""
    found = result.importance()
    return list(found.fields[: max(most, len(found.above_noise))]) if found else []


def field_label(entry: FieldImportance) -> tuple[str, str]:
    """Its name, and below it where it exists."""
    return entry.name, f"where {entry.where}" if entry.where else ""


def effects(entry: Ablation, metric: str) -> list[float]:
    """The changes of the score by seed, in axis units."""
    return [difference * Scale(metric).factor for difference in entry.differences]


def effect_label(metric: str) -> str:
    return f"change in validation {metric}" + (" (points)" if metric == "accuracy" else "")


def costs(result: Result) -> list[tuple[str, float]]:
    """Where the lanes' seconds went: training by rung, finals, and the rest (waiting, starting, failed trials)."""
    spent: Counter[str] = Counter()
    for event in result.events:
        trial = result.history.trials.get(event.get("trial") or "") if event["event"] == "rung" else None
        if trial is not None:
            spent[_purpose(trial, event["epoch"])] += event["seconds"]
    order = [f"search, to epoch {rung}" for rung in result.history.rungs] + [
        "finals: winner",
        "finals: controls",
        ABLATION,
    ]
    named = [(name, spent[name]) for name in [*order, *sorted(spent.keys() - set(order))] if spent[name]]
    lanes = result.head.get("lanes")
    rest = lanes * result.history.elapsed - sum(spent.values()) if isinstance(lanes, int) else 0.0
    return named + ([("waiting, starting, failed", rest)] if rest > 0 else [])


def dots(row: Row, split: str, metric: str) -> list[float]:
    """The values of a row's seeds, in axis units."""
    return [value * Scale(metric).factor for value in (row.tests if split == "test" else row.values)]


def window(values: Sequence[float], teacher: float | None = None) -> tuple[float, float, int]:
    """(low, high, how many lie below): axis limits that show the better half and the teacher, not the worst outlier."""
    if not values:
        return 0.0, 1.0, 0
    ordered = np.asarray(values, dtype=float)
    top, middle, bottom = float(ordered.max()), float(np.median(ordered)), float(ordered.min())
    low = max(bottom, middle - 1.5 * (top - middle)) if top > middle else bottom
    top = top if teacher is None else max(top, teacher)
    margin = 0.06 * (top - low) or 0.05 * abs(top) or 1.0
    return low - margin, top + margin, int((ordered < low - margin).sum())


def _point(trial: Trial, epoch: int, metric: str, value: float | None = None) -> Point:
    value = trial.values[epoch][0] * Scale(metric).factor if value is None else value
    recipe = words.recipe_words(trial.recipe)
    return Point(trial.id, trial.role, trial.recipe.student.family, trial.params, epoch, value, recipe)


def _curve(trial: Trial, metric: str) -> Curve:
    by_epoch = {row["epoch"]: row["metrics"][metric] for row in trial.curve if metric in (row.get("metrics") or {})}
    by_epoch |= {epoch: value for epoch, (value, _) in trial.values.items()}
    epochs, factor = sorted(by_epoch), Scale(metric).factor
    values = [by_epoch[epoch] * factor for epoch in epochs]
    recipe = words.recipe_words(trial.recipe)
    return Curve(trial.id, trial.role, trial.recipe.student.family, epochs, values, recipe)


def _common_rung(trials: Sequence[Trial]) -> int:
    reached = Counter(epoch for trial in trials for epoch in trial.values)
    enough = [epoch for epoch, count in reached.items() if count >= 2 * FEWEST]
    return max(enough, default=min(reached, default=0))


def _purpose(trial: Trial, epoch: int) -> str:
    if trial.role == "search":
        return f"search, to epoch {epoch}"
    if trial.role == ABLATION:
        return ABLATION
    return "finals: winner" if trial.role == "winner" else "finals: controls"


def _strip(name: str, pairs: Sequence[tuple[Value, Point]]) -> Strip | None:
    """None if there is too little to see: few trials, or one value only."""
    if len(pairs) < FEWEST or len({x for x, _ in pairs}) < 2:
        return None
    xs, points = [x for x, _ in pairs], [point for _, point in pairs]
    values = np.array([point.value for point in points])
    if all(isinstance(x, int | float) and not isinstance(x, bool) for x in xs):
        rho = _correlation(_ranks(np.array(xs, dtype=float)), _ranks(values))
        return Strip(name, xs, points, abs(rho), rho)
    groups = np.unique([str(x) for x in xs], return_inverse=True)[1]
    means = np.array([values[groups == group].mean() for group in range(groups.max() + 1)])
    share = means[groups].var() / values.var() if values.var() > 0 else 0.0
    return Strip(name, [str(x) for x in xs], points, math.sqrt(share), None)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks with ties averaged."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0
