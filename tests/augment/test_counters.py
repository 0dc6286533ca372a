"""The hash behaves like random numbers and depends on nothing but its counters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy import stats

from autokd.augment.counters import Stream, hashed, permutation, uniform

torch.set_num_threads(1)
ROWS = torch.arange(20_000)


def reference_splitmix(state: int) -> int:
    """SplitMix64's output for a state, in plain integers."""
    word = (1 << 64) - 1
    z = (state + 0x9E3779B97F4A7C15) & word
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
    return z ^ (z >> 31)


def test_hash_is_splitmix64_counter_by_counter() -> None:
    expected = reference_splitmix(0)
    assert expected == 0xE220A8397B1DCDAF  # the published first output of seed 0
    for counter in (5, -7, 2**62):
        expected = reference_splitmix(expected ^ (counter % 2**64))
    assert int(hashed(0, 5, -7, 2**62)) % 2**64 == expected
    assert int(hashed(0, 5, torch.tensor([-7]), 2**62)[0]) % 2**64 == expected


@pytest.mark.parametrize("seed", [0, 11, -3, 2**40])
@pytest.mark.parametrize("epoch", [0, 1, 239, 2**35])
def test_a_tensor_without_axes_counts_as_the_integer_in_it(seed: int, epoch: int) -> None:
    of_integers = hashed(seed, epoch, ROWS[:50], 1, Stream.TOP)
    assert torch.equal(hashed(torch.tensor(seed), torch.tensor(epoch), ROWS[:50], 1, Stream.TOP), of_integers)
    assert torch.equal(hashed(seed, torch.tensor(epoch), ROWS[:50], 1, Stream.TOP), of_integers)
    assert torch.equal(uniform(torch.tensor(seed), epoch, 5), uniform(seed, epoch, 5))


@pytest.mark.parametrize("where", [1, 2, 3])
def test_uniform_over_each_counter(where: int) -> None:
    counters: list[torch.Tensor | int] = [3, 5, 7]
    counters.insert(where, ROWS)
    numbers = uniform(11, *counters)
    assert numbers.dtype == torch.float32 and float(numbers.min()) >= 0 and float(numbers.max()) < 1
    assert stats.chisquare(torch.histc(numbers, 64, 0, 1).numpy()).pvalue > 1e-4


@pytest.mark.parametrize(
    "other",
    [
        lambda: uniform(0, 1, ROWS + 1, 1, 5),
        lambda: uniform(0, 2, ROWS, 1, 5),
        lambda: uniform(1, 1, ROWS, 1, 5),
        lambda: uniform(0, 1, ROWS, 2, 5),
        lambda: uniform(0, 1, ROWS, 1, 6),
        lambda: uniform(0, 1, ROWS, 5, 1),
    ],
    ids=["index", "epoch", "seed", "view", "stream", "swapped"],
)
def test_neighbouring_counters_are_independent(other: Callable[[], torch.Tensor]) -> None:
    one, two = uniform(0, 1, ROWS, 1, 5), other()
    assert abs(float(torch.corrcoef(torch.stack([one, two]))[0, 1])) < 4 / len(ROWS) ** 0.5
    cells = (one * 8).long() * 8 + (two * 8).long()
    assert stats.chisquare(torch.bincount(cells, minlength=64).numpy()).pvalue > 1e-4


def test_a_number_depends_on_its_counters_only() -> None:
    whole = uniform(3, 2, ROWS, 1, Stream.FLIP)
    some = torch.tensor([17, 3, 19_999, 3])
    assert torch.equal(uniform(3, 2, some, 1, Stream.FLIP), whole[some])
    assert torch.equal(uniform(3, 2, some, torch.ones(4, dtype=torch.int64), Stream.FLIP), whole[some])
    assert torch.equal(uniform(3, 2, some[:, None], 1, torch.arange(7))[:, Stream.FLIP], whole[some])


def test_numbers_do_not_touch_the_global_generator() -> None:
    before = torch.get_rng_state()
    uniform(3, ROWS)
    permutation(0, 0, 100)
    assert torch.equal(torch.get_rng_state(), before)


def test_streams_differ() -> None:
    assert len({float(uniform(0, 1, 2, 3, stream)) for stream in Stream}) == len(Stream)


def test_permutation_is_one_and_changes_with_epoch_and_seed() -> None:
    order = permutation(4, 7, 1000)
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert torch.equal(order, permutation(4, 7, 1000))
    for other in (permutation(4, 8, 1000), permutation(5, 7, 1000), torch.arange(1000)):
        assert int((order == other).sum()) < 10
    assert permutation(0, 0, 1).tolist() == [0] and permutation(0, 0, 0).tolist() == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_same_numbers_on_the_accelerator() -> None:
    assert torch.equal(uniform(3, 2, ROWS.cuda(), 1, 5).cpu(), uniform(3, 2, ROWS, 1, 5))
    assert torch.equal(permutation(3, 2, 999, "cuda").cpu(), permutation(3, 2, 999))
