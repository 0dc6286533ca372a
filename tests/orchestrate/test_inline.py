"""The executor in this process: the same engine and director, one lane, no cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from worlds import RUNGS, Run, budget, failing, judge

from autokd.errors import CheckpointError
from autokd.orchestrate.inline import run_inline
from autokd.orders import Order, Report


class Core:
    """The made-up world behind a core's interface."""

    def __init__(self, run: Run, **more: Any) -> None:
        self.run, self.more = run, more

    def advance(self, order: Order) -> Report:
        report = self.run.trainer(order)
        self.run.clock.now += report.seconds
        return replace(report, **self.more)

    def close(self) -> None:
        """Nothing to close."""


def opened(folder: Path, **world: Any) -> Run:
    run = Run(folder, budget("trials", 12), lanes=1, world=world)
    run.ledger.append("search", rungs=list(RUNGS), budget=run.budget, seed=0)
    run.ledger.append("session", pid=0, budget=run.budget, lanes=1)
    return run


def test_a_search_in_one_process(tmp_path: Path) -> None:
    run = opened(tmp_path, fail=failing(0.3))
    assert run_inline(run.director, Core(run)) == "all done"
    judge(run.events)
    assert len(run.history.in_role("search")) == 12 and len(run.history.finals("winner")) == 3
    assert any(trial.state == "failed" for trial in run.history.in_role("search"))


def test_it_decides_as_on_one_virtual_lane(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    inline = opened(tmp_path / "a")
    run_inline(inline.director, Core(inline))
    simulated = Run(tmp_path / "b", budget("trials", 12), lanes=1)()
    kept = [{key: value for key, value in event.items() if key not in ("time", "elapsed")} for event in inline.events]
    assert kept == [{k: v for k, v in event.items() if k not in ("time", "elapsed")} for event in simulated.events[:-1]]


def test_a_full_disk_ends_the_session_not_the_trial(tmp_path: Path) -> None:
    run = opened(tmp_path)
    core = Core(run)

    def full(order: Order) -> Report:
        raise CheckpointError("checkpoint cannot be written: no space left; free space")

    core.advance = full  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match="free space"):
        run_inline(run.director, core)
    assert [trial.state for trial in run.history.trials.values()] == ["running"], "it is taken up again on resume"
