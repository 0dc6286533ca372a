"""Simulated searches with several goals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ledgers import head
from worlds import Run

GOALS = ("accuracy", "params")


def searched(
    folder: Path, spend: dict[str, Any], goals: tuple[str, ...] = GOALS, prefer: str | None = None, **more: Any
) -> Run:
    """From its beginning, or from the ledger that lies in `folder`, to its end."""
    folder.mkdir(exist_ok=True)
    run = Run(folder, spend, **more)
    if not run.ledger.events:
        said = {"rungs": list(run.rungs), "seed": run.seed, "goals": list(goals), "prefer": prefer, "plan": {}}
        run.ledger.append("search", **head("digits", spend) | said)
    return run()
