"""An epoch of a teacher, read back from its segments: the same outputs and views as live, in half precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from autokd.augment.views import Made
from autokd.protocols import Batch, Outputs

LARGEST = torch.finfo(torch.float16).max
Fields = Mapping[str, Tensor]  # name -> (rows of the training split, …)


class Replay:
    """The signal of one epoch: `views` holds the recorded fields of every view a batch may have rows of."""

    def __init__(self, views: Mapping[int, Fields], needs: frozenset[str], device: str) -> None:
        self.views, self._needs, self._device = views, needs, device

    def outputs(self, batch: Batch) -> Outputs:
        """Recorded outputs for every row of `batch`, float32."""
        parts = _by_view(batch, sorted(self.views))
        return outputs_of({name: self._read(name, parts) for name in self.stored()})

    @property
    def made(self) -> Callable[[int, Tensor], Made] | None:
        """The augmented rows themselves, where they are recorded with the outputs."""
        augmented = [fields for view, fields in self.views.items() if view > 0]
        return self._made if augmented and all("rows" in fields for fields in augmented) else None

    def _made(self, view: int, index: Tensor) -> Made:
        fields = self.views[view]
        rows = _rows(fields["rows"], index).to(self._device)
        return Made(rows.float().div_(255), _rows(fields["fired"], index).to(self._device))

    def stored(self) -> list[str]:
        """Names of the fields that are read of every view."""
        some = next(iter(self.views.values()))
        return [name for name in some if name in self._needs or name.rpartition(".")[0] in self._needs]

    def _read(self, name: str, parts: list[tuple[int, Tensor | None, Tensor]]) -> Tensor:
        """One field for all rows; each view's rows lie in a segment of their own."""
        found = [_rows(self.views[view][name], index).to(self._device).float() for view, _, index in parts]
        if len(found) == 1:
            return found[0]
        out = found[0].new_empty(sum(map(len, found)), *found[0].shape[1:])
        for (_, positions, _), values in zip(parts, found, strict=True):
            out[positions] = values
        return out


def outputs_of(read: Mapping[str, Tensor]) -> Outputs:
    """Recorded fields of some rows, put together."""
    stages, maps = (_numbered(read, kind) for kind in ("stages", "attention"))
    kinds = sorted({name.split(".")[1] for name in read if name.startswith("aux.")})
    aux = {kind: _numbered(read, f"aux.{kind}") for kind in kinds}
    return Outputs(read["logits"], read.get("embedding"), stages, maps, aux)


def _by_view(batch: Batch, views: list[int]) -> list[tuple[int, Tensor | None, Tensor]]:
    """(view, positions in the batch, indices of the samples); with one view, all of them in order."""
    if len(views) == 1:
        return [(views[0], None, batch.index)]
    positions = [(view, (batch.view == view).nonzero()[:, 0]) for view in views]
    return [(view, where, batch.index[where]) for view, where in positions]


def _numbered(read: Mapping[str, Tensor], kind: str) -> tuple[Tensor, ...]:
    """A field per stage, from input to output: by number, since a file has them by name."""
    found = [name for name in read if name.startswith(f"{kind}.")]
    return tuple(read[name] for name in sorted(found, key=lambda name: int(name.rpartition(".")[2])))


def _rows(field: Tensor, index: Tensor) -> Tensor:
    return field.index_select(0, index.to(field.device))


# ---- what is written


def to_record(outputs: Outputs) -> dict[str, Tensor]:
    """What a segment holds of some rows, float16 on the CPU; numbers beyond its range become its largest.

    One field per stage or head, since these differ in shape.
    """
    fields = {"logits": outputs.logits}
    if outputs.embedding is not None:
        fields["embedding"] = outputs.embedding
    fields |= {f"attention.{number}": each for number, each in enumerate(outputs.attention)}
    fields |= {f"stages.{number}": each for number, each in enumerate(outputs.stages)}
    fields |= {f"aux.{kind}.{k}": each for kind, every in outputs.aux.items() for k, each in enumerate(every)}
    return {name: each.clamp(-LARGEST, LARGEST).to(torch.float16).cpu() for name, each in fields.items()}
