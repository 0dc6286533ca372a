"""Measured limits: probed once, never trained above them, and few probes wasted."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from worlds import RUNGS, SPACE, TEACHER, Run, World, budget, cost_of, failing, judge

from autokd.constraints import Limits
from autokd.engine.acquisition import weighed
from autokd.engine.engine import Engine
from autokd.engine.feasibility import LEAST, Feasibility
from autokd.errors import Infeasible
from autokd.history import History
from autokd.orders import Order, Report
from autokd.probe import Probe
from autokd.recipe import StudentSpec


def latency(spec: StudentSpec) -> float:
    """Grows with depth and FLOPs, and is noisy from one architecture to another."""
    depth, flops = int(spec.fields.get("depth1", 1)), cost_of(spec).flops
    return (0.1 * depth + flops / 2e5) * math.exp(random.Random(spec.key).gauss(0, 0.05))


@dataclass
class Probed(World):
    """A world in which untrained students are probed."""

    def __call__(self, order: Order) -> Report:
        took = None
        if order.probe is not None:
            took = latency(order.recipe.student)
            if not order.probe.allows(took):
                self.orders.append(order)
                raise Infeasible(took, f"{took:.3g} ms")
        report = super().__call__(order)
        return report if took is None else Report(**{**vars(report), "latency_ms": took})


def search(folder: Path, most: float | None, trials: int = 40, **more: object) -> Run:
    folder.mkdir(exist_ok=True)
    world = more.pop("world", {})
    run = Run(folder, budget("trials", trials), **more)  # type: ignore[arg-type]
    run.trainer = Probed(run.clock, **world)  # type: ignore[arg-type]
    if not run.ledger.events:
        head = {"rungs": list(run.rungs), "budget": run.budget, "seed": run.seed}
        run.ledger.append("search", **head, probe=Probe(most).to_dict())
    return run()


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_trial_over_the_limit_is_not_trained_nor_promoted_nor_failed(tmp_path: Path, lanes: int) -> None:
    run = search(tmp_path, 1.0, lanes=lanes, world={"fail": failing(0.1)})
    judge(run.events)
    over = [trial for trial in run.history.trials.values() if trial.state == "infeasible"]
    assert over and all(
        not trial.values and latency(trial.recipe.student) > 1.0 and trial.reason is None for trial in over
    )
    trained = [trial for trial in run.history.trials.values() if trial.values]
    assert trained and all(latency(trial.recipe.student) <= 1.0 for trial in trained)
    assert sum(trial.state != "infeasible" for trial in run.history.in_role("search")) == 40, "they take no trial away"
    assert run.reason == "all done" and len(run.history.finals("winner")) == 3
    assert all(
        trial.latency_ms == latency(trial.recipe.student) for trial in [*trained, *over] if trial.role == "search"
    )


def test_an_architecture_is_probed_once(tmp_path: Path) -> None:
    run = search(tmp_path, 1.0, lanes=1)  # with more, the folder's file serves whom the ledger cannot yet
    probed = Counter(order.recipe.student.key for order in run.trainer.orders if order.probe)
    assert set(probed.values()) == {1} and len(probed) == len(run.history.latencies)
    assert sum(event["event"] == "probe" for event in run.events) == len(probed)


def test_few_probes_are_wasted(tmp_path: Path) -> None:
    """A limit that a third of the students keeps to: without a model two of three probes would be in vain."""
    draw = random.Random(0)
    specs = [
        SPACE.recipe(SPACE.quantile([draw.random() for _ in SPACE.fields], prior=True)).student for _ in range(300)
    ]
    most = sorted(map(latency, specs))[100]
    over = [
        sum(t.state == "infeasible" for t in search(tmp_path / str(s), most, seed=s).history.in_role("search"))
        for s in range(3)
    ]
    assert sum(over) / 3 < 20, over  # of 40 that are feasible there would be 80


def test_nothing_within_the_limit_ends_the_search_with_the_quickest(tmp_path: Path) -> None:
    run = search(tmp_path, 0.001)
    assert run.reason.startswith("no trial succeeded; of ") and "the quickest took 0." in run.reason
    assert len(run.history.in_role("search")) <= 120


def test_a_killed_search_does_not_probe_again(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole", 1.0, trials=16)
    lines = (tmp_path / "whole" / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    for cut in range(4, len(lines), 7):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "ledger.jsonl").write_bytes(b"".join(lines[:cut]))
        before = History.replay(whole.events[:cut]).latencies
        again = search(folder, 1.0, trials=16)
        assert not {o.recipe.student.key for o in again.trainer.orders if o.probe} & set(before)
        assert again.reason == "all done"


def test_a_goal_without_a_limit_is_measured_everywhere(tmp_path: Path) -> None:
    history = search(tmp_path, None, trials=16).history
    assert all(trial.latency_ms for trial in history.in_role("search"))
    assert not any(trial.state == "infeasible" for trial in history.trials.values())


# ---- the model


def fitted(most: float, count: int) -> tuple[Feasibility, list[StudentSpec]]:
    draw = random.Random(1)
    history = History(head={"probe": Probe(most).to_dict()}, rungs=RUNGS)
    engine = Engine(SPACE, Limits(), cost_of, TEACHER, 1, 0)
    for number in range(count):
        found = engine.sampler.propose(history)
        start = {"event": "start", "elapsed": 0.0, "trial": f"t{number + 1}", "role": "search", "point": found.point}
        cost = {"params": found.cost.params, "flops": found.cost.flops}
        history.add(start | cost | {"recipe": found.recipe.to_dict(), "source": "prior", "seed": 0, "to": 2})
        told = {"event": "probe", "elapsed": 0.0, "trial": f"t{number + 1}", "architecture": found.recipe.student.key}
        took = latency(found.recipe.student)
        history.add(told | {"latency_ms": took, "feasible": took <= most})
    specs = [
        SPACE.recipe(SPACE.quantile([draw.random() for _ in SPACE.fields], prior=True)).student for _ in range(200)
    ]
    return Feasibility.of(history), [spec for spec in specs if spec.key not in history.latencies]


def test_probabilities_tell_feasible_from_infeasible() -> None:
    model, specs = fitted(0.6, 15)
    within = [model.probability(spec, cost_of(spec)) for spec in specs if latency(spec) <= 0.5]
    above = [model.probability(spec, cost_of(spec)) for spec in specs if latency(spec) > 0.75]
    assert within and above and sum(within) / len(within) > 0.7 and sum(above) / len(above) < 0.25
    assert min(above) >= LEAST


def test_what_was_measured_is_certain() -> None:
    model, _ = fitted(0.6, 15)
    certain = {
        model.probability(StudentSpec.model_validate_json(key), cost_of(StudentSpec.model_validate_json(key)))
        for key in model.latencies
    }
    assert certain <= {0.0, 1.0}


def test_without_a_limit_everything_is_feasible() -> None:
    spec = StudentSpec(family="mlp", width=8)
    assert Feasibility.of(History()).admits(spec, cost_of(spec))


def test_what_may_hardly_be_had_is_not_what_the_model_asks_for_first() -> None:
    rows, liked = np.arange(6.0)[:, None], np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    chances = {0: LEAST, 1: 0.5, 2: 1.0, 3: 0.0, 4: 1.0, 5: 1.0}

    def log_chance(row: np.ndarray) -> float:
        chance = chances[int(row[0])]
        return math.log(chance) if chance else -math.inf

    assert [int(row[0]) for row in weighed(rows, liked, log_chance)] == [1, 2, 0, 4, 5, 3]
    assert [int(row[0]) for row in weighed(rows, liked, None)] == [0, 1, 2, 3, 4, 5]


# ---- computed limits


@pytest.mark.parametrize("seed", range(4))
def test_nothing_over_a_computed_limit_is_ever_started(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    limits = Limits(params=10 ** draw.uniform(2.2, 4), flops=10 ** draw.uniform(3.9, 6))
    run = Run(tmp_path, budget("epochs", 500), seed=seed, lanes=1 + seed, limits=limits, world={"fail": failing(0.1)})()
    begun = [event for event in run.events if event["event"] == "start"]
    assert len(begun) > 20
    assert all(event["params"] <= (limits.params or 0) and event["flops"] <= (limits.flops or 0) for event in begun)
    assert all(limits.allow(cost_of(order.recipe.student)) for order in run.trainer.orders)
