"""Orders that meet at one core: those that fit are trained together, nobody waits for ever, everybody hears his own answer."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import KD, ROWS, order, passes_of, recipe, taped

from autokd.core.data import steps
from autokd.core.gathering import Answer, Gathering, step_of
from autokd.errors import CheckpointError, TrialFailure
from autokd.orders import Order, Report

torch.set_num_threads(1)
PATIENCE = 0.25


def report_of(each: Order) -> Report:
    return Report(each.trial, each.to, 0.5, 0.0, {}, 0.0, [], "", "fp32")


class FakeCore:
    """Answers after some seconds, or with what a trial's name asks for; remembers who was trained with whom, and when."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.closed = seconds, False
        self.cohorts: list[tuple[str, ...]] = []
        self.begun: list[float] = []
        self.at_work = self.most_at_work = 0
        self._lock = threading.Lock()

    def advance_together(self, orders: Sequence[Order]) -> Sequence[Answer]:
        with self._lock:
            self.cohorts.append(tuple(each.trial for each in orders))
            self.begun.append(time.monotonic())
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            time.sleep(self.seconds)
            if any("explodes" in each.trial for each in orders):
                raise MemoryError("no room")
            if any("miscounts" in each.trial for each in orders):
                return []
            return [self.answer(each) for each in orders]
        finally:
            with self._lock:
                self.at_work -= 1

    def answer(self, each: Order) -> Answer:
        if "fails" in each.trial:
            return TrialFailure("nan", f"{each.trial} is no number")
        return CheckpointError("full") if "is full" in each.trial else report_of(each)

    def close(self) -> None:
        self.closed = True


def orders(*trials: str, **more: Any) -> list[Order]:
    return [replace(order(recipe(), **more), trial=trial) for trial in trials]


def gathered(gathering: Gathering, given: Sequence[Order], pause: float = 0.0) -> dict[str, Any]:
    """Each order in a thread of its own, `pause` seconds apart; the answer or exception of each."""
    answers: dict[str, Any] = {}

    def lane(each: Order) -> None:
        try:
            answers[each.trial] = gathering.advance(each)
        except BaseException as error:  # whatever it is, it is looked at below
            answers[each.trial] = error

    threads = [threading.Thread(target=lane, args=(each,), daemon=True) for each in given]
    for thread in threads:
        thread.start()
        time.sleep(pause)
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads), f"somebody waits for ever; answered: {sorted(answers)}"
    return answers


# ---- who fits whom


def test_orders_that_fit_are_trained_together() -> None:
    core = FakeCore()
    answers = gathered(Gathering(core, 4, patience=PATIENCE), orders("a", "b", "c", "d"))
    assert [set(cohort) for cohort in core.cohorts] == [{"a", "b", "c", "d"}]
    assert {trial: answer.trial for trial, answer in answers.items()} == {trial: trial for trial in "abcd"}


UNLIKE: dict[str, Callable[[Order], Order]] = {
    "seed": lambda o: replace(o, seed=1),
    "goal": lambda o: replace(o, to=2),
    "start": lambda o: replace(o, start=1, to=2),
    "length": lambda o: replace(o, total=9),
    "batch": lambda o: replace(o, recipe=recipe(optim={"batch": 8})),
    "policy": lambda o: replace(o, recipe=recipe(augment={"policy": "none"})),
    "rho": lambda o: replace(o, recipe=recipe(augment={"policy": "jda", "rho": 0.2})),
}
ALIKE: dict[str, Callable[[Order], Order]] = {
    "student": lambda o: replace(o, recipe=recipe("mlp", width=16)),
    "losses": lambda o: replace(o, recipe=recipe(terms=(KD,), ce_weight=0.3)),
    "peers": lambda o: replace(o, recipe=recipe(peers={"count": 2})),
    "optimiser": lambda o: replace(o, recipe=recipe(optim={"lr": 0.3, "name": "adamw"})),
    "deadline": lambda o: replace(o, deadline=time.time() + 100),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_orders_that_do_not_fit_take_turns(name: str) -> None:
    one, other = orders("a", "b")
    other = UNLIKE[name](other)
    core = FakeCore(0.02)
    gathered(Gathering(core, 4, patience=0.05), [one, other])
    assert sorted(core.cohorts) == [("a",), ("b",)] and core.most_at_work == 1 and step_of(one) != step_of(other)


@pytest.mark.parametrize("name", ALIKE)
def test_what_a_batch_does_not_depend_on_may_differ(name: str) -> None:
    one, other = orders("a", "b")
    assert step_of(one) == step_of(ALIKE[name](other))


def test_confidence_weights_are_a_trials_own() -> None:
    weighed = ({"ccd": False}, {"ccd": True, "ccd_normalise": True, "ccd_form": "power", "ccd_power": 2.0})
    jda = [recipe(augment={"policy": "jda", **ccd}) for ccd in weighed]
    one, other = (replace(order(of), trial="t") for of in jda)
    assert step_of(one) == step_of(other)


# ---- how long one waits


def test_a_leader_waits_for_others_as_long_as_its_patience() -> None:
    core = FakeCore()
    gathered(Gathering(core, 3, patience=2.0), orders("a", "b", "c"), pause=0.1)
    assert len(core.cohorts) == 1, "they came 0.1 s apart"
    core = FakeCore()
    gathered(Gathering(core, 3, patience=0.05), orders("a", "b"), pause=0.2)
    assert core.cohorts == [("a",), ("b",)]


def test_nobody_is_waited_for_when_all_places_are_taken() -> None:
    core, begun = FakeCore(), time.monotonic()
    apart = [replace(each, seed=number) for number, each in enumerate(orders("a", "b"))]
    gathered(Gathering(core, 2, patience=1.5), apart)
    assert core.begun[0] - begun < 1.2, "both places are taken, by orders that do not fit: no third can come"
    core, begun = FakeCore(), time.monotonic()
    gathered(Gathering(core, 2, patience=20.0), orders("a", "b"))
    assert time.monotonic() - begun < 10 and len(core.cohorts) == 1


def test_more_callers_than_fit_into_a_cohort_take_turns() -> None:
    core = FakeCore(0.02)
    answers = gathered(Gathering(core, 3, patience=PATIENCE), orders(*"abcdefg"))
    assert sorted(map(len, core.cohorts)) == [1, 3, 3] and len(answers) == 7
    assert sorted("".join(map("".join, core.cohorts))) == list("abcdefg") and core.most_at_work == 1


def test_a_cohort_of_one_is_a_core() -> None:
    core = FakeCore()
    gathered(Gathering(core, 1, patience=20.0), orders("a", "b"))
    assert sorted(core.cohorts) == [("a",), ("b",)]


# ---- lanes


def test_cohorts_that_do_not_fit_are_trained_side_by_side_on_lanes() -> None:
    core = FakeCore(0.6)
    apart = [replace(each, seed=number) for number, each in enumerate(orders("a", "b"))]
    begun = time.monotonic()
    gathered(Gathering(core, 2, lanes=2, patience=0.05), apart)
    assert core.most_at_work == 2, "the second waited for the first although there was a lane for it"
    assert time.monotonic() - begun < 1.15


def test_no_more_cohorts_than_lanes_at_a_time() -> None:
    core = FakeCore(0.05)
    apart = [replace(each, seed=number) for number, each in enumerate(orders(*"abcdefgh"))]
    gathered(Gathering(core, 2, lanes=3, patience=0.02), apart)
    assert core.most_at_work == 3 and len(core.cohorts) == 8


# ---- accidents


def test_each_hears_its_own_failure() -> None:
    core = FakeCore()
    answers = gathered(Gathering(core, 4, patience=PATIENCE), orders("a", "fails", "is full", "b"))
    assert len(core.cohorts) == 1 and isinstance(answers["a"], Report) and isinstance(answers["b"], Report)
    assert isinstance(answers["fails"], TrialFailure) and answers["fails"].reason == "nan"
    assert isinstance(answers["is full"], CheckpointError)


@pytest.mark.parametrize(("how", "error"), [("explodes", MemoryError), ("miscounts", RuntimeError)])
def test_what_ends_a_cohort_reaches_all_of_it_and_nobody_else(how: str, error: type[Exception]) -> None:
    core = FakeCore()
    gathering = Gathering(core, 3, patience=PATIENCE)
    answers = gathered(gathering, [*orders("a", how, "b"), *orders("c", seed=5)])
    assert all(isinstance(answers[trial], error) for trial in ("a", how, "b"))
    assert isinstance(answers["c"], Report), "and the core is there for others"
    assert isinstance(gathering.advance(orders("d")[0]), Report)


def test_who_is_interrupted_while_it_leads_leaves_the_way_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the main thread, while it waits for others to come."""
    core = FakeCore()
    gathering = Gathering(core, 2, patience=PATIENCE)
    gather = gathering._gather

    def interrupted(given: Order) -> list[Order]:
        if given.trial == "a":
            time.sleep(0.1)
            raise KeyboardInterrupt
        return gather(given)

    monkeypatch.setattr(gathering, "_gather", interrupted)
    answers = gathered(gathering, orders("a", "b", "c"), pause=0.02)
    assert isinstance(answers["a"], KeyboardInterrupt) and core.cohorts in ([("b", "c")], [("c", "b")])


def test_closing_closes_the_core() -> None:
    core = FakeCore()
    Gathering(core, 2).close()
    assert core.closed


# ---- many


@pytest.mark.parametrize("seed", range(6))
def test_hundreds_of_random_orders_are_all_answered(seed: int) -> None:
    draw = random.Random(seed)
    core = FakeCore()
    most, lanes, callers = draw.randint(1, 5), draw.randint(1, 3), draw.randint(1, 9)
    gathering = Gathering(core, most, lanes=lanes, patience=draw.choice([0.0, 0.001, 0.004]))
    answers: dict[str, Any] = {}

    def lane(number: int, own: random.Random) -> None:
        for turn in range(60):
            name = f"{number}-{turn}" + own.choice(["", "", "", " fails"])
            given = replace(order(recipe(), to=3), trial=name, seed=own.randint(0, 2), start=own.randint(0, 1))
            try:
                answers[name] = gathering.advance(given)
            except TrialFailure as failure:
                answers[name] = failure
            if own.random() < 0.2:
                time.sleep(own.random() / 500)

    threads = [
        threading.Thread(target=lane, args=(n, random.Random(100 * seed + n)), daemon=True) for n in range(callers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert not any(thread.is_alive() for thread in threads), "somebody waits for ever"
    assert len(answers) == 60 * callers == sum(map(len, core.cohorts))
    assert all(("fails" in name) == isinstance(answer, TrialFailure) for name, answer in answers.items())
    assert all(answer.trial == name for name, answer in answers.items() if isinstance(answer, Report))
    assert max(map(len, core.cohorts)) <= most and core.most_at_work <= lanes
    assert gathering._waiting == [] and gathering._answers == {} and gathering._training == gathering._leading == 0


# ---- with a real core


def test_trials_of_several_threads_share_the_live_teacher(tmp_path: Path) -> None:
    core, alone = taped(tmp_path / "core", None), taped(tmp_path / "alone", None)
    passes = passes_of(core)
    given = [
        replace(order(recipe(width=4 + number, terms=(KD,)), to=2, total=2), trial=f"t{number}") for number in range(3)
    ]
    answers = gathered(Gathering(core, 3, patience=5.0), given)
    assert len([rows for rows in passes if rows > 2]) == 2 * steps(ROWS, 16)
    for each in given:
        expected = alone.advance(each)
        assert (answers[each.trial].value, answers[each.trial].tiebreak) == (expected.value, expected.tiebreak)


def test_the_first_one_waits_longer_for_those_that_are_still_starting() -> None:
    core = FakeCore()
    gathering = Gathering(core, most=2, patience=0.01, first_patience=5.0)
    of = recipe(terms=(KD,))
    late = threading.Timer(0.3, lambda: gathering.advance(replace(order(of), trial="late")))
    late.start()
    begun = time.monotonic()
    gathering.advance(replace(order(of), trial="first"))
    late.join()
    assert sorted(core.cohorts[0]) == ["first", "late"] and time.monotonic() - begun < 4
    begun = time.monotonic()
    gathering.advance(replace(order(of), trial="alone"))
    assert core.cohorts[1] == ("alone",) and time.monotonic() - begun < 4
