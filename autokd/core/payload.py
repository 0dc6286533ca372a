"""What is recorded of a teacher, and where: decided once per search, from what its objectives read and what there is room for.

A field that does not fit is read live from the teacher in the trials that need it, and the reason is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from autokd.protocols import Shapes

HALF = 2  # bytes of a recorded number
SHARE = 0.5  # of the limit that one field of a full training may take
POOLED = "aux.pooled"
FIELDS = ("logits", "embedding", "attention", "aux.stage", "aux.joint", "aux.projection", POOLED, "stages")


@dataclass(frozen=True)
class TapePlan:
    """What is recorded, and where. Crosses processes, and is kept for a resumed search."""

    folder: str
    limit: int  # bytes
    payload: frozenset[str]
    label: str = "teacher"  # in `autokd tape`

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "payload": sorted(self.payload)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TapePlan:
        return cls(**{**data, "payload": frozenset(data["payload"])})


@dataclass(frozen=True)
class Payload:
    """`fields` are recorded; `notes` say, in words, what is not."""

    fields: frozenset[str]
    bytes_per_row: int  # of those fields, for one view of one sample
    notes: tuple[str, ...] = ()


def widths(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Numbers of each part of a teacher's `Outputs.aux`, by kind."""
    return {"pooled": tuple(stage[0] for stage in shapes.stages), **shapes.aux}


def numbers(shapes: Shapes, field: str) -> int:
    """Numbers a field holds per row."""
    if field.startswith("aux."):
        return sum(widths(shapes).get(field.removeprefix("aux."), ()))
    return {
        "logits": shapes.classes,
        "embedding": shapes.embedding,
        "attention": sum(math.prod(stage[1:]) for stage in shapes.stages),
        "stages": sum(math.prod(stage) for stage in shapes.stages),
    }[field]


def plan_payload(shapes: Shapes, wanted: Iterable[str], rows: int, epochs: int, limit: int) -> Payload:
    """The fields of `wanted` of which all epochs of a full training fit into half of `limit` bytes. Logits come always."""
    chosen: list[str] = []
    notes = []
    for field in FIELDS:
        if field not in wanted and field != "logits":
            continue
        count = numbers(shapes, field)
        needed = HALF * count * rows * epochs
        if count and needed <= SHARE * limit:
            chosen.append(field)
        elif count:
            notes.append(
                f"{field} are not recorded but computed live: {HALF * count:,} bytes a row, {rows:,} rows and {epochs} epochs "
                f"take {needed / 1e9:.1f} GB, the tape may hold {limit / 1e9:.1f} GB, one field half of it; raise tape_limit"
            )
    if "logits" not in chosen:  # every trial reads them: without them the teacher runs anyway
        chosen = []
    return Payload(frozenset(chosen), HALF * sum(numbers(shapes, field) for field in chosen), tuple(notes))
