"""Real searches with two engines, on the digits in this process; and what the rival engine decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from worlds import RUNGS, Run, budget, judge

from autokd.history import Trial
from autokd.outcome import SearchResult
from benchmarks.search.real import ENGINES, Asha, measured, report


@pytest.mark.parametrize("name", ENGINES)
def test_a_real_search_ends_in_a_line_of_the_report(tmp_path: Path, tiny: Any, name: str) -> None:
    folder, few = tmp_path / name, {"students": ["mlp"], "constraints": {"params": "teacher/2"}}
    (folder / "checkpoints").mkdir(parents=True)  # what a killed one leaves behind
    line = measured(name, tiny, "30 epochs", 1, 1, folder, executor="inline", **few)
    assert measured(name, tiny, "30 epochs", 1, 1, folder) == line, "it is not searched again"
    result = SearchResult(folder)
    sources = {trial.source.partition(":")[0] for trial in result.history.in_role("search")}
    assert sources == {"random"} if name == "asha-random" else "published" in sources
    assert line["trials"] >= line["complete"] and len(line["tests"]["winner"]) == len(line["validation"]) >= 1
    assert line["in_search"] == result.history.trials[result.history.winner or ""].value
    shown = report([line])
    without = report([{**line, "tests": {"winner": [0.5], "no_kd": [0.4]}}])
    assert "| 50.00% | - | 40.00% |" in without and "No control was trained" in without
    assert f"| {name} | 1 |" in shown and ("default KD" in shown or "No control" in shown)


def test_the_rival_draws_at_random_and_promotes_the_best_third_from_a_ninth(tmp_path: Path) -> None:
    run = Run(tmp_path, budget("trials", 40), rungs=(1, *RUNGS))
    engine = run.engine
    run.director.engine = Asha(
        engine.sampler.space, engine.sampler.limits, engine.sampler.cost_of, engine.teacher, 2, 0
    )
    assert run.director.engine.sampler.first_recipe() == engine.sampler.first_recipe(), "both plan alike"
    run()
    tried = run.history.in_role("search")
    assert {trial.source for trial in tried} == {"random"} and len(tried) == 40
    assert all(1 not in trial.values and RUNGS[0] in trial.values for trial in tried)
    reached = [sum(rung in trial.values for trial in tried) for rung in RUNGS]
    assert reached[0] == 40 and 13 <= reached[1] <= 20 and 4 <= reached[2] <= 9, (
        "promoted as soon as it may be, so a few too many"
    )
    assert _best_went_on(tried, RUNGS[0])


def _best_went_on(tried: list[Trial], rung: int) -> bool:
    best = max(tried, key=lambda trial: trial.values[rung])
    return best.epoch > rung


def test_the_rival_keeps_the_rules_of_promotion(tmp_path: Path) -> None:
    run = Run(tmp_path, budget("epochs", 600))
    engine = run.engine
    run.director.engine = Asha(
        engine.sampler.space, engine.sampler.limits, engine.sampler.cost_of, engine.teacher, 2, 0
    )
    judge(run().events)
