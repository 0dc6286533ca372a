"""The few calls of torch.cuda that lanes and graphs make, noted in order instead of carried out.

Arguments are bound to the signatures of the installed torch, so that a call it would refuse fails here too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch


class FakeStream:
    """Notes what it waits for."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log
        self.device, self.device_index = torch.device("cpu"), 0

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        self.log.append(f"host waits for {self.name}")


class FakeCuda:
    """`log` is what was done; `failing` makes the end of every capture fail."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.failing = False
        self.default = self.current = FakeStream("default", self.log)
        self.made = self.pools = 0
        real = {name: inspect.signature(getattr(torch.cuda, name)) for name in ("graph", "current_stream", "stream")}
        begin = inspect.signature(torch.cuda.CUDAGraph.capture_begin)
        fake = self

        class Graph:
            def capture_begin(self, **given: Any) -> None:
                begin.bind(self, **given)
                fake.log.append("spare capture begins")

            def capture_end(self) -> None:
                fake.log.append("spare capture ends")

            def replay(self) -> None:
                fake.log.append(f"replay on {fake.current.name}")

            def reset(self) -> None:
                fake.log.append("reset")

        def bound(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def checked(*args: Any, **kwargs: Any) -> Any:
                real[name].bind(*args, **kwargs)
                return call(*args, **kwargs)

            return checked

        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "Stream", self.make)
        patch.setattr(torch.cuda, "default_stream", lambda device=None: self.default)
        patch.setattr(torch.cuda, "current_stream", bound("current_stream", lambda device=None: self.current))
        patch.setattr(torch.cuda, "stream", bound("stream", self.on))
        patch.setattr(torch.cuda, "graph", bound("graph", self.graph))
        patch.setattr(torch.cuda, "graph_pool_handle", self.pool)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_pool, raising=False)

    def make(self, device: Any = None) -> FakeStream:
        self.made += 1
        return FakeStream(f"stream {self.made}", self.log)

    def pool(self) -> tuple[int, int]:
        self.pools += 1
        return (0, self.pools)

    def end_pool(self, device: int, pool: tuple[int, int]) -> None:
        self.log.append(f"end of pool {pool[1]} on device {device}")

    @contextmanager
    def on(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(
        self, graph: Any, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        self.log.append(f"capture on {stream.name} into pool {pool[1]}, {capture_error_mode}")
        with self.on(stream):
            yield
        if self.failing:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
