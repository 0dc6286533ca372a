"""The report's figures as PNG files, by matplotlib. The only file that imports it; no window system is touched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autokd import words
from autokd.report import views
from autokd.report.style import (
    CLEAR,
    FAINT,
    ROLE_COLOURS,
    ROLE_WORDS,
    TEACHER,
    TITLES,
    colours_of,
    cost_colour,
    effect_colour,
    rung_colours,
)
from autokd.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
MARKERS = {"winner": "D", "no_kd": "s", "default_kd": "^"}
STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def write_images(result: Result, folder: Path) -> dict[str, Path]:
    """Draw every figure that has something to show; name -> file. Figures without data are left out."""
    import matplotlib

    written: dict[str, Path] = {}
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        for name, draw in FIGURES.items():
            figure = draw(result)
            if figure is not None:
                written[name] = folder / views.FILES[name]
                figure.savefig(written[name], dpi=DPI, facecolor="white")
    return written


def _new(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _title(figure: Figure, name: str, note: str = "") -> None:
    figure.suptitle(TITLES[name], x=0.01, ha="left", fontsize=13, fontweight="bold")
    if note:
        figure.axes[0].set_title(note, fontsize=9, color="#555555")


def _legend(figure: Figure) -> None:
    """Under the axes, where it hides nothing."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)))


def _plain(name: str) -> str:
    """A user's name, kept from being read as mathematics."""
    return name.replace("$", r"\$")


def _dots(axes: Axes, points: Sequence[views.Point], **style: Any) -> None:
    axes.scatter([point.params for point in points], [point.value for point in points], **style)


def _pareto(result: Result) -> Figure | None:
    from matplotlib.ticker import LogLocator

    points = views.cloud(result)
    if not points:
        return None
    figure = _new(8, 5.2)
    axes = figure.add_subplot()
    top = max(point.epoch for point in points)
    for family, colour in colours_of(points).items():
        ours = [point for point in points if point.family == family and point.role == "search"]
        _dots(axes, [p for p in ours if p.epoch < top], s=16, color=colour, alpha=0.3, linewidths=0)
        _dots(
            axes, [p for p in ours if p.epoch == top], s=36, color=colour, alpha=0.9, linewidths=0, label=_plain(family)
        )
    front = views.front(points)
    steps = [p.params for p in front], [p.value for p in front]
    axes.plot(*steps, color="#444444", lw=1.2, drawstyle="steps-post", zorder=1, label="best of its size or smaller")
    for role, marker in MARKERS.items():
        some = [point for point in points if point.role == role]
        style = {"s": 46, "marker": marker, "color": ROLE_COLOURS[role], "edgecolors": "black", "lw": 0.7, "zorder": 4}
        if some:
            _dots(axes, some, label=f"finals: {ROLE_WORDS[role]}", **style)
    teacher, params = views.teacher_value(result), result.teacher.get("params")
    if teacher is not None and params:
        axes.scatter([params], [teacher], marker="*", s=200, color=TEACHER, label="teacher", zorder=5)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda x, _: words.count(x).replace(".0", ""))
    axes.set(xlabel="parameters", ylabel=views.Scale(result.metric).label())
    hidden = _limit(axes, [p.value for p in points], result)
    _title(figure, "pareto", f"each trial at its last epoch; large dots reached epoch {top}{hidden}")
    _legend(figure)
    return figure


def _teacher_line(axes: Axes, result: Result) -> None:
    value = views.teacher_value(result)
    if value is not None:
        axes.axhline(value, color=TEACHER, lw=1.2, ls="--", label="teacher", zorder=1)


def _limit(axes: Axes, values: list[float], result: Result) -> str:
    """Set the y limits to where the good trials are; words about what lies below."""
    low, high, hidden = views.window(values, views.teacher_value(result))
    axes.set_ylim(low, high)
    return f"; {hidden} weaker values lie below the axis" if hidden else ""


def _timeline(result: Result) -> Figure | None:
    line = views.timeline(result)
    if not line.points:
        return None
    figure = _new(8, 4.6)
    axes = figure.add_subplot()
    for rung, colour in rung_colours({point.epoch for _, point in line.points}).items():
        some = [(seconds, point.value) for seconds, point in line.points if point.epoch == rung]
        xs, ys = zip(*some, strict=True)
        axes.scatter(xs, ys, s=14, color=colour, alpha=0.7, linewidths=0, label=f"at epoch {rung}")
    axes.step(*zip(*line.best, strict=True), where="post", color="black", lw=1.8, label="best so far")
    _teacher_line(axes, result)
    if line.finals is not None:
        axes.axvline(line.finals, color="#888888", ls=":", label="finals begin")
    hidden = _limit(axes, [point.value for _, point in line.points], result)
    axes.set(xlabel="time since the start of the search (s)", ylabel=views.Scale(result.metric).label())
    _title(figure, "timeline", f"one dot for each time a trial was measured{hidden}")
    _legend(figure)
    return figure


def _curves(result: Result) -> Figure | None:
    from matplotlib.ticker import MaxNLocator

    lines = views.curves(result)
    if not lines:
        return None
    figure = _new(8, 5)
    axes = figure.add_subplot()
    colours, shown = colours_of(views.cloud(result)), set()
    for line in lines:
        final = line.role != "search"
        colour = ROLE_COLOURS[line.role] if final else colours[line.family]
        label = f"finals: {ROLE_WORDS[line.role]}" if final else _plain(line.family)
        look = {"lw": 1.8, "alpha": 0.9, "ls": "--", "zorder": 3} if final else {"lw": 0.9, "alpha": 0.45}
        new = None if label in shown else label
        axes.plot(line.epochs, line.values, color=colour, marker=".", ms=3, label=new, **look)
        shown.add(label)
    for rung in result.history.rungs:
        axes.axvline(rung, color="#AAAAAA", lw=0.8, ls=":", zorder=0)
    _teacher_line(axes, result)
    hidden = _limit(axes, [value for line in lines for value in line.values], result)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel=views.Scale(result.metric).label())
    total = sum(bool(trial.values) for trial in result.history.trials.values())
    _title(figure, "curves", f"{len(lines)} of {total} trials; dotted: rungs{hidden}")
    _legend(figure)
    return figure


def _strips(result: Result) -> Figure | None:
    epoch, strips = views.strips(result)
    if not strips:
        return None
    columns = min(4, len(strips))
    rows = -(-len(strips) // columns)
    figure = _new(max(5.0, 2.9 * columns + 0.4), 2.6 * rows + 0.7)
    colours = colours_of(views.cloud(result))
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, strip in zip(grid.flat, strips, strict=False):
        _one_strip(axes, strip, colours)
    for axes in list(grid.flat)[len(strips) :]:
        axes.set_visible(False)
    _limit(grid[0][0], [p.value for strip in strips for p in strip.points], result)
    figure.supylabel(views.Scale(result.metric).label() + f" at epoch {epoch}", fontsize=10)
    figure.supxlabel("strongest first; ρ: Spearman's rank correlation; colours: families", fontsize=9, color="#555555")
    _title(figure, "strips")
    return figure


def _one_strip(axes: Axes, strip: views.Strip, colours: dict[str, str]) -> None:
    ticks, colour = strip.ticks, [colours[point.family] for point in strip.points]
    shift = np.random.default_rng(0).uniform(-0.12, 0.12, len(strip.xs))
    xs = np.array([ticks.index(x) for x in strip.xs]) + shift if ticks else np.array(strip.xs, dtype=float)
    axes.scatter(xs, [point.value for point in strip.points], 14, c=colour, alpha=0.7, linewidths=0)
    if ticks:
        axes.set_xticks(range(len(ticks)), [_plain(str(tick)[:12]) for tick in ticks], fontsize=8)
        axes.set_xlim(-0.5, len(ticks) - 0.5)
    elif strip.log:
        axes.set_xscale("log")
    rho = f"   ρ = {strip.correlation:+.2f}" if strip.correlation is not None else ""
    axes.set_title(_plain(strip.name) + rho, fontsize=9)


def _importance(result: Result) -> Figure | None:
    fields, found = views.important(result), result.importance()
    if not fields or found is None:
        return None
    figure = _new(8, 1.5 + 0.36 * len(fields))
    axes = figure.add_subplot()
    for place, entry in enumerate(fields):
        ends = [[100 * (entry.share - entry.low)], [100 * (entry.high - entry.share)]]
        look: dict[str, Any] = {"color": CLEAR if entry.above_noise else FAINT, "height": 0.6}
        look |= {"error_kw": {"capsize": 3, "ecolor": "#555555", "elinewidth": 1}}
        axes.barh(place, 100 * entry.share, xerr=ends, **look)
    labels = ["\n".join(filter(None, views.field_label(entry))) for entry in fields]
    axes.set_yticks(range(len(fields)), [_plain(label) for label in labels], fontsize=7)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("share of the variance of being among the best (%), 95 % interval", fontsize=9)
    measured = f"{found.trials} trials at epoch {found.rung}, the best {found.best}"
    _title(figure, "importance", f"{measured}; grey: not distinguishable from noise")
    return figure


def _ablation(result: Result) -> Figure | None:
    entries = result.ablation()
    if not entries:
        return None
    figure = _new(8, 1.5 + 0.42 * len(entries))
    axes = figure.add_subplot()
    for place, entry in enumerate(entries):
        values, colour = views.effects(entry, result.metric), effect_colour(entry)
        axes.scatter(values, [place] * len(values), 42, color=colour, alpha=0.75, linewidths=0, zorder=3)
        axes.plot([np.mean(values)] * 2, [place - 0.28, place + 0.28], color=colour, lw=2.4)
    axes.axvline(0.0, color="#888888", ls=":")
    labels = [_plain(entry.label).replace(" instead of ", "\ninstead of ") for entry in entries]
    axes.set_yticks(range(len(entries)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(views.effect_label(result.metric) + "; grey: within noise, or one seed only")
    _title(figure, "ablation", "one dot for each seed; bar: mean; dotted: the winner")
    return figure


def _finals(result: Result) -> Figure | None:
    rows = result.rows()
    if len(rows) < 2:
        return None
    figure = _new(8, 1.4 + 0.55 * len(rows))
    splits = [split for split in ("validation", "test") if any(views.dots(row, split, result.metric) for row in rows)]
    panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for axes, split in zip(panels, splits, strict=True):
        for place, row in enumerate(rows):
            values, colour = views.dots(row, split, result.metric), ROLE_COLOURS[row.role]
            axes.scatter(values, [place] * len(values), 42, color=colour, alpha=0.75, linewidths=0, zorder=3)
            if values:
                axes.plot([np.mean(values)] * 2, [place - 0.28, place + 0.28], color=colour, lw=2.4)
        axes.set_xlabel(views.Scale(result.metric).label(split))
    panels[0].set_yticks(range(len(rows)), [row.label.replace(", ", ",\n") for row in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    _title(figure, "finals", "one dot for each seed; bar: mean")
    return figure


def _costs(result: Result) -> Figure | None:
    from matplotlib.ticker import MaxNLocator

    costs, failures = views.costs(result), result.failures
    if not costs and not failures:
        return None
    figure = _new(8, 3.2)
    left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
    total = sum(seconds for _, seconds in costs) or 1.0
    for place, (name, seconds) in enumerate(costs):
        left.barh(place, seconds, color=cost_colour(name, result.history.rungs), height=0.7)
        left.text(seconds, place, f" {words.duration(seconds)}, {100 * seconds / total:.0f} %", va="center", fontsize=9)
    left.set_yticks(range(len(costs)), [name for name, _ in costs])
    left.invert_yaxis()
    left.margins(x=0.4)
    left.set_xlabel("seconds, summed over lanes")
    right.barh(list(failures), list(failures.values()), color=TEACHER, height=0.5)
    right.set_xlabel("trials")
    failed = f"failed: {sum(failures.values())} of {len(result.history.trials)}"
    right.set_title(failed, fontsize=9, color="#555555")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (left, right):
        axes.grid(axis="y", visible=False)
    _title(figure, "costs")
    return figure


FIGURES: dict[str, Callable[[Result], Figure | None]] = {
    "pareto": _pareto,
    "timeline": _timeline,
    "curves": _curves,
    "importance": _importance,
    "ablation": _ablation,
    "strips": _strips,
    "finals": _finals,
    "costs": _costs,
}
