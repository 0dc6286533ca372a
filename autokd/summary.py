"""Plans, trials and results as short texts, the same on the terminal and on the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from autokd import words
from autokd.ablation import Ablation
from autokd.finals import Row
from autokd.history import Trial
from autokd.probe import Probe
from autokd.result import Result
from autokd.sizes import size_words
from autokd.tally import Tally


def state_words(trials: Iterable[Trial]) -> str:
    """Trials by state: "41 trials (2 running, 30 paused, 3 failed)"."""
    states = Counter(trial.state for trial in trials)
    named = ", ".join(
        f"{states[s]} {s}" for s in ("running", "paused", "complete", "stopped", "failed", "infeasible") if states[s]
    )
    total = sum(states.values())
    return f"{total} trial{'' if total == 1 else 's'}" + (f" ({named})" if named else "")


def rung_words(trials: Iterable[Trial], rungs: Iterable[int]) -> str:
    """How many trials reached each rung: "epoch 1: 38 · epoch 3: 14"."""
    reached = Counter(epoch for trial in trials for epoch in list(trial.values))
    return " · ".join(f"epoch {rung}: {reached[rung]}" for rung in rungs)


def best_words(trial: Trial, metric: str) -> str:
    """A trial in one line: value, epoch, size, recipe."""
    where = f"{words.score(trial.value, metric=metric)} at epoch {trial.epoch}"
    return f"{where}, {words.count(trial.params)} parameters, {words.recipe_words(trial.recipe)} ({trial.id})"


def plan_lines(plan: Mapping[str, Any], head: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The plan as (what, words), for the terminal and the report; what is not known is left out."""
    teacher, data = head.get("teacher", {}), head.get("data", {})
    value = plan.get("teacher_value", teacher.get("value"))
    metric = str(head.get("metric", "accuracy"))
    sizes = f"{words.count(teacher.get('params'))} parameters, {words.flops(teacher.get('flops'))}"
    lines = [
        ("teacher", f"{teacher.get('name', '?')}: {sizes}, {words.score(value, metric=metric)} validation {metric}"),
        ("data", data_words(data)),
        ("budget", words.budget(dict(head.get("budget") or {}))),
        ("rungs", " → ".join(map(str, plan.get("rungs") or head.get("rungs") or ())) + " epochs"),
        ("lanes", f"{plan.get('lanes') or head.get('lanes')} at a time, {head.get('executor', '?')} executor"),
    ]
    kept = (head.get("settings") or {}).get("ablation") is True
    lines += [("ablation", "a tenth of the budget is kept for it")] if kept else []
    goals = [str(goal) for goal in head.get("goals") or ()]
    preferred = f", preferred: {head['prefer']}" if head.get("prefer") else ""
    lines += [("goals", ", ".join(goals) + preferred)] if len(goals) > 1 else []
    constraints = limit_words(head.get("constraints") or {})
    timed = [("one epoch", "epoch_seconds"), ("full training", "full_training_seconds")]
    phases = [("recording", "recording_seconds"), ("search", "search_seconds"), ("final retraining", "final_seconds")]
    expected = plan.get("expected_trials")
    lines += [("precision", str(plan["precision"]))] if plan.get("precision") else []
    lines += [("tape", str(plan["tape"]))] if plan.get("tape") else []
    lines += [("constraints", constraints)] if constraints else []
    lines += [("latency", f"{Probe(**head['probe'])}, measured once per architecture")] if head.get("probe") else []
    earlier = (head.get("warm_start") or {}).get("sources") or ()
    lines += [
        ("warm start", f"{each['trials']} trials of {each['name']}, weight {each['weight']:.2f}") for each in earlier
    ]
    lines += [("expected", f"about {expected:.0f} trials")] if expected else []
    lines += [
        (name, f"about {words.duration(plan[key])}" + (" (reference recipe)" if (name, key) in timed else ""))
        for name, key in timed + phases
        if plan.get(key)
    ]
    return lines


def limit_words(limits: Mapping[str, Any]) -> str:
    """Constraints in words: "at most 71.6k parameters, at most 2.0 MFLOPs"; empty without any."""
    named = {
        "params": lambda number: f"{words.count(number)} parameters",
        "flops": words.flops,
        "bytes": lambda number: f"{size_words(number)} of weights",
        "memory": lambda number: f"{size_words(number)} of activations",
    }
    shown = {name: limit for name, limit in limits.items() if limit is not None}
    return ", ".join(f"at most {named.get(name, words.count)(limit)}" for name, limit in shown.items())


def data_words(data: Mapping[str, Any]) -> str:
    """The data in one line: name, rows of each split, classes, shape."""
    splits = ", ".join(f"{rows} {split}" for split, rows in (data.get("sizes") or {}).items() if rows)
    shape = "x".join(map(str, data.get("input_shape") or ()))
    parts = [splits, f"{data['classes']} classes" if data.get("classes") else "", f"inputs {shape}" if shape else ""]
    return f"{data.get('name', '?')}: {', '.join(part for part in parts if part)}"


def ablation_words(entry: Ablation, metric: str) -> tuple[str, ...]:
    """The cells of one row of the ablation's table."""
    ends = (entry.low, entry.high)
    interval = " to ".join(
        words.difference(end, None, metric).removesuffix(" points") for end in ends if end is not None
    )
    amount = words.difference(entry.mean, entry.sd, metric)
    instead_of = entry.instead_of or words.MISSING
    return entry.change, instead_of, entry.judgement(), amount, interval or words.MISSING, str(entry.n)


def tally_words(entry: Tally, metric: str) -> tuple[str, ...]:
    """The cells of one row of the methods' table."""
    beats = words.MISSING if entry.beats is None else f"{entry.beats:.0%}"
    best = words.score(entry.best, metric=metric)
    return entry.part, entry.name, str(entry.begun), str(entry.further), str(entry.done), beats, best


def why(result: Result) -> list[str]:
    """What mattered, and what the winner needs, one sentence each; empty where neither is known."""
    found = result.importance()
    importance = [f"what mattered, {found.sentence()}"] if found else []
    return importance + [f"ablation, {entry.sentence(result.metric)}" for entry in result.ablation()]


def row_words(row: Row, metric: str) -> tuple[str, ...]:
    """The cells of one row of the final table."""
    seeds = str(row.n) if row.seeds else words.MISSING
    return (
        row.label,
        words.count(row.params),
        words.flops(row.flops),
        words.score(row.value_mean, row.value_sd, metric),
        words.score(row.test_mean, row.test_sd, metric),
        seeds,
        words.MISSING if row.epochs is None else str(row.epochs),
        words.MISSING if row.role == "teacher" else words.times(row.size_ratio),
    )
