"""What is measured of an untrained student before it is trained, and how much it may be."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autokd.errors import ConstraintError

LATENCY = "latency_ms"
EXAMPLE = "write for example 5, '2.5' or '5 for 8 rows on 2 threads'"
_WRITTEN = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(?:\s*ms)?(?:\s+for\s+(\d+)\s+rows?)?(?:\s+on\s+(\d+)\s+threads?)?")
LARGEST_BATCH, LARGEST_MS, MOST_THREADS = 65_536, 1e9, 1024


@dataclass(frozen=True)
class Probe:
    """The milliseconds in which a student must answer, None for any; for how many rows at a time, on how many CPU threads."""

    most: float | None = None
    rows: int = 1
    threads: int = 1

    def __str__(self) -> str:
        limit = "any latency" if self.most is None else f"at most {self.most:g} ms"
        return (
            f"{limit} for {self.rows} row{'s' * (self.rows != 1)} on {self.threads} thread{'s' * (self.threads != 1)}"
        )

    def allows(self, latency_ms: float) -> bool:
        return self.most is None or latency_ms <= self.most

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def parse_probe(constraints: Mapping[str, object] | None, goals: Sequence[str]) -> Probe | None:
    """What is to be measured: None if latency is neither limited nor a goal. Raises ConstraintError."""
    written = (constraints or {}).get(LATENCY) if isinstance(constraints, Mapping | None) else None
    if written is None:
        return Probe() if LATENCY in goals else None
    found = None if isinstance(written, bool) else _WRITTEN.fullmatch(str(written).strip().lower()[:80])
    if found is None or not 0 < float(found[1]) < LARGEST_MS:
        raise ConstraintError(f"constraint '{LATENCY}' must be milliseconds, got {str(written)[:60]!r}; {EXAMPLE}")
    rows, threads = int(found[2] or 1), int(found[3] or 1)
    if not (0 < rows <= LARGEST_BATCH and 0 < threads <= MOST_THREADS):
        raise ConstraintError(
            f"constraint '{LATENCY}' must name 1 row or more and 1 thread or more, got {written!r}; {EXAMPLE}"
        )
    return Probe(float(found[1]), rows, threads)
