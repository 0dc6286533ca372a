"""The report's figures for the page, by plotly (imported here only). Hovering a point names its trial and recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from autokd import words
from autokd.report import views
from autokd.report.fronts import draw_front
from autokd.report.style import (
    CLEAR,
    CONTROL_MARKERS,
    FAINT,
    ROLE_COLOURS,
    ROLE_WORDS,
    TEACHER,
    colours_of,
    cost_colour,
    effect_colour,
    rung_colours,
)
from autokd.result import Result

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MARKERS = {"winner": "diamond", **CONTROL_MARKERS}
CONFIG = {"displayModeBar": False, "responsive": True}
GRID = "rgba(128,128,128,0.22)"
TEXT = "#555555"  # until the page's script sets the reader's light or dark colours
LAYOUT: dict[str, Any] = {
    "template": "none",
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": TEXT},
    "margin": {"l": 62, "r": 12, "t": 16, "b": 48},
    "legend": {"orientation": "h", "y": -0.24, "yanchor": "top", "x": 0},
    "hoverlabel": {"align": "left", "font": {"family": "system-ui, sans-serif"}},
    "height": 450,
}


def draw_charts(result: Result) -> dict[str, str]:
    """Name -> HTML of each chart that has something to show. The first carries plotly's script, so keep the order."""
    charts: dict[str, str] = {}
    for name, draw in CHARTS.items():
        figure = draw(result)
        if figure is not None:
            charts[name] = figure.to_html(
                full_html=False,
                include_plotlyjs=not charts,
                include_mathjax=False,
                config=CONFIG,
                div_id=f"chart-{name}",
            )
    return charts


def _new(x: str, y: str, **layout: Any) -> Figure:
    from plotly.graph_objects import Figure

    figure = Figure(layout=LAYOUT | layout)
    axes = {"gridcolor": GRID, "zeroline": False, "linecolor": "rgba(128,128,128,0.6)", "ticks": "outside"}
    figure.update_xaxes(title_text=x, **axes)
    figure.update_yaxes(title_text=y, **axes)
    return figure


def _hover(point: views.Point | views.Curve, lines: Sequence[str]) -> str:
    role = "" if point.role == "search" else f" (finals: {ROLE_WORDS[point.role]})"
    said = [f"<b>{escape(point.trial)}</b>{role}", *lines, *_wrapped(point.recipe)]
    return "<br>".join(said)


def _wrapped(recipe: str) -> list[str]:
    return [escape(part) for part in recipe.split(", ")]


def _point_hover(point: views.Point, metric: str) -> str:
    value = words.score(point.value / views.Scale(metric).factor, metric=metric)
    return _hover(point, [f"{value} at epoch {point.epoch}", f"{words.count(point.params)} parameters"])


def _scatter(figure: Figure, xs: Sequence[Any], points: Sequence[views.Point], metric: str, **style: Any) -> None:
    texts = [_point_hover(point, metric) for point in points]
    ys = [point.value for point in points]
    figure.add_scatter(x=list(xs), y=ys, mode="markers", text=texts, hovertemplate="%{text}<extra></extra>", **style)


def _teacher_line(figure: Figure, result: Result, xs: Sequence[float]) -> None:
    value = views.teacher_value(result)
    if value is not None and xs:
        line = {"color": TEACHER, "dash": "dash", "width": 1.5}
        figure.add_scatter(x=[min(xs), max(xs)], y=[value, value], mode="lines", line=line, name="teacher")


def _limit(figure: Figure, values: Sequence[float], result: Result) -> None:
    low, high, _ = views.window(values, views.teacher_value(result))
    figure.update_yaxes(range=[low, high])


def _pareto(result: Result) -> Figure | None:
    points, metric = views.cloud(result), result.metric
    if not points:
        return None
    figure = _new("parameters", views.Scale(metric).label())
    figure.update_xaxes(type="log", dtick="D2", tickformat="~s")
    top = max(point.epoch for point in points)
    for family, colour in colours_of(points).items():
        for done in (False, True):
            some = [p for p in points if p.role == "search" and p.family == family and (p.epoch == top) == done]
            faint = {"color": colour, "size": 9 if done else 6, "opacity": 0.9 if done else 0.3}
            named = {
                "name": escape(family),
                "legendgroup": escape(family),
                "showlegend": done or _never(points, family, top),
            }
            _scatter(figure, [p.params for p in some], some, metric, marker=faint, **named)
    front = views.front(points)
    steps = {"mode": "lines", "line": {"shape": "hv", "color": "#888888", "width": 1.5}, "hoverinfo": "skip"}
    name = "best of its size or smaller"
    figure.add_scatter(x=[p.params for p in front], y=[p.value for p in front], name=name, **steps)
    for role, symbol in MARKERS.items():
        some = [point for point in points if point.role == role]
        marker: dict[str, Any] = {
            "color": ROLE_COLOURS[role],
            "symbol": symbol,
            "size": 11,
            "line": {"width": 1, "color": "white"},
        }
        if some:
            name = f"finals: {ROLE_WORDS[role]}"
            _scatter(figure, [p.params for p in some], some, metric, marker=marker, name=name)
    _teacher_star(figure, result)
    _limit(figure, [point.value for point in points], result)
    return figure


def _never(points: Sequence[views.Point], family: str, top: int) -> bool:
    """Whether no search trial of this family was trained to the end, so that its faint dots need the legend."""
    return not any(p.family == family and p.role == "search" and p.epoch == top for p in points)


def _teacher_star(figure: Figure, result: Result) -> None:
    value, params = views.teacher_value(result), result.teacher.get("params")
    if value is None or not params:
        return
    said = words.score(result.teacher["value"], metric=result.metric)
    text = f"<b>teacher</b><br>{said}<br>{words.count(params)} parameters"
    star = {"symbol": "star", "size": 16, "color": TEACHER}
    hover = {"text": [text], "hovertemplate": "%{text}<extra></extra>"}
    figure.add_scatter(x=[params], y=[value], mode="markers", marker=star, name="teacher", **hover)


def _timeline(result: Result) -> Figure | None:
    line = views.timeline(result)
    if not line.points:
        return None
    figure = _new("time since the start of the search (s)", views.Scale(result.metric).label())
    for rung, colour in rung_colours({point.epoch for _, point in line.points}).items():
        some = [(seconds, point) for seconds, point in line.points if point.epoch == rung]
        xs, marker = [seconds for seconds, _ in some], {"color": colour, "size": 6, "opacity": 0.75}
        _scatter(figure, xs, [p for _, p in some], result.metric, marker=marker, name=f"at epoch {rung}")
    steps = {"mode": "lines", "line": {"shape": "hv", "color": "#E0861A", "width": 2.5}, "name": "best so far"}
    figure.add_scatter(x=[seconds for seconds, _ in line.best], y=[value for _, value in line.best], **steps)
    _teacher_line(figure, result, [line.points[0][0], line.best[-1][0]])
    if line.finals is not None:
        figure.add_vline(
            line.finals,
            line={"color": "#888888", "dash": "dot"},
            annotation_text="finals begin",
            annotation_position="bottom left",
        )
    _limit(figure, [point.value for _, point in line.points], result)
    return figure


def _curves(result: Result) -> Figure | None:
    lines = views.curves(result)
    if not lines:
        return None
    figure = _new("epoch", views.Scale(result.metric).label())
    colours = colours_of(views.cloud(result))
    groups: dict[str, list[views.Curve]] = {}
    for line in lines:
        name = escape(line.family) if line.role == "search" else f"finals: {ROLE_WORDS[line.role]}"
        groups.setdefault(name, []).append(line)
    for name, group in sorted(groups.items(), key=lambda item: item[1][0].role != "search"):
        final = group[0].role != "search"
        colour = ROLE_COLOURS[group[0].role] if final else colours[group[0].family]
        style = {"color": colour, "width": 2.2 if final else 1, "dash": "dash" if final else "solid"}
        figure.add_scatter(**_joined(group, result.metric), line=style, name=name, opacity=0.95 if final else 0.5)
    for rung in result.history.rungs:
        figure.add_vline(rung, line={"color": "#999999", "dash": "dot", "width": 1})
    _teacher_line(figure, result, [epoch for line in lines for epoch in line.epochs])
    _limit(figure, [value for line in lines for value in line.values], result)
    return figure


def _joined(group: Sequence[views.Curve], metric: str) -> dict[str, Any]:
    """Many curves as one trace with gaps, which keeps a page of hundreds of trials light."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    texts: list[str] = []
    for line in group:
        xs += [*line.epochs, None]
        ys += [*line.values, None]
        shown = [words.score(value / views.Scale(metric).factor, metric=metric) for value in line.values]
        pairs = zip(shown, line.epochs, strict=True)
        texts += [*(_hover(line, [f"{value} at epoch {epoch}"]) for value, epoch in pairs), ""]
    return {"x": xs, "y": ys, "text": texts, "mode": "lines", "hovertemplate": "%{text}<extra></extra>"}


def _strips(result: Result) -> Figure | None:
    from plotly.subplots import make_subplots

    epoch, strips = views.strips(result)
    if not strips:
        return None
    columns = min(4, len(strips))
    rows = -(-len(strips) // columns)
    titles = [escape(s.name) + (f"  ρ = {s.correlation:+.2f}" if s.correlation is not None else "") for s in strips]
    gaps = {"horizontal_spacing": 0.03, "vertical_spacing": 0.3 / rows}
    figure = make_subplots(rows, columns, shared_yaxes=True, subplot_titles=titles, **gaps)
    figure.update_layout(
        LAYOUT | {"height": 90 + 240 * rows, "showlegend": False, "margin": LAYOUT["margin"] | {"t": 30}}
    )
    figure.update_annotations(font_size=12)
    figure.update_xaxes(gridcolor=GRID, zeroline=False)
    figure.update_yaxes(gridcolor=GRID, zeroline=False)
    colours = colours_of(views.cloud(result))
    for place, strip in enumerate(strips):
        _one_strip(figure, strip, colours, result.metric, place // columns + 1, place % columns + 1)
    for row in range(1, rows + 1):
        figure.update_yaxes(title_text=f"{result.metric} at epoch {epoch}", row=row, col=1)
    _limit(figure, [point.value for strip in strips for point in strip.points], result)
    return figure


def _one_strip(figure: Figure, strip: views.Strip, colours: dict[str, str], metric: str, row: int, col: int) -> None:
    ticks = strip.ticks
    shift = np.random.default_rng(0).uniform(-0.12, 0.12, len(strip.xs))
    xs = [ticks.index(x) + d for x, d in zip(strip.xs, shift, strict=True)] if ticks else strip.xs
    marker = {"color": [colours[point.family] for point in strip.points], "size": 6, "opacity": 0.75}
    _scatter(figure, xs, strip.points, metric, marker=marker, row=row, col=col)
    if ticks:
        names = [escape(str(tick)[:14]) for tick in ticks]
        figure.update_xaxes(tickvals=list(range(len(ticks))), ticktext=names, row=row, col=col)
        figure.update_xaxes(range=[-0.5, len(ticks) - 0.5], row=row, col=col)
    elif strip.log:
        figure.update_xaxes(type="log", dtick=1, exponentformat="power", row=row, col=col)


def _importance(result: Result) -> Figure | None:
    fields = views.important(result)[::-1]
    if not fields:
        return None
    figure = _new("share of the variance of being among the best (%)", "", height=130 + 40 * len(fields))
    figure.update_layout(margin=LAYOUT["margin"] | {"l": 300}, legend={"y": 1.0, "yanchor": "bottom"})
    labels = [views.field_label(entry) for entry in fields]
    ticks = [escape(name) + (f"<br><sub>{escape(where)}</sub>" if where else "") for name, where in labels]
    for clear, name in ((True, "more than noise"), (False, "not distinguishable from noise")):
        some = [(place, entry) for place, entry in enumerate(fields) if entry.above_noise == clear]
        bars: dict[str, Any] = {"orientation": "h", "marker_color": CLEAR if clear else FAINT, "name": name}
        bars["error_x"] = {
            "type": "data",
            "symmetric": False,
            "color": "#777777",
            "thickness": 1.2,
            "array": [100 * (entry.high - entry.share) for _, entry in some],
            "arrayminus": [100 * (entry.share - entry.low) for _, entry in some],
        }
        texts = [f"{escape(e.label)}<br>in {e.trials} trials; shuffled {100 * e.noise:.1f} %" for _, e in some]
        hover = {"text": texts, "textposition": "none", "hovertemplate": "%{x:.1f} %<br>%{text}<extra></extra>"}
        figure.add_bar(x=[100 * e.share for _, e in some], y=[place for place, _ in some], **bars, **hover)
    figure.update_yaxes(tickvals=list(range(len(fields))), ticktext=ticks, ticks="")
    return figure


def _ablation(result: Result) -> Figure | None:
    entries = result.ablation()[::-1]
    if not entries:
        return None
    figure = _new(views.effect_label(result.metric), "", height=110 + 40 * len(entries), showlegend=False)
    figure.update_layout(margin=LAYOUT["margin"] | {"l": 300})
    for place, entry in enumerate(entries):
        values, colour = views.effects(entry, result.metric), effect_colour(entry)
        mean = {"mode": "lines", "line": {"color": colour, "width": 3}, "hoverinfo": "skip"}
        figure.add_scatter(x=[np.mean(values)] * 2, y=[place - 0.28, place + 0.28], **mean)
        dots = {"mode": "markers", "marker": {"color": colour, "size": 10, "opacity": 0.75}}
        said = "<br>".join(_wrapped(entry.sentence(result.metric)))
        figure.add_scatter(x=values, y=[place] * len(values), **dots, hovertemplate=said + "<extra></extra>")
    figure.add_vline(0.0, line={"color": "#888888", "dash": "dot"}, annotation_text="the winner")
    names = [escape(entry.label).replace(" instead of ", "<br>instead of ") for entry in entries]
    figure.update_yaxes(tickvals=list(range(len(entries))), ticktext=names, ticks="")
    return figure


def _front(result: Result) -> Figure | None:
    figure = draw_front(result)
    if figure is not None:
        figure.update_layout(LAYOUT)
        figure.update_xaxes(gridcolor=GRID, zeroline=False)
        figure.update_yaxes(gridcolor=GRID, zeroline=False)
    return figure


def _finals(result: Result) -> Figure | None:
    from plotly.subplots import make_subplots

    rows = result.rows()
    if len(rows) < 2:
        return None
    splits = [split for split in ("validation", "test") if any(views.dots(row, split, result.metric) for row in rows)]
    figure = make_subplots(1, len(splits), shared_yaxes=True, horizontal_spacing=0.04)
    size = {"height": 110 + 52 * len(rows), "showlegend": False, "margin": LAYOUT["margin"] | {"l": 140}}
    figure.update_layout(LAYOUT | size)
    for col, split in enumerate(splits, start=1):
        for place, row in enumerate(rows):
            _seed_dots(figure, views.dots(row, split, result.metric), place, row.role, col)
        figure.update_xaxes(title_text=views.Scale(result.metric).label(split), gridcolor=GRID, row=1, col=col)
    names = [row.label.replace(", ", ",<br>") for row in rows]
    figure.update_yaxes(tickvals=list(range(len(rows))), range=[len(rows) - 0.5, -0.5], gridcolor=GRID, zeroline=False)
    figure.update_yaxes(ticktext=names, row=1, col=1)
    return figure


def _seed_dots(figure: Figure, values: list[float], place: int, role: str, col: int) -> None:
    if not values:
        return
    colour = ROLE_COLOURS[role]
    mean = {"mode": "lines", "line": {"color": colour, "width": 3}, "hovertemplate": "mean %{x:.2f}<extra></extra>"}
    figure.add_scatter(x=[np.mean(values)] * 2, y=[place - 0.28, place + 0.28], **mean, row=1, col=col)
    dots = {"mode": "markers", "marker": {"color": colour, "size": 10, "opacity": 0.75}}
    hover = "%{x:.2f}<extra></extra>"
    figure.add_scatter(x=values, y=[place] * len(values), **dots, hovertemplate=hover, row=1, col=col)


def _costs(result: Result) -> Figure | None:
    costs = views.costs(result)
    if not costs:
        return None
    total = sum(seconds for _, seconds in costs)
    figure = _new("seconds, summed over lanes", "", height=110 + 36 * len(costs), showlegend=False)
    figure.update_layout(margin=LAYOUT["margin"] | {"l": 170})
    figure.add_bar(
        x=[seconds for _, seconds in costs],
        y=[name for name, _ in costs],
        orientation="h",
        marker_color=[cost_colour(name, result.history.rungs) for name, _ in costs],
        text=[f"{words.duration(seconds)}, {100 * seconds / total:.0f} %" for _, seconds in costs],
        textposition="auto",
        hoverinfo="skip",
    )
    figure.update_yaxes(autorange="reversed")
    return figure


CHARTS: dict[str, Callable[[Result], Figure | None]] = {
    "pareto": _pareto,
    "front": _front,
    "finals": _finals,
    "timeline": _timeline,
    "curves": _curves,
    "importance": _importance,
    "ablation": _ablation,
    "strips": _strips,
    "costs": _costs,
}
