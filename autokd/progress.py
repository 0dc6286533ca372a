"""What a user sees while a search runs, and the tables before and after it.

`Progress` listens to ledger events. On a terminal it draws a live panel; elsewhere (notebook, pipe, log file) it writes
a plain line every ten seconds and at each new best. An event costs microseconds, and display trouble never reaches the
search.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.errors import ConsoleError
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autokd import words
from autokd.ablation import ROLE as ABLATION
from autokd.finals import leader, standing
from autokd.front import cost_words
from autokd.goals import goals_of
from autokd.history import History, Trial
from autokd.ledger import Event
from autokd.result import Result
from autokd.summary import best_words, plan_lines, row_words, rung_words, state_words

# What an odd event may raise, and a closed file or an odd terminal; SystemExit is rich's answer to a closed pipe
ODD_EVENT = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
DISPLAY_TROUBLE = (*ODD_EVENT, OSError, ConsoleError, SystemExit)
SHOWN_TRIALS = 4  # running trials named on the panel


class Progress:
    """Context manager; pass `event` to `ledger.listen`.

    `past` holds the events of earlier sessions. `status` gives the tracker's sentence, or "". `verbose` 0 shows
    nothing. `interval` is in seconds, between plain lines.
    """

    def __init__(
        self,
        past: Iterable[Event] = (),
        *,
        verbose: int = 1,
        console: Console | None = None,
        status: Callable[[], str] = lambda: "",
        interval: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.history = History.replay(past)
        self.console = console or Console()
        self._live: Live | None = None
        self._shown = verbose > 0
        self._panel = self.console.is_terminal and not self.console.is_jupyter and not self.console.is_dumb_terminal
        self._status, self._interval, self._clock = status, interval, clock
        self._best = leader(self.history.in_role("search"))
        self._best_key = None if self._best is None else standing(self._best)
        self._notes: list[str] = []  # said already
        self._opened = self._heard = self._said = clock()
        self._epochs_before = self.history.epochs

    def __enter__(self) -> Progress:
        if self._shown and self._panel:
            self._guard(self._open_panel)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._guard(self._live.stop)
            self._live = None
        if self._shown and self.history.head:
            with suppress(*ODD_EVENT):
                self._say(self._summary("finished" if kind is None else "stopped"))

    def event(self, event: Event) -> None:
        """Fold one ledger event in, and speak if it is time to. Never raises."""
        if self._shown:
            with suppress(*ODD_EVENT):  # one odd event does not end the display
                self._fold(event)

    # ---- events

    def _fold(self, event: Event) -> None:
        self.history.add(event)
        self._heard = self._clock()
        better = self._renew_best(event)
        for note in event.get("notes") or ():
            if note not in self._notes:
                self._notes.append(note)
                self._say(f"note: {note}")
        if self._live is None and event["event"] in ("start", "rung", "fail", "finals"):
            if better and self._best is not None:
                self._say(f"{words.duration(self.elapsed)}: new best {best_words(self._best, self.metric)}")
            elif self._heard - self._said >= self._interval:
                self._say(self._summary("search"))

    def _renew_best(self, event: Event) -> bool:
        trial = self.history.trials.get(event.get("trial") or "")
        if trial is None or trial.role != "search":
            return False
        if event["event"] == "fail" and trial is self._best:
            self._best = leader(self.history.in_role("search"))
            self._best_key = None if self._best is None else standing(self._best)
        if event["event"] != "rung" or (self._best_key is not None and standing(trial) <= self._best_key):
            return False
        self._best, self._best_key = trial, standing(trial)
        return True

    def _guard(self, action: Callable[[], object]) -> None:
        """Run a display action; after trouble the display stays silent and the search goes on."""
        try:
            action()
        except DISPLAY_TROUBLE:
            self._shown = False

    def _say(self, line: str) -> None:
        self._said = self._clock()
        self._guard(lambda: self.console.print(Text(line), soft_wrap=True))

    # ---- the panel

    def _open_panel(self) -> None:
        self._live = Live(
            get_renderable=self._draw,
            console=self.console,
            refresh_per_second=4,
            transient=True,
            vertical_overflow="crop",
        )
        self._live.start()

    def _draw(self) -> RenderableType:
        """Called by the live display's own thread, so it takes copies of what the search thread changes."""
        try:
            return self._panel_of(list(self.history.trials.values()))
        except DISPLAY_TROUBLE:
            return Text("")

    def _panel_of(self, trials: list[Trial]) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        share = self.share()
        bar = ProgressBar(total=1.0, completed=share or 0.0, width=30, pulse=share is None)
        grid.add_row(self._phase(), bar)
        grid.add_row("time", self._time_words(share))
        grid.add_row("trials", state_words(trials))
        grid.add_row("rungs", rung_words(trials, self.history.rungs) or words.MISSING)
        grid.add_row("speed", self._speed_words(trials))
        grid.add_row("now", self._running_words(trials))
        best = "none yet" if self._best is None else best_words(self._best, self.metric)
        grid.add_row("best", Text(best, style="bold" if self._best else ""))
        if status := self._status():
            grid.add_row("tracking", Text(status))
        return grid

    def _phase(self) -> str:
        if any(trial.role == ABLATION for trial in self.history.running):
            return "ablation"
        return "retraining" if self.history.winner else "searching"

    def _time_words(self, share: float | None) -> str:
        spent = (
            words.duration(self.elapsed) if share is None else f"{100 * share:.0f} %, {words.duration(self.elapsed)}"
        )
        budget = self.history.budget
        if budget.get("kind") == "seconds":
            left = max(0.0, float(budget["amount"]) - self.elapsed)
            return f"{spent} of {words.budget(budget)}, {words.duration(left)} left"
        if not share:
            return f"{spent}, budget {words.budget(budget)}"
        return f"{spent}, about {words.duration(self.elapsed * (1 - share) / share)} left of {words.budget(budget)}"

    def _speed_words(self, trials: list[Trial]) -> str:
        lanes = self.history.head.get("lanes")
        busy = sum(trial.state == "running" for trial in trials)
        lane = f", {min(busy, lanes)} of {lanes} lanes busy" if isinstance(lanes, int) else ""
        return f"{self._rate():.1f} epochs/s, {self.history.epochs} epochs{lane}"

    def _running_words(self, trials: list[Trial]) -> Text:
        running = [trial for trial in trials if trial.state == "running"]
        named = [f"{trial.id} {trial.epoch}→{trial.to}" for trial in running[:SHOWN_TRIALS]]
        more = [f"{len(running) - SHOWN_TRIALS} more"] if len(running) > SHOWN_TRIALS else []
        return Text(", ".join(named + more) or "waiting")

    # ---- figures

    @property
    def metric(self) -> str:
        return str(self.history.head.get("metric", "accuracy"))

    @property
    def elapsed(self) -> float:
        """Seconds of the search: up to the last event as the ledger says, since then by our clock."""
        return self.history.elapsed + (self._clock() - self._heard if self.history.head else 0.0)

    def share(self) -> float | None:
        """How much of the budget is spent, 0 to 1; None if it has none that is known here."""
        budget = self.history.budget or self.history.head.get("budget", {})
        amount = budget.get("amount")
        if not amount:
            return None
        trials = [trial for trial in list(self.history.trials.values()) if trial.role == "search"]
        spent = {"seconds": self.elapsed, "epochs": float(self.history.epochs), "trials": float(len(trials))}
        return min(1.0, spent[budget["kind"]] / amount) if budget.get("kind") in spent else None

    def _rate(self) -> float:
        """Epochs a second, over this session."""
        return (self.history.epochs - self._epochs_before) / max(1e-3, self._clock() - self._opened)

    def _summary(self, word: str) -> str:
        trials = list(self.history.trials.values())
        share = self.share()
        done = (
            f" ({100 * share:.0f} % of {words.budget(self.history.budget)})"
            if share is not None and word == "search"
            else ""
        )
        best = f"; best {best_words(self._best, self.metric)}" if self._best else ""
        status = f"; {said}" if (said := self._status()) else ""
        rate = f"{self.history.epochs} epochs at {self._rate():.1f}/s"
        return f"{word} {words.duration(self.elapsed)}{done}: {state_words(trials)}, {rate}{best}{status}"


# ---- tables


def plan_table(plan: Mapping[str, Any], head: Mapping[str, Any]) -> RenderableType:
    """What the search is about to do, from the `search` event."""
    table = Table(title="Plan", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in plan_lines(plan, head):
        table.add_row(name, escape(text))
    notes = [Text(f"note: {note}", style="yellow") for note in plan.get("notes") or []]
    return Group(table, *notes)


def result_table(result: Result) -> RenderableType:
    """Teacher, best student and its controls, and in words whether the difference is more than noise. Fits 80 columns."""
    metric = result.metric
    epochs = max((row.epochs or 0 for row in result.rows()), default=0)
    length = f", {epochs} epochs each" if epochs else ""
    title = f"Result of {result.name}: {metric}, mean ± sd over seeds{length}"
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("network", min_width=16)
    for column in ("params", "FLOPs", "validation", "test", "seeds", "size"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in result.rows():
        name, params, flops, value, test, seeds, _, ratio = row_words(row, metric)
        smaller = ratio if ratio == words.MISSING else f"1/{ratio.removesuffix('x')}"
        cells = (name, params, flops.removesuffix("FLOPs"), value, test, seeds, smaller)
        table.add_row(*map(escape, cells), style="bold" if row.role == "winner" else "")
    sentences = [Text(gain.sentence(metric)) for gain in result.gains() if gain.split == "test"]
    if not sentences:
        sentences = [Text("No controls were trained, so what distillation and search brought is not known.")]
    return Group(table, *sentences, *_front_table(result))


def _front_table(result: Result) -> list[RenderableType]:
    """The front, where there are several goals."""
    found, costs = result.pareto(), goals_of(result.history)
    if not found:
        return []
    title = f"The front: {', '.join(result.head['goals'])}; value in the search, and retrained"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("trial", result.metric, "retrained", "seeds", *costs):
        table.add_column(column, justify="left" if column == "trial" else "right", no_wrap=True)
    for member in found:
        retrained = words.score(member.value_mean, member.value_sd, result.metric) if member.n else words.MISSING
        amounts = [cost_words(name, member.costs.get(name)) for name in costs]
        table.add_row(member.trial, words.score(member.value, metric=result.metric), retrained, str(member.n), *amounts)
    return [table]


def leaderboard_table(result: Result, top: int = 20) -> RenderableType:
    """The `top` trials, highest epoch first, then by value."""
    trials = sorted(result.history.trials.values(), key=standing, reverse=True)
    title = f"Best {min(top, len(trials))} of {len(trials)} trials"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("trial", no_wrap=True)
    for column in ("epoch", result.metric, "params", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("recipe")
    for trial in trials[:top]:
        told = f"failed: {trial.reason}" if trial.state == "failed" else words.recipe_words(trial.recipe)
        cells = (words.score(trial.value, metric=result.metric), words.count(trial.params))
        texts = (trial.id, str(trial.epoch), *cells, f"{trial.seconds:.1f}", told)
        table.add_row(*map(escape, texts))
    return table
