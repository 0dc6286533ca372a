"""A whole training step recorded once and replayed: on CUDA a replay is one launch instead of some thousand.

`Graphed` wraps a step whose only changing inputs are tensors: a batch and the teacher's outputs, or a batch's indices,
and whatever else it reads from device tensors filled in place. The first calls of a shape are ordinary training steps; the next one is
recorded with buffers of its own as inputs; later ones copy their tensors into these buffers and replay. A step that
cannot be recorded goes on as it is, and `note` says why.

`CudaCapture` records CUDA graphs (torch.cuda.graph), `recording.Twin` does the same on any device.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from autokd.core.lanes import TURNS
from autokd.core.recording import Capture, Replay, Twin, Watch, Work, kept, mapped, shape_of, tensors_of

__all__ = ["WARM_UP", "Capture", "CudaCapture", "Graphed", "Replay", "Twin", "rehearse"]

WARM_UP = 3  # ordinary steps of a shape before it is recorded: optimiser state and cuDNN's plans must exist


class Graphed:
    """A training step, *inputs -> None, that is recorded per shape of its inputs and replayed.

    Inputs may be or hold tensors, None, numbers, and tuples, lists, mappings and dataclasses of these; another
    number is another shape. At most `most_shapes` shapes are recorded, the others run as they are. `modules` are those
    that the step trains: if a step replaces a tensor they keep, or changes a number, instead of writing into a buffer,
    nothing is recorded, since no replay would see it. What the step writes (weights, optimiser state, sums) must be
    updated in place from the first recording on: restore checkpoints before, or `close` after it.

    `note` is one line on why steps run unrecorded, or "". One thread at a time.
    """

    def __init__(
        self,
        step: Callable[..., None],
        capture: Capture,
        most_shapes: int = 4,
        modules: Iterable[nn.Module] = (),
    ) -> None:
        self.reason = ""  # why it gave up
        self._crowded = False
        self._step, self._capture, self._most = step, capture, most_shapes
        self._modules = tuple(modules)
        self._calls: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, tuple[list[Tensor], Replay]] = {}

    @property
    def note(self) -> str:
        if self.reason:
            return f"the step runs without a CUDA graph: {self.reason}"
        if self._crowded:
            return f"{self._most} shapes of batches have a graph; batches of other shapes run without one"
        return ""

    def __call__(self, *inputs: Any) -> None:
        """One training step. Raises what the step raises."""
        shape = shape_of(inputs)
        if shape in self._recorded:
            self._replay(shape, inputs)
        elif self.reason or not self._has_room():
            self._run(inputs)
        elif self._calls[shape] < WARM_UP:
            self._calls[shape] += 1
            last = self._calls[shape] == WARM_UP
            (self._run_watched if last else self._run)(inputs)
        else:
            self._record(shape, inputs)

    def close(self) -> None:
        """Free recordings and their buffers. A later call begins with warm-up again."""
        with TURNS.alone():
            for _, recorded in self._recorded.values():
                recorded.reset()
            self._recorded.clear()
            self._calls.clear()

    def _has_room(self) -> bool:
        self._crowded = len(self._recorded) >= self._most
        return not self._crowded

    def _run(self, inputs: tuple[Any, ...]) -> None:
        with TURNS.together():
            self._capture.run(lambda: self._step(*inputs))

    def _run_watched(self, inputs: tuple[Any, ...]) -> None:
        """A failed capture costs more than none."""
        self.reason = rehearse(lambda: self._run(inputs), tensors_of(inputs)[0].device.type, self._modules)

    def _record(self, shape: Hashable, inputs: tuple[Any, ...]) -> None:
        try:
            with TURNS.alone():
                own = mapped(inputs, lambda tensor: tensor.detach().clone())
                recorded = self._capture.record(lambda: self._step(*own))
                self._recorded[shape] = tensors_of(own), recorded
        except Exception as error:  # whatever a user's model or loss, or the driver, raises only when it is recorded
            self.reason = f"{type(error).__name__}: {error}".splitlines()[0]
            self._run(inputs)  # raises it again if it had nothing to do with recording

    def _replay(self, shape: Hashable, inputs: tuple[Any, ...]) -> None:
        buffers, recorded = self._recorded[shape]

        def work() -> None:
            for buffer, tensor in zip(buffers, tensors_of(inputs), strict=True):
                buffer.copy_(tensor)
            recorded.replay()

        with TURNS.together():
            self._capture.run(work)


def rehearse(step: Work, kind: str, modules: Iterable[nn.Module]) -> str:
    """Do an ordinary step on a device of `kind`, watched: why no replay could repeat it, or ""."""
    modules = tuple(modules)
    before = kept(modules)
    with Watch(kind) as watch:
        step()
    if watch.found:
        return f"it waits for the device in {watch.found}; keep the value on the device"
    if kept(modules) != before:
        return "a model or loss keeps a value that each step replaces; write it into a buffer with copy_"
    return ""


class CudaCapture:
    """CUDA graphs on one stream: the calling thread's own (`lanes.lane_stream`), or a new one beside the default stream.

    All graphs of one capture share a memory pool, which is safe because they are never replayed at the same time and
    nothing in the pool is read across them. Optimisers must be capturable: fused, with lr a tensor on the device, and
    for AdamW `capturable=True`. Autocast is to be entered inside the step, and without its cache of weights.
    """

    def __init__(self, device: str | torch.device) -> None:
        current = torch.cuda.current_stream(device)
        beside = current == torch.cuda.default_stream(device)  # the default stream cannot be captured
        self.stream = torch.cuda.Stream(device) if beside else current
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, work: Work) -> None:
        with self._on_stream():
            work()

    def record(self, work: Work) -> Replay:
        graph = torch.cuda.CUDAGraph()
        with self._on_stream(), _no_garbage_collection():
            try:
                with torch.cuda.graph(
                    graph,
                    pool=self.pool,
                    stream=self.stream,
                    capture_error_mode="thread_local",  # other lanes load, validate and save meanwhile
                ):
                    work()
            except BaseException:
                self._mend()
                raise
            graph.replay()  # capturing did nothing yet
        return graph

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """On the capture's stream, after what the current stream did before and before what it does next."""
        current = torch.cuda.current_stream(self.stream.device)
        if current == self.stream:
            yield
            return
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            current.wait_stream(self.stream)

    def _mend(self) -> None:
        """Undo what torch up to about 2.12 leaves behind after a failed capture.

        The allocator still counts the capture as underway, and the random generator refuses every later dropout. Ending
        the first and making a sound capture of one operation clears both; newer versions have nothing to clear.
        """
        abandoned, self.pool = self.pool, torch.cuda.graph_pool_handle()
        for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):  # since and before torch 2.8
            with suppress(AttributeError, RuntimeError):
                getattr(torch._C, name)(self.stream.device_index, abandoned)
        with suppress(RuntimeError):
            sound = torch.cuda.CUDAGraph()
            sound.capture_begin(capture_error_mode="thread_local")
            torch.zeros(1, device=self.stream.device)
            sound.capture_end()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A graph of another lane that is freed in the middle of a capture would spoil it."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
