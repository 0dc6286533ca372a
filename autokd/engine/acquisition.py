"""Where to look next: expected improvement per unit of cost, over candidates from the prior and around the best."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import erfcx, log_ndtr

from autokd.engine.encoding import Encoding, Rows
from autokd.engine.surrogate import Surrogate

FROM_PRIOR = 256  # candidates
AROUND = 8  # of the best trials, and later of the best candidates, have neighbours looked at
NEIGHBOURS = 24  # of each
SCALES = (0.2, 0.05)  # how far from the best trials
REFINEMENTS = (0.1, 0.03, 0.01)  # and then from the best candidates

Score = Callable[[Rows], Rows]


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


def candidates(encoding: Encoding, model: Surrogate, score: Score, rng: np.random.Generator) -> Rows:
    """Rows in the order of preference, the best first."""
    best = model.tried[:AROUND]
    near = [encoding.vary(rng, np.repeat(best, NEIGHBOURS, axis=0), scale) for scale in SCALES]
    found = np.concatenate([encoding.draw(rng, FROM_PRIOR), *near])
    liked = score(found)
    for scale in REFINEMENTS:
        top = found[np.argsort(-liked, kind="stable")[:AROUND]]
        more = encoding.vary(rng, np.repeat(top, NEIGHBOURS, axis=0), scale)
        found, liked = np.concatenate([found, more]), np.concatenate([liked, score(more)])
    return np.asarray(found[np.argsort(-liked, kind="stable")])
