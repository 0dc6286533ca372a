"""The page and its pictures, over searches of every shape."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from ledgers import RUNGS, Sketch, recipe_of, write_search

from autokd.finals import Row
from autokd.recipe import Recipe
from autokd.report import views, write_report
from autokd.result import Result

PNG = b"\x89PNG\r\n\x1a\n"
RECIPE = Recipe.from_dict({"student": {"family": "resnet", "width": 4}})


class Reader(HTMLParser):
    """What a browser would see: words outside scripts, addresses it would fetch, tags left open."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.text = " ".join(self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return Result(write_search(tmp_path_factory.mktemp("run"), trials=60, ablation=True))


@pytest.fixture(scope="module")
def page(result: Result, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = write_report(result, tmp_path_factory.mktemp("out") / "report")
    return path, path.read_text(encoding="utf-8")


@pytest.mark.timeout(60)
def test_the_page_says_what_was_found(page: tuple[Path, str], result: Result) -> None:
    reader = Reader(page[1])
    assert reader.open == []
    headline = result.headline()
    assert headline[1:] in reader.text
    for word in (
        "same architecture, default KD",
        "paired seeds",
        "716k",
        "seed 7",
        "torch 2.15.0",
        "ab12",
        "1 → 3 → 9",
    ):
        assert word in reader.text, word
    for gain in result.gains():
        assert gain.sentence() in reader.text
    assert result.recipe is not None
    assert f"recipe {result.recipe.id} as JSON" in reader.text


@pytest.mark.timeout(60)
def test_the_page_fetches_nothing(page: tuple[Path, str]) -> None:
    assert Reader(page[1]).fetched == []
    assert "@import" not in page[1].split("<script", 1)[0]
    assert page[1].count("<script") < 20 and len(page[1]) < 8e6


@pytest.mark.timeout(60)
def test_all_figures_and_the_recipe_are_written(page: tuple[Path, str], result: Result) -> None:
    folder = page[0].parent
    for name in views.FILES.values():
        assert (folder / name).read_bytes().startswith(PNG), name
        assert (folder / name).stat().st_size > 8000, name
    assert set(re.findall(r'id="chart-(\w+)"', page[1])) == set(views.FILES)
    assert Recipe.from_dict(json.loads((folder / "recipe.json").read_text())) == result.recipe
    assert f"--recipe {folder / 'recipe.json'}" in Reader(page[1]).text


@pytest.mark.timeout(60)
def test_the_page_says_what_mattered_and_what_the_winner_needs(page: tuple[Path, str], result: Result) -> None:
    reader, found = Reader(page[1]), result.importance()
    assert found is not None and found.sentence()[1:] in reader.text
    assert "not distinguishable from noise" in page[1] and "where select.logits = kd" in page[1]
    assert "Which methods came far" in reader.text and "beats at the first rung" in reader.text
    for entry in result.methods():
        assert f"{entry.name}" in reader.text
    told = json.loads((page[0].parent / "methods.json").read_text())
    assert [row[:2] for row in told["data"]] == [[entry.part, entry.name] for entry in result.methods()]
    for entry in result.ablation():
        assert entry.change in reader.text and entry.judgement() in reader.text
    table = json.loads((page[0].parent / "ablation.json").read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["change"], row["n"]) for row in rows] == [("without kd", 3), ("optim.lr=0.03", 1)]


@pytest.mark.timeout(60)
def test_names_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    sketch = Sketch(tmp_path, name=evil)
    recipe = Recipe.from_dict({"student": {"family": evil, "width": "$x^$"}})
    for number in range(7):
        sketch.ledger.append(
            "start",
            trial=f"{evil}{number}",
            role="search",
            recipe=recipe.model_copy(update={"ce_weight": 1.0 + number}).to_dict(),
            point={},
            source=evil,
            seed=0,
            to=1,
            params=100,
            flops=100,
            group="",
        )
        sketch.quality[f"{evil}{number}"] = 0.8
        sketch.rung(f"{evil}{number}", 1, 0)
    sketch.fail(f"{evil}6", evil)
    page = write_report(Result(tmp_path), tmp_path / "report").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert evil in Reader(page).text  # shown as words


@pytest.mark.timeout(60)
def test_before_the_finals(tmp_path: Path) -> None:
    result = Result(write_search(tmp_path, trials=20, finals=False, finish=False))
    reader = Reader(write_report(result, tmp_path / "report").read_text(encoding="utf-8"))
    assert "No control was measured" in reader.text
    assert "best student of the search" in reader.text and "interrupted" in reader.text


@pytest.mark.timeout(60)
def test_only_failures(tmp_path: Path) -> None:
    sketch = Sketch(tmp_path)
    for name in ("a", "b"):
        sketch.start(name, RECIPE)
        sketch.fail(name, "nan")
    path = write_report(Result(tmp_path), tmp_path / "report")
    reader = Reader(path.read_text(encoding="utf-8"))
    assert "No student yet: 2 trials started, 2 failed" in reader.text
    assert "No trial has a value yet." in reader.text and "the loss is not a number" in reader.text
    assert [file.name for file in path.parent.glob("*.png")] == ["budget.png"]


@pytest.mark.timeout(60)
def test_nothing_yet_and_one_trial(tmp_path: Path) -> None:
    sketch = Sketch(tmp_path)
    assert "No student yet" in write_report(Result(tmp_path), tmp_path / "empty").read_text(encoding="utf-8")
    sketch.start("only", RECIPE)
    sketch.rung("only", 1, 0)
    page = write_report(Result(tmp_path), tmp_path / "one").read_text(encoding="utf-8")
    assert "only" in Reader(page).text and 'id="chart-pareto"' in page and 'id="chart-strips"' not in page


@pytest.mark.timeout(60)
def test_two_thousand_trials_stay_readable(tmp_path: Path) -> None:
    result = Result(write_search(tmp_path, trials=2000))
    lines = views.curves(result)
    assert len(lines) == views.MOST_CURVES
    assert {"winner", "no_kd", "default_kd", "search"} == {line.role for line in lines}
    path = write_report(result, tmp_path / "report")
    assert path.stat().st_size < 9e6


@pytest.mark.timeout(60)
def test_another_metric_is_not_shown_in_percent(tmp_path: Path) -> None:
    sketch = Sketch(tmp_path)
    sketch.start("a", RECIPE)
    sketch.rung("a", 1, 0, value=0.5)
    result = Result(tmp_path)
    result.head["metric"] = "r2"
    assert "0.5 validation r2" in result.headline()
    assert views.cloud(result)[0].value == 0.5 and views.Scale("r2").label() == "validation r2"
    write_report(result, tmp_path / "report")


# ---- what the figures show


def test_the_front_holds_the_undominated(tmp_path: Path) -> None:
    def point(name: str, params: int, value: float, role: str = "search") -> views.Point:
        return views.Point(name, role, "resnet", params, 1, value, "")

    points = [
        point("a", 10, 50),
        point("b", 20, 60),
        point("c", 30, 55),
        point("d", 10, 40),
        point("w", 5, 99, "winner"),
    ]
    assert [p.trial for p in views.front(points)] == ["a", "b"]


def test_the_timeline_rises_and_reaches_the_end(result: Result) -> None:
    line = views.timeline(result)
    values = [value for _, value in line.best]
    assert values == sorted(values) and values[-1] == max(point.value for _, point in line.points)
    assert line.best[-1][0] == result.history.elapsed
    assert line.finals is not None and line.points[-1][0] <= line.finals


def test_curves_hold_every_epoch_in_percent(result: Result) -> None:
    line = next(line for line in views.curves(result) if line.epochs[-1] == RUNGS[-1])
    assert line.epochs == list(range(1, RUNGS[-1] + 1))
    assert line.values[-1] == pytest.approx(100 * result.history.trials[line.trial].values[RUNGS[-1]][0])


def test_strips_compare_at_one_rung_and_find_what_matters(tmp_path: Path) -> None:
    sketch = Sketch(tmp_path)
    for number in range(30):
        recipe = recipe_of(sketch.random)
        sketch.start(f"t{number}", recipe)
        sketch.rung(f"t{number}", 1, 0, value=0.5 + recipe.augment.rho / 4)
    sketch.rung("t0", 3, 1, value=0.99)
    epoch, strips = views.strips(Result(tmp_path))
    assert epoch == 1
    assert strips[0].name == "augment.rho" and strips[0].correlation == pytest.approx(1.0)
    assert max(point.value for point in strips[0].points) < 70  # t0 enters with its value at epoch 1
    assert all(strip.strength <= 1 for strip in strips) and len(strips) <= views.MOST_STRIPS


def test_fields_that_stand_out_are_drawn_before_the_others(result: Result) -> None:
    shown = views.important(result, most=2)
    assert [entry.above_noise for entry in shown] == sorted((e.above_noise for e in shown), reverse=True)
    found = result.importance()
    assert found is not None and len(shown) == max(2, len(found.above_noise)) < len(found.fields)
    assert views.effects(result.ablation()[0], "accuracy") == [100 * d for d in result.ablation()[0].differences]
    assert dict(views.costs(result))["ablation"] == pytest.approx(4 * 0.2 * RUNGS[-1])


def test_costs_add_up_to_the_lanes_time(result: Result) -> None:
    costs = dict(views.costs(result))
    assert sum(costs.values()) == pytest.approx(2 * result.history.elapsed)
    assert costs["finals: winner"] == pytest.approx(3 * 0.2 * RUNGS[-1])


def test_the_window_leaves_outliers_out() -> None:
    low, high, hidden = views.window([90.0, 91, 92, 93, 10], teacher=95)
    assert 80 < low < 90 and high > 95 and hidden == 1
    assert views.window([]) == (0.0, 1.0, 0)
    low, high, hidden = views.window([50.0])
    assert low < 50 < high and hidden == 0


def test_dots_are_in_axis_units() -> None:
    row = Row((0.5, 0.6), (0.4,), "winner", "x", params=1, flops=1, epochs=1, seeds=(1, 2), size_ratio=None)
    assert views.dots(row, "test", "accuracy") == [40.0] and views.dots(row, "validation", "r2") == [0.5, 0.6]
