"""Which recipe next: published ones, then quasi-random ones from the prior, then mostly a model's.

The model is a Gaussian process per rung (surrogate.py) asked for the largest expected improvement per unit of cost (acquisition.py). In
spaces of more columns than such a process can learn it is Optuna's TPE (tpe.py). One recipe in four still comes from the prior: whatever
the model believes, a search is never much worse than a random one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice

import numpy as np
from threadpoolctl import ThreadpoolController

from autokd.constraints import Cost, Limits
from autokd.engine.acquisition import candidates
from autokd.engine.cost import CostModel, thrift
from autokd.engine.encoding import Encoding, Rows
from autokd.engine.feasibility import Feasibility
from autokd.engine.prior import SOURCE, Observation, Prior
from autokd.engine.rungs import at_rung
from autokd.engine.surrogate import surrogate
from autokd.engine.tpe import Tpe
from autokd.errors import ConstraintError, InputError
from autokd.history import History
from autokd.recipe import Recipe, StudentSpec
from autokd.rules import Value
from autokd.space import Space
from autokd.space_fields import Field, Point

QUASI_RANDOM = 8  # recipes before the model, published ones among them
QUASI_LEAST = 4  # of these not published
MODEL_SHARE = 0.75  # of the recipes after that; the rest come from the prior
MODEL_LEAST = 6  # trials at the first rung for a model
MODEL_PAYS = (
    0.3  # seconds of a visit to a rung, ten times what asking the model takes: below, drawing is the better bargain
)
MODEL_CANDIDATES = 20  # proposals of the model tried against the constraints
MOST_COLUMNS = 60  # searched fields for which the processes are used; TPE in larger spaces
DRAWS = 400  # draws before the space is called exhausted
FREE_DRAWS = 20  # of these; the others take a student that is known to be within the limits
SHRINKS = 6  # steps by which a student drawn too large is made smaller
SHRINK = 0.6  # to this share of its sizes' ranges, each
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
        self.encoding = Encoding(space)
        self.tpe = Tpe(space)
        self._exhausted = False
        self._feasibility = Feasibility.of(History())
        self._sizes = np.array([f.name.startswith("student.") and f.kind != "choice" for f in self.encoding.fields])

    def propose(self, history: History) -> Proposal:
        """The next recipe. Raises ConstraintError if none can be found within the limits."""
        self._feasibility = Feasibility.of(history)
        tried = history.in_role("search")
        seen = {trial.recipe.id for trial in tried}
        number, prior = len(tried), Prior.of(history)
        own = number - sum(
            trial.source.startswith(SOURCE) for trial in tried
        )  # earlier recipes stand in nobody's stead
        published = self._earlier(prior.more(history), seen) or self._published(own, seen)
        if published is not None:
            return published
        rng = random.Random(f"{self.seed}/{number}")
        if own >= self._before_model and self._model_ready(history) and rng.random() < MODEL_SHARE:
            found = self._from_model(history, number, seen)
            if found is not None:
                return found
        quasi = own < self._before_model
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

    def sample(self, count: int) -> list[Proposal]:
        """What would be tried first if nothing were learnt from it: published recipes, then draws; fewer from a small space."""
        alone, found = Sampler(self.space, self.limits, self.cost_of, self.seed), list[Proposal]()
        seen: set[str] = set()
        with suppress(ConstraintError):
            while len(found) < count:
                rng = random.Random(f"{self.seed}/sample/{len(found)}")
                number = len(found)
                found.append(alone._published(number, seen) or alone._drawn(rng, seen, "prior", number))
                seen.add(found[-1].recipe.id)
        return found

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
            u = [SHRINK * share if size else share for share, size in zip(u, sizes, strict=True)]
            point = self.space.quantile(u, prior=True)
        return point

    def _from_model(self, history: History, number: int, seen: set[str]) -> Proposal | None:
        with _algebra().limit(
            limits=1
        ):  # matrices this small take ten times as long on several threads that wait for a busy core
            points = islice(self._model_points(history, number), MODEL_CANDIDATES)
            accepted = (self._accept(point, "model", seen) for point in points)
            return next((found for found in accepted if found is not None), None)

    def _model_points(self, history: History, number: int) -> Iterator[Point]:
        """What the model likes, the best first."""
        rng = np.random.default_rng([self.seed, number])
        if len(self.encoding.fields) > MOST_COLUMNS:
            yield from self.tpe.points(history, self._tpe_rung(history), int(rng.integers(2**31)))
        believed = surrogate(history, self.encoding, key=str(number))
        if believed is not None:
            power = thrift(history)
            costs = CostModel.fitted(history, self.encoding) if power else None
            likely = self._log_chance if self._feasibility.limited else None
            for row in candidates(self.encoding, believed, costs, power, rng, likely):
                yield self._shrunk_row(row)

    def _tpe_rung(self, history: History) -> int:
        """The highest rung with enough trials for TPE, which takes one rung only."""
        enough = max(10, min(len(self.space.fields), 20) + 1)
        found = (rung for rung in reversed(history.rungs) if len(at_rung(history, rung)) >= enough)
        return next(found, history.rungs[0])

    @property
    def _before_model(self) -> int:
        """Trials begun before the model is asked, beside earlier recipes."""
        published = len(self.space.published)
        return published + max(QUASI_LEAST, QUASI_RANDOM - published)

    def _model_ready(self, history: History) -> bool:
        """Whether there are trials enough to fit a model to, and they cost more than asking it does."""
        tried = history.in_role("search")
        visits = sum(len(trial.values) for trial in tried)
        if sum(trial.seconds for trial in tried) < MODEL_PAYS * visits:
            return False
        return sum(bool(trial.values) for trial in tried) >= MODEL_LEAST

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

    def _log_chance(self, row: Rows) -> float:
        """Log of the probability that the student of a row keeps to the measured limit."""
        point = self._shrunk_row(row)
        cost = self._cost(point)
        chance = 0.0 if cost is None else self._feasibility.probability(self.space.recipe(point).student, cost)
        return math.log(chance) if chance else -math.inf

    def _cost(self, point: Point) -> Cost | None:
        try:
            return self.cost_of(self.space.recipe(point).student)
        except InputError:  # this family cannot take such inputs
            return None

    def _shrunk_row(self, row: Rows) -> Point:
        """The point of a row, its student made smaller until it is within the limits, or as small as it is worth trying."""
        point = self.encoding.point(row)
        for _ in range(SHRINKS):
            cost = self._cost(point)
            if cost is None or self.limits.allow(cost):
                break
            row = self.encoding.settle(np.where(self._sizes, SHRINK * row, row)[None])[0]
            point = self.encoding.point(row)
        return point

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


@cache
def _algebra() -> ThreadpoolController:
    """Of the libraries that numpy and scipy calculate with, looked for once: that takes milliseconds."""
    return ThreadpoolController()


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
