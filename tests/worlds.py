"""Searches without training: a made-up objective, a virtual clock, and an independent judge of what the engine decided."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spaces import SMALL, VOCABULARY

from autokd.constraints import Cost, Limits
from autokd.engine.cost import relative_cost
from autokd.engine.engine import Engine
from autokd.engine.rungs import first_rung
from autokd.errors import TrialFailure
from autokd.history import History
from autokd.ledger import Event, Ledger, read_events
from autokd.orchestrate.director import Director
from autokd.orchestrate.simulate import Clock, run_simulated
from autokd.orders import Order, Report
from autokd.recipe import Recipe, StudentSpec
from autokd.space import Space

SPACE = Space.parse(SMALL, VOCABULARY)
RUNGS = (2, 6, 18)
TEACHER = Cost(500_000, 10_000_000)


def cost_of(spec: StudentSpec) -> Cost:
    width = int(spec.fields.get("width", 8))
    params = width**2 * int(spec.fields.get("depth1", 1)) * (9 if spec.family == "resnet" else 1) + 10
    return Cost(params, 40 * params)


def quality(recipe: Recipe) -> float:
    """Where a full training of this recipe ends, without noise: smooth in most fields, best inside the space."""
    value = 0.8 + 0.03 * math.log10(cost_of(recipe.student).params)
    value -= 0.04 * (math.log10(recipe.optim.lr) + 1.7) ** 2 + 0.01 * (math.log10(recipe.ce_weight) + 0.3) ** 2
    for term in recipe.terms:
        temperature = float(term.fields.get("temperature", 8.0))
        value += 0.03 - 0.01 * abs(math.log2(temperature) - 3)
    return value + (0.01 if recipe.augment.policy == "jda" else 0.0) - 0.005 * recipe.peers.count


@dataclass
class World:
    """Trains by formula. `orders` holds what was asked; `fail` may answer an order with a failure."""

    clock: Clock
    seconds: float = 0.1  # of an epoch of a recipe as costly as the teacher alone
    noise: float = 0.002
    taped: bool = False
    fail: Callable[[Order], TrialFailure | None] = lambda order: None
    orders: list[Order] = field(default_factory=list)

    def epoch_seconds(self, recipe: Recipe) -> float:
        return self.seconds * relative_cost(recipe, cost_of(recipe.student), TEACHER, self.taped) / TEACHER.flops

    def __call__(self, order: Order) -> Report:
        self.orders.append(order)
        failure = self.fail(order)
        if failure is not None:
            raise failure
        each, rows = self.epoch_seconds(order.recipe), []
        final = quality(order.recipe) + random.Random(f"{order.recipe.id}/{order.seed}").gauss(0, self.noise)
        for epoch in range(order.start + 1, order.to + 1):
            value = final - 0.5 * math.exp(-5 * epoch / order.total)
            metrics = {"accuracy": value, "loss": 1 - value}
            rows.append({"epoch": epoch, "seconds": each, "loss": 1 - value, "terms": {"ce": 0.1}, "metrics": metrics})
            if order.deadline is not None and self.clock.now + each * len(rows) >= order.deadline:
                break
        last = rows[-1]
        metrics, seconds = last["metrics"], each * len(rows)
        value, name = metrics["accuracy"], f"{order.trial}.safetensors"
        return Report(order.trial, last["epoch"], value, value - 1, metrics, seconds, rows, name, "fp32")


@dataclass
class Run:
    """A simulated session of a search, from an empty or an existing ledger to its end."""

    folder: Path
    budget: dict[str, Any]
    lanes: int = 2
    seed: int = 0
    rungs: tuple[int, ...] = RUNGS
    limits: Limits = Limits()
    space: Space = SPACE
    world: dict[str, Any] = field(default_factory=dict)
    taped: bool = False
    plan: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    def __post_init__(self) -> None:
        self.clock = Clock()
        before = read_events(self.folder / "ledger.jsonl")[0]
        self.clock.now = before[-1]["time"] if before else 0.0  # before the ledger is opened, which begins a session
        self.ledger = Ledger(self.folder / "ledger.jsonl", clock=self.clock)
        self.engine = Engine(self.space, self.limits, cost_of, TEACHER, self.lanes, self.seed, self.taped)
        self.director = Director(self.engine, self.ledger, self.clock)
        self.trainer = World(self.clock, **self.world)

    def __call__(self) -> Run:
        if not self.ledger.events:
            planned = {"plan": self.plan} if self.plan else {}
            self.ledger.append("search", rungs=list(self.rungs), budget=self.budget, seed=self.seed, **planned)
        self.ledger.append("session", pid=0, budget=self.budget, lanes=self.lanes)
        self.reason = run_simulated(self.director, self.clock, self.lanes, self.trainer)
        self.ledger.append("finish", reason=self.reason)
        self.ledger.close()
        return self

    @property
    def history(self) -> History:
        return self.director.history

    @property
    def events(self) -> list[Event]:
        return self.ledger.events


def budget(kind: str, amount: float) -> dict[str, Any]:
    return {"kind": kind, "amount": float(amount)}


def failing(share: float, reason: str = "nan") -> Callable[[Order], TrialFailure | None]:
    """A share of the search trials fails, chosen by recipe, at the first rung or at the second."""

    def fail(order: Order) -> TrialFailure | None:
        draw = random.Random(f"fails/{order.recipe.id}").random()
        late = draw < share / 4
        hit = draw < share and not order.trial.count("-") and (order.start > 0) == late
        return TrialFailure(reason, f"{order.trial} was made to fail") if hit else None

    return fail


# ---- the judge: reads a ledger, knows nothing of the engine


def judge(events: list[Event], eta: int = 3) -> None:
    """Check what must hold in every ledger, whatever the budget and however often the search was killed."""
    rungs: tuple[int, ...] = ()
    at: dict[str, int] = {}  # search trial -> last epoch
    values: dict[int, dict[str, tuple[float, float, int]]] = {}  # rung -> trial -> standing
    failed: dict[str, int] = {}  # trial -> rung it was heading for
    sent: dict[str, int] = {}
    size: dict[str, int] = {}
    recipes: set[str] = set()
    reported: set[tuple[str, int]] = set()
    given: dict[str, Any] = {}
    spent = [0.0, 0]  # seconds and epochs of search trials; finals take at most 45 % of the budget
    for event in events:
        kind, name = event["event"], event.get("trial")
        if kind == "search":
            rungs = tuple(event["rungs"])
        elif kind == "session":
            given = event["budget"]
        elif kind == "start":
            assert name not in sent, f"{name} was begun twice"
            sent[name] = event["to"]
            if event["role"] == "search":
                recipe = Recipe.from_dict(event["recipe"]).id
                assert recipe not in recipes, f"{name} repeats a recipe"
                recipes.add(recipe)
                at[name], size[name] = 0, event["params"]
                assert event["to"] == first_rung(Recipe.from_dict(event["recipe"]), rungs)
        elif kind == "resume":
            assert name not in failed, f"{name} failed and was resumed"
            if name in at and at[name] in rungs and event["to"] != sent[name]:
                late = _judge_promotion(name, at[name], event["to"], rungs, values, failed, sent, eta)
                gone = sum(sent.values()) if given["kind"] == "epochs" else event["elapsed"]
                each = 1.0 if given["kind"] == "epochs" else 1.2 * spent[0] / spent[1]
                last = given["kind"] != "trials" and gone + each * max(values) > 0.55 * given["amount"]
                assert not late or last, f"{late} and was promoted, {gone} of {given} being spent"
            sent[name] = event["to"]
        elif kind == "rung":
            assert (name, event["epoch"]) not in reported, f"{name} reported epoch {event['epoch']} twice"
            reported.add((name, event["epoch"]))
            if name in at:
                assert event["epoch"] > at[name]
                spent = [spent[0] + event["seconds"], spent[1] + event["epoch"] - at[name]]
                at[name] = event["epoch"]
                values.setdefault(event["epoch"], {})[name] = (event["value"], event["tiebreak"], -size[name])
        elif kind == "fail":
            failed[name] = sent[name]


def _judge_promotion(
    name: str,
    rung: int,
    to: int,
    rungs: tuple[int, ...],
    values: dict[int, dict[str, tuple[float, float, int]]],
    failed: dict[str, int],
    sent: dict[str, int],
    eta: int,
) -> str | None:
    """What a trial was sent on in spite of, if anything."""
    assert to == rungs[rungs.index(rung) + 1], f"{name} skipped a rung"
    there = values[rung]
    entered = len(there) + sum(heading == rung and trial not in there for trial, heading in failed.items())
    best_first = sorted((t for t in there if t not in failed), key=lambda t: there[t], reverse=True)
    place = best_first.index(name)
    late = place >= entered // eta
    assert late or all(sent[better] > rung for better in best_first[:place]), f"{name} went before a better one"
    return f"{name} is number {place + 1} of {entered} at epoch {rung}" if late else None
