"""Trials trained side by side: each comes out as if it had been alone, and the teacher is paid once for all of them."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny import CLASSES, EVERYTHING, KD, ROWS, coarse, expert, images, order, passes_of, recipe, tape_plan, taped
from torch import Tensor, nn

from autokd.core import checkpoint
from autokd.core.core import TrainingCore
from autokd.core.data import steps
from autokd.errors import CheckpointError, TrialFailure
from autokd.objectives import name_of as name_of_loss
from autokd.orders import Order, Report
from autokd.protocols import Batch, Objective, Outputs
from autokd.recipe import Recipe
from autokd.rules import Rule, Value
from autokd.students import name_of

torch.set_num_threads(1)
TERM = {name: {"objective": name, "weight": 0.5} for name in ("kd", "dkd", "dist", "rkd", "at", "fitnet")}


@pytest.fixture(autouse=True)
def no_student_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few epochs: whether a student has learned enough is not the question."""
    monkeypatch.setattr("autokd.core.core.SETTLED", 100)


class Noisy(nn.Module):
    """A student with dropout, told by its name how to misbehave while it trains."""

    trained: ClassVar[Counter[str]] = Counter()

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.steps = how, 0
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Dropout(0.4), nn.Linear(12, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        self.steps += self.training
        Noisy.trained[self.how] += self.training
        late = self.training and self.steps == 4
        if self.how == "raises" and late:
            raise RuntimeError("no such kernel")
        if self.how == "is never valid" and not self.training and self.steps:
            raise RuntimeError("no such mode")
        return logits * math.nan if self.how == "is nan" and late else logits


class Broken(Objective):
    """A loss of one's own that fails in the middle of the second epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        self.steps += 1
        if self.steps == 3:
            raise ValueError("a loss of one's own")
        return {"broken": (student.logits - teacher.logits).square().mean()}


class Noise:
    """A family of them."""

    fields: Mapping[str, Rule] = {}

    def __init__(self, how: str) -> None:
        self.how, self.__qualname__ = how, f"Noise.{how.replace(' ', '_')}"

    def misfit(self, input_shape: tuple[int, ...]) -> str | None:
        return None

    def build(self, spec: Mapping[str, Value], input_shape: tuple[int, ...], classes: int) -> nn.Module:
        return Noisy(self.how)


def noisy(how: str = "is well", **more: Any) -> Recipe:
    return recipe(name_of(Noise(how)), **{"terms": (KD,), **more})


def together(its_core: TrainingCore, *recipes: Recipe, **more: Any) -> list[Report | TrialFailure | CheckpointError]:
    return its_core.advance_together(orders(*recipes, **more))


def orders(*recipes: Recipe, **more: Any) -> list[Order]:
    return [replace(order(of, **{"to": 2, **more}), trial=f"t{number}") for number, of in enumerate(recipes)]


def kept(its_core: TrainingCore, trial: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A trial's checkpoint without the seconds it took."""
    tensors, meta = checkpoint.load(its_core.checkpoint_path(trial))
    for log in meta["history"]:
        log.pop("seconds")
        log.pop("recording")
    return tensors, meta


def assert_equal_trials(one: TrainingCore, other: TrainingCore, *trials: str) -> None:
    for trial in trials:
        (tensors, meta), (its_tensors, its_meta) = kept(one, trial), kept(other, trial)
        assert meta == its_meta, trial
        assert tensors.keys() == its_tensors.keys()
        assert [name for name, each in tensors.items() if not torch.equal(each, its_tensors[name])] == [], trial


# ---- as if alone

JDA = {"policy": "jda", "p": 0.3, "rho": 0.4}
COHORTS: dict[str, tuple[Recipe, ...]] = {
    "widths and families": (
        recipe(width=4, terms=(KD,)),
        recipe(width=8, terms=(KD,)),
        recipe("plain", terms=(KD,)),
        recipe("mlp", width=16, terms=(KD,)),
    ),
    "losses": tuple(recipe(terms=(TERM[name],)) for name in TERM) + (recipe(),),
    "weights, optimisers and schedules": (
        recipe(terms=({**KD, "temperature": 2.0, "schedule": "linear", "share": 0.5},), ce_weight=0.2),
        recipe(terms=(KD,), optim={"name": "adamw", "lr": 0.002}),
        recipe(terms=(KD,), optim={"schedule": "constant", "momentum": 0.0, "weight_decay": 0.0}),
    ),
    "dropout": (noisy(), recipe(terms=(KD,)), noisy(ce_weight=0.5), noisy(terms=(), ce_weight=1.0)),
    "peers": (
        recipe("plain", terms=(KD,), peers={"count": 2}),
        noisy(peers={"count": 1}),
        recipe("mlp", terms=(KD,)),
    ),
    "augmented": (
        noisy(augment=JDA),
        recipe(terms=(TERM["dkd"],), augment={**JDA, "ccd": True, "ccd_normalise": True}),
        recipe(augment=JDA),
    ),
    "maps of two sizes": (
        recipe("resnet", terms=(TERM["at"],)),
        recipe(coarse(), terms=(TERM["at"],)),
        recipe(coarse(), terms=(TERM["at"], TERM["fitnet"])),
    ),
}
TAPES = {"live": None, "tape": EVERYTHING, "some on tape": frozenset({"logits", "attention"})}


def core_on(folder: Path, kind: str, name: str) -> TrainingCore:
    payload = TAPES[kind]
    return taped(folder / name, None if payload is None else tape_plan(folder / "tape", payload))


@pytest.mark.parametrize("kind", TAPES)
@pytest.mark.parametrize("cohort", COHORTS)
def test_each_trial_of_a_cohort_is_as_if_it_had_been_alone_to_the_last_bit(
    tmp_path: Path, cohort: str, kind: str
) -> None:
    recipes = COHORTS[cohort]
    side_by_side, alone = core_on(tmp_path, kind, "together"), core_on(tmp_path, kind, "alone")
    answers = together(side_by_side, *recipes)
    expected = [alone.advance(each) for each in orders(*recipes)]
    for answer, other in zip(answers, expected, strict=True):
        assert isinstance(answer, Report), answer
        assert (answer.value, answer.tiebreak, answer.epoch) == (other.value, other.tiebreak, other.epoch)
        assert len(answer.history) == 2 and answer.trial == other.trial
    assert_equal_trials(side_by_side, alone, *(each.trial for each in orders(*recipes)))


def test_the_order_within_a_cohort_is_of_no_matter(tmp_path: Path) -> None:
    recipes = COHORTS["dropout"]
    one, other = core_on(tmp_path, "live", "one"), core_on(tmp_path, "live", "other")
    one.advance_together(orders(*recipes))
    other.advance_together(orders(*recipes)[::-1])
    assert_equal_trials(one, other, "t0", "t1", "t2", "t3")


# ---- what it costs


@pytest.mark.parametrize("names", [["kd"], ["kd", "at", "fitnet", "rkd"]], ids="+".join)
def test_a_live_teacher_runs_once_for_all(tmp_path: Path, names: list[str]) -> None:
    passes = {}
    for count in (1, 4):
        its_core = taped(tmp_path / str(count), None)
        of = recipe(terms=tuple(TERM[name] for name in names))
        rows = passes_of(its_core)
        reports = together(its_core, *(of.model_copy(update={"ce_weight": 1.0 + n}) for n in range(count)))
        assert all(isinstance(report, Report) for report in reports)
        passes[count] = [each for each in rows if each > 2]
    assert passes[1] == passes[4] and len(passes[1]) == 2 * steps(ROWS, 16)


def test_who_does_not_listen_does_not_make_the_teacher_speak(tmp_path: Path) -> None:
    its_core = taped(tmp_path, None)
    rows = passes_of(its_core)
    together(its_core, recipe(), recipe(width=8))
    assert rows == []


def test_who_needs_the_teacher_live_does_not_make_others_pay(tmp_path: Path) -> None:
    """FitNet's maps are not on this tape: that trial runs the teacher, the others are replayed as if it were not there."""
    its_core = taped(tmp_path, tape_plan(tmp_path / "tape", frozenset({"logits"})))
    rows = passes_of(its_core)
    answers = together(its_core, recipe(terms=(KD,)), recipe(terms=(TERM["fitnet"],)), recipe(width=8, terms=(KD,)))
    assert all(isinstance(answer, Report) for answer in answers)
    assert rows.count(ROWS) == 2 and len([each for each in rows if 4 < each < ROWS]) == 2 * steps(ROWS, 16)
    notes = [note for answer in answers if isinstance(answer, Report) for note in answer.notes]
    assert notes == ["stages of the teacher are not on the tape: trials that read them run it live"]


def test_a_trials_seconds_are_its_share(tmp_path: Path) -> None:
    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.knows = expert()

        def forward(self, x: Tensor) -> Any:
            if len(x) > 2:
                time.sleep(0.05)
            return self.knows(x)

    its_core = taped(tmp_path, None, teacher=Slow())
    answers = together(its_core, *(recipe("mlp", width=4 + n, terms=(KD,)) for n in range(4)), to=1)
    seconds = [answer.seconds for answer in answers if isinstance(answer, Report)]
    assert len(seconds) == 4 and sum(seconds) >= 0.05 * steps(ROWS, 16) > max(seconds) - 0.1


# ---- accidents


@pytest.mark.parametrize(
    ("how", "reason"), [("raises", "exception"), ("is nan", "nan"), ("is never valid", "exception")]
)
def test_who_fails_does_not_disturb_the_others(tmp_path: Path, how: str, reason: str) -> None:
    recipes = (noisy(how), noisy(), recipe(terms=(KD,)), noisy(ce_weight=0.5))
    for position in range(2):  # also where the first of them fails, which leads
        mixed = recipes[position:] + recipes[:position]
        side_by_side, alone = core_on(tmp_path, "live", f"t{position}"), core_on(tmp_path, "live", f"a{position}")
        answers = together(side_by_side, *mixed)
        failures = [answer for answer in answers if isinstance(answer, TrialFailure)]
        assert [failure.reason for failure in failures] == [reason]
        assert answers.index(failures[0]) == mixed.index(recipes[0])
        assert not side_by_side.checkpoint_path(f"t{mixed.index(recipes[0])}").exists()
        well = [each for each in orders(*mixed) if each.recipe != recipes[0]]
        for each in well:
            alone.advance(each)
        assert_equal_trials(side_by_side, alone, *(each.trial for each in well))


def test_a_loss_that_fails_is_its_own_trials_failure(tmp_path: Path) -> None:
    recipes = (noisy(), noisy(terms=({"objective": name_of_loss(Broken), "weight": 1.0},)), noisy(ce_weight=0.5))
    side_by_side, alone = core_on(tmp_path, "live", "together"), core_on(tmp_path, "live", "alone")
    answers = together(side_by_side, *recipes)
    assert [type(answer) for answer in answers] == [Report, TrialFailure, Report]
    assert str(answers[1]) == "ValueError: a loss of one's own"
    for each in orders(*recipes)[::2]:
        alone.advance(each)
    assert_equal_trials(side_by_side, alone, "t0", "t2")


def test_who_has_failed_is_not_trained_any_more(tmp_path: Path) -> None:
    Noisy.trained.clear()
    small = {"batch": 4}
    answers = together(taped(tmp_path, None), noisy("raises", optim=small), noisy(optim=small), to=1)
    assert isinstance(answers[0], TrialFailure) and isinstance(answers[1], Report)
    assert Noisy.trained == {"raises": 4, "is well": steps(ROWS, 4)}


def test_a_loss_that_cannot_be_built_is_its_own_trials_failure(tmp_path: Path) -> None:
    answers = together(taped(tmp_path, None), recipe("mlp", terms=(TERM["at"],)), recipe(terms=(KD,)))
    assert isinstance(answers[0], TrialFailure) and isinstance(answers[1], Report)


def test_all_may_fail(tmp_path: Path) -> None:
    its_core = taped(tmp_path, None)
    rows = passes_of(its_core)
    late = {"batch": 4}
    answers = together(its_core, noisy("raises", optim=late), noisy("raises", ce_weight=0.5, optim=late))
    assert [str(answer) for answer in answers] == ["RuntimeError: no such kernel"] * 2
    assert len([each for each in rows if each > 2]) <= 5 < steps(ROWS, 4), "nobody is left to listen to the teacher"


def test_a_teacher_that_raises_fails_them_all(tmp_path: Path) -> None:
    class Mortal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.knows, self.left = expert(), 3

        def forward(self, x: Tensor) -> Any:
            self.left -= len(x) > 2
            if self.left < 0:
                raise RuntimeError("out of breath")
            return self.knows(x)

    answers = together(taped(tmp_path, None, teacher=Mortal()), recipe(terms=(KD,)), noisy(), recipe())
    assert [str(answer) for answer in answers] == ["RuntimeError: out of breath"] * 3
    assert all(isinstance(answer, TrialFailure) for answer in answers)


def test_a_checkpoint_that_cannot_be_written_is_its_own(tmp_path: Path) -> None:
    its_core = taped(tmp_path, None)
    its_core.checkpoint_path("t1").mkdir(parents=True)  # in the way of the second's
    (its_core.checkpoint_path("t1") / "full").touch()
    answers = together(its_core, recipe(terms=(KD,)), noisy(), recipe())
    assert [type(answer) for answer in answers] == [Report, CheckpointError, Report]


# ---- who goes how far


def test_each_goes_as_far_as_its_order_says(tmp_path: Path) -> None:
    recipes = (noisy(), recipe(terms=(KD,)), noisy(ce_weight=0.5))
    side_by_side, alone = core_on(tmp_path, "live", "together"), core_on(tmp_path, "live", "alone")
    goals = [replace(each, to=to) for each, to in zip(orders(*recipes), (1, 3, 2), strict=True)]
    rows = passes_of(side_by_side)
    answers = side_by_side.advance_together(goals)
    assert [answer.epoch for answer in answers if isinstance(answer, Report)] == [1, 3, 2]
    assert len([each for each in rows if each > 2]) == 3 * steps(ROWS, 16)
    for each in goals:
        alone.advance(each)
    assert_equal_trials(side_by_side, alone, "t0", "t1", "t2")


def test_trials_of_a_cohort_go_on_alone_and_in_other_company(tmp_path: Path) -> None:
    recipes = (noisy(), recipe(terms=(KD,)), noisy(ce_weight=0.5))
    moving, whole = core_on(tmp_path, "live", "moving"), core_on(tmp_path, "live", "whole")
    first = orders(*recipes, to=1)
    rest = [replace(each, start=1, to=3) for each in first]
    moving.advance_together(first)
    moving.advance(rest[0])
    moving = core_on(tmp_path, "live", "moving")  # another process
    reports = moving.advance_together(rest[:0:-1])
    assert all(isinstance(report, Report) and report.retries == 0 for report in reports)
    whole.advance_together([replace(each, to=3) for each in first])
    assert_equal_trials(moving, whole, "t0", "t1", "t2")


@pytest.mark.parametrize("lost", ["t0", "t1"])
def test_one_that_lost_its_checkpoint_begins_again_and_all_finish(tmp_path: Path, lost: str) -> None:
    recipes = (noisy(), recipe(terms=(KD,)), noisy(ce_weight=0.5))
    its_core, whole = core_on(tmp_path, "live", "its"), core_on(tmp_path, "live", "whole")
    first = orders(*recipes, to=2)
    its_core.advance_together(first)
    its_core.checkpoint_path(lost).unlink()
    answers = its_core.advance_together([replace(each, start=2, to=3) for each in first])
    for answer in answers:
        assert isinstance(answer, Report) and answer.epoch == 3 and answer.retries == (answer.trial == lost)
        assert [log["epoch"] for log in answer.history] == [3], "the ledger knows the epochs before"
    whole.advance_together([replace(each, to=3) for each in first])
    assert_equal_trials(its_core, whole, "t0", "t1", "t2")


def test_a_deadline_ends_each_after_the_epoch_in_which_it_passes(tmp_path: Path) -> None:
    given: Sequence[Order] = orders(recipe(terms=(KD,)), noisy(), recipe(), to=3)
    late = [replace(given[0], deadline=time.time() - 10), given[1], replace(given[2], deadline=time.time() + 100)]
    answers = core_on(tmp_path, "live", "its").advance_together(late)
    assert [answer.epoch for answer in answers if isinstance(answer, Report)] == [1, 3, 3]


def test_nobody_is_nothing(tmp_path: Path) -> None:
    assert taped(tmp_path, None, images(60)).advance_together([]) == []
