"""The front of a search with several goals: quality against each cost, by plotly, and as a table."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from autokd import words
from autokd.front import MEASURE_WORDS, Member, cost_words, members
from autokd.goals import costs_of, goals_of
from autokd.history import Trial
from autokd.report import views
from autokd.report.style import CONTROL_MARKERS, FRONT, ROLE_COLOURS, ROLE_WORDS, TEACHER
from autokd.result import Result

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

OTHERS = "rgba(128,128,128,0.55)"


def draw_front(result: Result) -> Figure | None:
    """One panel for each cost: trials of the front's rung, the front, the controls and the teacher."""
    from plotly.subplots import make_subplots

    costs, found = goals_of(result.history), members(result.history)
    if not found:
        return None
    figure = make_subplots(1, len(costs), shared_yaxes=True, horizontal_spacing=0.05)
    for column, cost in enumerate(costs, start=1):
        _panel(figure, result, found, cost, column)
        figure.update_xaxes(title_text=MEASURE_WORDS[cost], type="log", tickformat="~s", row=1, col=column)
    figure.update_yaxes(title_text=views.Scale(result.metric).label(), row=1, col=1)
    return figure


def front_rows(result: Result) -> list[tuple[str, ...]]:
    """The cells of the front's table, the best by the metric first."""
    return [
        (
            member.trial,
            words.recipe_words(member.recipe),
            words.score(member.value, metric=result.metric),
            words.score(member.value_mean, member.value_sd, result.metric) if member.n else words.MISSING,
            words.score(member.test_mean, member.test_sd, result.metric),
            str(member.n),
            *(cost_words(name, member.costs.get(name)) for name in goals_of(result.history)),
        )
        for member in members(result.history)
    ]


def front_head(result: Result) -> tuple[str, ...]:
    metric, costs = result.metric, goals_of(result.history)
    named = [MEASURE_WORDS[name] for name in costs]
    return ("trial", "recipe", f"{metric} in the search", "retrained", f"test {metric}", "seeds", *named)


# ---- inside


def _panel(figure: Figure, result: Result, found: list[Member], cost: str, column: int) -> None:
    history, factor = result.history, views.Scale(result.metric).factor
    rung = max(rung for trial in history.in_role("search") for rung in trial.values if rung in history.rungs)
    rest = [t for t in history.in_role("search") if rung in t.values and t.id not in {m.trial for m in found}]
    ys = [trial.values[rung][0] * factor for trial in rest]
    _dots(
        figure, [costs_of(t).get(cost) for t in rest], ys, [_hover(t.id, t) for t in rest], column, "dominated", OTHERS
    )
    ordered = sorted(found, key=lambda member: member.costs.get(cost, 0.0))
    xs, ys = [member.costs.get(cost) for member in ordered], [member.value * factor for member in ordered]
    texts = [_hover(member.trial, history.trials[member.trial]) for member in ordered]
    _dots(figure, xs, ys, texts, column, "front", FRONT, size=11)
    for role, symbol in CONTROL_MARKERS.items():
        finals = [trial for trial in history.finals(role) if trial.values]
        ys = [(trial.value or 0.0) * factor for trial in finals]
        named = f"finals: {ROLE_WORDS[role]}"
        texts = [_hover(trial.id, trial) for trial in finals]
        _dots(figure, [costs_of(t).get(cost) for t in finals], ys, texts, column, named, ROLE_COLOURS[role], symbol)
    value, amount = views.teacher_value(result), result.teacher.get(cost)
    if value is not None and amount:
        _dots(figure, [amount], [value], ["<b>teacher</b>"], column, "teacher", TEACHER, "star", size=15)


def _dots(
    figure: Figure,
    xs: list[Any],
    ys: list[float],
    texts: list[str],
    column: int,
    name: str,
    colour: str,
    symbol: str = "circle",
    size: int = 8,
) -> None:
    if xs:
        marker = {"color": colour, "symbol": symbol, "size": size}
        told = {"text": texts, "hovertemplate": "%{text}<extra></extra>", "name": name, "legendgroup": name}
        figure.add_scatter(x=xs, y=ys, mode="markers", marker=marker, showlegend=column == 1, **told, row=1, col=column)


def _hover(name: str, trial: Trial) -> str:
    lines = [cost_words(cost, amount) for cost, amount in costs_of(trial).items()]
    return "<br>".join(
        [f"<b>{escape(name)}</b>", *map(escape, [*lines, *words.recipe_words(trial.recipe).split(", ")])]
    )
