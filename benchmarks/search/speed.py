"""How long deciding takes: propose() with many observations, and replaying a long ledger. Seconds of this machine's processor."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from autokd.budget import Budget
from autokd.history import History
from autokd.ledger import Event, Ledger
from benchmarks.search.judge import markdown
from benchmarks.search.ours import Simulation
from benchmarks.search.scale import EPOCH, hurried
from benchmarks.search.tables import Table

SIZES = (1_000, 10_000)
SHORT_SIZES = (1_000,)
PROPOSALS = 10
MINUTE = 60.0  # of an epoch: long enough for the engine to ask its model


def report(table: Table, sizes: Sequence[int]) -> str:
    head = ["trials", f"propose(), ms: median of {PROPOSALS} (range)", "ledger read and folded, s"]
    return f"# Speed ({table.name})\n\n{markdown(head, [_row(table, size) for size in sizes])}"


def _row(table: Table, size: int) -> list[str]:
    with tempfile.TemporaryDirectory() as scratch:
        simulation = Simulation(hurried(table), 0, Budget("trials", size), Path(scratch), lanes=64)
        simulation.run()
        opening = _seconds(lambda: Ledger(simulation.ledger.path).close())
    events = [_slowed(event) for event in simulation.ledger.events]
    folding = _seconds(lambda: History.replay(events))
    asked = _proposals(simulation, events)
    least, middle, most = (1000 * seconds for seconds in (min(asked), statistics.median(asked), max(asked)))
    return [f"{size:,}", f"{middle:.0f} ({least:.0f} to {most:.0f})", f"{opening + folding:.2f}"]


def _slowed(event: Event) -> Event:
    """As if each epoch had taken a minute."""
    factor = MINUTE / EPOCH
    return {**event, "seconds": event["seconds"] * factor} if "seconds" in event else event


def _proposals(simulation: Simulation, events: list[Event]) -> list[float]:
    """Seconds of proposals, each begun and answered at the first rung before the next is asked for."""
    asked, sampler = [], simulation.engine.sampler
    history = History.replay(events)
    answer = next(event for event in events if event["event"] == "rung" and event["epoch"] == history.rungs[0])
    begin = next(event for event in events if event["event"] == "start")
    for number in range(PROPOSALS):
        begun = time.process_time()
        proposal = sampler.propose(history)
        asked.append(time.process_time() - begun)
        name, value = f"asked-{number}", 0.1 * number / PROPOSALS
        recipe, point = proposal.recipe.to_dict(), proposal.point
        history.add({**begin, "trial": name, "recipe": recipe, "point": point, "source": proposal.source})
        history.add({**answer, "trial": name, "value": value})
    return asked


def _seconds(function: Callable[[], object]) -> float:
    begun = time.process_time()
    function()
    return time.process_time() - begun
