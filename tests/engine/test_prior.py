"""Warm start: recipes of other spaces mapped, and searches that are helped by a good prior and not harmed by a misleading one."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from spaces import SMALL, VOCABULARY
from worlds import RUNGS, SPACE, Run, budget, failing, judge, quality

from autokd.engine.prior import BEST, SOURCE, TOLD, Observation, Prior, point_of
from autokd.history import History
from autokd.recipe import Recipe
from autokd.space import Space

QUALITIES = sorted(
    (
        (quality(SPACE.recipe(point)), point)
        for n in range(400)
        for point in [SPACE.quantile([random.Random(f"{n}/{i}").random() for i in range(len(SPACE.fields))])]
    ),
    key=lambda pair: pair[0],
)


def prior(points: list[dict[str, Any]], weight: float = 1.0) -> list[dict[str, Any]]:
    """Observations that praise these points, the first most."""
    ranks = [1 - place / (len(points) - 1) for place in range(len(points))]
    return [
        Observation(p, rank, weight, f"t{i} of other").to_dict()
        for i, (p, rank) in enumerate(zip(points, ranks, strict=True))
    ]


GOOD = prior([point for _, point in QUALITIES[::-5]])
MISLEADING = prior([point for _, point in QUALITIES[:40]] + [point for _, point in QUALITIES[-40:]])


def search(folder: Path, spend: dict[str, Any], observations: list[dict[str, Any]] | None, **more: Any) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, spend, **more)
    if not run.ledger.events:
        head = {"rungs": list(run.rungs), "budget": spend, "seed": run.seed}
        run.ledger.append("search", **head, warm_start={"sources": [], "observations": observations or []})
    return run()


def found(folder: Path, trainings: float, observations: list[dict[str, Any]] | None, seed: int) -> float:
    """Noise-free quality of the leader after so many full trainings' worth of epochs, finals on top."""
    run = search(folder / f"{seed}", budget("epochs", RUNGS[-1] * (trainings + 9)), observations, seed=seed)
    return quality(run.history.trials[run.history.winner or ""].recipe)


# ---- recipes of other spaces


@pytest.mark.parametrize("seed", range(20))
def test_a_recipe_of_the_same_space_comes_back(seed: int) -> None:
    draw = random.Random(seed)
    recipe = SPACE.recipe(SPACE.quantile([draw.random() for _ in SPACE.fields]))
    point, share = point_of(recipe, SPACE)
    assert SPACE.recipe(point) == recipe and share == 1.0


def test_what_the_space_lacks_is_dropped_and_what_the_recipe_lacks_defaulted() -> None:
    recipe = Recipe.from_dict(
        {
            "student": {"family": "mobilenet", "width": 24},
            "terms": [{"objective": "rkd", "weight": 1.0}, {"objective": "kd", "weight": 900.0, "temperature": 3.0}],
            "optim": {"lr": 0.9},
        }
    )
    point, share = point_of(recipe, SPACE)
    assert point["select.logits"] == "kd" and point["select.hints"] == "none"
    assert point["student.family"] == "resnet" and point["student.resnet.width"] == 16, "its default"
    assert point["terms.kd.weight"] == 20 and point["optim.lr"] == 0.3, "the nearest that the space has"
    assert point["terms.kd.temperature"] == 3.0 and 0.3 < share < 0.8
    SPACE.recipe(point)


def test_what_peers_are_taught_is_taken_over() -> None:
    lines = "  peers.system: {choice: [dml, ffcl], when: {peers.count: 1}}\n  peers.ffcl.gamma: {float: [0.01, 1], prior: 0.1}\n"
    space = Space.parse(SMALL.replace("  peers.weight", f"{lines}  peers.weight"), VOCABULARY)
    told = {"count": 1, "system": "ffcl", "gamma": 3.0, "fusion": "off"}
    recipe = Recipe.from_dict({"student": {"family": "resnet"}, "peers": told})
    point, _ = point_of(recipe, space)
    assert (point["peers.system"], point["peers.ffcl.gamma"]) == ("ffcl", 1.0), "the nearest that the space has"
    assert space.recipe(point).peers.fields == {"gamma": 1.0}, "and what it lacks is dropped"
    known, share = point_of(space.recipe(space.complete({**point, "peers.ffcl.gamma": 0.3})), space)
    assert known["peers.ffcl.gamma"] == 0.3 and share == 1.0
    for other in ({**told, "system": "one"}, {**told, "system": "one", "gamma": 0.2}, {"count": 1}):
        point, _ = point_of(Recipe.from_dict({"student": {"family": "resnet"}, "peers": other}), space)
        assert point["peers.system"] == "dml" and "peers.ffcl.gamma" not in point
    point, _ = point_of(recipe, SPACE)
    assert point["peers.count"] == 1 and SPACE.recipe(point).peers.system == "dml"


def test_numbers_fall_on_the_grid() -> None:
    recipe = Recipe.from_dict({"student": {"family": "resnet", "width": 500, "depth1": 6}})
    point, _ = point_of(recipe, SPACE)
    assert point["student.resnet.width"] == 64 and point["student.resnet.depth1"] in (5, 7)


def test_every_point_is_one_of_the_space() -> None:
    wide = Space.parse(
        SMALL.replace("int: [4, 64]", "int: [4, 256]").replace("float: [1, 20]", "float: [0.5, 50]"), VOCABULARY
    )
    draw = random.Random(3)
    for _ in range(100):
        point, _ = point_of(wide.recipe(wide.quantile([draw.random() for _ in wide.fields])), SPACE)
        assert SPACE.complete(point) == point


# ---- searches


def test_the_best_follow_the_default_kd_recipe(tmp_path: Path) -> None:
    run = search(tmp_path, budget("trials", 24), GOOD, world={"fail": failing(0.1)})
    judge(run.events)
    sources = [event["source"] for event in run.events if event["event"] == "start" and event["role"] == "search"]
    assert sources[0] == "published: KD (Hinton 2015)" and sources[1] == SOURCE + "t0 of other"
    assert sources[2] == SOURCE + "t1 of other"
    assert sum(source.startswith(SOURCE) for source in sources) == BEST
    assert [s for s in sources if s.startswith("published")] == [
        "published: KD (Hinton 2015)",
        "published: DKD (Zhao 2022)",
        "published: KD + AT",
    ]
    assert sources.count("quasi-random") == 5


def test_after_two_bad_ones_no_more_are_tried(tmp_path: Path) -> None:
    run = search(tmp_path, budget("trials", 24), MISLEADING)
    assert sum(trial.source.startswith(SOURCE) for trial in run.history.in_role("search")) == 2


def test_it_needs_no_old_files_to_go_on(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole", budget("trials", 20), GOOD, lanes=1)
    lines = (tmp_path / "whole" / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    for cut in (5, 17, 30):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "ledger.jsonl").write_bytes(b"".join(lines[:cut]))
        again = search(folder, budget("trials", 20), None, lanes=1)
        assert [e["recipe"] for e in again.events if e["event"] == "start"] == [
            e["recipe"] for e in whole.events if e["event"] == "start"
        ]
    json.dumps(GOOD)


def test_trust_is_earned_at_the_first_rung(tmp_path: Path) -> None:
    good = search(tmp_path / "good", budget("trials", 30), GOOD).history
    bad = search(tmp_path / "bad", budget("trials", 30), MISLEADING).history
    trusted = Prior.of(good)
    assert trusted.trust(good) > 0.3 and Prior.of(bad).trust(bad) == 0.0
    assert Prior.of(bad).told(bad, own=12) == []
    few, many = trusted.told(good, own=10), trusted.told(good, own=200)
    assert TOLD / 2 >= len(few) > 2 * len(many)
    assert all(0 <= value <= 1 for _, value in few) and few[0][1] > 0.6 > 0.4 > few[-1][1]
    assert Prior.of(History()).told(good, own=0) == []


def test_an_unlike_task_says_less() -> None:
    history = History(
        head={"warm_start": {"observations": prior([p for _, p in QUALITIES[::-20]], weight=0.2)}}, rungs=RUNGS
    )
    values = [0.5 + 0.2 * (each.rank - 0.5) for each in Prior.of(history).observations]
    assert max(values) == pytest.approx(0.6) and min(values) == pytest.approx(0.4)


@pytest.mark.timeout(180)
def test_a_good_prior_helps_early_and_a_misleading_one_washes_out(tmp_path: Path) -> None:
    """Five and twenty full trainings; differences are paired by seed."""
    early = {
        name: [found(tmp_path / f"early-{name}", 5, said, seed) for seed in range(8)]
        for name, said in (("none", None), ("good", GOOD))
    }
    assert mean(early["good"]) > mean(early["none"]) + 0.005, early
    late = {
        name: [found(tmp_path / f"late-{name}", 20, said, seed) for seed in range(8)]
        for name, said in (("none", None), ("bad", MISLEADING))
    }
    assert mean(late["bad"]) > mean(late["none"]) - 0.01, late
