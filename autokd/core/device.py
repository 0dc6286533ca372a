"""Where and how precisely a lane computes: what the machine has, and what a short measurement prefers."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch

from autokd.kernels.build import library

PRECISIONS = ("fp32", "bf16")
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # names of malloc.h


@dataclass(frozen=True)
class Setting:
    """How networks are run. Losses are computed in float32 whatever the precision."""

    device: str = "cpu"
    precision: str = "fp32"  # of students and peers
    teacher_precision: str = "fp32"
    threads: int = 1
    layout: str = "channels_last"  # of images and their maps
    compiled: bool = False  # the students' forward pass, by torch.compile
    fused_norm: bool = False  # batch norm, residual and ReLU of students as one kernel; see kernels/

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.layout == "channels_last" else torch.contiguous_format

    def __str__(self) -> str:
        """In words, of the students: precision, layout, and what of the rest is on."""
        fused = self.fused_norm and self.layout == "channels_last"  # all that the kernel is made for
        extras = {"compiled": self.compiled, "fused norm": fused}
        return ", ".join([self.precision, self.layout, *(name for name, on in extras.items() if on)])

    def autocast(self, teacher: bool = False) -> torch.autocast:
        """For a forward pass of a student, or of the teacher."""
        precision = self.teacher_precision if teacher else self.precision
        cached = not self.on_gpu  # a captured step must cast its weights anew in every replay
        kind = self.device.split(":")[0]
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=cached)

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @contextmanager
    def on_its_threads(self) -> Iterator[None]:
        """Torch computes on `threads` threads inside; afterwards, as the process had it before."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads if self.device == "cpu" else before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for the next step instead of giving it back page by page, where it can.

    Every step allocates and frees the same activations. With glibc's defaults each of them is mapped, zeroed and unmapped anew:
    5 to 12 % of a step of a small network on one CPU thread.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the largest glibc allows
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(_TOP_PAD, 64 << 20)


def give_freed_memory_back() -> None:
    """To the operating system, as far as the C library can: a lane would else keep what its largest student needed, in pieces, for good."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def has_fused_norm(device: str) -> bool:
    """Whether students train with the kernel of batch norm on this device: on CPUs with a C++ compiler. Compiles it if need be."""
    return device == "cpu" and library() is not None


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def candidates(device: str) -> tuple[str, ...]:
    """Precisions worth measuring on this device: bf16 only where the hardware computes in it."""
    if device.startswith("cuda"):
        return PRECISIONS if torch.cuda.is_bf16_supported() else PRECISIONS[:1]
    fast = (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )  # torch has no public name for it
    return PRECISIONS if fast else PRECISIONS[:1]


def fastest(timings: dict[str, float], margin: float = 0.95) -> str:
    """The precision to use: another one than fp32 only if it saves at least 5 %, since timings are noisy."""
    best = min(timings, key=lambda name: timings[name])
    return best if timings[best] < margin * timings["fp32"] else "fp32"


def time_of(step: Callable[[], object], repeats: int = 5) -> float:
    """Median seconds of a call, after one to warm up."""
    step()
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return median(seconds)


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
