"""An epoch of the tape in buffers that stay where they are and are filled anew for every epoch: what a recorded step reads.

`Replay` reads an epoch wherever its segments happen to lie, and counts the rows of each view. Here all views of a field
lie in one buffer, and a row is found by arithmetic on its view and index alone.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

import torch
from torch import Tensor

from autokd.augment.views import Made
from autokd.core.replay import Replay, outputs_of
from autokd.protocols import Batch, Outputs

MOST_HELD = 2 << 30  # bytes of an epoch; a larger one stays where it is
OF_ROWS = ("rows", "fired")  # fields of augmented views that are no outputs of the teacher

Buffers = MutableMapping[tuple[str, torch.Size, torch.dtype], Tensor]


class Held:
    """The signal of whichever epoch it was last filled with. Gives what the epoch's own `Replay` would give.

    `buffers` are those of other such signals that are never read at the same time: equal shapes share one.
    """

    def __init__(self, signal: Replay, device: str, buffers: Buffers) -> None:
        self._fields = {name: self._buffer(name, signal, device, buffers) for name in _names(signal)}

    def fill(self, signal: Replay) -> None:
        for name, buffer in self._fields.items():
            for row, view in enumerate(_views(signal, name)):
                buffer[row].copy_(signal.views[view][name])

    def outputs(self, batch: Batch) -> Outputs:
        """Recorded outputs for every row of `batch`, float32."""
        outputs = [name for name in self._fields if name not in OF_ROWS]
        return outputs_of({name: self._read(name, batch.view, batch.index).float() for name in outputs})

    @property
    def made(self) -> Callable[[int, Tensor], Made] | None:
        """The augmented rows themselves, where they are recorded."""
        return self._made if "rows" in self._fields else None

    def _made(self, view: int, index: Tensor) -> Made:
        place = torch.full_like(index, view - 1)
        return Made(self._read("rows", place, index).float().div_(255), self._read("fired", place, index))

    def _read(self, name: str, place: Tensor, index: Tensor) -> Tensor:
        buffer = self._fields[name]
        return buffer.flatten(0, 1).index_select(0, place * buffer.shape[1] + index)

    @staticmethod
    def _buffer(name: str, signal: Replay, device: str, buffers: Buffers) -> Tensor:
        views = _views(signal, name)
        field = signal.views[views[0]][name]
        shape = torch.Size((len(views), *field.shape))
        found = buffers.get((name, shape, field.dtype))
        if found is None:
            found = buffers[name, shape, field.dtype] = torch.empty(shape, dtype=field.dtype, device=device)
        return found


def bytes_of(signal: Replay) -> int:
    """What holding it takes."""
    return sum(signal.views[view][name].nbytes for name in _names(signal) for view in _views(signal, name))


def form_of(signal: Replay) -> tuple[tuple[str, int, torch.Size, torch.dtype], ...]:
    """Equal for signals that can fill the same buffers."""
    fields = {name: signal.views[_views(signal, name)[0]][name] for name in _names(signal)}
    return tuple((name, len(_views(signal, name)), field.shape, field.dtype) for name, field in fields.items())


def _names(signal: Replay) -> list[str]:
    return [*signal.stored(), *(OF_ROWS if signal.made is not None else ())]


def _views(signal: Replay, name: str) -> list[int]:
    return sorted(view for view, fields in signal.views.items() if name in fields and (view or name not in OF_ROWS))
