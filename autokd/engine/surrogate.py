"""What the engine believes about recipes it has not tried: one Gaussian process per rung, each around the one below.

A rung's values are turned into scores by their order alone (`scores`): at the first rung normal scores, at every other the scores its
trials had below, dealt out anew in the order found here. So scores mean the same at all rungs though values do not, an outlier is
no more than a last place, and several objectives only have to agree on an order. The process of a rung is fitted to the scores there
around the prediction of the rung below, which it may stretch (co-kriging, Kennedy and O'Hagan 2000).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from autokd.engine.encoding import Encoding, Rows
from autokd.engine.gaussian import Process, fit
from autokd.engine.rungs import at_rung
from autokd.history import History, Trial

LEAST = 3  # trials at a rung above the first for it to get a process of its own
MOST = 100  # trials a process is fitted to, the best and the newest
DEPARTURE = 0.5  # typical distance of the scores of a rung from what the rung below predicts


@dataclass(frozen=True)
class Surrogate:
    """Processes from the first rung to the highest with enough trials. `tried` are the rows of that highest one, best first."""

    processes: tuple[Process, ...]
    tried: Rows
    best: float  # the highest prediction for a trial of the highest rung

    def predict(self, rows: Rows) -> tuple[Rows, Rows]:
        """Mean and standard deviation of the score at the highest rung that has a process."""
        mean, variance = np.zeros(len(rows)), np.zeros(len(rows))
        for process in self.processes:
            mean, own = process.predict(rows, mean)
            variance = variance + own
        return mean, np.sqrt(variance)


def surrogate(history: History, encoding: Encoding) -> Surrogate | None:
    """Fitted to a history; None while the first rung has too few trials."""
    processes: list[Process] = []
    scored: dict[str, float] = {}
    rows = np.empty((0, 0))
    for rung in history.rungs:
        scored = scores(history, rung, scored)
        chosen = _best_and_newest([history.trials[name] for name in scored])
        if len(chosen) < LEAST:
            break
        rows = encoding.rows([trial.point for trial in chosen])
        values = np.array([scored[trial.id] for trial in chosen])
        processes.append(fit(rows, values, _mean(processes, rows), encoding.widths, DEPARTURE if processes else 1.0))
    if not processes:
        return None
    fitted = Surrogate(tuple(processes), rows, 0.0)
    return Surrogate(fitted.processes, rows, float(fitted.predict(rows)[0].max()))


def scores(history: History, rung: int, below: dict[str, float]) -> dict[str, float]:
    """Trial -> score at one rung, best first; `below` are the scores of the rung below, empty at the first.

    Trials that failed on the way here come last.
    """
    reached = at_rung(history, rung)
    failed = [t for t in history.in_role("search") if t.state == "failed" and (rung in t.values or t.to == rung)]
    order = [trial.id for trial in (*reached, *failed)]
    known = [below[name] for name in order if name in below]
    if len(known) == len(order):
        dealt: Sequence[float] = sorted(known, reverse=True)
    else:
        dealt = ndtri(1 - (np.arange(len(order)) + 0.5) / max(1, len(order)))
    return dict(zip(order, map(float, dealt), strict=True))


def _mean(processes: list[Process], rows: Rows) -> Rows:
    mean = np.zeros(len(rows))
    for process in processes:
        mean, _ = process.predict(rows, mean)
    return mean


def _best_and_newest(ranked: list[Trial]) -> list[Trial]:
    """At most MOST trials in their order: the best half, and of the others the newest."""
    half = MOST // 2
    newest = {trial.id for trial in sorted(ranked[half:], key=lambda trial: trial.started)[-half:]}
    return [trial for place, trial in enumerate(ranked) if place < half or trial.id in newest]
