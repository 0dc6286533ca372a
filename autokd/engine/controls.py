"""The honest end of a search: the winner and its controls, retrained from scratch with seeds the search never used.

Controls have the winner's architecture, optimiser and epochs: without distillation, and with KD at its published defaults. Seeds
are paired: the same one gives winner and controls the same initial weights, views and batch order. A control that is the winner's
own recipe is not trained again.
"""

from __future__ import annotations

from autokd.gain import control_recipe
from autokd.history import History, Trial
from autokd.recipe import Recipe

ROLES = ("winner", "no_kd", "default_kd")
SEEDS = 3
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


def final_id(winner: Trial, role: str, seed: int) -> str:
    return f"{winner.id}-{role}-{seed}"
