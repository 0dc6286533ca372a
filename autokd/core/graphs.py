"""A whole training step recorded once and replayed: on CUDA a replay is one launch instead of some thousand.

`Graphed` wraps a step whose only changing inputs are tensors: its batch, the teacher's outputs, and whatever else it
reads from device tensors filled in place. The first calls of a shape are ordinary training steps; the next one is
recorded with buffers of its own as inputs; later ones copy their tensors into these buffers and replay. A step that
cannot be recorded goes on as it is, and `note` says why.

`CudaCapture` records CUDA graphs (torch.cuda.graph), `recording.Twin` does the same on any device.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from autokd.core.lanes import TURNS
from autokd.core.recording import Capture, Replay, Twin, Watch, Work, kept, mapped, shape_of, tensors_of
from autokd.protocols import Batch, Outputs

__all__ = ["WARM_UP", "Capture", "CudaCapture", "Graphed", "Replay", "Twin"]

WARM_UP = 3  # ordinary steps of a shape before it is recorded: optimiser state and cuDNN's plans must exist


class Graphed:
    """A training step (batch, taught) -> None that is recorded per shape of its inputs and replayed.

    Batch and Outputs may hold tensors, None, numbers, and tuples, lists, mappings and dataclasses of these; another
    number is another shape. At most `most_shapes` shapes are recorded, the others run as they are. `modules` are those
    that the step trains: if a step replaces a tensor they keep, or changes a number, instead of writing into a buffer,
    nothing is recorded, since no replay would see it. What the step writes (weights, optimiser state, sums) must be
    updated in place from the first recording on: restore checkpoints before, or `close` after it.

    `note` is one line on why steps run unrecorded, or "". One thread at a time.
    """

    def __init__(
        self,
        step: Callable[[Batch, Outputs | None], None],
        capture: Capture,
        most_shapes: int = 4,
        modules: Iterable[nn.Module] = (),
    ) -> None:
        self.note = ""
        self._step, self._capture, self._most = step, capture, most_shapes
        self._modules = tuple(modules)
        self._gave_up = False
        self._calls: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, tuple[list[Tensor], Replay]] = {}

    def __call__(self, batch: Batch, taught: Outputs | None) -> None:
        """One training step. Raises what the step raises."""
        shape = shape_of((batch, taught))
        if shape in self._recorded:
            self._replay(shape, batch, taught)
        elif self._gave_up or not self._has_room():
            self._run(batch, taught)
        elif self._calls[shape] < WARM_UP:
            self._calls[shape] += 1
            last = self._calls[shape] == WARM_UP
            (self._run_watched if last else self._run)(batch, taught)
        else:
            self._record(shape, batch, taught)

    def close(self) -> None:
        """Free recordings and their buffers. A later call begins with warm-up again."""
        with TURNS.alone():
            for _, recorded in self._recorded.values():
                recorded.reset()
            self._recorded.clear()
            self._calls.clear()

    def _has_room(self) -> bool:
        if len(self._recorded) < self._most:
            return True
        self.note = self.note or f"{self._most} shapes of batches have a graph; batches of other shapes run without one"
        return False

    def _run(self, batch: Batch, taught: Outputs | None) -> None:
        with TURNS.together():
            self._capture.run(lambda: self._step(batch, taught))

    def _run_watched(self, batch: Batch, taught: Outputs | None) -> None:
        """An ordinary step, watched for what no replay could repeat: a failed capture costs more than none."""
        before = kept(self._modules)
        with Watch(batch.x.device.type) as watch:
            self._run(batch, taught)
        if watch.found:
            self._give_up(f"it waits for the device in {watch.found}; keep the value on the device")
        elif kept(self._modules) != before:
            self._give_up("a model or loss keeps a value that each step replaces; write it into a buffer with copy_")

    def _record(self, shape: Hashable, batch: Batch, taught: Outputs | None) -> None:
        try:
            with TURNS.alone():
                own_batch, own_taught = own = mapped((batch, taught), lambda tensor: tensor.detach().clone())
                recorded = self._capture.record(lambda: self._step(own_batch, own_taught))
                self._recorded[shape] = tensors_of(own), recorded
        except Exception as error:  # whatever a user's model or loss, or the driver, raises only when it is recorded
            self._give_up(f"{type(error).__name__}: {error}".splitlines()[0])
            self._run(batch, taught)  # raises it again if it had nothing to do with recording

    def _replay(self, shape: Hashable, batch: Batch, taught: Outputs | None) -> None:
        buffers, recorded = self._recorded[shape]

        def work() -> None:
            for buffer, tensor in zip(buffers, tensors_of((batch, taught)), strict=True):
                buffer.copy_(tensor)
            recorded.replay()

        with TURNS.together():
            self._capture.run(work)

    def _give_up(self, reason: str) -> None:
        self._gave_up = True
        self.note = f"the step runs without a CUDA graph: {reason}"


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
