"""The honest end of a search: the winner and its controls, retrained from scratch with seeds the search never used.

Controls have the winner's architecture, optimiser and epochs: without distillation, and with KD at its published defaults. Seeds
are paired: the same one gives winner and controls the same initial weights, views and batch order.
"""

from __future__ import annotations

from autokd.history import History, Trial
from autokd.recipe import Recipe

ROLES = ("winner", "no_kd", "default_kd")
SEEDS = 3
FIRST_SEED = 1000  # added to the search's own seed


def control_recipe(role: str, winner: Recipe) -> Recipe:
    """The recipe retrained in `role`."""
    if role == "no_kd":
        return winner.without_distillation()
    return winner.with_default_kd() if role == "default_kd" else winner


def final_seeds(seed: int) -> tuple[int, ...]:
    return tuple(seed + FIRST_SEED + k for k in range(SEEDS))


def next_final(history: History) -> tuple[str, int] | None:
    """The (role, seed) to train next: seed by seed, so that stopping early leaves complete pairs. None when all began."""
    begun = {(trial.role, trial.seed) for role in ROLES for trial in history.finals(role)}
    wanted = [(role, seed) for seed in history.final_seeds for role in ROLES]
    return next((pair for pair in wanted if pair not in begun), None)


def final_id(winner: Trial, role: str, seed: int) -> str:
    return f"{winner.id}-{role}-{seed}"
