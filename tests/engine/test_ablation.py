"""The ablation of the winner: what is changed, what the budget pays, what is read off the ledger."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from worlds import RUNGS, SPACE, Run, budget, failing, judge, quality

from autokd.ablation import ROLE, ablations, change_of
from autokd.engine.ablation import ASKED_SHARE, SPARE_SHARE, WORTHWHILE, Planner, When, changes
from autokd.engine.engine import SAFETY
from autokd.errors import TrialFailure
from autokd.history import History, Trial
from autokd.orders import Order
from autokd.rules import Value

pytestmark = pytest.mark.timeout(240)  # whole searches, simulated

POINT: dict[str, Value] = {
    "select.logits": "dkd",
    "select.hints": "at",
    "student.family": "resnet",
    "student.resnet.width": 32,
    "ce_weight": 0.1,
    "terms.dkd.beta": 8.0,
    "terms.at.weight": 50.0,
    "augment.policy": "jda",
    "peers.count": 1,
    "optim.lr": 0.2,
}


def winner(**changed: Value) -> Trial:
    point = SPACE.complete({**POINT, **{name.replace("__", "."): value for name, value in changed.items()}})
    return Trial("t0007", "search", SPACE.recipe(point), point, "prior", 0, 100, 4000, 1.0)


def search(folder: Path, given: dict[str, Any], when: When, **more: Any) -> Run:
    """A whole search in the world of formulas, with an ablation of its winner."""
    run = Run(folder, given, **more)
    run.engine.ablation = Planner(SPACE, when)
    return run


def ablated(run: Run) -> list[Trial]:
    return run.history.finals(ROLE)


# ---- what is changed


def test_each_loss_goes_and_each_knob_returns_to_its_default() -> None:
    best = winner()
    found = {change.name: change.recipe for change in changes(best, SPACE)}
    assert list(found) == [
        "without at",
        "without dkd",
        "select.logits=kd",
        "terms.dkd.beta=2",
        "terms.at.weight=1e+03",
        "augment.policy=base",
        "peers.count=0",
        "optim.lr=0.0548",
    ]
    assert [term.objective for term in found["without at"].terms] == ["dkd"]
    assert [term.objective for term in found["select.logits=kd"].terms] == ["at", "kd"]
    assert found["augment.policy=base"].augment.policy == "base" and found["peers.count=0"].peers.count == 0
    assert {recipe.student for recipe in found.values()} == {best.recipe.student}
    assert len({recipe.id for recipe in found.values()} | {best.recipe.id}) == len(found) + 1


def test_a_selector_at_none_is_the_loss_off_and_is_trained_once() -> None:
    names = [change.name for change in changes(winner(), SPACE)]
    assert "without at" in names and "select.hints=none" not in names


def test_what_is_left_without_any_loss_is_plain_cross_entropy() -> None:
    alone = winner(select__logits="kd", select__hints="none")
    change = next(change for change in changes(alone, SPACE) if change.name == "without kd")
    assert change.recipe.terms == () and change.recipe.ce_weight == 1.0 and alone.recipe.ce_weight == 0.1


def test_knobs_come_by_importance_after_the_losses() -> None:
    names = [change.name for change in changes(winner(), SPACE, ["optim.lr", "peers.count"])]
    assert names[:4] == ["without at", "without dkd", "optim.lr=0.0548", "peers.count=0"]
    assert sorted(names) == sorted(change.name for change in changes(winner(), SPACE))


def test_a_winner_at_all_defaults_has_only_its_losses_to_lose() -> None:
    point = SPACE.prior_point()
    plain = Trial("t0001", "search", SPACE.recipe(point), point, "prior", 0, 100, 4000, 1.0)
    assert [change.name for change in changes(plain, SPACE)] == ["without kd"]


def test_a_recipe_that_was_not_drawn_from_the_space_still_loses_its_losses() -> None:
    assert [change.name for change in changes(replace(winner(), point={}), SPACE)] == ["without at", "without dkd"]


# ---- what the budget pays


@pytest.mark.parametrize("kind, amount", [("trials", 20), ("seconds", 20.0), ("epochs", 500)])
def test_none_is_trained_where_none_is_wanted(tmp_path: Path, kind: str, amount: float) -> None:
    assert ablated(search(tmp_path, budget(kind, amount), False)()) == []


@pytest.mark.parametrize("kind, amount", [("trials", 30), ("seconds", 40.0), ("epochs", 900)])
@pytest.mark.parametrize("lanes", [1, 3])
def test_an_ablation_asked_for_has_a_tenth_of_the_budget(tmp_path: Path, kind: str, amount: float, lanes: int) -> None:
    run = search(tmp_path, budget(kind, amount), True, lanes=lanes, world={"seconds": 0.015})()
    judge(run.events)
    done = ablated(run)
    assert done and {trial.state for trial in done} == {"complete"} and run.reason == "all done"
    assert [len(run.history.finals(role)) for role in ("winner", "no_kd")] == [3, 3]
    if kind == "trials":
        assert len(done) == ASKED_SHARE * 30
    elif kind == "epochs":
        assert run.history.epochs <= amount and len(done) >= int(ASKED_SHARE * amount) // RUNGS[-1]
    else:
        assert run.clock.now <= amount and len(ablations(run.history)) >= 1


@pytest.mark.parametrize("kind, large, small", [("trials", 100, 99), ("epochs", 1850, 1750)])
def test_unasked_it_is_done_where_a_little_pays_for_the_most_important_changes(
    tmp_path: Path, kind: str, large: float, small: float
) -> None:
    trained = []
    for name, amount in (("large", large), ("small", small)):
        (tmp_path / name).mkdir()
        run = search(tmp_path / name, budget(kind, amount), "auto")()
        trained.append(len(ablated(run)))
        assert len(run.history.finals("winner")) == 3 and (kind == "trials" or run.history.epochs <= amount)
    assert trained[0] >= WORTHWHILE and trained[1] == 0
    assert trained[0] * (1 if kind == "trials" else RUNGS[-1]) <= SPARE_SHARE * large + RUNGS[0]


@pytest.mark.parametrize("lanes, seconds", [(1, 9.0), (3, 3.0)])
def test_of_a_time_it_takes_what_the_finals_leave(tmp_path: Path, lanes: int, seconds: float) -> None:
    """A leader whose full training takes three seconds: nine for the changes that make it worthwhile, over the lanes."""
    best = replace(winner(), epoch=RUNGS[-1], seconds=3.0, values={RUNGS[-1]: (0.9, 0.0)})
    history, kept = History(rungs=RUNGS, trials={best.id: best}), {}
    needed = SAFETY * seconds / SPARE_SHARE
    for amount in (0.99 * needed, 1.01 * needed):
        history.budget = budget("seconds", amount)
        asked = [search(tmp_path, {}, when, lanes=lanes).engine.reserve(history) for when in (False, "auto", True)]
        kept[amount] = [with_it - asked[0] for with_it in asked]
    assert list(kept.values()) == [
        pytest.approx([0, 0, ASKED_SHARE * 0.99 * needed]),
        pytest.approx([0, SPARE_SHARE * 1.01 * needed, ASKED_SHARE * 1.01 * needed]),
    ]


def test_costly_finals_leave_nothing_for_an_ablation() -> None:
    planner = Planner(SPACE, "auto")
    assert planner.kept(1000.0, spare=50.0, needed=20.0) == SPARE_SHARE * 1000
    assert planner.kept(1000.0, spare=10.0, needed=20.0) == planner.kept(1000.0, spare=-250.0, needed=20.0) == 0.0
    assert Planner(SPACE, True).kept(1000.0, spare=-250.0, needed=200.0) == ASKED_SHARE * 1000


def test_finals_that_were_cut_short_leave_nothing_for_an_ablation(tmp_path: Path) -> None:
    run = search(tmp_path, budget("seconds", 12.0), True, lanes=1, rungs=(2, 6, 30), world={"seconds": 0.05})()
    assert run.reason.startswith("budget spent after") and ablated(run) == []


# ---- in which order


def test_one_seed_of_every_change_comes_before_a_second_of_any(tmp_path: Path) -> None:
    run = search(tmp_path, budget("epochs", 3000), True, lanes=2)()
    done = sorted(ablated(run), key=lambda trial: trial.started)
    names = [change_of(trial) for trial in done]
    every = len(set(names))
    assert every > WORTHWHILE and len(set(names[:every])) == every and len(done) > every
    seeds = [trial.seed for trial in run.history.finals("winner")]
    assert [trial.seed for trial in done[: every + 1]] == [seeds[0]] * every + [seeds[1]]
    assert names[every] == names[0] and names[0].startswith("without ")


def test_a_killed_ablation_goes_on(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    uncut = search(whole, budget("epochs", 1500), True)()
    lines = (whole / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    first = next(i for i, e in enumerate(uncut.events) if e["event"] == "start" and e["role"] == ROLE)
    for cut in range(first, len(lines), 2):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "ledger.jsonl").write_bytes(b"".join(lines[:cut]))
        run = search(folder, budget("epochs", 1500), True)()
        judge(run.events)
        assert run.reason == "all done" and {trial.state for trial in ablated(run)} == {"complete"}
        assert {trial.id for trial in ablated(run)} == {trial.id for trial in ablated(uncut)}


def test_more_budget_ablates_the_new_winner(tmp_path: Path) -> None:
    first = search(tmp_path, budget("trials", 20), True)()
    again = search(tmp_path, budget("trials", 40), True)()
    assert again.history.winner != first.history.winner
    assert {trial.group for trial in ablated(again)} == {again.history.winner}
    assert {trial.group for trial in again.history.in_role(ROLE)} == {first.history.winner, again.history.winner}


def test_failures_of_changed_recipes_are_kept_and_the_rest_goes_on(tmp_path: Path) -> None:
    def fail(order: Order) -> TrialFailure | None:
        return TrialFailure("nan", "nan") if ROLE in order.trial and len(order.recipe.terms) == 0 else None

    run = search(tmp_path, budget("epochs", 1500), True, world={"fail": fail})()
    states = {trial.state for trial in ablated(run)}
    assert run.reason == "all done" and "complete" in states
    assert all(entry.change != "without kd" or entry.n for entry in ablations(run.history))


@pytest.mark.parametrize("seed", range(4))
def test_every_budget_ends_in_order(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    kind, amount = draw.choice([("trials", 25), ("seconds", 25.0), ("epochs", 700)])
    when = draw.choice([True, "auto"])
    run = search(tmp_path, budget(kind, amount), when, lanes=draw.choice([1, 2, 8]), world={"fail": failing(0.3)})()
    judge(run.events)
    assert run.reason == "all done" or run.reason.startswith("budget spent")


# ---- what it says


def test_differences_are_those_of_the_world(tmp_path: Path) -> None:
    """Without noise the change in the score is the change in the formula."""
    run = search(tmp_path, budget("epochs", 2500), True, world={"noise": 0.0})()
    best = run.history.trials[run.history.winner or ""].recipe
    found = {entry.change: entry for entry in ablations(run.history)}
    recipes = {change_of(trial): trial.recipe for trial in ablated(run)}
    assert len(found) > WORTHWHILE and found.keys() == recipes.keys()
    for name, entry in found.items():
        assert entry.mean == pytest.approx(quality(recipes[name]) - quality(best), abs=1e-9)
    means = [entry.mean for entry in ablations(run.history)]
    assert means == sorted(means) and means[0] < 0
    lost = next(entry for name, entry in found.items() if name.startswith("without"))
    assert lost.instead_of == "" and "points of validation accuracy" in lost.sentence()


def test_the_front_is_retrained_before_the_winner_is_taken_apart(tmp_path: Path) -> None:
    run = search(tmp_path, budget("trials", 24), when=True)
    run.ledger.append("search", rungs=list(RUNGS), budget=run.budget, seed=0, goals=["accuracy", "params"])
    history, roles = run().history, [e["role"] for e in run.events if e["event"] == "start"]
    assert history.front and all(len(history.finals("winner", of=name)) == 3 for name in history.front)
    assert ablated(run) and {trial.group for trial in ablated(run)} == {history.winner}
    assert set(roles[roles.index(ROLE) :]) == {ROLE}


def trained(role: str, seed: int, value: float, change: str = "", state: str = "complete") -> Trial:
    best = winner()
    source = f"ablation: {change}" if change else "final"
    name = f"t0007-{role}-{seed}-{change}"
    trial = Trial(name, role, best.recipe, {}, source, seed, 1, 1, 0.0, group="t0007", to=18, epoch=18)
    trial.state, trial.values = state, {18: (value, 0.0)}  # type: ignore[assignment]
    return trial


def test_only_pairs_count_and_few_seeds_claim_little() -> None:
    history = History(rungs=RUNGS, winner="t0007")
    trials = [winner(), *(trained("winner", seed, 0.9 + seed / 100) for seed in (1, 2, 3))]
    trials += [trained(ROLE, seed, 0.88 + seed / 100 + seed % 2 / 1000, "without at") for seed in (1, 2, 3)]
    trials += [trained(ROLE, 1, 0.92, "optim.lr=0.0548"), trained(ROLE, 9, 0.1, "optim.lr=0.0548")]
    trials += [trained(ROLE, 1, 0.5, "peers.count=0", state="failed")]
    history.trials = {trial.id: trial for trial in trials}
    term, knob = ablations(history)
    assert (term.change, term.n, term.larger_than_noise) == ("without at", 3, True)
    assert term.mean == pytest.approx(-0.02 + 0.002 / 3) and term.sd == pytest.approx(0.001 / 3**0.5, rel=1e-3)
    assert term.sentence() == (
        "without at: -1.93 ± 0.06 points of validation accuracy (3 paired seeds); "
        "larger than the noise between seeds, the winner needs what was changed."
    )
    assert (knob.change, knob.n, knob.instead_of, knob.larger_than_noise) == ("optim.lr=0.0548", 1, "0.2", None)
    assert (
        "optim.lr=0.0548 instead of 0.2: +1.00 points" in knob.sentence() and "one seed cannot say" in knob.sentence()
    )
