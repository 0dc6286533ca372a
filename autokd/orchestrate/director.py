"""Between the engine and an executor: every decision and every result passes here, into the ledger, and nowhere else.

An executor asks `next()` for work whenever a lane is free, and answers with `report()` or `failed()`. The same director serves the
Ray executor, the one in this process, and the simulated one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from autokd.engine.engine import BeginFinals, Engine, Finish, Resume, Start, Wait
from autokd.errors import Infeasible, TrialFailure
from autokd.history import History
from autokd.ledger import Ledger
from autokd.orders import Order, Report

MOST_RETRIES = 3  # dead workers one trial may meet before it counts as failed


class Director:
    """Feeds one search. `history` is kept in step with the ledger."""

    def __init__(self, engine: Engine, ledger: Ledger, clock: Callable[[], float] = time.time) -> None:
        self.engine, self.ledger, self._clock = engine, ledger, clock
        self.history = History.replay(ledger.events)
        ledger.listen(self.history.add)

    def next(self) -> Order | Wait | Finish:
        """Work for one free lane; Wait until something running reports; or Finish."""
        decision = self.engine.propose(self.history, self.ledger.elapsed)
        if isinstance(decision, BeginFinals):
            others = {"front": list(decision.front)} if decision.front else {}
            self.ledger.append("finals", winner=decision.winner, seeds=list(decision.seeds), **others)
            decision = self.engine.propose(self.history, self.ledger.elapsed)
        if isinstance(decision, Start):
            self._record_start(decision)
            return self._order(decision.trial)
        if isinstance(decision, Resume):
            self.ledger.append("resume", trial=decision.trial, to=decision.to)
            return self._order(decision.trial)
        if isinstance(decision, BeginFinals):
            raise RuntimeError("the engine began the finals twice")
        return decision

    def report(self, report: Report) -> None:
        """A trial came to a rung, or to its deadline."""
        if report.retries:
            self.retried(report.trial, "a checkpoint or worker was lost; went on from what was left")
        if report.latency_ms is not None:
            self._probed(report.trial, report.latency_ms, feasible=True)
        self.ledger.append(
            "rung",
            trial=report.trial,
            epoch=report.epoch,
            value=report.value,
            tiebreak=report.tiebreak,
            metrics=report.metrics,
            seconds=report.seconds,
            history=report.history,
            checkpoint=report.checkpoint,
            precision=report.precision,
            **({"notes": list(report.notes)} if report.notes else {}),
        )

    def failed(self, trial: str, failure: Exception) -> None:
        """A trial is over without a value. A TrialFailure knows its reason; anything else is a dead worker."""
        if isinstance(failure, Infeasible):
            self._probed(trial, failure.latency_ms, feasible=False)
            return
        reason = failure.reason if isinstance(failure, TrialFailure) else "worker"
        message = str(failure).strip() or type(failure).__name__
        self.ledger.append("fail", trial=trial, reason=reason, message=message.splitlines()[0][:500])

    def retried(self, trial: str, message: str) -> None:
        self.ledger.append("retry", trial=trial, message=message.splitlines()[0][:500])

    # ---- inside

    def _probed(self, trial: str, latency_ms: float, feasible: bool) -> None:
        architecture = self.history.trials[trial].recipe.student.key
        self.ledger.append("probe", trial=trial, architecture=architecture, latency_ms=latency_ms, feasible=feasible)

    def _record_start(self, start: Start) -> None:
        self.ledger.append(
            "start",
            trial=start.trial,
            role=start.role,
            recipe=start.recipe.to_dict(),
            point=start.point,
            source=start.source,
            seed=start.seed,
            to=start.to,
            params=start.cost.params,
            flops=start.cost.flops,
            bytes=start.cost.bytes,
            memory=start.cost.memory,
            group=start.group,
        )

    def _order(self, name: str) -> Order:
        trial = self.history.trials[name]
        stop_at = self.engine.deadline(self.history) if trial.role == "search" else None
        deadline = None if stop_at is None else self._clock() + stop_at - self.ledger.elapsed
        return Order(
            trial=name,
            recipe=trial.recipe,
            seed=trial.seed,
            to=trial.to,
            total=self.history.rungs[-1],
            start=trial.epoch,
            deadline=deadline,
            probe=self.history.to_probe(trial),
        )
