"""Where to look next: expected improvement per unit of cost, over candidates from the prior and around the best."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import erfcx, log_ndtr

from autokd.engine.cost import CostModel
from autokd.engine.encoding import Encoding, Rows
from autokd.engine.surrogate import Surrogate

AFAR = 0.5  # of the questions
FROM_AFAR = 512  # candidates
FROM_PRIOR = 256
AROUND = 8  # of the best trials, and later of the best candidates, have neighbours looked at
NEIGHBOURS = 24  # of each
SCALES = (0.2, 0.05)  # how far from the best trials
WEIGHED = 48  # of the best rows, whose students are described to tell their chance: that takes milliseconds each
REFINEMENTS = (0.1, 0.03, 0.01)  # and then from the best candidates


def log_expected_improvement(mean: Rows, deviation: Rows, best: float) -> Rows:
    """log E[max(0, f - best)], also where the improvement is far below what a float can hold (Ament et al., 2023)."""
    z = (mean - best) / deviation
    log_density = -0.5 * z**2 - 0.5 * np.log(2 * np.pi)
    near = np.exp(log_density) + z * np.exp(log_ndtr(z))
    mills = np.sqrt(np.pi / 2) * erfcx(-z / np.sqrt(2))  # Phi(z) / phi(z)
    with np.errstate(invalid="ignore", divide="ignore"):
        far = log_density + np.log(np.maximum(1 + z * mills, 1e-300))
        far = np.where(z < -1e3, log_density - 2 * np.log(-z), far)
        return np.asarray(np.log(deviation) + np.where(z > -1, np.log(near), far))


def candidates(
    encoding: Encoding,
    model: Surrogate,
    costs: CostModel | None,
    thrift: float,
    rng: np.random.Generator,
    log_chance: Callable[[Rows], float] | None = None,
) -> Rows:
    """Rows in the order of preference, the best first.

    Half of the time from afar, where no candidate was placed near a good trial, so that a search does not settle on its first success;
    else also close to the best, step by step closer. `thrift` is the power of the cost that improvement is divided by.
    With `log_chance`, of one row, the first of them are put in the order of their improvement times the chance that it may be had.
    """

    def score(rows: Rows) -> Rows:
        gain = log_expected_improvement(*model.predict(rows), model.best)
        return gain if costs is None else gain - thrift * costs.log_cost(rows)

    if rng.random() < AFAR:
        found = encoding.draw(rng, FROM_AFAR)
        return weighed(found, score(found), log_chance)
    near = [encoding.vary(rng, np.repeat(model.tried[:AROUND], NEIGHBOURS, axis=0), scale) for scale in SCALES]
    found = np.concatenate([encoding.draw(rng, FROM_PRIOR), *near])
    liked = score(found)
    for scale in REFINEMENTS:
        more = encoding.vary(rng, np.repeat(_ordered(found, liked)[:AROUND], NEIGHBOURS, axis=0), scale)
        found, liked = np.concatenate([found, more]), np.concatenate([liked, score(more)])
    return weighed(found, liked, log_chance)


def weighed(rows: Rows, liked: Rows, log_chance: Callable[[Rows], float] | None) -> Rows:
    """Rows in the order of what they are liked, the first of them of that and their chance."""
    order = np.argsort(-liked, kind="stable")
    if log_chance is not None:
        first = order[:WEIGHED]
        order[:WEIGHED] = first[np.argsort([-liked[place] - log_chance(rows[place]) for place in first], kind="stable")]
    return np.asarray(rows[order])


def _ordered(rows: Rows, liked: Rows) -> Rows:
    return np.asarray(rows[np.argsort(-liked, kind="stable")])
