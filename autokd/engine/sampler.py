"""Which recipe next: published ones, then quasi-random ones from the prior, then mostly a model's.

The model is Optuna's multivariate, grouped TPE, fitted to one rung only: the highest with enough trials. Its values are ranks within
that rung, failures are ranked worst, running trials are imputed (constant liar).
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from autokd.constraints import Cost, Limits
from autokd.engine.feasibility import Feasibility
from autokd.engine.prior import SOURCE, Observation, Prior
from autokd.engine.rungs import at_rung, for_model
from autokd.errors import ConstraintError, InputError
from autokd.history import History, Trial
from autokd.recipe import Recipe, StudentSpec, Value
from autokd.space import Field, Space

if TYPE_CHECKING:
    import optuna

Point = dict[str, Value]
EPOCH = datetime(1970, 1, 1)  # when trials were run does not matter to the model
QUASI_RANDOM = 8  # recipes between the published ones and the model
MODEL_SHARE = 0.75  # of the recipes after that; the rest come from the prior
MODEL_MOST = 100  # trials the model is fitted to, the best and the newest
MODEL_PAYS = (
    0.3  # seconds of a visit to a rung, ten times what asking the model takes: below, drawing is the better bargain
)
MODEL_CANDIDATES = 20  # proposals of the model tried against the constraints
DRAWS = 400  # draws before the space is called exhausted
FREE_DRAWS = 20  # of these; the others take a student that is known to be within the limits
SHRINKS = 6  # steps by which a student drawn too large is made smaller
STUDENTS = 64  # drawn to find such students


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
        self._exhausted = False
        self._feasibility = Feasibility.of(History())
        self._recorded: dict[tuple[tuple[str, Value], ...], _Recorder] = {}

    def propose(self, history: History) -> Proposal:
        """The next recipe. Raises ConstraintError if none can be found within the limits."""
        self._feasibility = Feasibility.of(history)
        tried = history.in_role("search")
        seen = {trial.recipe.id for trial in tried}
        number, prior = len(tried), Prior.of(history)
        begun = sum(trial.source.startswith(SOURCE) for trial in tried)
        published = self._earlier(prior.more(history), seen) or self._published(number - begun, seen)
        if published is not None:
            return published
        rng = random.Random(f"{self.seed}/{number}")
        rung = self._model_rung(history)
        if rung is not None and rng.random() < MODEL_SHARE:
            found = self._from_model(history, rung, number, seen)
            if found is not None:
                return found
        quasi = number - begun < len(self.space.published) + QUASI_RANDOM
        return self._drawn(rng, seen, "quasi-random" if quasi else "prior", number)

    def check_satisfiable(self) -> None:
        """Raise ConstraintError, naming the smallest students of the space, unless some student is within the limits."""
        costs = [cost for cost in map(self._cost, self._lowest_points() + self._drawn_points()) if cost is not None]
        if not costs:
            raise ConstraintError("no student family of the space takes such inputs; choose other families")
        if any(self.limits.allow(cost) for cost in costs):
            return
        raise ConstraintError(
            f"no student of space '{self.space.name}' satisfies {self.limits.unmet_by(costs)}; loosen the limit"
        )

    def first_recipe(self) -> Recipe:
        """What will be tried first; its cost stands for the others' in a plan."""
        return self.propose(History()).recipe

    # ---- where points come from

    def _published(self, number: int, seen: set[str]) -> Proposal | None:
        """The first published recipe that was not tried, its student fitted to the limits."""
        for entry in self.space.published[number:]:
            named = dict(entry.values)
            point = self._with_largest_student(self.space.complete(named), set(named))
            found = None if point is None else self._accept(point, f"published: {entry.name}", seen)
            if found is not None:
                return found
        return None

    def _earlier(self, best: Iterable[Observation], seen: set[str]) -> Proposal | None:
        """The first of the best earlier recipes that was not tried, its student fitted to the limits."""
        for each in best:
            losses = {name for name in each.point if not name.startswith("student.")}
            point = self._with_largest_student(each.point, losses)
            found = None if point is None else self._accept(point, SOURCE + each.name, seen)
            if found is not None:
                return found
        return None

    def _drawn(self, rng: random.Random, seen: set[str], source: str, number: int) -> Proposal:
        width = len(self.space.fields)
        for attempt in range(0 if self._exhausted else DRAWS):
            quasi = source == "quasi-random" and attempt == 0
            u = _sobol(width, number, self.seed) if quasi else [rng.random() for _ in range(width)]
            point = self._shrunk(u)
            if attempt >= FREE_DRAWS and self._allowed:
                point = self._with_student(point, rng.choice(self._allowed))
            found = self._accept(point, source, seen)
            if found is not None:
                return found
        self._exhausted = True
        raise ConstraintError(
            f"{DRAWS} draws from space '{self.space.name}' gave no new recipe within the limits; widen either"
        )

    def _shrunk(self, u: Sequence[float]) -> Point:
        """The point at `u`, its student made smaller until it is within the limits, or as small as it is worth trying."""
        point = self.space.quantile(u, prior=True)
        sizes = [field.name.startswith("student.") and field.kind != "choice" for field in self.space.fields]
        for _ in range(SHRINKS):
            cost = self._cost(point)
            if cost is None or self.limits.allow(cost):
                break
            u = [0.6 * share if size else share for share, size in zip(u, sizes, strict=True)]
            point = self.space.quantile(u, prior=True)
        return point

    def _from_model(self, history: History, rung: int, number: int, seen: set[str]) -> Proposal | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna calls multivariate and group experimental
            study = self._study(history, rung, seed=hash((self.seed, number)) & 0x7FFFFFFF)
            for _ in range(MODEL_CANDIDATES):
                found = self._accept(self.space.suggest(study.ask()), "model", seen)
                if found is not None:
                    return found
        return None

    def _model_rung(self, history: History) -> int | None:
        """The highest rung with enough trials to fit a model to; None where the trials cost less than the model."""
        tried = history.in_role("search")
        visits = sum(len(trial.values) for trial in tried)
        if len(tried) < len(self.space.published) + QUASI_RANDOM:
            return None
        if sum(trial.seconds for trial in tried) < MODEL_PAYS * visits:
            return None
        enough = max(10, min(len(self.space.fields), 20) + 1)
        return next((rung for rung in reversed(history.rungs) if len(at_rung(history, rung)) >= enough), None)

    # ---- limits

    def _accept(self, point: Point, source: str, seen: set[str]) -> Proposal | None:
        cost = self._cost(point)
        if cost is None or not self._admits(point, cost):
            return None
        recipe = self.space.recipe(point)
        return None if recipe.id in seen else Proposal(recipe, point, source, cost)

    def _admits(self, point: Point, cost: Cost) -> bool:
        """Whether the student is within the computed limits, and likely within the measured one."""
        if not self._feasibility.limited:
            return self.limits.allow(cost)
        return self.limits.allow(cost) and self._feasibility.admits(self.space.recipe(point).student, cost)

    def _cost(self, point: Point) -> Cost | None:
        try:
            return self.cost_of(self.space.recipe(point).student)
        except InputError:  # this family cannot take such inputs
            return None

    def _with_largest_student(self, point: Point, named: set[str]) -> Point | None:
        """The point itself, or with the largest known student within the limits that leaves the `named` fields in place."""
        cost = self._cost(point)
        if cost is not None and self._admits(point, cost):
            return point
        candidates = [self._with_student(point, student) for student in self._allowed]
        kept = [other for other in candidates if all(other.get(name) == point[name] for name in named & set(point))]
        costs = [(other, self._cost(other)) for other in kept]
        return max((p for p, c in costs if c is not None and self._admits(p, c)), key=self._params, default=None)

    def _with_student(self, point: Point, student: Point) -> Point:
        rest = {name: value for name, value in point.items() if not name.startswith("student.")}
        return self.space.complete(student | rest)

    def _params(self, point: Point) -> int:
        cost = self._cost(point)
        return 0 if cost is None else cost.params

    @cached_property
    def _allowed(self) -> list[Point]:
        """Student fields of some points within the limits."""
        points = self._lowest_points() + self._drawn_points()
        costs = [self._cost(point) for point in points]
        allowed = [p for p, cost in zip(points, costs, strict=True) if cost is not None and self.limits.allow(cost)]
        return [{name: value for name, value in p.items() if name.startswith("student.")} for p in allowed]

    def _lowest_points(self) -> list[Point]:
        """For every family, the point whose student fields are lowest."""
        families = next(entry.choices for entry in self.space.fields if entry.name == "student.family")
        points = []
        for name in families:
            lowest: Point = {"student.family": name}
            lowest |= {f.name: _lowest(f) for f in self.space.fields if f.name.startswith(f"student.{name}.")}
            points.append(self.space.complete(lowest))
        return points

    def _drawn_points(self) -> list[Point]:
        rng = random.Random(self.seed)
        return [self.space.quantile([rng.random() for _ in self.space.fields]) for _ in range(STUDENTS)]

    # ---- the model

    def _study(self, history: History, rung: int, seed: int) -> optuna.Study:
        """An Optuna study of one rung: ranks for values, failures worst, running trials imputed."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(
            multivariate=True, group=True, constant_liar=True, n_startup_trials=0, seed=seed
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        ranked = _best_and_newest(for_model(history, rung, key=str(seed)))
        failed = [t for t in history.in_role("search") if t.state == "failed"][-MODEL_MOST // 2 :]
        for place, trial in enumerate(ranked):
            study.add_trial(self._as_optuna(trial.point, 1 - place / (len(ranked) + bool(failed))))
        for trial in failed:
            study.add_trial(self._as_optuna(trial.point, 0.0))
        for point, value in Prior.of(history).told(history, own=len(ranked)):
            study.add_trial(self._as_optuna(point, value))
        for trial in history.running:
            if trial.role == "search" and rung not in trial.values:
                study.add_trial(self._as_optuna(trial.point, None))
        return study

    def _as_optuna(self, point: Point, value: float | None) -> optuna.trial.FrozenTrial:
        import optuna

        key = tuple(point.items())
        if key not in self._recorded:
            recorder = _Recorder(point)
            self.space.suggest(recorder)
            self._recorded[key] = recorder
        known = self._recorded[key]
        done = value is not None
        return optuna.trial.FrozenTrial(
            number=-1,
            trial_id=-1,  # the study gives both
            state=optuna.trial.TrialState.COMPLETE if done else optuna.trial.TrialState.RUNNING,
            value=value,
            datetime_start=EPOCH,
            datetime_complete=EPOCH if done else None,
            params=known.params,
            distributions=known.distributions,
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )


def _best_and_newest(reached: list[Trial]) -> list[Trial]:
    """At most MODEL_MOST trials in their order: the best half, and of the others the newest."""
    half = MODEL_MOST // 2
    newest = {trial.id for trial in sorted(reached[half:], key=lambda trial: trial.started)[-half:]}
    return [trial for place, trial in enumerate(reached) if place < half or trial.id in newest]


def _lowest(field: Field) -> Value:
    if field.kind != "choice":
        return field.canonical(field.low)
    numbers = [choice for choice in field.choices if isinstance(choice, int | float)]
    return min(numbers, default=field.choices[0])


def _sobol(width: int, number: int, seed: int) -> list[float]:
    """Point `number` of a scrambled Sobol sequence."""
    from scipy.stats import qmc

    engine = qmc.Sobol(width, scramble=True, seed=np.random.default_rng(seed))
    if number:
        engine.fast_forward(number)
    return [float(u) for u in engine.random(1)[0]]


class _Shared(dict[str, Any]):
    """Not copied with the trial that holds it: Optuna's storage copies every trial it is given, at a third of a millisecond."""

    def __deepcopy__(self, memo: object) -> _Shared:
        return self


class _Recorder:
    """Stands in for an Optuna trial while a space walks over a known point, and keeps the distributions it passes."""

    def __init__(self, point: Mapping[str, Value]) -> None:
        self.point = point
        self.params: dict[str, Any] = _Shared()
        self.distributions: dict[str, Any] = _Shared()

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
