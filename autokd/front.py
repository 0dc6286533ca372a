"""The front of a search with several goals, as a user reads it: who stands on it, what each costs, what retraining said."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import Any

from autokd import words
from autokd.errors import GoalError
from autokd.gain import Retrained
from autokd.goals import Offer, aims, choose, costs_of, front, front_words, goals_of
from autokd.history import History, Trial
from autokd.recipe import Recipe
from autokd.sizes import size_words

MEASURE_WORDS = {
    "params": "parameters",
    "flops": "FLOPs",
    "bytes": "weights",
    "memory": "activations",
    "latency_ms": "latency",
}


@dataclass(frozen=True)
class Member(Retrained):
    """One student that no other is better than in every goal. It stands here by its value in the search; `values` and `tests` are
    of its retrainings with fresh seeds, and empty where the budget did not reach that far.
    """

    trial: str
    recipe: Recipe
    value: float  # validation, in the search
    costs: dict[str, float]  # params, flops, bytes, memory and, where it was measured, latency_ms

    @property
    def value_mean(self) -> float:
        """Over the retrainings; without any, the search's own value, which is the luckier."""
        return mean(self.values) if self.values else self.value

    def to_dict(self) -> dict[str, Any]:
        told = {name: getattr(self, name) for name in ("trial", "value", "costs", "n", "value_mean", "test_mean")}
        return {**told, "values": list(self.values), "tests": list(self.tests), "recipe": self.recipe.to_dict()}


def members(history: History) -> list[Member]:
    """The front of the highest rung that a search trial reached, the best by the metric first; empty without several goals."""
    costs = goals_of(history)
    reached = {
        rung: [t for t in history.in_role("search") if rung in t.values and t.state != "failed"]
        for rung in history.rungs
    }
    rung = next((rung for rung in reversed(history.rungs) if reached[rung]), None)
    if not costs or rung is None:
        return []
    tests = {event["trial"]: event["value"] for event in history.tests if event.get("trial")}
    at = [aims(trial, rung, costs) for trial in reached[rung]]
    return [_member(history, reached[rung][index], rung, tests) for index in front(at)]


def preferred(history: History, prefer: str | None) -> Member:
    """Who of the front is preferred. Raises GoalError, with the front, without a preference or where nobody satisfies it."""
    found, goals = members(history), tuple(history.head.get("goals") or ())
    if not found:
        raise GoalError(
            "a preference needs a front, and there is none: search with goals=[…], or wait for the first trial"
        )
    if prefer is None:
        shown = front_words([offer(member) for member in found], goals)
        raise GoalError(
            f"with the goals {', '.join(goals)} there is no best student without a preference: use result.choose('knee'), "
            f"choose('{goals[0]}') or choose('{goals[1]}<=…'), or search with prefer=. The front: {shown}"
        )
    return choose(found, offer, prefer, goals)


def offer(member: Member) -> Offer:
    return Offer(member.value_mean, member.costs)


def headline(history: History, metric: str) -> str:
    """The front in one sentence."""
    found, costs = members(history), goals_of(history)
    if len(found) < 2:
        return f"a front of {len(found)} student{'' if len(found) == 1 else 's'}"
    ends = [words.score(member.value_mean, metric=metric) for member in (found[-1], found[0])]
    spans = [
        f"{cost_words(name, low)} to {cost_words(name, high)}"
        for name in costs
        for low, high in [(min(m.costs[name] for m in found), max(m.costs[name] for m in found))]
    ]
    return f"a front of {len(found)} students: {ends[0]} to {ends[1]} validation {metric} for {', '.join(spans)}"


def cost_words(name: str, amount: float | None) -> str:
    """An amount of one measure: "12.3k parameters", "49.2 kB of weights", "1.20 ms"."""
    if amount is None:
        return words.MISSING
    if name == "latency_ms":
        return f"{amount:.3g} ms"
    if name in ("bytes", "memory"):
        return f"{size_words(int(amount))} of {MEASURE_WORDS[name]}"
    return words.flops(amount) if name == "flops" else f"{words.count(amount)} parameters"


def _member(history: History, trial: Trial, rung: int, tests: dict[str, float]) -> Member:
    finals = [final for final in history.finals("winner", of=trial.id) if final.state == "complete"]
    return Member(
        trial=trial.id,
        recipe=trial.recipe,
        value=trial.values[rung][0],
        costs=costs_of(trial),
        values=tuple(final.values[final.epoch][0] for final in finals),
        tests=tuple(tests[final.id] for final in finals if final.id in tests),
    )
