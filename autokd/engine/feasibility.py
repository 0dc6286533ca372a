"""How likely an architecture keeps to a measured limit, learnt from those that were probed, so that few probes are wasted.

Latency is regressed on what is known before: log FLOPs, parameters and memory, and the numbers in the student's spec, whose sum
says how deep it is (small networks wait for their layers rather than for arithmetic). A ridge regression of its logarithm, and
the spread of what it leaves, give a probability.

Chosen on the latencies of 149 students of the space "images" and 126 of "digits", one CPU thread, each until 15 that keep to the
limit were found, means of six orders. Wasted probes where a fifth of the students keep to it: 9.8 and 5.5, against 60.5 and 50.7
without a model, 16.5 and 9.3 from FLOPs alone, 11.8 and 7.7 by logistic regression, 16.3 and 10.3 by a random forest, 15.2 and 5.5
by a rule on FLOPs; where half do: 3.7 and 6.2 against 13.0 and 13.8. (Of so tight a limit on 149 students, the regression came to eight.)
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from autokd.constraints import Cost
from autokd.history import History
from autokd.probe import Probe
from autokd.recipe import StudentSpec

FEWEST = 4  # probed architectures before there is a model
RIDGE = 0.1
LEAST_SPREAD = 0.05  # of the logarithm: two measurements of one network differ by as much
LEAST = 0.02  # probability with which even the least likely is tried


@dataclass(frozen=True)
class Feasibility:
    """For one state of a search. Without a measured limit everything is feasible."""

    probe: Probe | None
    latencies: dict[str, float]
    weights: np.ndarray | None = None
    means: np.ndarray | None = None
    spread: float = 0.0

    @classmethod
    def of(cls, history: History) -> Feasibility:
        written = history.head.get("probe")
        probe = Probe(**written) if written else None
        if probe is None or probe.most is None or len(history.latencies) < FEWEST:
            return cls(probe, history.latencies)
        known = {trial.recipe.student.key: trial for trial in history.in_role("search") if trial.latency_ms}
        seen = np.array([_features(trial.recipe.student, trial.cost) for trial in known.values()])
        took = np.log([history.latencies[key] for key in known])
        means = np.append(seen.mean(axis=0), took.mean())
        centred = seen - means[:-1]
        weights = np.linalg.solve(centred.T @ centred + RIDGE * np.eye(seen.shape[1]), centred.T @ (took - means[-1]))
        left = took - means[-1] - centred @ weights
        spread = math.sqrt(float(left @ left) / max(1, len(known) - 2))
        return cls(probe, history.latencies, weights, means, max(spread, LEAST_SPREAD))

    @property
    def limited(self) -> bool:
        return self.probe is not None and self.probe.most is not None

    def probability(self, spec: StudentSpec, cost: Cost) -> float:
        """That this architecture keeps to the limit; 0 or 1 where it was measured."""
        if self.probe is None or self.probe.most is None:
            return 1.0
        if spec.key in self.latencies:
            return float(self.probe.allows(self.latencies[spec.key]))
        if self.weights is None or self.means is None:
            return 1.0
        expected = self.means[-1] + (_features(spec, cost) - self.means[:-1]) @ self.weights
        return max(LEAST, NormalDist(float(expected), self.spread).cdf(math.log(self.probe.most)))

    def admits(self, spec: StudentSpec, cost: Cost) -> bool:
        """Whether to go on with it: drawn by its probability, and always the same for one state of the search."""
        chance = self.probability(spec, cost)
        return chance > 0 and random.Random(f"{spec.key}/{len(self.latencies)}").random() < chance


def _features(spec: StudentSpec, cost: Cost) -> np.ndarray:
    numbers = {name: value for name, value in spec.fields.items() if isinstance(value, int | float)}
    depth = sum(value for name, value in numbers.items() if "depth" in name)
    return np.array(
        [*(math.log(1 + amount) for amount in (cost.flops, cost.params, cost.memory)), math.log(1 + depth), depth / 10]
    )
