"""Operations recorded and repeated, and those noticed that no recording can repeat."""

from __future__ import annotations

from collections import deque, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from steps import batch_of
from tiny import headed, network
from torch import Tensor, nn

from autokd.core.device import Setting
from autokd.core.live import LiveTeacher
from autokd.core.recording import Twin, Watch, kept, mapped, shape_of, tensors_of
from autokd.core.step import parts_of
from autokd.objectives import OBJECTIVES
from autokd.protocols import Samples
from autokd.students.tap import Tap

Point = namedtuple("Point", "x y")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- the twin


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x * 2 + 1,
        lambda x: x.t().reshape(-1)[2:5],  # views
        lambda x: x.clone().unsqueeze_(0).squeeze_(0).add_(3),  # reshaped in place
        lambda x: (lambda y: (y.sum(0), y.unsqueeze_(0))[0])(x.clone()),  # and after it was read
        lambda x: torch.where(x > 0, x, 0.0).topk(2, dim=1).values,
        lambda x: torch.cat([x.float(), x.bfloat16().float()]),
        lambda x: x.index_select(0, torch.tensor([1, 0])),
        lambda x: torch.stack(x.unbind(0)).cumsum(1),
    ],
)
def test_a_recording_computes_with_what_its_inputs_hold_now(work: Callable[[Tensor], Tensor]) -> None:
    x, out = torch.randn(3, 4), []
    recording = Twin().record(lambda: out.append(work(x)))
    for _ in range(3):
        x.normal_()
        recording.replay()
        assert torch.equal(out[0], work(x)) and len(out) == 1


def test_gradients_are_recorded() -> None:
    x, weight = torch.randn(3, 4), torch.randn(4, requires_grad=True)

    def work() -> None:
        weight.grad = None
        (x @ weight).square().sum().backward()

    recording = Twin().record(work)
    assert weight.grad is not None
    grad = weight.grad
    x.normal_()
    recording.replay()
    work()
    assert torch.equal(grad, weight.grad) and grad is not weight.grad


# ---- what the host waits for


def parts(x: Tensor, mask: Tensor) -> dict[str, Callable[[], Any]]:
    return {
        "aten::_local_scalar_dense": lambda: x.sum().item(),
        "aten::nonzero": lambda: mask.nonzero(),
        "aten::masked_select": lambda: x.masked_select(mask),
        "aten::_unique2": lambda: x.unique(),
        "aten::bincount": lambda: mask.long().flatten().bincount(),
        "aten::equal": lambda: torch.equal(x, x),
        "aten::index": lambda: x[mask],
        "aten::index_put_": lambda: x.index_put_((mask,), x[0, :2].clone()),
        "aten::_linalg_check_errors": lambda: torch.linalg.inv(x @ x.t() + torch.eye(3)),
    }


@pytest.mark.parametrize("name", parts(torch.zeros(0), torch.zeros(0)))
def test_waiting_for_the_device_is_noticed(name: str) -> None:
    x = torch.randn(3, 4)
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[1, :2] = True
    with Watch("cpu") as watch:
        parts(x, mask)[name]()
    assert watch.found == name


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x.masked_fill(x > 0, 0.0),
        lambda x: torch.where(x > 0, x, -x),
        lambda x: x.__setitem__(x > 0, torch.tensor(0.0)),  # one value: filled in
        lambda x: x.to(torch.bfloat16).float(),
        lambda x: x.clone().copy_(x),
        lambda x: torch.softmax(x, 1).argmax(1),
    ],
)
def test_what_stays_on_the_device_is_not(work: Callable[[Tensor], Any]) -> None:
    with Watch("cpu") as watch:
        work(torch.randn(3, 4))
    assert watch.found == ""


def test_tensors_of_another_kind_may_be_read() -> None:
    with Watch("cuda") as watch:
        torch.ones(()).item()
    assert watch.found == ""


def test_moving_between_devices_is_noticed() -> None:
    with Watch("cpu") as watch:
        torch.ones(3).to("meta")
    assert watch.found == "aten::_to_copy"


def test_reads_in_the_backward_pass_are_noticed() -> None:
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            return grad * grad.sum().item()

    with Watch("cpu") as watch:
        Reads.apply(torch.randn(3, requires_grad=True)).sum().backward()
    assert watch.found == "aten::_local_scalar_dense"


# ---- what modules keep


def test_kept_is_the_same_after_a_step_in_place() -> None:
    module = network()
    before = kept([module])
    module.train()(batch_of().x).sum().backward()  # statistics in place, gradients anew
    assert kept([module]) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda part: setattr(part, "epoch", part.epoch + 1),
        lambda part: setattr(part, "weight", nn.Parameter(torch.zeros(2, 2))),
        lambda part: part.queue.append(torch.ones(1)),
        lambda part: part.seen.update(a=torch.ones(1)),
        lambda part: part.eval(),
    ],
)
def test_kept_shows_what_was_replaced(change: Callable[[Any], Any]) -> None:
    inner: Any = nn.Linear(2, 2)
    inner.epoch, inner.queue, inner.seen = 0, deque([torch.zeros(1)]), {"a": torch.zeros(1)}
    outer = nn.Sequential(inner)
    before = kept([outer])
    change(inner)
    assert kept([outer]) != before


@pytest.mark.parametrize("name", [name for name, each in OBJECTIVES.items() if not each.asks])  # those are not recorded
def test_every_registered_objective_can_be_replayed(name: str) -> None:
    """Nothing is read on the host, nothing kept beside buffers."""
    batch, objective = batch_of(), OBJECTIVES[name]()
    if objective.rotations:
        rows = torch.arange(len(batch.index))
        batch = replace(batch, index=rows // 4, view=rows % 4, parent=rows - rows % 4)
    student, teacher = Tap(network(width=4).train(), batch.x), LiveTeacher(headed(network()), batch.x, Setting())
    objective.know(Samples(batch.y))
    objective.build(student.shapes, teacher.shapes)
    objective.adopt(student.module)
    taught = teacher.outputs(batch.x, objective.of_teacher(student.shapes, teacher.shapes))
    before = kept([objective])
    with Watch("cpu") as watch:
        sum(parts_of(objective, student(batch.x), taught, batch, None).values()).backward()
    assert watch.found == "" and kept([objective]) == before


# ---- structures


def test_structures_keep_their_types() -> None:
    a, b = torch.zeros(2), torch.ones(3)
    value = {"batch": batch_of(), "rest": (Point(a, None), [b, 3, "name"])}
    doubled = mapped(value, lambda tensor: tensor * 2)
    assert type(doubled["batch"]) is type(value["batch"]) and type(doubled["rest"][0]) is Point
    assert doubled["rest"][1][1:] == [3, "name"] and doubled["rest"][0].y is None
    assert [tuple(t.shape) for t in tensors_of(doubled)] == [tuple(t.shape) for t in tensors_of(value)]
    assert torch.equal(doubled["batch"].y, value["batch"].y * 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2), torch.zeros(2, device="meta")),
        ([torch.zeros(2)], (torch.zeros(2),)),
        ({"a": torch.zeros(2)}, {"b": torch.zeros(2)}),
        ((torch.zeros(2), None), (torch.zeros(2), torch.zeros(2))),
        (1, 2),
    ],
)
def test_other_structures_are_other_shapes(one: Any, other: Any) -> None:
    assert shape_of(one) != shape_of(other)
    assert shape_of(one) == shape_of(mapped(one, torch.ones_like))
