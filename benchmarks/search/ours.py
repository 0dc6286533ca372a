"""autokd's engine on a table: Director, ledger and engine of a real search on the simulated executor.

A real search keeps a part of its budget for the finals: winner and controls, retrained. Nobody pays for finals here, and the engine is
judged as all others are: by what leads when the search's budget is spent.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from autokd.budget import Budget
from autokd.constraints import Cost, Limits
from autokd.engine.engine import BeginFinals, Decision, Engine, Finish
from autokd.engine.rungs import leader, rungs_for
from autokd.history import History
from autokd.ledger import Event, Ledger
from autokd.orchestrate.director import Director
from autokd.orchestrate.simulate import Clock, Faults, LookUp, Training, run_simulated
from autokd.orders import Order
from benchmarks.search.replay import Replay
from benchmarks.search.tables import Table

TEACHER = Cost(1, 1)  # of no account: tables say what a training costs


class SearchOnly(Engine):
    """The engine up to its finals."""

    def reserve(self, history: History) -> float:
        return 0.0

    def propose(self, history: History, elapsed: float) -> Decision:
        decision = super().propose(history, elapsed)
        return Finish("search over") if isinstance(decision, BeginFinals) else decision


class Simulation:
    """One search on one table."""

    def __init__(
        self,
        table: Table,
        seed: int,
        budget: Budget,
        folder: Path,
        lanes: int = 1,
        limits: Limits | None = None,
        faults: Faults | None = None,
        goals: Sequence[str] = (),
    ) -> None:
        self.table, self.seed, self.budget, self.lanes = table, seed, budget, lanes
        self.clock = Clock()
        self.ledger = Ledger(folder / "ledger.jsonl", clock=self.clock)
        self.engine = SearchOnly(table.space, limits or Limits(), table.cost, TEACHER, lanes, seed)
        head = {"rungs": list(rungs_for(table.epochs)), "budget": budget.to_dict(), "seed": seed}
        self.ledger.append("search", **head, goals=list(goals))
        self.director = Director(self.engine, self.ledger, self.clock)
        self.trainer = LookUp(self._training, self.clock, faults)

    def run(self) -> History:
        """Search to the end of the budget."""
        self.ledger.append("session", pid=0, budget=self.budget.to_dict(), lanes=self.lanes)
        run_simulated(self.director, self.clock, self.lanes, self.trainer)
        self.ledger.close()
        return self.director.history

    def _training(self, order: Order) -> Training:
        point = self.director.history.trials[order.trial].point
        values = self.table.values(point, self.seed % self.table.seeds)
        return Training(values, self.table.epoch_seconds(point))


def autokd_engine(replay: Replay, lanes: int = 1) -> None:
    """A search with this budget, which the engine knows, as it does in use. Seconds are shared among the lanes."""
    table = replay.table
    unit = table.epochs if replay.unit == "epochs" else table.reference.seconds
    amount = replay.budget * unit
    budget = Budget("epochs", int(amount)) if replay.unit == "epochs" else Budget("seconds", amount / lanes)
    with tempfile.TemporaryDirectory() as scratch:
        simulation = Simulation(table, replay.seed, budget, Path(scratch), lanes)

        def follow(event: Event) -> None:
            best = leader(simulation.director.history) if event["event"] == "rung" else None
            if best is not None:
                spent = simulation.trainer.epochs if replay.unit == "epochs" else lanes * simulation.clock.now
                replay.trajectory.add(min(spent / unit, replay.budget), table.final(best.point))

        simulation.ledger.listen(follow)
        simulation.run()
