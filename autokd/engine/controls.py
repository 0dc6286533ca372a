"""The honest end of a search: the winner and its controls, retrained from scratch with seeds the search never used.

Controls have the winner's architecture, optimiser and epochs: without distillation, and with KD at its published defaults. Seeds
are paired: the same one gives winner and controls the same initial weights, views and batch order. A control that is the winner's
own recipe is not trained again.
"""

from __future__ import annotations

from autokd.engine.pareto import in_order
from autokd.engine.rungs import at_rung
from autokd.gain import control_recipe
from autokd.goals import aims, front, goals_of
from autokd.history import History, Trial
from autokd.recipe import Recipe

ROLES = ("winner", "no_kd", "default_kd")
SEEDS = 3
OTHERS = 7  # of a front, retrained beside the winner
FIRST_SEED = 1000  # added to the search's own seed


def final_recipes(winner: Recipe) -> dict[str, Recipe]:
    """What is retrained, by role; each recipe once."""
    controls = {role: control_recipe(role, winner) for role in ROLES[1:]}
    return {ROLES[0]: winner} | {role: recipe for role, recipe in controls.items() if recipe.id != winner.id}


def final_seeds(seed: int) -> tuple[int, ...]:
    return tuple(seed + FIRST_SEED + k for k in range(SEEDS))


def next_final(history: History) -> tuple[str, int] | None:
    """The (role, seed) to train next: seed by seed, so that stopping early leaves complete pairs. None when all began."""
    roles = final_recipes(history.trials[history.winner or ""].recipe)
    begun = {(trial.role, trial.seed) for role in roles for trial in history.finals(role)}
    wanted = [(role, seed) for seed in history.final_seeds for role in roles]
    return next((pair for pair in wanted if pair not in begun), None)


def others_on_front(history: History, winner: Trial) -> tuple[str, ...]:
    """Trials that stand on the front beside the winner, at most OTHERS, spread over it; none where there is one goal."""
    rung, costs = winner.epoch, goals_of(history)
    if not costs or rung not in history.rungs:
        return ()
    reached = at_rung(history, rung)
    members = [reached[index] for index in front([aims(trial, rung, costs) for trial in reached])]
    spread = in_order(members, rung, costs, most=OTHERS + 1)
    return tuple(trial.id for trial in spread if trial.recipe != winner.recipe)[:OTHERS]


def next_member(history: History) -> tuple[Trial, int] | None:
    """The trial of the front, and the seed, to retrain next: seed by seed. None when all began."""
    begun = {(name, trial.seed) for name in history.front for trial in history.finals("winner", of=name)}
    wanted = [(name, seed) for seed in history.final_seeds for name in history.front if name in history.trials]
    return next(((history.trials[name], seed) for name, seed in wanted if (name, seed) not in begun), None)


def final_id(winner: Trial, role: str, seed: int) -> str:
    return f"{winner.id}-{role}-{seed}"
