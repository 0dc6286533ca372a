"""What the orchestration adds to a trial: trials that train nothing, on the real Ray executor, engine and ledger.

    python -m benchmarks.overhead [--trials 1000] [--lanes 2]

A no-op core answers at once, so the wall time per trial is overhead: Ray Tune, the engine's decision, the ledger, pauses and
promotions (three rungs). Printed: milliseconds per trial, where they go, and the driver's memory at the start and the end.
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from autokd.arguments import vocabulary
from autokd.budget import Budget
from autokd.constraints import Cost, Limits
from autokd.data import Data
from autokd.engine.engine import Engine
from autokd.ledger import Ledger
from autokd.orchestrate.director import Director
from autokd.orders import Core, Order, Report
from autokd.scope import CostOf
from autokd.session import Lanes, open_lanes
from autokd.space import Space

RUNGS = [2, 6, 18]


class NoOpCore:
    """Answers with a value that depends on the recipe alone."""

    def advance(self, order: Order) -> Report:
        value = random.Random(order.recipe.id).random()
        metrics = {"accuracy": value, "loss": 1 - value}
        logs = [
            {"epoch": epoch, "seconds": 0.0, "lr": 0.1, "loss": 1.0, "terms": {"ce": 1.0}, "metrics": metrics}
            for epoch in range(order.start + 1, order.to + 1)
        ]
        return Report(order.trial, order.to, value, value, metrics, 0.0, logs, "none", "fp32")

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True)
class NoOp:
    """Builds the core in its actor, of nothing."""

    cohort: int = 1

    def warm_up(self, device: str) -> None:
        """Nothing to load."""

    def build(self, materials: NoOp) -> Core:
        return NoOpCore()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--lanes", type=int, default=2)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_lanes("ray", None, arguments.lanes, NoOp(), "cpu") as lanes,  # type: ignore[arg-type]
    ):
        measure(Path(scratch), arguments.trials, lanes)


def measure(folder: Path, trials: int, lanes: Lanes) -> None:
    space = Space.load("digits", vocabulary())
    teacher = Cost(700_000, 13_000_000)
    engine = Engine(space, Limits(params=70_000), CostOf(Data.load("digits")), teacher, lanes.lanes, seed=0)
    engine.sampler.check_satisfiable()  # as a search does before it begins
    ledger = Ledger(folder / "ledger.jsonl")
    budget = Budget("trials", trials).to_dict()
    ledger.append("search", rungs=RUNGS, budget=budget, seed=0)
    director = Director(engine, ledger)
    deciding = Timer(director.next)
    director.next = deciding  # type: ignore[method-assign]
    ledger.append("session", budget=budget)
    before, begun = memory(), time.perf_counter()
    reason = lanes.run(director, NoOp(), folder)  # type: ignore[arg-type]
    wall, after = time.perf_counter() - begun, memory()
    history = director.history
    started = len(history.trials)
    pauses = sum(len(trial.values) - 1 for trial in history.trials.values())
    first = min(trial.started for trial in history.trials.values())
    times = [event["elapsed"] for event in ledger.events if event["event"] == "rung"]
    print(f"{started} trials, {started + pauses} visits to a rung, {lanes.lanes} lanes, finished: {reason}")
    print(f"wall                {wall:8.1f} s from Tuner to the end, actor start included")
    print(f"per trial           {1000 * wall / started:8.1f} ms, actor start included")
    print(f"per trial, steady   {1000 * (times[-1] - times[0]) / started:8.1f} ms, first report to last")
    print(f"of it the engine    {1000 * deciding.seconds / started:8.1f} ms deciding ({deciding.calls} calls)")
    print(f"first report after  {times[0] - first:8.1f} s")
    print(
        f"driver memory       {before:8.0f} MB -> {after:.0f} MB at its highest, {1000 * (after - before) / started:.0f} kB per trial"
    )


class Timer:
    """Counts the seconds spent in a function."""

    def __init__(self, function) -> None:
        self.function, self.seconds, self.calls = function, 0.0, 0

    def __call__(self):
        begun = time.perf_counter()
        try:
            return self.function()
        finally:
            self.seconds += time.perf_counter() - begun
            self.calls += 1


def memory() -> float:
    """Highest resident megabytes of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
