"""Counter-based random numbers: a number is a hash of what it is for, not of what was drawn before it.

So row i of a batch gets the same crop whatever else is in the batch, on any device, in any process, again after a
resume. The hash is the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), applied once per counter, in int64
arithmetic that wraps around.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_WORD = 1 << 64


class Stream(IntEnum):
    """What a number is for; a counter of its own, so that no two purposes share numbers. Values are frozen."""

    ORDER = 0  # order of the rows of an epoch
    PICK = 1  # is this augmented view part of the batch
    TOP = 2  # crop
    LEFT = 3
    FLIP = 4
    FIRE = 5  # does an operation of the JDA chain fire; followed by its position
    SIGN = 6  # and in which direction
    NEGATIVE = 7  # samples of other classes that a row is contrasted with
    PARTNER = 8  # which row a row is mixed with, and whether
    MIX = 9  # shares of mixed rows, and the place of a box
    TARGET = 10  # class that an adversarial row is driven to, and the row of it that stands for it
    OTHER = 12  # sample of another class


def uniform(seed: int | Tensor, *counters: Tensor | int) -> Tensor:
    """Numbers in [0, 1), float32 of 24 random bits, of the shape and on the device of the counters (broadcast)."""
    bits = hashed(seed, *counters)
    return ((bits >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24


def permutation(seed: int, epoch: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """A random order of 0 … n−1, (n,) int64; the same on every device."""
    rows = torch.arange(n, device=device)
    return torch.argsort(hashed(seed, epoch, rows, Stream.ORDER), stable=True)


def hashed(seed: int | Tensor, *counters: Tensor | int) -> Tensor:
    """64 random bits per element, as int64. Leading plain integers cost nothing: they are folded outside torch.

    An int64 tensor without axes gives the bits of the integer that it holds: a recorded step reads seed and epoch anew.
    """
    state: Tensor | int = _mix(seed) if isinstance(seed, Tensor) else _mix_int(seed % _WORD)
    for counter in counters:
        if isinstance(counter, Tensor):
            state = _mix(counter ^ _operand(state))
        elif isinstance(state, Tensor):
            state = _mix(state ^ _operand(counter))
        else:
            state = _mix_int(state ^ (int(counter) % _WORD))
    return state if isinstance(state, Tensor) else torch.tensor(_signed(state))


def _operand(x: Tensor | int) -> Tensor | int:
    """A tensor as it is, an integer as the one of the same bits that int64 can hold."""
    return x if isinstance(x, Tensor) else _signed(int(x) % _WORD)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's step and finaliser; a bijection of 64-bit words."""
    x = x + _signed(_GOLDEN)
    x = (x ^ _shifted(x, 30)) * _signed(_MIX[0])
    x = (x ^ _shifted(x, 27)) * _signed(_MIX[1])
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _mix_int(x: int) -> int:
    """The same on a plain unsigned integer."""
    x = (x + _GOLDEN) % _WORD
    x = ((x ^ (x >> 30)) * _MIX[0]) % _WORD
    x = ((x ^ (x >> 27)) * _MIX[1]) % _WORD
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    return x - _WORD if x >= _WORD >> 1 else x
