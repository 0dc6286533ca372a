"""Recorded steps train as unrecorded ones do; what cannot be recorded goes on as it is and says why."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from steps import Calls, Step, batch_of, curve, taught_of
from tiny import KD, SHAPE, images, network, recipe, weights
from torch import Tensor, nn

from autokd.core.device import Setting
from autokd.core.graphs import WARM_UP, Graphed, Twin
from autokd.core.lanes import TURNS
from autokd.core.run import Run
from autokd.protocols import Batch, Outputs
from autokd.students.tap import Tap
from autokd.tasks import TASKS


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Counting(Twin):
    """A twin that tells how steps were run, and fails to record when told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.runs, self.records = error, 0, 0

    def run(self, work: Callable[[], None]) -> None:
        self.runs += 1
        super().run(work)

    def record(self, work: Callable[[], None]) -> Any:
        self.records += 1
        if self.error is not None:
            raise self.error
        return super().record(work)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(other).values(), strict=True))


# ---- training is the same


@pytest.mark.parametrize("family", ["resnet", "plain", "mobilenet", "mlp"])
@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_a_recorded_step_trains_bit_for_bit_as_an_unrecorded_one(family: str, optim: str) -> None:
    plain, recorded = (Step(network(family), optim=optim) for _ in range(2))
    calls = Calls(recorded)
    graphed = Graphed(calls, Twin(), modules=[recorded.module])
    assert curve(graphed, recorded, range(9)) == curve(plain, plain, range(9))
    assert same_weights(recorded.module, plain.module)  # batch-norm statistics included
    assert calls.count == WARM_UP + 1 and graphed.note == ""


ALL = tuple(
    {"objective": name, "weight": 0.5, "schedule": "linear", "share": 0.5}
    for name in ("kd", "dist", "fitnet", "at", "rkd")
)
RECIPES: dict[str, dict[str, Any]] = {
    "kd": {"terms": (KD,)},
    "many objectives, ramped": {"terms": ALL},
    "peers": {"terms": (KD,), "peers": {"count": 2}},
    "adamw": {"terms": (KD,), "optim": {"name": "adamw", "warmup": 0.2}},
    "augmented rows": {"terms": (KD,), "augment": {"policy": "jda", "rho": 0.3, "ccd": True}},
}


def run_of(teacher: Tap, how: str) -> Run:
    """A trial as the core makes it; the learning rate is a tensor, as on a GPU."""
    setting, example = Setting(), torch.rand(2, *SHAPE)
    run = Run(recipe(**RECIPES[how]), 0, images(), TASKS["classification"], teacher.shapes, example, setting)
    for group in run.optimiser.param_groups:
        group["lr"] = torch.tensor(group["lr"])
    run.begin_epoch()
    return run


@pytest.mark.parametrize("how", RECIPES)
def test_the_step_of_the_core_is_recorded_as_it_is(how: str) -> None:
    teacher = Tap(network(width=8).eval(), torch.rand(2, *SHAPE))

    def logs(run: Run, step: Callable[[Batch, Outputs | None], None]) -> Iterator[dict[str, float]]:
        for number in range(WARM_UP + 5):
            batch = replace(batch_of(seed=number), view=torch.arange(12) // 9, parent=torch.arange(12) % 9)
            run.step.dial(number / 8)
            run.step.begin()
            step(batch, teacher(batch.x).detach())
            yield run.step.sums

    plain, recorded = run_of(teacher, how), run_of(teacher, how)
    graphed = Graphed(recorded.step, Twin(), modules=[recorded.parts])
    assert list(logs(recorded, graphed)) == list(logs(plain, plain.step))
    assert graphed.note == "" and same_weights(recorded.parts, plain.parts)


def test_bf16_is_recorded_below_autocast() -> None:
    plain, recorded = (Step(network("mlp"), bf16=True) for _ in range(2))
    assert curve(Graphed(recorded, Twin()), recorded, range(7)) == curve(plain, plain, range(7))


def test_dropout_draws_anew_in_every_replay() -> None:
    step = Step(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)))
    graphed = Graphed(step, Twin())
    losses = []
    for _ in range(8):
        step.sums.zero_()
        graphed(batch_of(), None)  # lr 0: the weights stay
        losses.append(step.sums.item())
    assert len(set(losses)) == len(losses)


def test_warm_up_steps_are_training_steps() -> None:
    step = Step()
    graphed, before = Graphed(step, Twin()), weights(step.module)
    curve(graphed, step, range(1))
    assert not torch.equal(before["head.weight"], step.module.state_dict()["head.weight"])


def test_dials_are_read_when_replayed() -> None:
    step = Step()
    graphed = Graphed(step, Twin())
    curve(graphed, step, range(WARM_UP + 1))
    step.lr.zero_()
    before = step.module.state_dict()["head.weight"].clone()
    graphed(batch_of(), taught_of())
    assert torch.equal(before, step.module.state_dict()["head.weight"])
    step.lr.fill_(0.1)
    graphed(batch_of(), taught_of())
    assert not torch.equal(before, step.module.state_dict()["head.weight"])


def test_the_twin_freezes_numbers_as_a_cuda_graph_does() -> None:
    dial, total = [1.0], torch.zeros(())
    graphed = Graphed(lambda batch, taught: total.add_(batch.x.sum() * 0 + dial[0]), Twin())  # type: ignore[arg-type]
    for number in range(WARM_UP + 3):
        dial[0] = number + 1.0
        graphed(batch_of(), None)
    assert total.item() == 1 + 2 + 3 + 4 + 4 + 4  # a Python number is that of the recording


# ---- inputs


def test_every_tensor_of_the_inputs_reaches_the_step() -> None:
    seen = torch.zeros(7)

    def step(batch: Batch, taught: Outputs | None) -> None:
        assert taught is not None and taught.embedding is not None and batch.fired is not None
        parts = [batch.x, batch.y, batch.index, batch.fired, taught.logits, taught.embedding, taught.stages[1]]
        seen.copy_(torch.stack([part.double().sum() for part in parts]).float())

    graphed = Graphed(step, Twin())
    for number in range(WARM_UP + 3):
        batch = batch_of(seed=number, fired=True)
        extra = torch.full((12, 2), float(number))
        taught = Outputs(taught_of(seed=number).logits, extra, (extra, extra + 1))
        graphed(batch, taught)
        replayed = seen.clone()
        step(batch, taught)
        assert torch.equal(replayed, seen)


def test_recordings_keep_copies_of_their_inputs() -> None:
    step = Step()
    graphed = Graphed(step, Twin())
    batches = [batch_of(seed=number) for number in range(WARM_UP + 3)]
    kept = [batch.x.clone() for batch in batches]
    for batch in batches:
        graphed(batch, None)
    assert all(torch.equal(batch.x, before) for batch, before in zip(batches, kept, strict=True))


@dataclass(frozen=True)
class Boxes(Batch):
    """Several labels per image, and a name of theirs."""

    boxes: tuple[dict[str, Tensor], ...] = ()
    kind: str = "xywh"


def test_batches_of_any_structure() -> None:
    total = torch.zeros(())

    def step(batch: Batch, taught: Outputs | None) -> None:
        assert isinstance(batch, Boxes)
        total.add_(sum(each["box"].sum() for each in batch.boxes))  # type: ignore[arg-type]

    graphed, plain = Graphed(step, Twin()), batch_of()
    for number in range(WARM_UP + 2):
        boxes = tuple({"box": torch.full((count, 4), float(number))} for count in (1, 3))
        fields = {name: getattr(plain, name) for name in ("x", "y", "index", "view", "parent")}
        graphed(Boxes(**fields, boxes=boxes), None)
    assert total.item() == 16 * sum(range(WARM_UP + 2))


# ---- shapes


def test_each_shape_has_its_own_recording() -> None:
    step, capture = Step(), Counting()
    calls = Calls(step)
    graphed, plain = Graphed(calls, capture), Step()
    for number in range(6):
        for rows in (6, 12):
            assert curve(graphed, step, [number], rows) == curve(plain, plain, [number], rows)
    assert capture.records == 2 and calls.count == 2 * (WARM_UP + 1)


def test_a_teacher_that_is_not_asked_is_another_shape() -> None:
    capture = Counting()
    graphed = Graphed(Step(), capture)
    for _ in range(WARM_UP + 2):
        graphed(batch_of(), None)
        graphed(batch_of(), taught_of())
    assert capture.records == 2


def test_shapes_beyond_the_limit_run_unrecorded_and_this_is_said() -> None:
    step, capture = Step(), Counting()
    calls = Calls(step)
    graphed, plain = Graphed(calls, capture, most_shapes=1), Step()
    for number in range(6):
        for rows in (6, 12):
            assert curve(graphed, step, [number], rows) == curve(plain, plain, [number], rows)
    assert capture.records == 1 and calls.count == WARM_UP + 1 + 6
    assert graphed.note == "1 shapes of batches have a graph; batches of other shapes run without one"


# ---- what cannot be recorded


def test_a_failed_recording_leaves_training_undisturbed() -> None:
    step, capture = Step(), Counting(RuntimeError("operation not permitted when stream is capturing\nsecond line"))
    graphed, plain = Graphed(step, capture), Step()
    assert curve(graphed, step, range(8)) == curve(plain, plain, range(8))
    assert capture.records == 1  # for good
    assert graphed.note.endswith("RuntimeError: operation not permitted when stream is capturing")


def synchronises(logits: Tensor) -> Tensor:
    return logits.sum() * float(logits.detach().sum() > 0)


def counts_places(logits: Tensor) -> Tensor:
    return logits[logits.detach() > 0].mean()


class Remembers(nn.Module):
    """A loss that keeps the logits it saw last, in a buffer or as whatever comes."""

    def __init__(self, properly: bool) -> None:
        super().__init__()
        self.properly = properly
        self.register_buffer("last", torch.zeros(12, 3))

    def forward(self, logits: Tensor) -> Tensor:
        change = (logits - self.last).square().mean()  # type: ignore[operator]
        self.last = self.last.copy_(logits.detach()) if self.properly else logits.detach()  # type: ignore[operator]
        return change


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        (synchronises, "waits for the device in aten::_local_scalar_dense"),
        (counts_places, "waits for the device in aten::index"),
        (Remembers(properly=False), "keeps a value that each step replaces"),
    ],
)
def test_a_loss_that_cannot_be_replayed_is_noticed_before_it_is_recorded(extra: Any, why: str) -> None:
    step, capture = Step(extra=extra), Counting()
    graphed = Graphed(step, capture, modules=[extra] if isinstance(extra, nn.Module) else [])
    curve(graphed, step, range(WARM_UP + 3))
    assert capture.records == 0 and why in graphed.note and "\n" not in graphed.note


def test_a_loss_that_keeps_its_state_in_a_buffer_is_recorded() -> None:
    loss, other = Remembers(properly=True), Remembers(properly=True)
    step, plain, capture = Step(extra=loss), Step(extra=other), Counting()
    graphed = Graphed(step, capture, modules=[step.module, loss])
    assert curve(graphed, step, range(7)) == curve(plain, plain, range(7))
    assert capture.records == 1 and graphed.note == ""


def test_an_error_of_the_step_itself_is_raised() -> None:
    def fails(batch: Batch, taught: Outputs | None) -> None:
        if len(steps) > WARM_UP:
            raise ValueError("no such loss")
        steps.append(1)

    steps = [1]
    graphed = Graphed(fails, Twin())
    for _ in range(WARM_UP):
        graphed(batch_of(), None)
    with pytest.raises(ValueError, match="no such loss"):
        graphed(batch_of(), None)


# ---- ends and neighbours


def test_closing_frees_the_recordings_and_training_can_go_on() -> None:
    step, plain = Step(), Step()
    calls = Calls(step)
    graphed = Graphed(calls, Twin())
    first = curve(graphed, step, range(6))
    graphed.close()
    assert first + curve(graphed, step, range(6, 12)) == curve(plain, plain, range(12))
    assert calls.count == 2 * (WARM_UP + 1)


def test_a_dropped_step_is_freed_at_once() -> None:
    """Without waiting for the garbage collector, which would find another lane's capture underway."""
    freed: list[str] = []

    class Noticed(Step):
        def __del__(self) -> None:
            freed.append("step")

    gc.disable()
    try:
        graphed = Graphed(Noticed(), Twin())
        for _ in range(WARM_UP + 2):
            graphed(batch_of(), None)
        graphed.close()
        del graphed
        assert freed == ["step"]
    finally:
        gc.enable()


def test_no_step_runs_beside_a_recording() -> None:
    """Two lanes: while one records, the other's steps wait."""
    recording, events = threading.Event(), []

    class Slow(Twin):
        def record(self, work: Callable[[], None]) -> Any:
            recording.set()
            other.join(0.2)
            events.append("recorded")
            return super().record(work)

    def train() -> None:
        recording.wait(10)
        Graphed(lambda batch, taught: events.append("step"), Twin())(batch_of(), None)

    other = threading.Thread(target=train)
    other.start()
    graphed = Graphed(Step(), Slow())
    for _ in range(WARM_UP + 1):
        graphed(batch_of(), None)
    other.join(10)
    assert events == ["recorded", "step"]


def test_turns_are_given_back_after_an_error() -> None:
    with pytest.raises(ValueError), TURNS.alone():
        raise ValueError
    with TURNS.together(), TURNS.together():
        pass
