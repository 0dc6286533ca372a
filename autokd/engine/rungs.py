"""Rungs: at which epochs trials are compared, and which paused trial goes on.

Asynchronous successive halving, promotion variant (Li et al., MLSys 2020): every trial pauses at a rung; of the trials that reached
it the best 1/eta are resumed to the next one. Values of different rungs are never compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autokd.engine.pareto import in_order, preferred, scalarised
from autokd.goals import aims, goals_of
from autokd.history import History, Trial
from autokd.recipe import Recipe

ETA = 3
PROMOTIONS = 3  # from the first rung to the last; two and four were worse (LOG.md)
PROMOTE_FROM = 6  # trials at the first rung: the best of the very first three is too often not worth what follows
SLOW = {  # objectives whose early order says little about the end -> share of the epochs before which they are not compared
    "crd": 0.25,  # Kendall's tau to the end .18 at 10 % of the epochs, .49 at 25 % (MobileNetV2, tables of MFKD)
    "pkt": 0.25,  # .29 and .51, likewise
}


def rungs_for(longest: int, eta: int = ETA) -> tuple[int, ...]:
    """Epochs of the rungs for trainings of `longest` epochs: about longest/27, longest/9, longest/3 and longest.

    >>> rungs_for(60)
    (2, 7, 20, 60)
    >>> rungs_for(2)
    (1, 2)
    """
    return tuple(sorted({max(1, round(longest / eta**power)) for power in range(PROMOTIONS + 1)}))


def next_rung(rungs: tuple[int, ...], epoch: int) -> int | None:
    """The first rung above `epoch`, None at the top."""
    return next((rung for rung in rungs if rung > epoch), None)


def standing(trial: Trial, rung: int) -> tuple[tuple[float, float], int]:
    """Sort key at one rung, best is largest: value, tiebreak, then the smaller student."""
    return trial.values[rung], -trial.params


def at_rung(history: History, rung: int) -> list[Trial]:
    """Search trials that reached `rung`, best first. Failed trials have no standing."""
    reached = [t for t in history.in_role("search") if rung in t.values and t.state != "failed"]
    return sorted(reached, key=lambda trial: standing(trial, rung), reverse=True)


def best_first(reached: list[Trial], rung: int, costs: Sequence[str], most: int) -> list[Trial]:
    """The first `most` of those that came to a rung; with several goals in Pareto order."""
    return in_order(reached, rung, costs, most) if costs else reached[:most]


def for_model(history: History, rung: int, key: str) -> list[Trial]:
    """As `at_rung`; with several goals by one random weighing of them, another for every `key`."""
    reached, costs = at_rung(history, rung), goals_of(history)
    return scalarised(reached, rung, costs, key) if costs else reached


def failed_towards(history: History, rung: int) -> list[Trial]:
    """Search trials that failed on the way to `rung`, or above it."""
    return [t for t in history.in_role("search") if t.state == "failed" and (rung in t.values or t.to == rung)]


def outcome(trial: Trial, rung: int, costs: Sequence[str]) -> tuple[object, ...]:
    """What a trial came to at a rung: trials that agree in it are the same student."""
    return (trial.values[rung], *aims(trial, rung, costs)[1:])


def promotable(history: History, eta: int = ETA) -> Trial | None:
    """The paused trial to resume next: of the highest rung first, the best that is among the best 1/eta there.

    Failed trials count among those that came to the rung at which, or above which, they failed; they are not promoted.
    """
    for rung in reversed(history.rungs[:-1]):
        reached = at_rung(history, rung)
        count = len(reached) + len(failed_towards(history, rung))
        if rung > history.rungs[0] or count >= PROMOTE_FROM:
            found = next(_waiting(history, rung, reached, count // eta), None)
            if found is not None:
                return found
    return None


def runners_up(history: History, rung: int) -> Iterator[Trial]:
    """Paused trials below a rung, promotable or not: those of the highest rung first, the best first."""
    for below in reversed([each for each in history.rungs if each < rung]):
        reached = at_rung(history, below)
        yield from _waiting(history, below, reached, len(reached))


def _waiting(history: History, rung: int, reached: list[Trial], most: int) -> Iterator[Trial]:
    """Of the best `most` that came to a rung, those that are paused there; no twins.

    A trial with exactly the value, the tiebreak and the costs of one that went on is the same student, and would find out nothing.
    """
    costs = goals_of(history)
    went_on = {outcome(trial, rung, costs) for trial in reached if trial.to > rung}
    for trial in best_first(reached, rung, costs, most):
        if trial.state == "paused" and trial.epoch == rung and outcome(trial, rung, costs) not in went_on:
            yield trial


def highest_reached(history: History) -> int | None:
    """The highest rung that a search trial has come to; None before the first."""
    return next((rung for rung in reversed(history.rungs) if at_rung(history, rung)), None)


def first_rung(recipe: Recipe, rungs: tuple[int, ...]) -> int:
    """Where a new trial of this recipe pauses first: later if a loss starts slowly or is still being warmed up at the first rung.

    But before the last one: a whole training of a recipe nobody knows costs more than to compare it a little too early.
    """
    shares = [max(term.warm_at, _slow(term.objective)) for term in recipe.terms]
    ready = next(rung for rung in rungs if rung >= max(shares, default=0.0) * rungs[-1])
    return min(ready, rungs[max(0, len(rungs) - 2)])


def _slow(objective: str) -> float:
    return SLOW.get(objective.rpartition(":")[2].lower(), 0.0)


def best_and_newest(ranked: list[Trial], most: int) -> list[Trial]:
    """At most `most` trials in their order: the best half, and of the others the newest."""
    half = most // 2
    newest = {trial.id for trial in sorted(ranked[half:], key=lambda trial: trial.started)[-half:]}
    return [trial for place, trial in enumerate(ranked) if place < half or trial.id in newest]


def interrupted(history: History) -> Trial | None:
    """A search trial that was sent further than it came (the driver died, or time ran out); the furthest first."""
    cut_off = [t for t in history.in_role("search") if t.state == "paused" and t.epoch < t.to]
    return max(cut_off, key=lambda trial: (trial.epoch, trial.id), default=None)


def leader(history: History) -> Trial | None:
    """The best trial so far, at the highest rung anyone reached; below the first rung, the one that came furthest.

    With several goals, the one of that rung's front that is preferred.
    """
    for rung in reversed(history.rungs):
        reached = at_rung(history, rung)
        if reached:
            return preferred(history, reached, rung) if goals_of(history) else reached[0]
    cut_off = [t for t in history.in_role("search") if t.values and t.state != "failed"]
    return max(cut_off, key=lambda trial: (trial.epoch, standing(trial, trial.epoch)), default=None)
