"""The engine decides: start this recipe, resume that trial, begin the finals, wait, finish. A pure function of the ledger.

`propose(history, elapsed)` looks at nothing but the folded ledger and the seconds spent, so a killed search goes on by replaying its
ledger, and a test can run a thousand searches without training anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from autokd.budget import Budget
from autokd.constraints import Cost, Limits
from autokd.engine.controls import ROLES, control_recipe, final_id, final_seeds, next_final
from autokd.engine.cost import epoch_seconds, relative_cost
from autokd.engine.rungs import interrupted, leader, next_rung, promotable
from autokd.engine.sampler import Sampler
from autokd.history import History, Trial
from autokd.recipe import Recipe, StudentSpec, Value
from autokd.space import Space

FINAL_SHARE = 0.2  # of the budget, for the finals; what they really need is measured
FINAL_LEAST, FINAL_MOST = 0.08, 0.45
SAFETY = 1.15  # measured epochs drift


@dataclass(frozen=True)
class Start:
    trial: str
    role: str
    recipe: Recipe
    source: str
    seed: int
    to: int
    cost: Cost
    point: dict[str, Value] = field(default_factory=dict)
    group: str | None = None


@dataclass(frozen=True)
class Resume:
    trial: str
    to: int


@dataclass(frozen=True)
class BeginFinals:
    winner: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Wait:
    """Nothing to do until a running trial reports."""


@dataclass(frozen=True)
class Finish:
    reason: str


Decision = Start | Resume | BeginFinals | Wait | Finish


class Engine:
    """Decides for one search. Holds settings only; everything that changes is in the history."""

    def __init__(
        self, space: Space, limits: Limits, cost_of: Callable[[StudentSpec], Cost], teacher: Cost, lanes: int, seed: int
    ) -> None:
        self.teacher, self.lanes, self.seed, self.cost_of = teacher, lanes, seed, cost_of
        self.sampler = Sampler(space, limits, cost_of, seed)

    def propose(self, history: History, elapsed: float) -> Decision:
        """What to do with one free lane. Raises ConstraintError if the space has nothing left to try."""
        if history.winner is None:
            return self._search(history, elapsed)
        return self._finals(history, elapsed)

    def deadline(self, history: History) -> float | None:
        """Seconds of the search at which running search trials should stop; None unless the budget is a time."""
        budget = Budget.from_dict(history.budget)
        return budget.amount - self.reserve(history) if budget.kind == "seconds" and history.winner is None else None

    def reserve(self, history: History) -> float:
        """Seconds kept back for the finals of the present leader."""
        amount = Budget.from_dict(history.budget).amount
        best = leader(history)
        needed = FINAL_SHARE * amount
        if best is not None and best.epoch:
            needed = len(final_seeds(self.seed)) * self._one_seed_seconds(history, best)
        return min(max(needed, FINAL_LEAST * amount), FINAL_MOST * amount)

    # ---- the search

    def _search(self, history: History, elapsed: float) -> Decision:
        if self._spent(history, elapsed):
            return self._end_of_search(history)
        broken_off = interrupted(history)
        if broken_off is not None:
            return Resume(broken_off.id, broken_off.to)
        best = promotable(history)
        if best is not None:
            return Resume(best.id, next_rung(history.rungs, best.epoch) or best.epoch)
        if self._all_started(history):
            return Wait() if history.running else self._end_of_search(history)
        proposal = self.sampler.propose(history)
        number = len(history.in_role("search")) + 1
        return Start(
            trial=f"t{number:04d}",
            role="search",
            recipe=proposal.recipe,
            source=proposal.source,
            seed=self.seed,
            to=history.rungs[0],
            cost=proposal.cost,
            point=proposal.point,
        )

    def _spent(self, history: History, elapsed: float) -> bool:
        budget = Budget.from_dict(history.budget)
        if budget.kind == "seconds":
            return elapsed >= budget.amount - self.reserve(history)
        under_way = sum(trial.to - trial.epoch for trial in history.running)
        return budget.kind == "epochs" and history.epochs + under_way >= (1 - FINAL_SHARE) * budget.amount

    def _all_started(self, history: History) -> bool:
        budget = Budget.from_dict(history.budget)
        return budget.kind == "trials" and len(history.in_role("search")) >= budget.amount

    def _end_of_search(self, history: History) -> Decision:
        if history.running:
            return Wait()
        best = leader(history)
        if best is None:
            return Finish("no trial succeeded")
        return BeginFinals(best.id, final_seeds(self.seed))

    # ---- the finals

    def _finals(self, history: History, elapsed: float) -> Decision:
        winner = history.trials[history.winner or ""]
        broken_off = [t for role in ROLES for t in history.finals(role) if t.state == "paused" and t.epoch < t.to]
        if broken_off:
            return Resume(broken_off[0].id, broken_off[0].to)
        wanted = next_final(history)
        if wanted is None:
            return Wait() if history.running else Finish("all done")
        role, seed = wanted
        if role == ROLES[0] and not self._time_for_a_seed(history, winner, seed, elapsed):
            done = history.final_seeds.index(seed)
            return (
                Wait()
                if history.running
                else Finish(f"budget spent after {done} of {len(history.final_seeds)} final seeds")
            )
        recipe = control_recipe(role, winner.recipe)
        return Start(
            trial=final_id(winner, role, seed),
            role=role,
            recipe=recipe,
            source="final" if role == ROLES[0] else "control",
            seed=seed,
            to=history.rungs[-1],
            cost=Cost(winner.params, winner.flops),
            group=winner.id,
        )

    def _time_for_a_seed(self, history: History, winner: Trial, seed: int, elapsed: float) -> bool:
        """The first seed is always trained; another one only if it is expected to end within the budget."""
        budget = Budget.from_dict(history.budget)
        if budget.kind != "seconds" or seed == history.final_seeds[0]:
            return True
        under_way = sum((t.to - t.epoch) * self._epoch_seconds(history, t.recipe, winner) for t in history.running)
        return elapsed + under_way / self.lanes + self._one_seed_seconds(history, winner) / SAFETY <= budget.amount

    def _one_seed_seconds(self, history: History, winner: Trial) -> float:
        """Seconds of wall clock for one seed of winner and controls at full length, shared by the lanes."""
        recipes = [control_recipe(role, winner.recipe) for role in ROLES]
        seconds = sum(self._epoch_seconds(history, recipe, winner) for recipe in recipes) * history.rungs[-1]
        return SAFETY * seconds / self.lanes

    def _epoch_seconds(self, history: History, recipe: Recipe, winner: Trial) -> float:
        """Measured for this recipe if it ran, else the winner's seconds scaled by relative cost."""
        same = [trial for trial in history.trials.values() if trial.recipe.id == recipe.id and trial.epoch]
        if same:
            return epoch_seconds(same) or 0.0
        student = Cost(winner.params, winner.flops)
        scale = relative_cost(recipe, student, self.teacher) / relative_cost(winner.recipe, student, self.teacher)
        return (epoch_seconds([winner]) or 0.0) * scale
