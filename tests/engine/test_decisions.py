"""The small decisions: rungs, standings, controls, costs."""

from __future__ import annotations

import pytest
from worlds import RUNGS, SPACE, TEACHER, budget, cost_of

from autokd.constraints import Limits
from autokd.engine.controls import final_recipes, final_seeds
from autokd.engine.cost import makespan, relative_cost
from autokd.engine.engine import SAFETY, Decision, Engine, Resume, Start
from autokd.engine.rungs import at_rung, best_and_newest, first_rung, leader, next_rung, promotable, rungs_for
from autokd.history import History, Trial
from autokd.recipe import PeerSpec, Recipe, TermSpec

KD = Recipe.from_dict(
    {"student": {"family": "mlp", "width": 8}, "terms": [{"objective": "kd", "weight": 2.0, "temperature": 3.0}]}
)


def trial(name: str, state: str = "paused", to: int = 2, params: int = 10, **values: float) -> Trial:
    """A search trial with values such as e2=0.7: 0.7 at epoch 2."""
    found = Trial(name, "search", KD, {}, "prior", 0, params, 1, 0.0, state=state, to=to)  # type: ignore[arg-type]
    found.values = {int(epoch[1:]): (value, 0.0) for epoch, value in values.items()}
    found.epoch = max(found.values, default=0)
    return found


def history(*trials: Trial) -> History:
    return History(rungs=RUNGS, trials={each.id: each for each in trials})


# ---- rungs


@pytest.mark.parametrize("longest", range(1, 200))
def test_rungs_rise_to_the_longest(longest: int) -> None:
    rungs = rungs_for(longest)
    assert rungs[0] >= 1 and rungs[-1] == longest and list(rungs) == sorted(set(rungs)) and len(rungs) <= 4
    assert next_rung(rungs, 0) == rungs[0] and next_rung(rungs, longest) is None


def test_nothing_is_promoted_before_six_trials_came_to_the_first_rung() -> None:
    few = [trial(f"t{n}", e2=n / 10) for n in range(5)]
    assert promotable(history(*few)) is None
    assert promotable(history(*few, trial("f", state="failed"))) is few[4]
    above = [trial(f"h{n}", e2=0.5, e6=n / 10, to=6) for n in range(3)]
    assert promotable(history(*above)) is above[2], "further up three are enough"


def test_failed_trials_count_in_the_rung_but_are_never_promoted() -> None:
    good = [trial("a", e2=0.9), trial("b", e2=0.8), trial("c", e2=0.7), *(trial(f"r{n}", e2=0.1) for n in range(3))]
    heading = [trial(f"f{n}", state="failed") for n in range(3)]
    assert promotable(history(*good)) is good[0]
    for on in good[:2]:
        on.epoch, on.to, on.state = 2, 6, "running"  # type: ignore[assignment]
    assert promotable(history(*good)) is None
    assert promotable(history(*good, *heading)) is good[2], "nine came to the rung, so that three go on"
    good[0].state = "failed"
    assert promotable(history(*good, *heading)) is good[2], "one that failed further up is passed over"


def test_the_highest_rung_is_looked_at_first_and_ties_go_to_the_smaller() -> None:
    low = [trial("a", e2=0.9), trial("b", e2=0.9, params=5), *(trial(f"r{n}", e2=0.1) for n in range(4))]
    high = [trial(f"h{n}", e2=0.5, e6=0.6 + n / 10, to=6) for n in range(3)]
    assert promotable(history(*low, *high)) is high[2]
    assert promotable(history(*low)) is low[1]
    assert at_rung(history(*low, *high), 6) == high[::-1]
    assert leader(history(*low, *high)) is high[2]


def test_a_trial_cut_off_between_rungs_counts_where_it_has_been() -> None:
    cut = trial("a", e2=0.9, e4=0.95, to=6)
    others = [trial("b", e2=0.5), *(trial(f"c{n}", e2=0.4) for n in range(3))]
    assert promotable(history(cut, *others)) is None, "too few"
    found = history(cut, *others, trial("d", e2=0.3))
    assert promotable(found) is others[0], "of the two best one was cut off"
    assert leader(found) is cut
    assert leader(history(trial("d", e1=0.3), trial("e", e1=0.4))).id == "e"  # type: ignore[union-attr]
    assert leader(history(trial("f", state="failed", e2=0.9))) is None


def test_a_twin_of_a_trial_that_went_on_stays_where_it_is() -> None:
    first, twin, other = trial("a", e2=0.9), trial("b", e2=0.9), trial("c", e2=0.8)
    rest = [trial(f"r{n}", e2=n / 10) for n in range(7)]
    first.state, first.to = "running", 6
    assert promotable(history(first, twin, *rest[:4])) is None, (
        "two of six may go on, but the second is the first again"
    )
    assert promotable(history(first, other, *rest[:4])) is other
    assert promotable(history(first, twin, other, *rest[:6])) is other, "of nine, the third"


@pytest.mark.parametrize(
    "objective, later", [("kd", 0), ("crd", 1), ("pkt", 1), ("my.losses:CRD", 1), ("crd.losses:Mine", 0)]
)
def test_losses_that_start_slowly_pause_later_for_the_first_time(objective: str, later: int) -> None:
    recipe = KD.model_copy(
        update={"terms": (TermSpec(objective="kd", weight=1.0), TermSpec(objective=objective, weight=1.0))}
    )
    assert first_rung(recipe, RUNGS) == RUNGS[later]
    assert first_rung(recipe, RUNGS[-1:]) == RUNGS[-1]


@pytest.mark.parametrize("warmup, rung", [(0.0, 2), (0.1, 2), (0.2, 6), (0.9, 6), (1.0, 6)])
def test_a_loss_is_judged_once_it_is_warm_or_at_a_third_of_the_epochs(warmup: float, rung: int) -> None:
    recipe = KD.model_copy(update={"terms": (TermSpec(objective="kd", weight=1.0, schedule="linear", share=warmup),)})
    assert first_rung(recipe, RUNGS) == rung


def test_a_long_history_is_cut_to_the_best_and_the_newest() -> None:
    trials = [trial(f"t{n}", e2=n / 1000) for n in range(500)]
    for number, each in enumerate(trials):
        each.started = float(number)
    reached = at_rung(history(*trials), 2)
    kept = best_and_newest(reached, 100)
    assert len(kept) == 100 and kept[:50] == reached[:50]
    assert {each.id for each in kept[50:]} == {f"t{n}" for n in range(400, 450)}
    assert best_and_newest(reached[:50], 100) == reached[:50]


# ---- controls and costs


def test_a_copied_recipe_has_an_id_of_its_own() -> None:
    before = KD.id
    control = KD.without_distillation()
    assert control.id != before and control.id == Recipe.from_json(control.to_json()).id
    assert hash(control) == hash(Recipe.from_json(control.to_json())) and KD.id == before


def test_finals_hold_each_recipe_once() -> None:
    assert list(final_recipes(KD)) == ["winner", "no_kd", "default_kd"]
    assert list(final_recipes(KD.with_default_kd())) == ["winner", "no_kd"]
    assert list(final_recipes(KD.without_distillation())) == ["winner", "default_kd"]
    assert len(set(final_seeds(7))) == 3 and 7 not in final_seeds(7)


def test_makespan_of_trainings_on_lanes() -> None:
    assert makespan([1.0] * 9, lanes=1) == 9
    assert makespan([1.0] * 9, lanes=8) == 2, "a ninth training waits for a lane"
    assert makespan([3.0, 1.0, 1.0, 1.0], lanes=2) == 3
    assert makespan([2.0], lanes=2, busy=[5.0]) == 5 and makespan([2.0, 2.0], lanes=2, busy=[5.0]) == 5
    assert makespan([], lanes=3) == 0


def test_relative_cost_counts_rows_peers_and_teacher() -> None:
    student = cost_of(KD.student)
    plain = relative_cost(KD.without_distillation(), student, TEACHER)
    assert plain == 3 * student.flops
    assert relative_cost(KD, student, TEACHER) == plain + TEACHER.flops
    peers = KD.model_copy(update={"peers": KD.peers.model_copy(update={"count": 2})})
    assert relative_cost(peers, student, TEACHER) == 3 * plain + TEACHER.flops
    earlier = {
        first: PeerSpec.model_validate({"count": 2, "system": "ckd_mkt", "first": first}) for first in (0.0, 0.5)
    }
    frozen = [relative_cost(KD.model_copy(update={"peers": each}), student, TEACHER) for each in earlier.values()]
    assert frozen[1] == frozen[0] + 3 * student.flops == 3 * (plain + student.flops) + TEACHER.flops
    augmented = KD.model_copy(update={"augment": KD.augment.model_copy(update={"policy": "jda", "rho": 0.5})})
    assert relative_cost(augmented, student, TEACHER) == 2 * (plain + TEACHER.flops)


# ---- towards the end of a budget

TOP = trial("t1", "complete", e2=0.9, e6=0.9, e18=0.9, to=18)
SECOND, THIRD = trial("t2", e2=0.8, e6=0.8, to=6), trial("t3", e2=0.7, e6=0.7, to=6)
LOW = [trial(f"t{n}", e2=n / 100) for n in range(4, 10)]


def decided(left: float, *trials: Trial, kind: str = "epochs") -> Decision:
    """With so much left of the budget, beside what is kept for the finals."""
    engine, found = Engine(SPACE, Limits(), cost_of, TEACHER, 1, 0), history(*trials)
    found.epochs = sum(each.epoch for each in trials)
    for each in trials:
        each.seconds = float(each.epoch)
    elapsed = 0.0 if kind == "epochs" else float(found.epochs)
    for amount in range(found.epochs, 1000):
        found.budget = budget(kind, amount)
        if amount - engine.reserve(found) - found.epochs >= left:
            return engine.propose(found, elapsed)
    raise LookupError(left)


@pytest.mark.parametrize("kind", ["epochs", "seconds"])
def test_runners_up_go_on_when_no_new_trial_could_come_as_far_as_the_leader(kind: str) -> None:
    slack = 1.0 if kind == "epochs" else SAFETY
    assert isinstance(decided(18 * slack, TOP, SECOND, THIRD, *LOW, kind=kind), Start)
    late = [decided(left * slack, TOP, SECOND, THIRD, *LOW, kind=kind) for left in (17, 12)]
    assert late == [Resume("t2", 18)] * 2, "the second at epoch 6 has 12 to go"
    assert isinstance(decided(11 * slack, TOP, SECOND, THIRD, *LOW, kind=kind), Start), "nobody can arrive"


def test_the_leader_is_overtaken_where_it_stands() -> None:
    few = LOW[-3:]
    assert decided(5, SECOND, *few) == Resume("t9", 6), (
        "the furthest came to epoch 6, where the best at epoch 2 comes too"
    )
    assert isinstance(decided(6, SECOND, *few), Start) and isinstance(decided(5, *few), Start)
