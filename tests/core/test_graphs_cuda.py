"""CUDA graphs: the calls that are made, checked anywhere, and the real thing where there is a GPU."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pytest
import torch
from fake_cuda import FakeCuda
from sharing import (
    CASES,
    alone,
    assert_close,
    in_turns,
    launched,
    losses,
    never_at_chance,
    recorded,
    state,
    train,
    two_trials,
)
from steps import Calls, Step, batch_of, curve
from tiny import network, recipe
from torch import Tensor, nn

from autokd.core.graphs import WARM_UP, CudaCapture, Graphed
from autokd.core.lanes import Streams, lane_stream

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


# ---- the calls of torch.cuda, without a GPU


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def test_beside_the_default_stream_both_wait_for_each_other(fake: FakeCuda) -> None:
    CudaCapture("cuda").run(lambda: fake.log.append(f"work on {fake.current.name}"))
    assert fake.log == ["stream 1 waits for default", "work on stream 1", "default waits for stream 1"]
    assert fake.current is fake.default


def test_a_lane_uses_the_stream_that_it_has(fake: FakeCuda) -> None:
    with fake.on(fake.make()):
        capture = CudaCapture("cuda")
        capture.run(lambda: fake.log.append(f"work on {fake.current.name}"))
    assert fake.log == ["work on stream 1"] and fake.made == 1


def test_a_capture_is_followed_by_the_step_itself(fake: FakeCuda) -> None:
    enabled: list[bool] = []
    capture = CudaCapture("cuda")
    capture.record(lambda: enabled.append(gc.isenabled())).replay()
    assert fake.log[1:3] == ["capture on stream 1 into pool 1, thread_local", "replay on stream 1"]
    assert enabled == [False] and gc.isenabled()


def test_graphs_of_one_capture_share_a_pool(fake: FakeCuda) -> None:
    graphed = Graphed(lambda batch, taught: None, CudaCapture("cuda"))
    for rows in (6, 12) * (WARM_UP + 2):
        graphed(batch_of(rows), None)
    captures = [line for line in fake.log if line.startswith("capture")]
    assert captures == ["capture on stream 1 into pool 1, thread_local"] * 2
    assert fake.log.count("replay on stream 1") == 4
    graphed.close()
    assert fake.log.count("reset") == 2


def test_after_a_failed_capture_torch_is_put_right(fake: FakeCuda) -> None:
    fake.failing = True
    capture = CudaCapture("cuda")
    with pytest.raises(RuntimeError, match="previous error"):
        capture.record(lambda: None)
    assert fake.log[2:] == [
        "end of pool 1 on device 0",
        "spare capture begins",
        "spare capture ends",
        "default waits for stream 1",
    ]
    fake.failing = False
    capture.record(lambda: None)
    assert "capture on stream 1 into pool 2, thread_local" in fake.log and gc.isenabled()


def test_a_failed_capture_ends_in_ordinary_steps(fake: FakeCuda) -> None:
    fake.failing = True
    ran: list[str] = []
    graphed = Graphed(lambda batch, taught: ran.append(fake.current.name), CudaCapture("cuda"))
    for _ in range(WARM_UP + 3):
        graphed(batch_of(), None)
    assert ran == ["stream 1"] * (WARM_UP + 1 + 3)  # one of them while it was captured
    assert graphed.note.endswith("CUDA error: operation failed due to a previous error during capture")


def test_lanes_take_streams_in_turn(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autokd.core.lanes.STREAMS", Streams(fake.make))
    for _ in range(2):
        with lane_stream("cuda") as stream:
            assert fake.current is stream
    assert fake.log == ["stream 1 waits for default", "host waits for stream 1"] * 2


# ---- on a GPU


@cuda
@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_cuda_graphs_train_as_separate_launches_do(optim: str) -> None:
    plain, recorded = (Step(network(), optim, "cuda") for _ in range(2))
    calls = Calls(recorded)
    graphed = Graphed(calls, CudaCapture("cuda"), modules=[recorded.module])
    first, second = curve(graphed, recorded, range(12)), curve(plain, plain, range(12))
    assert graphed.note == "" and calls.count == WARM_UP + 1
    assert first == pytest.approx(second, rel=1e-3)


@cuda
def test_a_failed_cuda_capture_leaves_everything_usable() -> None:
    """Dropout, later captures and the cache: all of them once refused after a capture that failed."""

    def sneaks(logits: Tensor) -> Tensor:
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.current_stream().synchronize()
        return logits.sum() * 0

    network_of = lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3))  # noqa: E731
    step, capture = Step(network_of(), device="cuda", extra=sneaks), CudaCapture("cuda")
    graphed = Graphed(step, capture)
    losses = curve(graphed, step, range(WARM_UP + 4))
    assert "without a CUDA graph" in graphed.note and all(loss == loss for loss in losses)
    torch.cuda.empty_cache()
    sound = Step(network_of(), device="cuda")
    calls = Calls(sound)
    after = Graphed(calls, capture)
    curve(after, sound, range(WARM_UP + 3))
    assert after.note == "" and calls.count == WARM_UP + 1


@cuda
def test_lanes_record_and_replay_side_by_side() -> None:
    expected = curve(alone := Step(network(), device="cuda"), alone, range(20))
    curves: list[list[float]] = []

    def lane() -> None:
        with lane_stream("cuda"):
            step = Step(network(), device="cuda")
            graphed = Graphed(step, CudaCapture("cuda"))
            curves.append(curve(graphed, step, range(20)))
            assert graphed.note == ""
            graphed.close()

    threads = [threading.Thread(target=lane) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert len(curves) == 4 and all(each == pytest.approx(expected, rel=1e-3) for each in curves)


@cuda
def test_graphs_of_several_shapes_share_one_pool() -> None:
    step, plain = (Step(network(), device="cuda") for _ in range(2))
    graphed = Graphed(step, CudaCapture("cuda"), most_shapes=2)
    for number in range(8):
        for rows in (6, 12, 9):
            ours, theirs = curve(graphed, step, [number], rows), curve(plain, plain, [number], rows)
            assert ours == pytest.approx(theirs, rel=1e-3)


NEAR = 2e-2  # of weights after some epochs: other kernels add up in another order


@cuda
@pytest.mark.parametrize("how", CASES)
def test_whole_cuda_steps_train_as_launched_ones_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    never_at_chance(monkeypatch)
    of = recipe(**{"optim": {"batch": 6}, **CASES[how]})
    plain = launched(tmp_path / "plain", tape=tmp_path / "tape", device="cuda")
    its_core = recorded(tmp_path / "ours", tape=tmp_path / "tape", device="cuda")
    theirs, report = train(plain, of, 4), train(its_core, of, 4)
    assert report.notes == () and losses(report) == pytest.approx(losses(theirs), rel=1e-2)
    assert_close(state(its_core), state(plain), NEAR)


@cuda
@pytest.mark.parametrize("how", ["kd", "kd, adamw", "whole views", "a peer", "many objectives", "no teacher"])
def test_trials_that_share_a_cuda_graph_end_where_they_end_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    never_at_chance(monkeypatch)
    both = two_trials(how)
    its_core = recorded(tmp_path / "ours", tape=tmp_path / "tape", device="cuda")
    assert all(report.notes == () for report in in_turns(its_core, both, 4))
    assert its_core.pools is not None and [len(pool) for pool in its_core.pools] == [1]
    for number, theirs in enumerate(alone(tmp_path, both, 4, device="cuda")):
        assert_close(state(its_core, str(number)), theirs, NEAR)
