"""How many lanes, found by measuring; lanes at the same time; their memory; their turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from steps import Step, batch_of, taught_of

from autokd.core import lanes
from autokd.core.graphs import CudaCapture, Graphed
from autokd.core.lanes import Streams, Turns, concurrent_throughput, lane_stream, memory_free, memory_of, probe

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
GB = 10**9


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def saturating(at: float, slope: float = 1.0) -> Callable[[int], float]:
    """Steps per second that grow with the lanes up to `at` of them."""
    return lambda n: 100.0 * min(n, at) * (1 + 0.001 * n) ** slope


# ---- how many


@pytest.mark.parametrize(("at", "expected"), [(1, 1), (2, 2), (3, 3), (5, 5), (6, 6), (8, 8), (11, 11), (16, 16)])
def test_the_fewest_lanes_that_are_about_as_fast_as_any(at: int, expected: int) -> None:
    assert probe(saturating(at), 0, 0).lanes == expected


def test_it_stops_when_a_doubling_gains_little() -> None:
    asked: list[int] = []

    def throughput(n: int) -> float:
        asked.append(n)
        return {1: 100, 2: 190, 3: 192, 4: 195}[n]

    count = probe(throughput, 0, 0)
    assert asked == [1, 2, 4] and count.lanes == 2
    assert count.reason == "2 lanes; 4 do 1.03 times the work of 2"
    assert count.measured == {1: 100, 2: 190, 4: 195}


def test_it_looks_between_the_last_two() -> None:
    rates = {1: 100.0, 2: 200.0, 4: 400.0, 8: 480.0, 16: 485.0, 6: 478.0, 5: 475.0}
    count = probe(rates.__getitem__, 0, 0)
    assert count.lanes == 5 and set(count.measured) == set(rates)


def test_more_lanes_may_be_slower() -> None:
    assert probe(lambda n: 100.0 / n, 0, 0).lanes == 1


@pytest.mark.parametrize(("gigabytes", "expected"), [(10, 8), (8, 6), (2.5, 2), (2.4, 1), (0.5, 1), (0, 1)])
def test_lanes_fill_at_most_four_fifths_of_the_memory(gigabytes: float, expected: int) -> None:
    most_asked: list[int] = []

    def throughput(n: int) -> float:
        most_asked.append(n)
        return 100.0 * n

    count = probe(throughput, GB, int(gigabytes * GB))
    assert count.lanes == max(most_asked) == expected
    assert count.reason.endswith(f"memory: 1,000 MB each, 80% of {gigabytes * 1000:,.0f} MB free")


def test_a_lane_too_many_for_the_memory_ends_it() -> None:
    def throughput(n: int) -> float:
        if n > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 100.0 * n

    count = probe(throughput, 0, 0)
    assert count.lanes == 2 and count.reason == "2 lanes; 4 ran out of memory"


def test_a_single_lane_without_memory_is_an_error() -> None:
    def throughput(n: int) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        probe(throughput, 0, 0)


def test_there_may_be_a_ceiling() -> None:
    count = probe(lambda n: 100.0 * n, 0, 0, most=5)
    assert (
        count.lanes == 5 and count.reason == "5 lanes; no more were asked for" and set(count.measured) == {1, 2, 4, 5}
    )
    assert probe(lambda n: 1.0, 0, 0, most=1).reason == "1 lane; no more were asked for"


@given(rates=st.lists(st.floats(1, 1000), min_size=16, max_size=16), most=st.integers(1, 16), free=st.integers(0, 40))
def test_any_measurements_give_a_count_within_bounds(rates: list[float], most: int, free: int) -> None:
    count = probe(lambda n: rates[n - 1], GB, free * GB, most)
    assert 1 <= count.lanes <= most and (count.lanes == 1 or count.lanes * GB <= 0.8 * free * GB)
    assert count.measured[count.lanes] * 1.05 >= max(count.measured.values())
    assert all(count.measured[n] * 1.05 < max(count.measured.values()) for n in count.measured if n < count.lanes)
    assert len(count.measured) <= 9 and "\n" not in count.reason


# ---- at the same time


def test_lanes_begin_together_and_every_step_counts() -> None:
    alive: list[int] = []
    lock, state = threading.Lock(), {"inside": 0, "steps": 0, "most": 0}

    def step_of_lane() -> Callable[[], None]:
        alive.append(threading.get_ident())

        def step() -> None:
            with lock:
                state["inside"] += 1
                state["steps"] += 1
                state["most"] = max(state["most"], state["inside"])
            time.sleep(0.01)
            with lock:
                state["inside"] -= 1

        return step

    rate = concurrent_throughput(step_of_lane, 3, 10, "cpu", first_steps=2)
    assert len(set(alive)) == 3 and state["steps"] == 3 * (2 + 10) and state["most"] == 3
    assert 100 < rate <= 300  # 3 lanes of at most 100 steps per second


def test_no_lane_is_timed_before_all_are_ready() -> None:
    numbers, steps = iter(range(2)), list[tuple[int, int]]()

    def step_of_lane() -> Callable[[], None]:
        number, calls = next(numbers), iter(range(100))
        time.sleep(0.1 * number)  # the second is slow to be built
        return lambda: steps.append((number, next(calls)))

    concurrent_throughput(step_of_lane, 2, 5, "cpu", first_steps=1)
    assert {steps[0], steps[1]} == {(0, 0), (1, 0)} and len(steps) == 12


def test_first_steps_are_not_timed() -> None:
    def step_of_lane() -> Callable[[], None]:
        waits = iter([0.2, 0.2])
        return lambda: time.sleep(next(waits, 0.001))

    assert concurrent_throughput(step_of_lane, 2, 20, "cpu", first_steps=2) > 200


@pytest.mark.parametrize("when", ["building", "first", "timed"])
def test_an_exception_in_one_lane_is_raised_and_none_waits_for_ever(when: str) -> None:
    numbers = iter(range(3))

    def step_of_lane() -> Callable[[], None]:
        number, calls = next(numbers), iter(range(100))
        if number == 1 and when == "building":
            raise ValueError("no such network")

        def step() -> None:
            call = next(calls)
            if number == 1 and when == ("first" if call < 2 else "timed"):
                raise ValueError("no such network")

        return step

    with pytest.raises(ValueError, match="no such network"):
        concurrent_throughput(step_of_lane, 3, 5, "cpu", first_steps=2)


def test_training_steps_run_side_by_side() -> None:
    def step_of_lane() -> Callable[[], None]:
        step = Step()
        return lambda: step(batch_of(), taught_of())

    count = probe(lambda n: concurrent_throughput(step_of_lane, n, 3, "cpu"), 0, 0, most=2)
    assert count.lanes in (1, 2) and all(rate > 0 for rate in count.measured.values())


# ---- memory


def test_memory_of_a_lane_is_its_peak() -> None:
    def work() -> None:
        torch.ones(50_000_000).sum()  # 200 MB, given back before it ends

    took = memory_of("cpu", work)
    assert 150e6 < took < 400e6 or not lanes.RESET_PEAK.exists()
    assert memory_of("cpu", lambda: None) < 50e6


def test_memory_that_the_system_does_not_tell_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(lanes, "STATUS", lanes.Path(str(tmp_path)) / "none")
    monkeypatch.setattr(lanes, "RESET_PEAK", lanes.Path(str(tmp_path)) / "none" / "none")
    assert memory_of("cpu", lambda: None) == 0 and memory_free("cpu") == 0


def test_on_a_gpu_it_is_what_the_allocator_takes_at_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: done.append(name))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 350)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (700, 900))
    assert memory_of("cuda:0", lambda: done.append("work")) == 250
    assert done == ["synchronize", "empty_cache", "reset_peak_memory_stats", "work", "synchronize"]
    assert memory_free("cuda:0") == 700


# ---- streams


def test_streams_are_lent_to_one_at_a_time_and_used_again() -> None:
    made: list[str] = []

    def make(device: str) -> str:
        made.append(device)
        return f"{device}/{len(made)}"

    streams = Streams(make)
    for _ in range(3):
        with streams.lent("cuda:0") as one, streams.lent("cuda:0") as two, streams.lent("cuda:1") as three:
            assert len({one, two, three}) == 3
    assert sorted(made) == ["cuda:0", "cuda:0", "cuda:1"]
    with pytest.raises(ValueError), streams.lent("cuda:1"):
        raise ValueError
    with streams.lent("cuda:1") as again:
        assert again == three


def test_a_lane_on_the_cpu_needs_no_stream() -> None:
    with lane_stream("cpu") as stream:
        assert stream is None


# ---- turns


def test_many_together_or_one_alone() -> None:
    turns, lock = Turns(), threading.Lock()
    inside = {"together": 0, "alone": 0}
    seen: list[tuple[int, int]] = []

    def visit(how: str) -> None:
        for _ in range(20):
            with turns.alone() if how == "alone" else turns.together():
                with lock:
                    inside[how] += 1
                    seen.append((inside["together"], inside["alone"]))
                time.sleep(0.0005)
                with lock:
                    inside[how] -= 1

    threads = [
        threading.Thread(target=visit, args=(how,)) for how in ("together", "together", "together", "alone", "alone")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(seen) == 100 and all(alone == 0 or (alone, together) == (1, 0) for together, alone in seen)
    assert max(together for together, _ in seen) > 1


def test_who_waits_to_be_alone_goes_before_newcomers() -> None:
    turns, order = Turns(), []
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with turns.together():
            entered.set()
            leave.wait(10)

    def alone() -> None:
        with turns.alone():
            order.append("alone")

    def newcomer() -> None:
        with turns.together():
            order.append("newcomer")

    threads = [threading.Thread(target=work) for work in (first, alone, newcomer)]
    threads[0].start()
    entered.wait(10)
    threads[1].start()
    while not turns._waiting:
        time.sleep(0.001)
    threads[2].start()
    time.sleep(0.05)
    assert order == []
    leave.set()
    for thread in threads:
        thread.join(10)
    assert order == ["alone", "newcomer"]


# ---- on a GPU


@cuda
def test_each_lane_works_on_a_stream_of_its_own() -> None:
    outside = torch.cuda.current_stream()
    with lane_stream("cuda") as one:
        assert torch.cuda.current_stream() == one != outside
        x = torch.ones(1000, device="cuda") * 2
        with lane_stream("cuda") as two:
            assert two != one
    assert torch.cuda.current_stream() == outside and x.sum().item() == 2000


@cuda
def test_lanes_are_counted_on_the_gpu() -> None:
    def step_of_lane() -> Callable[[], None]:
        step = Step(device="cuda")
        graphed = Graphed(step, CudaCapture("cuda"))
        batch, taught = batch_of(device="cuda"), taught_of(device="cuda")
        return lambda: graphed(batch, taught)

    def one() -> None:
        step = step_of_lane()
        for _ in range(lanes.FIRST_STEPS):
            step()

    taken = memory_of("cuda", one)
    assert 0 < taken < GB
    count = probe(lambda n: concurrent_throughput(step_of_lane, n, 50, "cuda"), taken, memory_free("cuda"), most=4)
    assert 1 <= count.lanes <= 4 and count.measured[1] > 0
