"""Every method keeps to its budget, does the same again, and finds better than it would by chance."""

from __future__ import annotations

from contextlib import suppress
from functools import cache

import numpy as np
import pytest
from made_up import EPOCHS, MadeUp

from benchmarks.search.methods import COMPARED, METHODS
from benchmarks.search.replay import BudgetSpent, Replay, Trial
from benchmarks.search.tables import Point

FIRST = """\
first:
  - {name: published, set: {student.family: deep, student.deep.depth: 3, terms.kd.temperature: 4, optim.lr: 0.02}}
"""
BUDGET = 12


class Watched(MadeUp):
    """Counts the epochs looked up, and remembers the points."""

    def __init__(self) -> None:
        super().__init__(first=FIRST)
        self.asked: list[Point] = []

    def values(self, point: Point, seed: int = 0) -> np.ndarray:
        self.asked.append(dict(point))
        return super().values(point, seed)


@cache
def searched(method: str, seed: int = 0, again: int = 0) -> tuple[Replay, Watched]:
    if method == "smac":
        pytest.importorskip("smac")
    table = Watched()
    replay = Replay(table, seed, BUDGET)
    with suppress(BudgetSpent):
        METHODS[method].search(replay)
    return replay, table


@pytest.mark.timeout(120)
@pytest.mark.parametrize("method", COMPARED)
class TestEveryMethod:
    def test_keeps_to_its_budget(self, method: str) -> None:
        replay, _ = searched(method)
        spent = replay.trajectory.spent
        assert spent == sorted(spent) and spent[0] > 0 and spent[-1] <= BUDGET + 1e-9

    def test_does_the_same_again(self, method: str) -> None:
        assert searched(method)[0].trajectory == searched(method, again=1)[0].trajectory

    def test_begins_with_what_is_published(self, method: str) -> None:
        _, table = searched(method)
        published = dict(table.space.first[0][1])
        assert published in table.asked[:3] or method == "architecture-first"

    def test_hands_over_a_student_better_than_most(self, method: str) -> None:
        replay, table = searched(method)
        assert table.regret(replay.trajectory.at(BUDGET, table.floor)) < 0.9


def test_seconds_are_counted_in_median_trainings() -> None:
    table = MadeUp()
    slow = table.space.complete({"student.family": "deep", "student.deep.depth": 9, "optim.lr": 0.03})
    replay = Replay(table, 0, budget=5, unit="seconds")
    replay.full(slow)
    assert replay.spent == pytest.approx(10 * EPOCHS / table.reference.seconds)


def test_a_training_is_paid_for_once_and_up_to_where_it_diverges() -> None:
    table = MadeUp()
    good = table.space.complete({"optim.lr": 0.03})
    replay, trial = Replay(table, 0, budget=5), Trial(good)
    assert replay.advance(trial, 3) == table.values(good)[2]
    assert replay.advance(trial, 9) == table.values(good)[8]
    assert replay.spent == pytest.approx(1.0)
    diverging = Trial(good | {"optim.lr": 0.4})
    assert replay.advance(diverging, 9) is None and diverging.failed
    assert replay.spent == pytest.approx(1 + 4 / 9)
    with pytest.raises(BudgetSpent):
        for _ in range(9):
            replay.full(good)
    assert replay.spent == replay.budget


def test_the_incumbent_is_the_best_at_the_highest_fidelity() -> None:
    table = MadeUp()
    best, worse = (table.space.complete({"optim.lr": lr}) for lr in (0.03, 0.001))
    replay = Replay(table, 0, budget=9)
    replay.full(worse)
    replay.advance(Trial(best), 8)
    assert replay.trajectory.at(9, 0.0) == table.final(worse)
    replay.full(best)
    assert replay.trajectory.at(9, 0.0) == table.final(best)
    assert replay.trajectory.at(0.5, -1.0) == -1.0


def test_fingerprints_follow_the_code() -> None:
    prints = {name: method.fingerprint("lcbench") for name, method in METHODS.items()}
    assert prints["autokd"] != prints["random"] == prints["architecture-first"]
    assert prints["random"] != METHODS["random"].fingerprint("taskset")


def test_a_good_prior_helps_and_a_misleading_one_is_tried_first() -> None:
    found = {}
    for name in ("autokd-no-prior", "autokd-good-prior", "autokd-misleading-prior"):
        table = Watched()
        replay = Replay(table, 0, 1)
        METHODS[name].search(replay)
        found[name] = table.regret(replay.trajectory.found[0])
    assert found["autokd-good-prior"] < 0.5 < 1.5 < found["autokd-misleading-prior"]
