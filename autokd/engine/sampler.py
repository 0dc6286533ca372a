"""Which recipe next: published ones, then quasi-random ones from the prior, then mostly a model's.

The model is Optuna's multivariate, grouped TPE, fitted to one rung only: the highest with enough trials. Its values are ranks within
that rung, failures are ranked worst, running trials are imputed (constant liar).
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autokd.constraints import Cost, Limits
from autokd.engine.rungs import at_rung
from autokd.errors import ConstraintError, InputError
from autokd.history import History, Trial
from autokd.recipe import Recipe, StudentSpec, Value
from autokd.space import Field, Space

if TYPE_CHECKING:
    import optuna

Point = dict[str, Value]
QUASI_RANDOM = 8  # recipes between the published ones and the model
MODEL_SHARE = 0.75  # of the recipes after that; the rest come from the prior
MODEL_MOST = 200  # trials the model is fitted to, the best and the newest
MODEL_CANDIDATES = 20  # proposals of the model tried against the constraints
DRAWS = 2000  # draws before a constraint is called unsatisfiable


@dataclass(frozen=True)
class Proposal:
    recipe: Recipe
    point: Point
    source: str
    cost: Cost


class Sampler:
    """Proposes recipes that satisfy the limits. Deterministic: a function of the seed and the history."""

    def __init__(self, space: Space, limits: Limits, cost_of: Callable[[StudentSpec], Cost], seed: int) -> None:
        self.space, self.limits, self.cost_of, self.seed = space, limits, cost_of, seed

    def propose(self, history: History) -> Proposal:
        """The next recipe. Raises ConstraintError if none can be found within the limits."""
        tried = history.in_role("search")
        seen = {trial.recipe.id for trial in tried}
        number = len(tried)
        published = self._published(number, seen)
        if published is not None:
            return published
        rng = random.Random(f"{self.seed}/{number}")
        rung = self._model_rung(history)
        if rung is not None and rng.random() < MODEL_SHARE:
            found = self._from_model(history, rung, number, seen)
            if found is not None:
                return found
        quasi = number < len(self.space.first) + QUASI_RANDOM
        return self._drawn(rng, seen, "quasi-random" if quasi else "prior", number)

    def check_satisfiable(self) -> None:
        """Raise ConstraintError, naming the smallest student of the space, unless some student is within the limits."""
        smallest: dict[str, int] = {}
        for point in self._corner_points():
            cost = self._cost(point)
            if cost is not None and self.limits.allow(cost):
                return
            if cost is not None:
                smallest = {name: min(smallest.get(name, value), value) for name, value in vars(cost).items()}
        if not smallest:
            raise ConstraintError("no student family of the space takes such inputs; choose other families")
        wanted = ", ".join(f"{name} <= {limit:,.0f}" for name, limit in vars(self.limits).items() if limit is not None)
        least = ", ".join(f"{value:,} {name}" for name, value in smallest.items())
        raise ConstraintError(
            f"no student of space '{self.space.name}' satisfies {wanted}; the smallest possible has {least}"
        )

    def first_recipe(self) -> Recipe:
        """What will be tried first; its cost stands for the others' in a plan."""
        return self.propose(History()).recipe

    # ---- where points come from

    def _published(self, number: int, seen: set[str]) -> Proposal | None:
        """The first published recipe that was not tried, its student fitted to the limits."""
        if number >= len(self.space.first):
            return None
        for name, partial in self.space.first[number:]:
            point = self._with_student_within_limits(self.space.complete(partial))
            found = None if point is None else self._accept(point, f"published: {name}", seen)
            if found is not None:
                return found
        return None

    def _drawn(self, rng: random.Random, seen: set[str], source: str, number: int) -> Proposal:
        width = len(self.space.fields)
        quasi = _sobol(width, number, self.seed) if source == "quasi-random" else None
        for attempt in range(DRAWS):
            u = quasi if quasi is not None and attempt == 0 else [rng.random() for _ in range(width)]
            found = self._accept(self.space.quantile(u, prior=True), source, seen)
            if found is not None:
                return found
        raise ConstraintError(
            f"{DRAWS} draws from space '{self.space.name}' gave no new student within the limits; widen either"
        )

    def _from_model(self, history: History, rung: int, number: int, seen: set[str]) -> Proposal | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna calls multivariate and group experimental
            study = _study(self.space, history, rung, seed=hash((self.seed, number)) & 0x7FFFFFFF)
            for _ in range(MODEL_CANDIDATES):
                found = self._accept(self.space.suggest(study.ask()), "model", seen)
                if found is not None:
                    return found
        return None

    def _model_rung(self, history: History) -> int | None:
        """The highest rung with enough trials to fit a model to."""
        if len(history.in_role("search")) < len(self.space.first) + QUASI_RANDOM:
            return None
        enough = max(10, min(len(self.space.fields), 20) + 1)
        return next((rung for rung in reversed(history.rungs) if len(at_rung(history, rung)) >= enough), None)

    # ---- limits

    def _accept(self, point: Point, source: str, seen: set[str]) -> Proposal | None:
        cost = self._cost(point)
        if cost is None or not self.limits.allow(cost):
            return None
        recipe = self.space.recipe(point)
        return None if recipe.id in seen else Proposal(recipe, point, source, cost)

    def _cost(self, point: Point) -> Cost | None:
        try:
            return self.cost_of(self.space.recipe(point).student)
        except InputError:  # this family cannot take such inputs
            return None

    def _with_student_within_limits(self, point: Point) -> Point | None:
        """The point itself, or with the student of the prior that comes closest to the limits from below."""
        cost = self._cost(point)
        if cost is not None and self.limits.allow(cost):
            return point
        rest = {name: value for name, value in point.items() if not name.startswith("student.")}
        rng = random.Random(self.seed)
        best: tuple[int, Point] | None = None
        for _ in range(64):
            drawn = self.space.quantile([rng.random() for _ in self.space.fields], prior=True)
            student = {name: value for name, value in drawn.items() if name.startswith("student.")}
            candidate = self.space.complete(student | rest)
            cost = self._cost(candidate)
            if cost is not None and self.limits.allow(cost) and (best is None or cost.params > best[0]):
                best = (cost.params, candidate)
        return None if best is None else best[1]

    def _corner_points(self) -> list[Point]:
        """For every family, the point whose student fields are lowest, and some draws for families with choices."""
        family = next(f for f in self.space.fields if f.name == "student.family")
        points = []
        for name in family.choices or (_lowest(family),):
            lowest: dict[str, Value] = {"student.family": name}
            lowest |= {f.name: _lowest(f) for f in self.space.fields if f.name.startswith(f"student.{name}.")}
            points.append(self.space.complete(lowest))
        rng = random.Random(self.seed)
        return points + [self.space.quantile([rng.random() for _ in self.space.fields]) for _ in range(64)]


def _lowest(field: Field) -> Value:
    return next(value for value in (field.low, *field.choices, field.fixed) if value is not None)


def _sobol(width: int, number: int, seed: int) -> list[float]:
    """Point `number` of a scrambled Sobol sequence."""
    from scipy.stats import qmc

    engine = qmc.Sobol(width, scramble=True, seed=np.random.default_rng(seed))
    if number:
        engine.fast_forward(number)
    return [float(u) for u in engine.random(1)[0]]


def _study(space: Space, history: History, rung: int, seed: int) -> optuna.Study:
    """An Optuna study of one rung: ranks for values, failures worst, running trials imputed."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(
        multivariate=True, group=True, constant_liar=True, n_startup_trials=0, seed=seed
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    reached = at_rung(history, rung)
    half = MODEL_MOST // 2
    if len(reached) > MODEL_MOST:
        newest = sorted(reached[half:], key=lambda trial: trial.started)[-half:]
        reached = reached[:half] + sorted(newest, key=reached.index)
    failed = [t for t in history.in_role("search") if t.state == "failed"][-half:]
    ranked: Sequence[Trial] = [*reached, *failed]
    for place, trial in enumerate(ranked):
        rank = 1 - place / max(1, len(ranked) - 1) if trial.state != "failed" else 0.0
        study.add_trial(_frozen(space, trial.point, rank))
    for trial in history.running:
        if trial.role == "search":
            study.add_trial(_frozen(space, trial.point, None))
    return study


def _frozen(space: Space, point: Mapping[str, Value], value: float | None) -> optuna.trial.FrozenTrial:
    import optuna

    recorder = _Recorder(point)
    space.suggest(recorder)
    state = optuna.trial.TrialState.RUNNING if value is None else optuna.trial.TrialState.COMPLETE
    return optuna.trial.create_trial(
        state=state, value=value, params=recorder.params, distributions=recorder.distributions
    )


class _Recorder:
    """Stands in for an Optuna trial while a space walks over a known point, and keeps the distributions it passes."""

    def __init__(self, point: Mapping[str, Value]) -> None:
        self.point = point
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, Any] = {}

    def _take(self, name: str, distribution: Any) -> Any:
        self.params[name], self.distributions[name] = self.point[name], distribution
        return self.point[name]

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False, step: float | None = None) -> Any:
        from optuna.distributions import FloatDistribution

        return self._take(name, FloatDistribution(low, high, log=log, step=step))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False, step: int = 1) -> Any:
        from optuna.distributions import IntDistribution

        return self._take(name, IntDistribution(low, high, log=log, step=step))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        from optuna.distributions import CategoricalDistribution

        return self._take(name, CategoricalDistribution(choices))
