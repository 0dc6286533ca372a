"""The engine decides: start this recipe, resume that trial, begin the finals, wait, finish. A pure function of the ledger.

`propose(history, elapsed)` looks at nothing but the folded ledger and the seconds spent, so a killed search goes on by replaying its
ledger, and a test can run a thousand searches without training anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from autokd.ablation import ROLE as ABLATION
from autokd.budget import Budget
from autokd.constraints import Cost, Limits
from autokd.engine.ablation import Planner, When
from autokd.engine.controls import (
    ROLES,
    final_id,
    final_recipes,
    final_seeds,
    next_final,
    next_member,
    others_on_front,
)
from autokd.engine.cost import epoch_seconds, makespan, recording_seconds, relative_cost
from autokd.engine.rungs import first_rung, highest_reached, interrupted, leader, next_rung, promotable, runners_up
from autokd.engine.sampler import Proposal, Sampler
from autokd.errors import ConstraintError
from autokd.history import History, Trial
from autokd.recipe import Recipe, StudentSpec
from autokd.rules import Value
from autokd.space import Space

FINAL_SHARE = 0.2  # of the budget, for the finals; what they really need is measured
FINAL_LEAST, FINAL_MOST = 0.03, 0.45
SAFETY = 1.15  # measured epochs drift
OVERTAKEN = 2  # seeds for whose finals budget is kept although the leader was retrained
HOPELESS = 24  # trials that all failed before the search gives up
INFEASIBLE_SHARE = 0.75  # of all trials, beyond the hopeless ones: more, and the search ends


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
    front: tuple[str, ...] = ()


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
        self,
        space: Space,
        limits: Limits,
        cost_of: Callable[[StudentSpec], Cost],
        teacher: Cost,
        lanes: int,
        seed: int,
        taped: bool = False,
        ablation: When = False,
    ) -> None:
        """`taped`: the teacher runs once per seed and not in every trial. `ablation`: of the winner, after the finals."""
        self.teacher, self.lanes, self.seed, self.taped = teacher, lanes, seed, taped
        self.sampler = Sampler(space, limits, cost_of, seed)
        self.ablation = Planner(space, ablation)

    def propose(self, history: History, elapsed: float) -> Decision:
        """What to do with one free lane. Raises ConstraintError if no recipe at all is within the limits."""
        if history.winner is None:
            return self._search(history, elapsed)
        return self._finals(history, elapsed)

    def deadline(self, history: History) -> float | None:
        """Seconds of the search at which running search trials should stop; None unless the budget is a time."""
        budget = Budget.from_dict(history.budget)
        return budget.amount - self.reserve(history) if budget.kind == "seconds" and history.winner is None else None

    def reserve(self, history: History) -> float:
        """What is kept back for the finals and the ablation of the present leader, in the budget's unit.

        Of a leader that was retrained in an earlier session, two seeds' worth: one of whoever overtakes it, who may cost more.
        """
        budget, best = Budget.from_dict(history.budget), leader(history)
        seeds = final_seeds(self.seed)
        if best is not None:
            done = sum(trial.state == "complete" for trial in history.finals(ROLES[0], of=best.id))
            seeds = seeds[: max(OVERTAKEN, len(seeds) - done)]
        if budget.kind == "trials":
            return 0.0
        needed, least, ablation = FINAL_SHARE * budget.amount, 0.0, math.inf
        if best is not None and budget.kind == "epochs":
            others = len(others_on_front(history, best))
            needed = (len(seeds) * len(final_recipes(best.recipe)) + others) * history.rungs[-1]
            ablation = self.ablation.fewest * history.rungs[-1]
        elif best is not None:
            seconds = self._seed_seconds(history, best)
            others_seconds = [
                self._seed_seconds(history, history.trials[name])[0] for name in others_on_front(history, best)
            ]
            needed = SAFETY * makespan(seconds * len(seeds) + others_seconds, self.lanes)  # one seed of each other
            ablation = SAFETY * makespan(seconds[:1] * self.ablation.fewest, self.lanes)
            least = FINAL_LEAST * budget.amount
        finals = min(max(needed, least), FINAL_MOST * budget.amount)
        return finals + self.ablation.kept(budget.amount, FINAL_SHARE * budget.amount - finals, ablation)

    # ---- the search

    def _search(self, history: History, elapsed: float) -> Decision:
        for trial, to in self._resumable(history):
            if self._affords(history, elapsed, to - trial.epoch):
                return Resume(trial.id, to)
        late = self._closing(history, elapsed)
        if late is not None:
            return Resume(late.id, next_rung(history.rungs, late.epoch) or late.epoch)
        proposal = self._proposal(history) if self._wants_another(history, elapsed) else None
        first = 0 if proposal is None else first_rung(proposal.recipe, history.rungs)
        if proposal is None or (history.trials and not self._affords(history, elapsed, first)):
            return Wait() if history.running else self._end_of_search(history)
        return Start(
            trial=_next_id(history),
            role="search",
            recipe=proposal.recipe,
            source=proposal.source,
            seed=self.seed,
            to=first,
            cost=proposal.cost,
            point=proposal.point,
        )

    def _resumable(self, history: History) -> list[tuple[Trial, int]]:
        """Trials to go on with before any is begun, and up to which epoch."""
        broken_off, best = interrupted(history), promotable(history)
        found = [] if broken_off is None else [(broken_off, broken_off.to)]
        return found if best is None else [*found, (best, next_rung(history.rungs, best.epoch) or best.epoch)]

    def _closing(self, history: History, elapsed: float) -> Trial | None:
        """Whom to send on when no new trial could come as far as the leader any more: the best that can, though it was passed over."""
        highest = highest_reached(history)
        if highest is None or self._arrives(history, elapsed, None, highest):
            return None
        late = (trial for trial in runners_up(history, highest) if self._arrives(history, elapsed, trial, highest))
        return next(late, None)

    def _arrives(self, history: History, elapsed: float, trial: Trial | None, rung: int) -> bool:
        """Whether a trial, None for a new one, is expected to come to a rung within the budget."""
        budget = Budget.from_dict(history.budget)
        epochs = rung - (0 if trial is None else trial.epoch)
        if budget.kind == "seconds":
            each = epoch_seconds(history.in_role("search") if trial is None else [trial]) or 0.0
            return elapsed + SAFETY * epochs * each <= budget.amount - self.reserve(history)
        return budget.kind == "trials" or _used(history) + epochs <= budget.amount - self.reserve(history)

    def _affords(self, history: History, elapsed: float, epochs: int) -> bool:
        """Whether the search may go on for this many epochs of one trial; a deadline cuts what takes too long."""
        budget = Budget.from_dict(history.budget)
        if budget.kind == "seconds":
            return elapsed < budget.amount - self.reserve(history)
        return budget.kind == "trials" or _used(history) + epochs <= budget.amount - self.reserve(history)

    def _wants_another(self, history: History, elapsed: float) -> bool:
        """Whether one more trial is to be begun. One always is, however small the budget."""
        tried, budget = history.in_role("search"), Budget.from_dict(history.budget)
        if not tried:
            return True
        if sum(trial.state == "failed" for trial in tried) >= HOPELESS and not any(trial.values for trial in tried):
            return False
        infeasible = sum(trial.state == "infeasible" for trial in tried)
        if infeasible >= HOPELESS + INFEASIBLE_SHARE * len(tried):
            return False
        if budget.kind == "trials":
            return len(tried) - infeasible < budget.amount
        return self._affords(history, elapsed, history.rungs[0])

    def _proposal(self, history: History) -> Proposal | None:
        """The next recipe; None once a small space has been tried from end to end."""
        try:
            return self.sampler.propose(history)
        except ConstraintError:
            if not history.in_role("search"):
                raise
            return None

    def _end_of_search(self, history: History) -> Decision:
        best = leader(history)
        if best is not None:
            return BeginFinals(best.id, final_seeds(self.seed), others_on_front(history, best))
        failed = [trial for trial in history.in_role("search") if trial.state == "failed"]
        last = f"; the last: {failed[-1].reason}, {failed[-1].message}" if failed else ""
        if history.latencies and not failed:
            last = f"; of {len(history.latencies)} architectures the quickest took {min(history.latencies.values()):.3g} ms"
        return Finish(f"no trial succeeded{last}")

    # ---- the finals

    def _finals(self, history: History, elapsed: float) -> Decision:
        winner = history.trials[history.winner or ""]
        finals = [trial for role in ROLES for trial in history.finals(role)]
        finals += [trial for name in history.front for trial in history.finals(ROLES[0], of=name)]
        broken_off = [trial for trial in finals if trial.state == "paused" and trial.epoch < trial.to]
        if broken_off:
            return Resume(broken_off[0].id, broken_off[0].to)
        wanted = next_final(history)
        if wanted is None:
            return self._next_of_front(history, elapsed) or self._ablate(history, winner, elapsed)
        role, seed = wanted
        if role == ROLES[0] and not self._affords_seed(history, winner, seed, elapsed):
            done = history.final_seeds.index(seed)
            spent = f"budget spent after {done} of {len(history.final_seeds)} final seeds"
            return Wait() if history.running else Finish(spent)
        return self._final(history, winner, role, seed)

    def _next_of_front(self, history: History, elapsed: float) -> Start | None:
        """With several goals, the others of the front are retrained too, as far as the budget goes."""
        wanted = next_member(history)
        if wanted is None or not self._affords_member(history, wanted[0], elapsed):
            return None
        member, seed = wanted
        return self._final(history, member, ROLES[0], seed)

    def _final(self, history: History, of: Trial, role: str, seed: int) -> Start:
        return Start(
            trial=final_id(of, role, seed),
            role=role,
            recipe=final_recipes(of.recipe)[role],
            source="final" if role == ROLES[0] else "control",
            seed=seed,
            to=history.rungs[-1],
            cost=of.cost,
            group=of.id,
        )

    def _affords_member(self, history: History, member: Trial, elapsed: float) -> bool:
        """Whether one more full training is expected to end within the budget, less what is kept for an ablation."""
        budget = Budget.from_dict(history.budget)
        amount = budget.amount - self.ablation.kept(budget.amount, spare=0.0, needed=math.inf)
        if budget.kind == "trials":
            return True
        if budget.kind == "epochs":
            return _used(history) + history.rungs[-1] <= amount
        return elapsed + self._seed_seconds(history, member)[0] <= amount

    def _ablate(self, history: History, winner: Trial, elapsed: float) -> Decision:
        """The winner with one thing changed, while the budget lasts."""
        begun, wanted = history.finals(ABLATION), self.ablation.wanted(history)
        broken_off = [trial for trial in begun if trial.state == "paused" and trial.epoch < trial.to][:1]
        ahead = [change.recipe for change, _ in wanted[: 1 if begun else self.ablation.fewest]]
        recipes = [trial.recipe for trial in broken_off] or ahead
        if not recipes or not self._affords_all(history, winner, recipes, elapsed):
            short = "budget spent before all of the front were retrained"
            return Wait() if history.running else Finish("all done" if next_member(history) is None else short)
        if broken_off:
            return Resume(broken_off[0].id, broken_off[0].to)
        change, seed = wanted[0]
        return Start(
            trial=f"{final_id(winner, ABLATION, seed)}-{change.recipe.id}",
            role=ABLATION,
            recipe=change.recipe,
            source=change.source,
            seed=seed,
            to=history.rungs[-1],
            cost=winner.cost,
            group=winner.id,
        )

    def _affords_all(self, history: History, winner: Trial, recipes: list[Recipe], elapsed: float) -> bool:
        """Whether full trainings of these recipes are expected to end within the budget."""
        budget, full = Budget.from_dict(history.budget), history.rungs[-1]
        if budget.kind == "trials":
            begun = len(history.in_role("search")) + len(history.in_role(ABLATION))
            return begun + len(recipes) <= budget.amount * (1 + self.ablation.share)
        if budget.kind == "epochs":
            return _used(history) + full * len(recipes) <= budget.amount
        busy = [(t.to - t.epoch) * self._epoch_seconds(history, t.recipe, winner) for t in history.running]
        seconds = [full * self._epoch_seconds(history, recipe, winner) for recipe in recipes]
        return elapsed + SAFETY * makespan(seconds, self.lanes, busy) <= budget.amount

    def _affords_seed(self, history: History, winner: Trial, seed: int, elapsed: float) -> bool:
        """The first seed is always trained; another one only if it is expected to end within the budget."""
        budget = Budget.from_dict(history.budget)
        if budget.kind == "trials" or seed == history.final_seeds[0]:
            return True
        if budget.kind == "epochs":
            return _used(history) + len(final_recipes(winner.recipe)) * history.rungs[-1] <= budget.amount
        busy = [(t.to - t.epoch) * self._epoch_seconds(history, t.recipe, winner) for t in history.running]
        return elapsed + makespan(self._seed_seconds(history, winner), self.lanes, busy) <= budget.amount

    def _seed_seconds(self, history: History, winner: Trial) -> list[float]:
        """Seconds of each full training that one final seed needs."""
        recipes = final_recipes(winner.recipe).values()
        seconds = [history.rungs[-1] * self._epoch_seconds(history, recipe, winner) for recipe in recipes]
        if self.taped:  # a new seed has new views, of which the teacher must be recorded anew
            seconds[0] += recording_seconds(history, winner.recipe)
        return seconds

    def _epoch_seconds(self, history: History, recipe: Recipe, winner: Trial) -> float:
        """Measured for this recipe if it ran, else the winner's seconds scaled by relative cost."""
        same = [trial for trial in history.trials.values() if trial.recipe.id == recipe.id and trial.epoch]
        if same:
            return epoch_seconds(same) or 0.0
        student = Cost(winner.params, winner.flops)
        own, known = (relative_cost(each, student, self.teacher, self.taped) for each in (recipe, winner.recipe))
        return (epoch_seconds([winner]) or 0.0) * own / known


def _used(history: History) -> int:
    """Epochs trained, being trained, or lost in a failure."""
    unreported = [trial for trial in history.trials.values() if trial.state in ("running", "failed")]
    return history.epochs + sum(max(0, trial.to - trial.epoch) for trial in unreported)


def _next_id(history: History) -> str:
    """One more than the highest: a count would name a trial twice where the line of an earlier one is corrupt."""
    return f"t{max((int(trial.id[1:]) for trial in history.in_role('search')), default=0) + 1:04d}"
