"""The display: what is said, when, how fast, and that trouble with it stays with it."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ledgers import Sketch, recipe_of, write_search
from rich.console import Console

from autokd import words
from autokd.progress import Progress, leaderboard_table, plan_table, result_table
from autokd.recipe import AugmentSpec, PeerSpec, Recipe
from autokd.result import Result

RECIPE = Recipe.from_dict({"student": {"family": "resnet", "width": 8}, "terms": [{"objective": "kd", "weight": 1.0}]})


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def seen_as(policy: str) -> Recipe:
    return RECIPE.model_copy(update={"augment": AugmentSpec(policy=policy)})


def taught(count: int, system: str) -> Recipe:
    return RECIPE.model_copy(update={"peers": PeerSpec(count=count, system=system)})


def page() -> Console:
    """A file, as when output is piped."""
    return Console(file=io.StringIO(), width=200)


def screen() -> Console:
    return Console(file=io.StringIO(), width=130, force_terminal=True)


def text_of(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def shown(renderable: object, width: int = 150) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return text_of(console)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return Result(write_search(tmp_path_factory.mktemp("run"), trials=40))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Sketch]:
    sketch = Sketch(tmp_path)
    yield sketch
    sketch.ledger.close()


def test_plain_lines_at_new_bests_and_every_interval(small: Sketch) -> None:
    console, clock = page(), Clock()
    progress = Progress(small.ledger.events, console=console, clock=clock)
    small.ledger.listen(progress.event)
    with progress:
        for name, value in (("a", 0.5), ("b", 0.4), ("c", 0.7)):
            clock.now += 1
            small.start(name, RECIPE)
            small.rung(name, 1, 0, value=value)
        assert [line.count("new best") for line in text_of(console).splitlines()] == [1, 1]
        assert "50.0 %" in text_of(console) and "70.0 %" in text_of(console) and "40.0 %" not in text_of(console)
        clock.now += 11
        small.start("d", RECIPE)
        assert text_of(console).splitlines()[-1].startswith("search ")
        assert "4 trials (1 running, 3 paused)" in text_of(console)
        small.start("e", RECIPE)
        assert len(text_of(console).splitlines()) == 3
    assert text_of(console).splitlines()[-1].startswith("finished ")
    assert "\x1b" not in text_of(console)


def test_a_failed_best_is_forgotten(small: Sketch) -> None:
    console = page()
    with Progress(small.ledger.events, console=console) as progress:
        small.ledger.listen(progress.event)
        for name, value in (("a", 0.5), ("b", 0.9)):
            small.start(name, RECIPE)
            small.rung(name, 1, 0, value=value)
        small.fail("b", "nan")
    last = text_of(console).splitlines()[-1]
    assert "best 50.0 %" in last and "(a)" in last and "1 failed" in last


def test_a_resumed_search_goes_on_from_its_past(small: Sketch) -> None:
    small.start("a", RECIPE)
    small.rung("a", 3, 0, value=0.8)
    console = page()
    with Progress(small.ledger.events, console=console) as progress:
        small.ledger.listen(progress.event)
        small.start("b", RECIPE)
        small.rung("b", 1, 0, value=0.9)  # a lower rung is no new best
    assert "new best" not in text_of(console)
    assert "best 80.0 % at epoch 3" in text_of(console)


def test_the_panel_shows_the_state(result: Result) -> None:
    console, clock = screen(), Clock()
    with Progress(console=console, clock=clock, status=lambda: "MLflow: 3 waiting") as progress:
        for event in result.events[:90]:
            progress.event(event)
        panel = shown(progress._draw())
    for word in (
        "searching",
        "trials",
        "paused",
        "rungs",
        "epoch 9:",
        "epochs/s",
        "of 2 lanes",
        "MLflow: 3 waiting",
        "left",
    ):
        assert word in panel, word
    assert "best" in panel and "parameters" in panel


@pytest.mark.parametrize(
    ("budget", "share"),
    [
        ({"kind": "trials", "amount": 4}, 0.5),
        ({"kind": "epochs", "amount": 8}, 0.5),
        ({"kind": "eons", "amount": 1}, None),
    ],
)
def test_share_of_the_budget(tmp_path: Path, budget: dict, share: float | None) -> None:
    sketch = Sketch(tmp_path, budget=budget)
    for name in ("a", "b"):
        sketch.start(name, RECIPE)
    sketch.rung("a", 3, 0)
    sketch.rung("b", 1, 0)
    progress = Progress(sketch.ledger.events, console=page())
    assert progress.share() == share


def test_seconds_pass_between_events(small: Sketch) -> None:
    clock = Clock()
    progress = Progress(small.ledger.events, console=page(), clock=clock)
    small.ledger.listen(progress.event)
    small.start("a", RECIPE)
    clock.now += 45
    assert progress.share() == pytest.approx(0.5, abs=0.01)


def test_quiet_says_nothing(result: Result) -> None:
    for console in (page(), screen()):
        with Progress(console=console, verbose=0) as progress:
            for event in result.events:
                progress.event(event)
        assert text_of(console) == ""


class Broken(io.StringIO):
    """A file whose reader has gone."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("error", [OSError("gone"), ValueError("closed"), UnicodeEncodeError("ascii", "±", 0, 1, "no")])
def test_a_broken_display_never_reaches_the_search(result: Result, terminal: bool, error: Exception) -> None:
    console = Console(file=Broken(error), force_terminal=terminal, width=80)
    with Progress(console=console) as progress:
        for event in result.events:
            progress.event(event)


def test_a_closed_pipe_does_not_end_the_process(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    console = page()

    def leave() -> None:
        raise SystemExit(1)

    console.file = Broken(BrokenPipeError())
    monkeypatch.setattr(console, "on_broken_pipe", leave)
    with Progress(console=console) as progress:
        for event in result.events:
            progress.event(event)


def test_odd_events_and_statuses_are_passed_over(small: Sketch) -> None:
    console = page()

    def status() -> str:
        raise RuntimeError("tracker")

    with Progress(small.ledger.events, console=console, status=status, interval=0) as progress:
        progress.event({"event": "start", "trial": "x", "elapsed": 1.0})
        progress.event({"event": "rung"})
        small.ledger.listen(progress.event)
        small.start("a", RECIPE)
        small.rung("a", 1, 0, value=0.6)
    assert "new best 60.0 %" in text_of(console)


def test_interrupts_pass_through(result: Result) -> None:
    console = Console(file=Broken(KeyboardInterrupt()), width=80)
    with pytest.raises(KeyboardInterrupt), Progress(console=console) as progress:
        for event in result.events:
            progress.event(event)


def test_an_event_costs_less_than_a_millisecond(result: Result) -> None:
    progress = Progress(console=page())
    begun = time.perf_counter()
    for event in result.events:
        progress.event(event)
    assert (time.perf_counter() - begun) / len(result.events) < 1e-3


def test_drawing_a_thousand_trials_is_cheap(tmp_path: Path) -> None:
    result = Result(write_search(tmp_path, trials=1000, finals=False))
    progress = Progress(result.events, console=screen())
    begun = time.perf_counter()
    progress._draw()
    assert time.perf_counter() - begun < 0.05


def test_tables_hold_what_was_promised(result: Result) -> None:
    table = shown(result_table(result))
    for word in ("params", "FLOPs", "validation", "test", "accuracy", "716k", "14.5 M", "99.2 %", "±", "1/"):
        assert word in table, word
    assert "same architecture, no distillation" in table and "same architecture, default KD" in table
    assert "3 paired seeds" in table
    plan = shown(plan_table(result.head["plan"], result.head))
    for word in (
        "1 → 3 → 9 epochs",
        "1 min 30 s",
        "about 60 trials",
        "716k parameters",
        "note: The teacher",
        "1150 train, 287 val, 360 test",
        "at most 71.6k parameters",
    ):
        assert word in plan, word
    board = shown(leaderboard_table(result, top=5), width=200)
    best = result.best
    assert best is not None and best.trial in board and len([line for line in board.splitlines() if "%" in line]) == 5


def test_tables_take_what_is_missing_or_odd(tmp_path: Path) -> None:
    sketch = Sketch(tmp_path, name="[bold]odd[/]")
    result = Result(tmp_path)
    assert "[bold]odd[/]" in shown(result_table(result)) and "No controls" in shown(result_table(result))
    assert "0 of 0 trials" in shown(leaderboard_table(result))
    bare = {"rungs": [1], "epoch_seconds": None, "expected_trials": None, "notes": None}
    assert "[bold]odd[/]" in shown(plan_table(bare, result.head))
    assert shown(plan_table({}, {}))
    sketch.start("a", recipe_of(sketch.random))
    sketch.fail("a", "chance")
    assert "failed: chance" in shown(leaderboard_table(Result(tmp_path)), width=200)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (words.count(0), "0"),
        (words.count(999), "999"),
        (words.count(71_234), "71.2k"),
        (words.count(99_960), "100k"),
        (words.count(999_960), "1.0M"),
        (words.count(None), "-"),
        (words.flops(1_300_000), "1.3 MFLOPs"),
        (words.flops(2.5e12), "2.5 TFLOPs"),
        (words.score(0.983, 0.002), "98.3 % ± 0.2"),
        (words.score(0.5, None, "f1"), "0.5"),
        (words.duration(0.012), "12 ms"),
        (words.duration(59.7), "1 min"),
        (words.duration(90), "1 min 30 s"),
        (words.duration(5400), "1 h 30 min"),
        (words.difference(-0.0023, 0.001), "-0.23 ± 0.10 points"),
        (words.times(34.1), "34x"),
        (words.times(2.53), "2.5x"),
        (words.recipe_words(RECIPE), "resnet width=8, kd, base views"),
        (words.recipe_words(seen_as("none")), "resnet width=8, kd, rows as they are"),
        (words.recipe_words(seen_as("rotations")), "resnet width=8, kd, rotated views"),
        (words.recipe_words(seen_as("jda")), "resnet width=8, kd, jda rho=0.5"),
        (
            words.recipe_words(RECIPE.model_copy(update={"stage0": "smooth"})),
            "resnet width=8, kd, teacher made smoother, base views",
        ),
        (words.recipe_words(taught(1, "dml")), "resnet width=8, kd, base views, 1 peer"),
        (words.recipe_words(taught(1, "ffcl")), "resnet width=8, kd, base views, 1 peer (ffcl)"),
        (words.recipe_words(taught(2, "kdcl")), "resnet width=8, kd, base views, 2 peers (kdcl)"),
        (words.budget({"kind": "trials", "amount": 200}), "200 trials"),
    ],
)
def test_words(said: str, expected: str) -> None:
    assert said == expected
