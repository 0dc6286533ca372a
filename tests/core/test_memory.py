"""Memory that trials have freed goes back to the operating system between them, not after each step."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tiny import expert, images, order, recipe

from autokd.core import core
from autokd.core.core import TrainingCore
from autokd.core.device import Setting, give_freed_memory_back, keep_freed_memory

PIECES, NUMBERS = 2000, 50_000  # 400 MB, in pieces that glibc keeps


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc")
def test_what_was_freed_in_pieces_goes_back() -> None:
    keep_freed_memory()
    rows = [torch.ones(NUMBERS) for _ in range(PIECES)]
    kept = rows[::100]  # between the freed ones, so that nothing shrinks by itself
    del rows
    held = _held()
    give_freed_memory_back()
    assert held - _held() > 200 and all(float(row[0]) == 1 for row in kept)


def test_trials_give_it_back_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(core, "give_freed_memory_back", lambda: given.append(1))
    its_core = TrainingCore(images(), expert(), tmp_path, Setting())
    its_core.advance(order(recipe(), to=1))
    assert not given, "it was opened just now"
    monkeypatch.setattr(core, "MEMORY_KEPT", 0.0)
    its_core.advance(order(recipe(), to=2, start=1))
    assert given == [1]
    its_core.close()


def _held() -> float:
    """Megabytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6
