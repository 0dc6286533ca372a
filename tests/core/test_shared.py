"""Whole steps, recorded once for all trials of a structure: each trial comes out as if it had been launched, and alone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sharing import (
    CASES,
    JDA,
    MANY,
    Counting,
    alone,
    assert_close,
    in_turns,
    launched,
    losses,
    never_at_chance,
    pool_of,
    recorded,
    small,
    state,
    train,
    two_trials,
)
from tiny import CLASSES, KD, ROWS, expert, images, order, recipe, tape_plan
from torch import Tensor, nn

from autokd.core.core import LANE_STEPS, TrainingCore
from autokd.core.device import Setting
from autokd.core.dials import structure
from autokd.core.held import Held
from autokd.core.loop import feed, train_epoch
from autokd.core.pool import Pools
from autokd.core.recording import Twin, tensors_of
from autokd.core.replay import Replay
from autokd.core.teaching import Teaching
from autokd.data import Data
from autokd.errors import TrialFailure
from autokd.objectives import name_of as name_of_loss
from autokd.objectives.logits import KD as Hinton
from autokd.protocols import Batch, Objective, Outputs
from autokd.recipe import Recipe
from autokd.rules import Rule, Value
from autokd.students import name_of

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    never_at_chance(monkeypatch)


class Own(nn.Module):
    """A student with dropout; `how` says what it keeps to itself."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.steps = how, 0
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Dropout(0.4), nn.Linear(12, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.how == "counts" and self.training
        if self.how == "raises" and self.training:
            raise ValueError("no such layer")
        logits: Tensor = self.body(x)
        return logits * (1 + self.steps / 100)


class Family:
    """A family of them."""

    fields: Mapping[str, Rule] = {}

    def __init__(self, how: str) -> None:
        self.how, self.__qualname__ = how, f"Family.{how}"

    def misfit(self, input_shape: tuple[int, ...]) -> str | None:
        return None

    def build(self, spec: Mapping[str, Value], input_shape: tuple[int, ...], classes: int) -> nn.Module:
        return Own(self.how)


def own(how: str, **more: Any) -> Recipe:
    return small(family=name_of(Family(how)), **more)


class Looks(Objective):
    """Reads its loss on the host."""

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        loss = (student.logits - teacher.logits).square().mean()
        return {"looks": loss * float(loss.detach() > 0)}


class Derived(Hinton):
    """Nobody knows what it does with the temperature."""


# ---- a whole step is a step


@pytest.mark.parametrize("how", CASES)
def test_whole_steps_train_as_launched_ones_do(tmp_path: Path, how: str) -> None:
    of = recipe(**{"optim": {"batch": 6}, **CASES[how]})
    plain, ours = launched(tmp_path / "plain", tape=tmp_path / "tape"), Counting()
    its_core = recorded(tmp_path / "ours", ours, tape=tmp_path / "tape")
    theirs, report = train(plain, of, 4), train(its_core, of, 4)
    assert_close(state(its_core), state(plain))
    assert losses(report) == pytest.approx(losses(theirs), rel=1e-4)
    assert report.notes == () and ours.records == 2 and ours.replays >= 10


def test_dropout_draws_what_it_would_draw_in_launched_steps(tmp_path: Path) -> None:
    of, (theirs,) = own("well", terms=(KD,)), alone(tmp_path, [own("well", terms=(KD,))], 4)
    its_core = recorded(tmp_path / "ours", tape=tmp_path / "tape")
    assert train(its_core, of, 4).notes == ()
    assert_close(state(its_core), theirs)


def test_rows_of_float_are_picked_too(tmp_path: Path) -> None:
    plain = images(60)
    data = Data(plain.train.x.astype("float32") / 255, plain.train.y, name="floats")
    of = small(terms=(KD,))
    theirs = launched(tmp_path / "plain", data=data)
    its_core = recorded(tmp_path / "ours", data=data)
    train(theirs, of, 3)
    assert train(its_core, of, 3).notes == ()
    assert_close(state(its_core), state(theirs))


# ---- trials of one structure


@pytest.mark.parametrize(
    "how", ["kd", "kd, adamw", "whole views", "a peer", "many objectives", "taught by itself", "no teacher"]
)
def test_trials_that_share_a_recording_end_where_they_end_alone(tmp_path: Path, how: str) -> None:
    both, capture = two_trials(how), Counting()
    its_core = recorded(tmp_path / "ours", capture, tape=tmp_path / "tape")
    reports = in_turns(its_core, both, 4)
    assert len(pool_of(its_core)) == 1 and capture.records == 2
    assert all(report.notes == () for report in reports)
    ends = alone(tmp_path, both, 4)
    assert any(not torch.equal(tensor, ends[1].get(name, tensor)) for name, tensor in ends[0].items())
    for number, theirs in enumerate(ends):
        assert_close(state(its_core, str(number)), theirs)


def test_trials_in_memory_take_turns_without_checkpoints(tmp_path: Path) -> None:
    both = [own("well", terms=(KD,)), own("well", terms=({**KD, "temperature": 2.0},), ce_weight=0.3)]
    its_core = recorded(tmp_path / "ours", tape=tmp_path / "tape")
    runs = [its_core.new(each, 0, its_core.setting) for each in both]
    for _ in range(3):
        for run in runs:
            train_epoch([run], its_core.rows, its_core.teaching, its_core.task, 4, 3, pool_of(its_core))
    assert len(pool_of(its_core)) == 1
    for run, theirs in zip(runs, alone(tmp_path, both, 3), strict=True):
        assert_close(run.state()[0], theirs)


def test_a_trial_goes_on_after_others_have_used_its_recording(tmp_path: Path) -> None:
    """Its checkpoint is read by another core, whose recording belongs to another trial by then."""
    first, second = two_trials("kd, adamw")
    begun = recorded(tmp_path / "ours", tape=tmp_path / "tape")
    train(begun, first, 2)
    later = recorded(tmp_path / "ours", tape=tmp_path / "tape")
    train(later, second, 3, trial="other")
    train(later, first, 4, 2)
    assert_close(state(later), alone(tmp_path, [first], 4)[0])


def test_seeds_share_a_recording(tmp_path: Path) -> None:
    capture, of = Counting(), small(terms=(KD,))
    its_core = recorded(tmp_path / "ours", capture, tape=tmp_path / "tape")
    train(its_core, of, 4, trial="a", seed=0)
    train(its_core, of, 4, trial="b", seed=5)
    assert capture.records == 2 and len(pool_of(its_core)) == 1
    plain = launched(tmp_path / "plain", tape=tmp_path / "tape")
    train(plain, of, 4, seed=5)
    assert_close(state(its_core, "b"), state(plain))


def test_a_failed_trial_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    """Weights, moments and sums that are no longer numbers stay behind."""
    bad = small(terms=({**KD, "weight": 3e38},))
    good = small(terms=(KD,))
    its_core = recorded(tmp_path / "ours", tape=tmp_path / "tape")
    train(its_core, good, 2, trial="first")
    with pytest.raises(Exception, match="no longer a number"):
        train(its_core, bad, 2, trial="bad")
    train(its_core, good, 4)
    assert len(pool_of(its_core)) == 1
    assert_close(state(its_core), alone(tmp_path, [good], 4)[0])


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ({"ce_weight": 0.3}, True),
        ({"terms": ({**KD, "weight": 0.1, "temperature": 9.0, "schedule": "linear", "share": 0.3},)}, True),
        ({"optim": {"lr": 1.0, "weight_decay": 0.1, "schedule": "constant", "warmup": 0.4}}, True),
        ({"peers": {"weight": 0.2, "temperature": 5.0}}, True),
        ({"augment": {"policy": "base", "p": 0.9}}, True),
        ({"augment": {"policy": "none"}}, False),
        ({"augment": JDA}, False),
        ({"optim": {"momentum": 0.8}}, False),
        ({"optim": {"batch": 8}}, False),
        ({"optim": {"name": "adamw"}}, False),
        ({"peers": {"count": 1}}, False),
        ({"terms": ()}, False),
        ({"terms": ({"objective": "dkd", "weight": 0.9},)}, False),
        ({"width": 5}, False),
    ],
)
def test_what_trials_that_share_may_differ_in(change: dict[str, Any], shared: bool) -> None:
    one, other = recipe(terms=(KD,)), recipe(**{"terms": (KD,), **change})
    assert (structure(one) == structure(other)) == shared


def test_fields_of_a_derived_objective_are_no_dials() -> None:
    """It may read them on the host, or under another name."""
    name = name_of_loss(Derived)
    one, other = (recipe(terms=({"objective": name, "weight": 1.0, "temperature": t},)) for t in (2.0, 3.0))
    assert structure(one) != structure(other)


# ---- what is read from the device


@pytest.mark.parametrize("rho", [0.5, 0.667])
def test_a_held_epoch_says_what_the_tape_says(tmp_path: Path, rho: float) -> None:
    its_core = launched(tmp_path)
    run = its_core.new(small(terms=MANY, augment={**JDA, "rho": rho}), 0, its_core.setting)
    held = None
    for run.epoch in range(3):
        signal = its_core.teaching.epoch(run.of_teacher, run.recipe.augment, 0, run.epoch, 3)  # type: ignore[union-attr]
        assert isinstance(signal, Replay) and signal.made is not None
        held = held or Held(signal, "cpu", {})
        held.fill(signal)
        for batch, told in feed(run, its_core.rows, signal):
            assert told is not None and same(held.outputs(batch), told)
            assert held.made is not None
            of_second, fired = held.made(1, batch.index)
            assert torch.equal(of_second, signal.made(1, batch.index).x)
            assert fired is not None and torch.equal(fired, signal.made(1, batch.index).fired)


def same(one: Outputs, other: Outputs) -> bool:
    pairs = zip(tensors_of(one), tensors_of(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_held_epochs_of_equal_shape_share_their_memory(tmp_path: Path) -> None:
    its_core, buffers = launched(tmp_path), {}
    run = its_core.new(small(terms=(KD,)), 0, its_core.setting)
    signals = [its_core.teaching.epoch(run.of_teacher, run.recipe.augment, 0, epoch, 3) for epoch in range(2)]  # type: ignore[union-attr]
    for signal in signals:
        assert isinstance(signal, Replay)
        Held(signal, "cpu", buffers)
    assert [(name, tuple(shape)) for name, shape, _ in buffers] == [("logits", (1, ROWS, CLASSES))]


# ---- what cannot be a whole step


def fed(its_core: TrainingCore, of: Recipe) -> tuple[str, ...]:
    """The notes of two epochs."""
    notes = train(its_core, of, 2).notes
    assert len(pool_of(its_core)) == 0
    return notes


def why(notes: tuple[str, ...]) -> str:
    prefix = "no CUDA graph of whole steps: "
    (note,) = [note for note in notes if note.startswith(prefix)]
    return note.removeprefix(prefix)


def test_views_of_changing_number_are_fed(tmp_path: Path) -> None:
    of = small(terms=(KD,), augment={**JDA, "rho": 0.4})
    its_core = recorded(tmp_path / "ours", tape=tmp_path / "tape")
    assert why(fed(its_core, of)) == "0.67 augmented rows per image make batches of changing size"
    assert_close(state(its_core), alone(tmp_path, [of], 2)[0], 0)


def test_a_live_teacher_is_fed(tmp_path: Path) -> None:
    its_core = recorded(tmp_path, tape=tape_plan(tmp_path / "tape", payload=frozenset({"logits"})))
    assert why(fed(its_core, small(terms=({"objective": "rkd", "weight": 1.0},)))) == "the teacher runs live"


def test_augmented_rows_that_are_not_on_the_tape_are_fed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Teaching, "_rows_fit", lambda *_: False)
    its_core = recorded(tmp_path)
    assert why(fed(its_core, small(terms=(KD,), augment=JDA))) == "the augmented rows are not on the tape"
    assert why(fed(recorded(tmp_path / "bare"), small(augment=JDA))) == "the augmented rows are not on the tape"


def test_a_large_epoch_of_the_tape_is_fed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autokd.core.shared.MOST_HELD", 100)
    its_core = recorded(tmp_path)
    assert why(fed(its_core, small(terms=(KD,)))).startswith("an epoch of the tape takes")


def test_streamed_data_are_fed(tmp_path: Path) -> None:
    plain = images(60)
    items = [(x, int(y)) for x, y in zip(plain.train.x, plain.train.y, strict=True)]
    data = Data.stream(items, val=items[:9], test=items[:9], classes=CLASSES, memory="10MB", workers=0)
    its_core = recorded(tmp_path, data=data, tape=None)
    try:
        assert why(fed(its_core, small())) == "the data are streamed"
    finally:
        its_core.close()


def test_cohorts_are_fed(tmp_path: Path) -> None:
    its_core = recorded(tmp_path / "ours", tape=tmp_path / "tape")
    both = two_trials("kd")
    orders = [order(each, to=2, total=4) for each in both]
    reports = its_core.advance_together([replace(each, trial=str(n)) for n, each in enumerate(orders)])
    assert [why(report.notes) for report in reports] == ["the trials of a cohort are fed the same batches"] * 2  # type: ignore[union-attr]
    for number, theirs in enumerate(alone(tmp_path, both, 2)):
        assert_close(state(its_core, str(number)), theirs, 0)


@pytest.mark.parametrize(
    ("of", "reason"),
    [
        (own("counts", terms=(KD,)), "a model or loss keeps a value that each step replaces"),
        (
            small(terms=({"objective": name_of_loss(Looks), "weight": 0.5},)),
            "it waits for the device in aten::_local_scalar_dense",
        ),
    ],
    ids=["student", "loss"],
)
def test_what_no_recording_can_repeat_is_fed_from_its_first_epoch_on(tmp_path: Path, of: Recipe, reason: str) -> None:
    capture = Counting()
    its_core = recorded(tmp_path / "ours", capture, tape=tmp_path / "tape")
    assert why(fed(its_core, of)).startswith(reason)
    assert capture.records == 0
    assert_close(state(its_core), alone(tmp_path, [of], 2)[0], 0)


def test_a_recording_that_fails_is_not_tried_again(tmp_path: Path) -> None:
    capture, of = Counting(RuntimeError("operation not permitted when stream is capturing")), small(terms=(KD,))
    its_core = recorded(tmp_path / "ours", capture, tape=tmp_path / "tape")
    told = "RuntimeError: operation not permitted when stream is capturing"
    assert why(train(its_core, of, 3).notes) == told and capture.records == 1
    assert why(train(its_core, of, 4, 3).notes) == told and len(pool_of(its_core)) == 0
    assert_close(state(its_core), alone(tmp_path, [of], 4)[0])


def test_what_a_model_raises_is_its_own_failure(tmp_path: Path) -> None:
    its_core = recorded(tmp_path)
    with pytest.raises(TrialFailure, match="ValueError: no such layer"):
        train(its_core, own("raises", terms=(KD,)), 2)
    assert train(its_core, small(terms=(KD,)), 2).notes == ()


# ---- the pool


def test_the_least_recently_used_is_freed(tmp_path: Path) -> None:
    capture = Counting()
    its_core = recorded(tmp_path, capture, most=2)
    for width in (4, 5, 4, 6):  # 5 has to go
        train(its_core, small(width=width, terms=(KD,)), 2, trial=f"{width} {capture.records}")
        assert len(pool_of(its_core)) <= 2
    freed, records = capture.freed, capture.records
    train(its_core, small(width=4, terms=(KD,)), 2, trial="kept")
    assert (capture.freed, capture.records) == (freed, records)
    train(its_core, small(width=5, terms=(KD,)), 2, trial="gone")
    assert capture.records > records and capture.freed > freed and len(pool_of(its_core)) == 2
    its_core.close()
    assert capture.freed == capture.records and len(pool_of(its_core)) == 0


def test_what_is_freed_is_gone_at_once(tmp_path: Path) -> None:
    """Weights and tape buffers, without waiting for the garbage collector."""
    its_core = recorded(tmp_path)
    train(its_core, small(terms=(KD,)), 2)
    pool = pool_of(its_core)
    (step,) = pool._steps.values()
    watched = [weakref.ref(step), weakref.ref(step._own.step), *map(weakref.ref, pool._buffers.values())]
    del step
    gc.disable()
    try:
        pool.close()
        assert [ref() for ref in watched] == [None] * len(watched)
    finally:
        gc.enable()


def test_lanes_have_pools_of_their_own() -> None:
    pools = Pools(Twin)
    assert pools.of("one") is pools.of("one") is not pools.of("other")


def test_steps_on_a_cpu_are_launched(tmp_path: Path) -> None:
    its_core = TrainingCore(images(60), expert(), tmp_path, Setting())
    assert its_core.pools is None


# ---- measuring


@pytest.mark.parametrize("how", ["kd", "many objectives", "no teacher"])
def test_lanes_are_counted_by_the_steps_they_will_make(tmp_path: Path, how: str) -> None:
    capture = Counting()
    its_core = recorded(tmp_path, capture)
    found = its_core.count_lanes(recipe(**{"optim": {"batch": 6}, **CASES[how]}), most=1)
    assert found.lanes == 1 and capture.records == 2 and capture.replays == 1 + LANE_STEPS + 1


def test_lanes_of_steps_that_must_be_fed_are_counted_too(tmp_path: Path) -> None:
    capture = Counting()
    its_core = recorded(tmp_path, capture)
    assert its_core.count_lanes(small(terms=(KD,), augment={**JDA, "rho": 0.4}), most=1).lanes == 1
    assert capture.records == 0
