"""The engine on many lanes: 5 % failures, 5 % dead workers, 5 % stragglers that take five times as long.

Trials are so short that the engine does not ask its model (which it would do for real ones): what is measured here is whether lanes are
kept busy and whether anything is lost, not which recipes are tried. With a budget of trials the search ends when its last straggler does;
with one of time, running trials are cut at the deadline.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autokd.budget import Budget
from autokd.orchestrate.simulate import Faults
from benchmarks.search.judge import markdown
from benchmarks.search.ours import Simulation
from benchmarks.search.tables import Table

FAULTS = Faults(failures=0.05, deaths=0.05, stragglers=0.05, slowdown=5.0)
SIZES = ((1, 640), (64, 640), (64, 1280), (1000, 10_000))  # lanes, trials
SHORT_SIZES = SIZES[:3]
EPOCH = 1e-3  # seconds


@dataclass(frozen=True)
class Scaled:
    """One simulated search."""

    lanes: int
    budget: Budget
    trials: int
    speed_up: float  # seconds of busy lanes per second of the search
    lost: int  # trials neither finished, nor paused, nor failed
    failed: int
    elapsed: float  # virtual seconds
    decisions: float  # milliseconds of this machine per trial

    def row(self) -> list[str]:
        kind = "trials" if self.budget.kind == "trials" else "time"
        share, each = self.speed_up / self.lanes, f"{self.trials / self.lanes:.1f}"
        counts = [f"{self.lanes:,}", kind, f"{self.trials:,}", each, f"{self.speed_up:.1f}", f"{share:.2f}"]
        return [*counts, str(self.lost), str(self.failed), f"{self.decisions:.1f}"]


HEAD = ["lanes", "budget", "trials", "per lane", "speed-up", "of lanes", "lost", "failed", "ms deciding per trial"]


def hurried(table: Table) -> Table:
    """The same with epochs of a millisecond."""
    quick = copy.copy(table)
    quick.epoch_seconds = lambda point: EPOCH  # type: ignore[method-assign]
    return quick


def scaled(table: Table, lanes: int, budget: Budget, seed: int = 0) -> Scaled:
    with tempfile.TemporaryDirectory() as scratch:
        simulation = Simulation(hurried(table), seed, budget, Path(scratch), lanes, faults=FAULTS)
        begun = time.process_time()
        history = simulation.run()
        spent = time.process_time() - begun
    states = [trial.state for trial in history.trials.values()]
    return Scaled(
        lanes,
        budget,
        trials=len(states),
        speed_up=simulation.trainer.seconds / simulation.clock.now,
        lost=len(states) - sum(states.count(state) for state in ("complete", "paused", "failed")),
        failed=states.count("failed"),
        elapsed=simulation.clock.now,
        decisions=1000 * spent / len(states),
    )


def report(table: Table, sizes: Sequence[tuple[int, int]]) -> str:
    rows = []
    for lanes, trials in sizes:
        found = scaled(table, lanes, Budget("trials", trials))
        ideal = Budget("seconds", found.elapsed * found.speed_up / lanes)  # if all lanes had been busy all the time
        rows += [found.row(), scaled(table, lanes, ideal).row()]
    return f"# Many lanes ({table.name})\n\n{markdown(HEAD, rows)}"
