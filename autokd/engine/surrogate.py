"""What the engine believes about recipes it has not tried: one Gaussian process per rung, each around the one below.

A rung's values are turned into scores by their order alone (`scores`): at the first rung normal scores, those of the worse half drawn
together, at every other the scores its trials had below, dealt out anew in the order found here. So scores mean the same at all rungs though values do not, an outlier is
no more than a last place, and several objectives only have to agree on an order. The process of a rung is fitted to the scores there
around the prediction of the rung below, which it may stretch (co-kriging, Kennedy and O'Hagan 2000).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from autokd.engine.encoding import Encoding, Rows
from autokd.engine.gaussian import Process, fit
from autokd.engine.rungs import best_and_newest, failed_towards, for_model, outcome
from autokd.goals import goals_of
from autokd.history import History

LEAST = 3  # trials at a rung for it to get a process of its own
LOWER_HALF = 0.3  # how far the scores of the worse half are apart, compared with those of the better half
CONSIDERED = 1000  # trials of a rung that are given scores, the best and the newest
MOST = 100  # of these, that a process is fitted to
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


def surrogate(history: History, encoding: Encoding, key: str = "") -> Surrogate | None:
    """Fitted to a history; None while every rung has too few trials. With several goals to one weighing of them, which `key` decides."""
    processes: list[Process] = []
    scored: dict[str, float] = {}
    tried = encoding.rows([])
    waiting = [trial for trial in history.running if trial.role == "search"]
    for rung in history.rungs:
        here = scores(history, rung, scored, key)
        if len(here) < LEAST:  # a rung that all trials skip has none
            continue
        scored, chosen = here, best_and_newest([history.trials[name] for name in here], MOST)
        tried = encoding.rows([trial.point for trial in chosen])
        values = np.array([scored[trial.id] for trial in chosen])
        process = fit(tried, values, _mean(processes, tried), encoding.widths, DEPARTURE if processes else 1.0)
        pending = encoding.rows([trial.point for trial in waiting if trial.id not in scored][-MOST:])
        processes.append(process.imputed(pending, _mean(processes, pending)) if len(pending) else process)
    if not processes:
        return None
    fitted = Surrogate(tuple(processes), tried, 0.0)
    return replace(fitted, best=float(fitted.predict(tried)[0].max()))


def scores(history: History, rung: int, below: dict[str, float], key: str = "") -> dict[str, float]:
    """Trial -> score at one rung, best first; `below` are the scores of the rung below, empty at the first.

    Trials that failed on the way here come last. Equal trials have one place and one score. Of very many, the best and the newest.
    """
    reached, costs = best_and_newest(for_model(history, rung, key), CONSIDERED), goals_of(history)
    lost = failed_towards(history, rung)[-MOST:]
    alike: dict[object, list[str]] = {}  # outcome -> trials, best first
    for trial in reached:
        alike.setdefault(outcome(trial, rung, costs), []).append(trial.id)
    places = (np.arange(len(alike)) + 0.5) / max(1, len(alike) + bool(lost))
    dealt = sorted((below[trial.id] for trial in reached if trial.id in below), reverse=True)
    if dealt:  # those that skipped the rung below are dealt in between
        found = np.interp(np.linspace(0, len(dealt) - 1, len(alike)), np.arange(len(dealt)), dealt)
    else:
        normal = ndtri(1 - places)
        found = np.where(normal > 0, normal, LOWER_HALF * normal)
    scored = {name: float(score) for names, score in zip(alike.values(), found, strict=True) for name in names}
    worst = min(scored.values(), default=0.0) - LOWER_HALF
    return scored | {trial.id: worst for trial in lost}


def _mean(processes: list[Process], rows: Rows) -> Rows:
    mean = np.zeros(len(rows))
    for process in processes:
        mean, _ = process.predict(rows, mean)
    return mean
