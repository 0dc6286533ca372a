"""Ledgers of searches that never ran: plausible, seeded, written through the real Ledger."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autokd.ledger import Ledger
from autokd.recipe import Recipe

RUNGS = (1, 3, 9)
PARAMS = {"resnet": 900, "plain": 1400, "mlp": 2600}
FIELDS = [  # of the recipes below, as a space has them
    {"name": "student.family", "choice": sorted(PARAMS)},
    {"name": "student.width", "int": [2, 16], "log": True},
    {"name": "terms.kd.temperature", "float": [1, 8], "log": False, "when": {"select.logits": ["kd"]}},
    {"name": "augment.policy", "choice": ["base", "jda"]},
    {"name": "augment.chain", "fixed": "cifar100"},
    {"name": "augment.rho", "float": [0, 0.75], "log": False},
    {"name": "optim.lr", "float": [10**-2.5, 10**-0.3], "log": True},
    {"name": "optim.batch", "choice": [32, 64, 128]},
]


@dataclass
class Clock:
    """Seconds that pass only when told."""

    now: float = 1.7e9

    def __call__(self) -> float:
        return self.now


@dataclass
class Sketch:
    """A search being written down, event by event."""

    folder: Path
    seed: int = 0
    name: str = "digits"
    budget: dict[str, Any] = field(default_factory=lambda: {"kind": "seconds", "amount": 90.0})
    pid: int = 0
    listener: Any = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.random, self.clock = random.Random(self.seed), Clock()
        self.ledger = Ledger(self.folder / "ledger.jsonl", clock=self.clock)
        if self.listener is not None:
            self.ledger.listen(self.listener)
        self.quality: dict[str, float] = {}
        self.ledger.append("search", **head(self.name, self.budget))
        self.ledger.append("session", pid=self.pid, budget=self.budget, lanes=2)

    def start(
        self,
        trial: str,
        recipe: Recipe,
        role: str = "search",
        seed: int = 0,
        to: int = RUNGS[0],
        source: str = "",
        group: str = "",
    ) -> None:
        width = recipe.student.fields["width"]
        params = int(PARAMS[recipe.student.family] * width**1.5)
        self.quality[trial] = quality(recipe, params) + self.random.gauss(0, 0.004)
        fields = {"role": role, "recipe": recipe.to_dict(), "point": recipe.flat(), "seed": seed, "to": to}
        source = source or ("quasi-random" if role == "search" else "final")
        self.ledger.append("start", trial=trial, source=source, params=params, flops=params * 40, group=group, **fields)

    def rung(self, trial: str, epoch: int, before: int, value: float | None = None, wait: float = 0.3) -> float:
        seconds = 0.2 * (epoch - before)
        self.clock.now += seconds / 2 + wait * self.random.random()
        rows = [self.row(trial, done) for done in range(before + 1, epoch + 1)]
        value = rows[-1]["metrics"]["accuracy"] if value is None else value
        self.ledger.append(
            "rung",
            trial=trial,
            epoch=epoch,
            value=value,
            tiebreak=value - 1,
            metrics={"accuracy": value, "loss": 1 - value},
            seconds=seconds,
            history=rows,
            checkpoint=f"{trial}.ckpt",
            precision="float32",
        )
        return value

    def row(self, trial: str, epoch: int) -> dict[str, Any]:
        value = max(0.1, self.quality[trial] - 0.5 * math.exp(-epoch / 2.0) + self.random.gauss(0, 0.003))
        metrics = {"accuracy": min(value, 1.0), "loss": 1 - value}
        return {"epoch": epoch, "seconds": 0.2, "loss": 2 * (1 - value), "terms": {"ce": 1 - value}, "metrics": metrics}

    def fail(self, trial: str, reason: str = "nan") -> None:
        self.ledger.append("fail", trial=trial, reason=reason, message=f"{trial}: the loss is not a number")

    def test(self, role: str, trial: str | None, value: float) -> None:
        self.ledger.append("test", role=role, trial=trial, value=value)


def head(name: str, budget: dict[str, Any]) -> dict[str, Any]:
    return {
        "search_id": "s0",
        "name": name,
        "seed": 7,
        "budget": budget,
        "space": {"name": "digits", "fields": FIELDS},
        "constraints": {"params": 71_600.0, "flops": None},
        "rungs": list(RUNGS),
        "lanes": 2,
        "executor": "inline",
        "metric": "accuracy",
        "teacher": {"name": name, "params": 716_000, "flops": 14_500_000, "value": 0.991, "value_loss": 0.03},
        "data": {
            "name": name,
            "fingerprint": "ab12",
            "sizes": {"train": 1150, "val": 287, "test": 360},
            "classes": 10,
            "input_shape": [1, 8, 8],
            "notes": [],
        },
        "plan": {
            "teacher_value": 0.991,
            "epoch_seconds": 0.21,
            "full_training_seconds": 1.9,
            "rungs": list(RUNGS),
            "lanes": 2,
            "expected_trials": 60,
            "search_seconds": 72.0,
            "final_seconds": 18.0,
            "notes": ["The teacher is 4 times slower than the reference student."],
        },
        "versions": {"autokd": "0.1.0", "torch": "2.15.0", "python": "3.11.9"},
    }


def recipe_of(rng: random.Random) -> Recipe:
    family = rng.choice(sorted(PARAMS))
    terms = [
        {"objective": "kd", "weight": round(10 ** rng.uniform(-1, 1), 4), "temperature": round(rng.uniform(1, 8), 2)},
        {"objective": "dist", "weight": 1.0},
        {"objective": "at", "weight": round(10 ** rng.uniform(0, 2), 3)},
    ]
    return Recipe.from_dict(
        {
            "student": {"family": family, "width": rng.choice([2, 4, 6, 8, 12, 16]), "depth": rng.choice([1, 2, 3])},
            "terms": rng.sample(terms, rng.choice([0, 1, 2])),
            "augment": {"policy": rng.choice(["base", "jda"]), "rho": round(rng.uniform(0, 0.75), 3)},
            "peers": {"count": rng.choice([0, 0, 1])},
            "optim": {"lr": round(10 ** rng.uniform(-2.5, -0.3), 5), "batch": rng.choice([32, 64, 128])},
        }
    )


def quality(recipe: Recipe, params: int) -> float:
    """Where this recipe's learning curve ends."""
    lr_off = abs(math.log10(recipe.optim.lr) + 1.2)
    return min(0.992, 0.90 + 0.02 * math.log10(params / 1000) + 0.015 * bool(recipe.terms) - 0.02 * lr_off)


def write_search(
    folder: Path,
    trials: int = 40,
    finals: bool = True,
    seeds: int = 3,
    finish: bool = True,
    ablation: bool = False,
    **more: Any,
) -> Path:
    """A whole search: trials promoted by thirds, one in twelve failing, finals with two controls, tests, finish."""
    sketch = Sketch(folder, **more)
    best: list[tuple[float, str, Recipe]] = []
    for number in range(trials):
        recipe, trial = recipe_of(sketch.random), f"t{number:04d}"
        sketch.start(trial, recipe)
        if number % 12 == 5:
            sketch.fail(trial, sketch.random.choice(["nan", "chance", "exception"]))
            continue
        done = 0
        for rung in RUNGS:
            if done:
                sketch.ledger.append("resume", trial=trial, to=rung)
            value = sketch.rung(trial, rung, done)
            done = rung
            if rung < RUNGS[-1] and sketch.random.random() > 0.45:
                break
        if done == RUNGS[-1]:
            best.append((value, trial, recipe))
    if finals and best:
        winner = max(best, key=lambda item: item[0])
        write_finals(sketch, winner, seeds)
        if ablation:
            write_ablation(sketch, winner, seeds)
    if finish:
        sketch.ledger.append("finish", reason="budget spent")
    sketch.ledger.close()
    return folder


def write_finals(sketch: Sketch, winner: tuple[float, str, Recipe], seeds: int = 3) -> None:
    value, trial, recipe = winner
    sketch.ledger.append("finals", winner=trial, seeds=list(range(101, 101 + seeds)))
    roles = {"winner": recipe, "default_kd": recipe.with_default_kd(), "no_kd": recipe.without_distillation()}
    offset = {"winner": -0.001, "default_kd": -0.006, "no_kd": -0.017}
    sketch.test("teacher", None, 0.992)
    for role, its_recipe in roles.items():
        for seed in range(101, 101 + seeds):
            name = f"{role}-{seed}"
            sketch.start(name, its_recipe, role=role, seed=seed, to=RUNGS[-1], group=trial)
            reached = sketch.rung(
                name, RUNGS[-1], 0, value=round(value + offset[role] + sketch.random.gauss(0, 0.002), 4)
            )
            sketch.test(role, name, round(reached - 0.003 + sketch.random.gauss(0, 0.001), 4))


def write_ablation(sketch: Sketch, winner: tuple[float, str, Recipe], seeds: int = 3) -> None:
    """Two changes: one that costs a point and a half, and one that does nothing, trained with one seed only."""
    value, trial, recipe = winner
    slow = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"lr": 0.03})})
    jobs = [("without kd", recipe.without_distillation(), seed) for seed in range(101, 101 + seeds)]
    for change, changed, seed in [*jobs, ("optim.lr=0.03", slow, 101)]:
        name, lost = f"{trial}-ablation-{seed}-{changed.id}", 0.015 if changed is not slow else 0.0
        sketch.start(name, changed, "ablation", seed, RUNGS[-1], f"ablation: {change}", trial)
        sketch.rung(name, RUNGS[-1], 0, value=round(value - lost + sketch.random.gauss(0, 0.002), 4))
