"""The executor without Ray: the same engine and core in this process, one lane. For notebooks, debugging, tests, tiny budgets."""

from __future__ import annotations

from autokd.engine.engine import Finish, Wait
from autokd.errors import TrialFailure
from autokd.orchestrate.director import Director
from autokd.orders import Core


def run_inline(director: Director, core: Core) -> str:
    """Run a search to its end. Returns the reason it finished."""
    while True:
        order = director.next()
        if isinstance(order, Finish):
            return order.reason
        if isinstance(order, Wait):
            raise RuntimeError("the engine waits although nothing runs")
        try:
            director.report(core.advance(order))
        except TrialFailure as failure:
            director.failed(order.trial, failure)
