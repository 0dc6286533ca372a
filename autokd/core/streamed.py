"""Training rows larger than memory: read from the user's Dataset into a bounded ring, by this process or by workers.

The same rows in the same order as if they rested on the device, so that views, batches and trials come out the same bit for bit.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Lock, RLock, Thread
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autokd.core.device import cpu_count
from autokd.data import Data, Split
from autokd.errors import DataError
from autokd.items import Items, Kept, Pair, told
from autokd.stream import AHEAD, Ring, Source

READERS = 4  # workers for a GPU's lane, at most; a CPU's cores are busy with training
SHARED = Path("/dev/shm")  # where rows wait that workers have read


class Streamed:
    """Training rows of `data.source`, fetched from its dataset; validation rows rest on the device.

    Several threads may fetch at the same time; each has a ring and workers of its own, which start with the first batch and
    live until `close`. Raises DataError if not even one row fits into the memory allowed.
    """

    def __init__(self, data: Data, device: str = "cpu") -> None:
        if data.source is None:
            raise DataError(f"{data.name} is not streamed; make it with Data.stream")
        self.data, self.device, self.source = data, device, data.source
        self.val_x, self.val_y = self._to_device(data.val)
        self.ring = ring_for(self.source, device)
        self._lock = RLock()  # an abandoned fetch may be collected, and give back, while it is held
        self._turn = Lock()  # in this process one thread at a time reads: files of the user's share a position
        self._idle: list[Reading] = []
        self._closed = False

    def __len__(self) -> int:
        return len(self.source.kept)

    def fetch(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each batch of indices, in order: raw rows (B, …) and targets (B, …), on the device.

        Raises DataError for an item that cannot be used, and for a worker that died; the next fetch starts afresh.
        """
        reading = self._take()
        try:
            yield from reading.batches(_on_host(batches, self.device))
        finally:
            self._give_back(reading)

    def close(self) -> None:
        """End the workers."""
        with self._lock:
            self._closed, idle, self._idle = True, self._idle, []
        for reading in idle:
            reading.close()

    def _take(self) -> Reading:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return Reading(self.source, self.ring, self.device, self._turn)

    def _give_back(self, reading: Reading) -> None:
        with self._lock:
            if reading.loader is not None and not self._closed:
                self._idle.append(reading)
                return
        reading.close()

    def _to_device(self, split: Split) -> tuple[Tensor, Tensor]:
        """Not a second copy where the rows can be shared; those that came through Ray are read-only."""
        own = (half if half.flags.writeable else half.copy() for half in split)
        x, y = (torch.from_numpy(half).to(self.device) for half in own)
        return x, y


def ring_for(source: Source, device: str) -> Ring:
    """The workers that were asked for, or as many up to the device's default as fit. Raises DataError."""
    if source.workers is not None:
        return source.ring(source.workers, _shared_memory())
    most = min(READERS, cpu_count() - 1) if device.startswith("cuda") else 0
    for workers in range(most, 0, -1):
        try:
            return source.ring(workers, _shared_memory())
        except DataError:
            continue
    return source.ring(0)


def _shared_memory() -> int | None:
    """Half of the shared memory that is free, in bytes: a container may have little. None where it is not a folder."""
    try:
        return shutil.disk_usage(SHARED).free // 2
    except OSError:
        return None


class Reading:
    """One loader, its workers, and what it is to read next."""

    def __init__(self, source: Source, ring: Ring, device: str, turn: Lock) -> None:
        self.device, self.name = device, source.items.name
        self.pieces = Pieces(source.kept, ring.piece)
        of_workers: dict[str, Any] = {}
        if ring.workers:
            of_workers = {
                "prefetch_factor": AHEAD,
                "persistent_workers": True,
                "multiprocessing_context": _context(),
                "worker_init_fn": end_with_parent,
            }
        self.stream: Iterator[Any] = iter(())
        self.loader: DataLoader[Pair] | None = DataLoader(
            Reader(source.items, nullcontext() if ring.workers else turn),
            batch_sampler=self.pieces,
            collate_fn=as_tensors,
            num_workers=ring.workers,
            pin_memory=device.startswith("cuda"),
            generator=torch.Generator(),  # the loader draws a seed for every epoch: not from the generator of dropout
            **of_workers,
        )

    def batches(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        self.pieces.begin(batches)
        self.stream = iter(() if self.loader is None else self.loader)
        while (first := self._next()) is not None:
            more = [self._next() for _ in range(self.pieces.counts.popleft() - 1)]
            x, y = zip(first, *(each for each in more if each is not None), strict=True)
            yield (x[0], y[0]) if len(x) == 1 else (torch.cat(x), torch.cat(y))

    def close(self) -> None:
        """End the workers: the loader ends its own when nothing holds it any more, so nothing else ever does."""
        self.loader, self.stream = None, iter(())

    def _next(self) -> tuple[Tensor, Tensor] | None:
        """The next piece, on the device; None at the end. Raises DataError."""
        death = None
        try:
            piece = next(self.stream, None)
        except (RuntimeError, OSError, EOFError) as error:  # from torch, or from the pipes of a worker that is gone
            death = told(error)
        if death is not None:  # raised out here: the exception would hold the loader
            self.close()
            raise DataError(
                f"a worker that reads the {self.name} dataset died: {death}; memory or shared memory may be short: lower memory= "
                "or workers=; and a script that starts workers needs if __name__ == '__main__'"
            )
        if isinstance(piece, str):
            raise DataError(piece)
        if piece is None:
            return None
        x, y = (half.to(self.device, non_blocking=True) for half in piece)
        return x, y


class Pieces:
    """The sampler of a loader that lives for many epochs: batches of indices, cut into pieces that fit into the ring."""

    def __init__(self, kept: Kept, most: int) -> None:
        self.kept, self.most = kept, most
        self.begin(())

    def begin(self, batches: Iterable[Tensor]) -> None:
        self.to_read = batches
        self.counts: deque[int] = deque()  # pieces of each batch that was handed out and not yet put together

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.to_read:
            cut = batch.tensor_split(max(1, -(-len(batch) // self.most)))
            self.counts.append(len(cut))
            for piece in cut:
                yield self.kept.numbers(piece.numpy()).tolist()


class Reader(Dataset[Pair]):
    """A piece at a time. What goes wrong is an answer too: an exception would cross from a worker as a page of text."""

    def __init__(self, items: Items, turn: AbstractContextManager[Any]) -> None:
        self.items, self.turn = items, turn

    def __getitems__(self, numbers: Sequence[int]) -> Pair | str:
        try:
            with self.turn:
                return self.items.read(numbers)
        except DataError as error:
            return str(error)


def as_tensors(piece: Any) -> tuple[Tensor, Tensor] | str:
    return piece if isinstance(piece, str) else (torch.from_numpy(piece[0]), torch.from_numpy(piece[1]))


def end_with_parent(_: int) -> None:
    """A worker ends when the trainer does, even if that was killed: its parent is a server that would live on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        Thread(target=_outlive, args=(parent,), daemon=True).start()


def _outlive(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _context() -> BaseContext:
    """Workers are not forked from this process, which may hold threads and a GPU, but from a small server where there is one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])  # torch is imported once and shared by all workers
    return context


def _on_host(batches: Iterable[Tensor], device: str) -> Iterable[Tensor]:
    """Batches of indices on the CPU: from a GPU all at once, since each copy waits for the device."""
    if device == "cpu":
        return batches
    listed = list(batches)
    if not listed:
        return listed
    return torch.cat(listed).cpu().split([len(each) for each in listed])
