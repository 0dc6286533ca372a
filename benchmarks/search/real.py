"""Real searches: this engine against random draws with ASHA, in the same executor, on the same core, with the same finals.

    python -m benchmarks.search.real [--data FOLDER] [--budget 20m] [--seeds 3] [--lanes 2] [--results FOLDER]

Fashion-MNIST (20,000 training rows, an eighth of them for validation, 10,000 test rows), which lies in ../shared/data or where --data says;
its teacher is trained once and cached. Two hours for three seeds; nothing else should run. Both engines take turns at going first, and record
tapes of their own. A run that is stopped goes on with the searches it lacks.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import autokd
from autokd.budget import Budget
from autokd.constraints import parse_limits
from autokd.engine.engine import Decision, Engine, Start
from autokd.engine.sampler import Proposal, Sampler
from autokd.gain import paired_gain
from autokd.history import History, Trial
from autokd.new_search import Asked, begin
from autokd.outcome import SearchResult
from autokd.recipe import Recipe
from autokd.scope import CostOf, space_for
from autokd.session import work
from autokd.taping import tape_place
from benchmarks.core.images import BESIDE
from benchmarks.search.judge import markdown

TEACHER = {"width": 16, "depth1": 1, "depth2": 1, "depth3": 1}
TEACHER_EPOCHS = 15
NINTH = -3  # the rung at a ninth of a full training
Line = dict[str, Any]


class AtRandom(Sampler):
    """Draws from the space's prior, students fitted to the limits as the engine's own are; learns nothing, knows no published recipe."""

    def propose(self, history: History) -> Proposal:
        tried = history.in_role("search")
        rng = random.Random(f"{self.seed}/random/{len(tried)}")
        return self._drawn(rng, {trial.recipe.id for trial in tried}, "random", len(tried))

    def first_recipe(self) -> Recipe:
        """The plan measures the product's own first recipe: a random one would decide how long a full training is."""
        return Sampler(self.space, self.limits, self.cost_of, self.seed).first_recipe()


class Asha(Engine):
    """Random draws; of those that came to a rung the best third goes on, from a ninth of a full training (Li et al., MLSys 2020)."""

    def __init__(self, *settings: Any) -> None:
        super().__init__(*settings)
        given = self.sampler
        self.sampler = AtRandom(given.space, given.limits, given.cost_of, given.seed)

    def propose(self, history: History, elapsed: float) -> Decision:
        decision = super().propose(history, elapsed)
        if isinstance(decision, Start) and decision.role == "search":
            return replace(decision, to=max(decision.to, history.rungs[max(NINTH, -len(history.rungs))]))
        return decision

    def _closing(self, history: History, elapsed: float) -> Trial | None:
        return None


ENGINES: dict[str, type[Engine]] = {"autokd": Engine, "asha-random": Asha}


def main() -> None:
    arguments = _arguments()
    teacher = _teacher(arguments.data)
    print(f"teacher: {teacher.cost.params:,} parameters, validation accuracy {teacher.value:.2%}", flush=True)
    lines: list[Line] = []
    for seed in range(arguments.seeds):
        for name in list(ENGINES)[:: 1 if seed % 2 == 0 else -1]:
            folder = arguments.results / f"{name}-{seed}"
            epochs = lines[0]["rungs"][-1] if lines else None  # a full training is what the first search planned
            lines.append(measured(name, teacher, arguments.budget, seed, arguments.lanes, folder, epochs=epochs))
            print(f"{name}, seed {seed}: {lines[-1]}", flush=True)
    print(report(lines))


def measured(name: str, teacher: autokd.Teacher, budget: str, seed: int, lanes: int, folder: Path, **more: Any) -> Line:
    """What was told of a search that is there to its end; else one from the beginning, without what a killed one left behind."""
    line = folder / "line.json"
    if not line.exists():
        for left in (folder, _tape_of(folder)):
            shutil.rmtree(left, ignore_errors=True)
        line.write_text(
            json.dumps(told(name, seed, searched(teacher, ENGINES[name], budget, seed, lanes, folder, **more)))
        )
    found: Line = json.loads(line.read_text())
    return found


def _tape_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-tape")


def searched(
    teacher: autokd.Teacher,
    kind: type[Engine],
    budget: str,
    seed: int,
    lanes: int,
    folder: Path,
    executor: str = "ray",
    students: Sequence[object] | None = None,
    constraints: Mapping[str, object] | None = None,
    epochs: int | None = None,
) -> SearchResult:
    """What `autokd.search` does, with an engine of this kind."""
    chosen = space_for(teacher, None, None, students)
    limits = parse_limits(constraints, teacher.cost)
    engine = kind(chosen, limits, CostOf(teacher.data), teacher.cost, lanes, seed, True, False)
    asked = Asked(
        teacher=teacher,
        budget=Budget.parse(budget),
        engine=engine,
        wanted={"goals": (teacher.task.metric,), "prefer": None, "probe": None},
        tape=tape_place(_tape_of(folder), None),
        device="cpu",
        epochs=epochs,
        run_dir=folder,
        name=folder.name,
        executor=executor,
        lanes=lanes,
        ray_address=None,
        tracking_uri=None,
        shown_uri=None,
        verbose=True,
    )
    with ExitStack() as stack:
        return work(begin(asked, stack))


def told(name: str, seed: int, result: SearchResult) -> Line:
    """What is compared, of one search."""
    rows = {row.role: row for row in result.rows()}
    winner, tried = rows["winner"], result.history.in_role("search")
    return {
        "engine": name,
        "seed": seed,
        "trials": len(tried),
        "complete": sum(trial.state == "complete" for trial in tried),
        "rungs": list(result.history.rungs),
        "in_search": result.history.trials[result.history.winner or ""].value,
        "params": winner.params,
        "validation": list(winner.values),
        "tests": {role: list(row.tests) for role, row in rows.items()},
    }


def report(lines: Sequence[Line]) -> str:
    """One row a search, then the engines' means and what the winners gained over default KD."""
    head = [
        "engine",
        "seed",
        "trials (to the end)",
        "validation in the search",
        "retrained",
        "test",
        "default KD",
        "no KD",
    ]
    shown = markdown(head, [_row(line) for line in lines])
    said = []
    for name in dict.fromkeys(line["engine"] for line in lines):
        own = [line for line in lines if line["engine"] == name]
        search, again = (
            statistics.mean(line["in_search"] for line in own),
            statistics.mean(statistics.mean(line["validation"]) for line in own),
        )
        said.append(f"* {name}: validation accuracy {search:.2%} in the search, {again:.2%} retrained. {_gained(own)}")
    return "\n".join([shown, "", *said])


def _row(line: Line) -> list[str]:
    tests = line["tests"]
    shares = [line["in_search"], statistics.mean(line["validation"])]
    scores = [_scores(tests.get(role, ())) for role in ("winner", "default_kd", "no_kd")]
    trials = f"{line['trials']} ({line['complete']})"
    return [line["engine"], str(line["seed"]), trials, *(f"{share:.2%}" for share in shares), *scores]


def _scores(tests: Sequence[float]) -> str:
    return " ".join(f"{test:.2%}" for test in tests) or "-"


def _gained(lines: Sequence[Line]) -> str:
    """Winners against default KD in their architectures, over the final seeds of all searches."""
    pairs = [zip(line["tests"]["winner"], line["tests"].get("default_kd", ()), strict=False) for line in lines]
    gain = paired_gain("default_kd", "test", [winner - control for each in pairs for winner, control in each])
    return "No control was trained." if gain is None else gain.sentence()


def _teacher(folder: Path) -> autokd.Teacher:
    data = autokd.Data.load(folder / "fashion_mnist" / "fashion_mnist.npz", flip=True, pad=1)
    return autokd.Teacher.fit(data, "resnet", spec=TEACHER, epochs=TEACHER_EPOCHS)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=BESIDE)
    parser.add_argument("--budget", default="20m")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("runs/real-search"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
