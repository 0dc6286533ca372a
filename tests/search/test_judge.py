"""The judge, on lines of which the answer is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress

from benchmarks.search import grid, judge
from benchmarks.search.grid import Cell, Store
from benchmarks.search.limits import hypervolume

TASKS, SEEDS = ("a", "b", "c"), range(5)


def line(method: str, task: str, seed: int, regret: float) -> grid.Line:
    course = {"20": [[1.0, regret + 0.4], [8.0, regret + 0.1], [16.0, regret]]}
    return {"method": method, "task": task, "seed": seed, "regret": {"5": regret + 0.4, "20": regret}, "course": course}


def lines(**offsets: float) -> list[grid.Line]:
    """Methods that differ by their offset, on tasks and seeds that differ much more."""
    noise = np.random.default_rng(0).normal(size=(len(TASKS), len(SEEDS)))
    return [
        line(method, task, seed, 0.5 + offset + noise[place, seed])
        for method, offset in offsets.items()
        for place, task in enumerate(TASKS)
        for seed in SEEDS
    ]


def test_ranks_share_where_methods_tie() -> None:
    found = judge.regrets(lines(best=0.0, random=0.2, same=0.2))
    assert judge.ranks(found).mean(axis=(1, 2, 3)) == pytest.approx([1, 2.5, 2.5])


def test_seeds_that_a_method_lacks_are_left_out() -> None:
    some = [each for each in lines(best=0.0, random=0.2) if each["method"] != "best" or each["seed"] != 3]
    assert judge.regrets(some).values.shape == (2, 3, 4, 2)


def test_differences_are_paired_and_worse_beyond_noise_is_named() -> None:
    noisy = lines(random=0.2, worse=0.3, better=0.1)
    for each in noisy:  # the worse one by chance on one task
        if each["method"] == "worse" and each["task"] == "b":
            each["regret"] = {key: value + (-1) ** each["seed"] for key, value in each["regret"].items()}
    found = judge.regrets(noisy)
    assert judge.worse_beyond_noise(found, "worse") == "a 5x 20x, c 5x 20x"
    assert judge.worse_beyond_noise(found, "better") == ""
    assert "-0.100 [-0.100, -0.100]" in judge.difference_table(found)


def test_one_seed_proves_nothing() -> None:
    found = judge.regrets([each for each in lines(random=0.0, worse=9.0) if each["seed"] == 0])
    assert judge.worse_beyond_noise(found, "worse") == ""


def test_an_interval_covers_the_mean_of_what_tasks_come_from() -> None:
    draw, hits = np.random.default_rng(1), 0
    for _ in range(60):
        values = draw.normal(size=(12, 1, 1)) + draw.normal(size=(12, 5, 1))
        low, high = judge.interval(values, draw)
        hits += int(low[0] < 0 < high[0])
    assert 50 <= hits <= 60


def test_the_budget_needed_is_read_off_the_course() -> None:
    assert judge.needed(lines(autokd=-0.1, rival=0.0), "autokd", "rival", 20) == 8.0
    assert judge.needed(lines(autokd=0.0, rival=0.0), "autokd", "rival", 20) == 16.0
    assert judge.needed(lines(autokd=0.1, rival=0.0), "autokd", "rival", 20) is None


def test_hypervolume_is_the_area_of_the_front() -> None:
    reference = [(0.0, 1.0), (0.5, 10.0), (1.0, 100.0)]  # median 0.5
    assert hypervolume([], reference) == hypervolume([(0.4, 1.0)], reference) == 0.0
    assert hypervolume([(1.0, 1.0)], reference) == pytest.approx(1.0)
    assert hypervolume([(1.0, 10.0), (0.75, 1.0), (0.6, 10.0)], reference) == pytest.approx(0.5 + 0.5 * 0.5)


# ---- the file of results


def line_of(cell: Cell, regret: dict[str, float]) -> grid.Line:
    known = dict(zip(("method", "task", "seed", "unit", "most", "fingerprint"), cell.key(), strict=True))
    return known | {"regret": regret, "course": {}}


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Cell] = []

    def stand_in(cells: list[Cell], folder: Path, processes: int) -> Iterator[grid.Line]:
        measured.extend(cells)
        for cell in cells:
            yield line_of(cell, {"2": 0.5})

    monkeypatch.setattr(grid, "_measured", stand_in)
    cells = grid.grid(["random", "autokd"], ["diswot"], seeds=2, unit="epochs", most=2)
    path = tmp_path / "results.jsonl"
    with Progress(disable=True) as progress:
        grid.fill(Store(path), cells[:3], tmp_path, 1, progress)
        path.write_text(path.read_text() + '{"method": "ra')  # killed in the middle of a line
        store = Store(path)
        grid.fill(store, cells, tmp_path, 1, progress)
    assert measured == cells and store.of(cells) == Store(path).of(cells) and len(store.of(cells)) == 4


def test_what_was_measured_with_a_larger_budget_answers_for_a_smaller_one(tmp_path: Path) -> None:
    cell = Cell("random", "diswot", 0, most=20)
    store = Store(tmp_path / "lines.jsonl")
    store.add(line_of(cell, {"2": 0.5, "5": 0.4, "10": 0.3, "20": 0.2}))
    assert [found["regret"] for found in store.of([replace(cell, most=5)])] == [{"2": 0.5, "5": 0.4}]
    assert replace(cell, most=50) not in store and replace(cell, seed=1, most=5) not in store
