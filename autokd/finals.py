"""The finals as a ledger holds them: who won, whose retrainings count, and the final table's rows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from autokd.gain import CONTROLS, Retrained, Split, control_recipe
from autokd.history import History, Trial

LABELS = {
    "teacher": "teacher",
    "winner": "best student",
    "no_kd": "same architecture, no distillation",
    "default_kd": "same architecture, default KD",
}


@dataclass(frozen=True)
class Row(Retrained):
    """One line of the final table. `values` and `tests` have one entry per seed; the teacher has one of each."""

    role: str
    label: str
    params: int | None
    flops: int | None
    epochs: int | None
    seeds: tuple[int, ...]
    size_ratio: float | None


def standing(trial: Trial) -> tuple[int, float, float, int]:
    """What ranks trials: more epochs first, then value, tiebreak, fewer parameters. Larger is better."""
    value, tiebreak = trial.values.get(trial.epoch, (-math.inf, -math.inf))
    return trial.epoch, value, tiebreak, -trial.params


def leader(trials: Iterable[Trial]) -> Trial | None:
    """The best of those trials that have a value and did not fail."""
    return max((trial for trial in trials if trial.values and trial.state != "failed"), key=standing, default=None)


def chosen(history: History) -> Trial | None:
    """The search trial that won, or leads so far."""
    winner = history.trials.get(history.winner or "")
    return winner if winner is not None and winner.values else leader(history.in_role("search"))


def finalists(history: History, role: str) -> list[Trial]:
    """Final trials of the present winner that reached the role's highest epoch, by seed.

    A search that was resumed with more budget may have chosen another winner: finals of the old one are left out. A control
    that is the winner's own recipe was not trained again.
    """
    winner = chosen(history)
    if winner is None or history.winner is None:
        return []
    wanted = winner.recipe if role == "winner" else control_recipe(role, winner.recipe)
    trained_as = "winner" if wanted == winner.recipe else role
    final = [trial for trial in history.in_role(trained_as) if trial.values and trial.state != "failed"]
    ours = [trial for trial in final if trial.recipe == wanted]
    reached = max((trial.epoch for trial in ours), default=0)
    latest = {trial.seed: trial for trial in ours if trial.epoch == reached}
    return [latest[seed] for seed in sorted(latest)]


def is_the_winner(history: History, control: str) -> bool:
    """Whether this control would have the winner's own recipe."""
    winner = chosen(history)
    return winner is not None and history.winner is not None and control_recipe(control, winner.recipe) == winner.recipe


def _tests(history: History) -> dict[str, float]:
    """Test value by trial."""
    return {event["trial"]: event["value"] for event in history.tests if event.get("trial")}


def scores(history: History, role: str, split: Split) -> dict[tuple[int, int], float]:
    """Value by (seed, epochs): only equal ones are compared."""
    tests, trials = _tests(history), finalists(history, role)
    if split == "test":
        return {(trial.seed, trial.epoch): tests[trial.id] for trial in trials if trial.id in tests}
    return {(trial.seed, trial.epoch): trial.values[trial.epoch][0] for trial in trials}


def final_rows(history: History) -> list[Row]:
    rows = [_teacher_row(history)]
    for role in ("winner", *CONTROLS):
        trials = finalists(history, role)
        if trials:
            same = " (the winner is this recipe)" if role in CONTROLS and is_the_winner(history, role) else ""
            rows.append(_student_row(history, role, LABELS[role] + same, trials))
        elif role == "winner" and (trial := chosen(history)) is not None:
            rows.append(_student_row(history, role, "best student of the search", [trial]))
    return rows


def _teacher_row(history: History) -> Row:
    teacher = history.head.get("teacher", {})
    values = () if teacher.get("value") is None else (teacher["value"],)
    tests = [event["value"] for event in history.tests if event["role"] == "teacher"]
    return Row(
        role="teacher",
        label=LABELS["teacher"],
        params=teacher.get("params"),
        flops=teacher.get("flops"),
        epochs=None,
        seeds=(),
        values=values,
        tests=tuple(tests[-1:]),
        size_ratio=1.0,
    )


def _student_row(history: History, role: str, label: str, trials: list[Trial]) -> Row:
    tests, first = _tests(history), trials[0]
    teacher_params = history.head.get("teacher", {}).get("params")
    return Row(
        role=role,
        label=label,
        params=first.params,
        flops=first.flops,
        epochs=first.epoch,
        seeds=tuple(trial.seed for trial in trials),
        values=tuple(trial.values[trial.epoch][0] for trial in trials),
        tests=tuple(tests[trial.id] for trial in trials if trial.id in tests),
        size_ratio=teacher_params / first.params if teacher_params and first.params else None,
    )
