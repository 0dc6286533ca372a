"""A Gaussian process for a few dozen to a few hundred rows: Matern 5/2, a length scale per column, fitted by maximum a posteriori.

Written with numpy because the engine decides without torch (which Optuna's process needs) and quickly; benchmarks/search/README.md
holds the measurement against scikit-learn's. The signal variance has an inverse-gamma prior and is integrated out, so only the length
scales and the noise are searched for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

Rows = NDArray[np.float64]
LENGTH = 0.5  # typical length scale of one of four columns; grows with the square root of the columns
LENGTH_SPREAD = 1.0  # of its logarithm
NOISE, NOISE_SPREAD = 0.01, 1.5  # typical variance of the noise over that of the signal, spread of its logarithm
BOUNDS = (math.log(0.03), math.log(30.0))  # of length scales
NOISE_BOUNDS = (math.log(1e-5), math.log(1.0))
SHAPE = 2.0  # of the inverse gamma: as much weight as four observations
OFFSET = 1.0  # prior variance of the unknown constant, over that of the signal
SLOPE = 0.25  # prior variance of the factor on the mean that is handed in, around 1
STEPS = 15  # of the search for length scales
MOST_FITTED = 64  # rows that length scales are fitted to; of more, every second or third
ROOT5 = math.sqrt(5.0)


@dataclass(frozen=True)
class Process:
    """Fitted. `predict(rows, mean)` needs the same kind of mean as was handed to `fit`."""

    widths: NDArray[np.int64]
    rows: Rows
    values: Rows
    mean: Rows
    lengths: Rows
    features: Rows
    factor: Rows
    alpha: Rows
    variance: float
    noise: float

    def predict(self, rows: Rows, mean: Rows) -> tuple[Rows, Rows]:
        """Mean and variance of what is below the noise."""
        features = _scaled(rows, self.widths, self.lengths)
        cross = (
            _matern(np.sqrt(squared_distances(features, self.features))) + OFFSET + SLOPE * np.outer(mean, self.mean)
        )
        solved = solve_triangular(self.factor, cross.T, lower=True, check_finite=False)
        own = 1 + OFFSET + SLOPE * mean**2
        return mean + cross @ self.alpha, self.variance * np.maximum(own - (solved**2).sum(0), 1e-9)

    def imputed(self, rows: Rows, mean: Rows) -> Process:
        """The same process had these rows turned out as it predicts: it is as sure of them as of what it has seen."""
        rows_all, means = np.concatenate([self.rows, rows]), np.concatenate([self.mean, mean])
        values = np.concatenate([self.values, self.predict(rows, mean)[0]])
        extended = _conditioned(rows_all, values, means, self.widths, self.lengths, self.noise, 1.0)
        return replace(extended, variance=self.variance)


def fit(rows: Rows, values: Rows, mean: Rows, widths: NDArray[np.int64], scale: float = 1.0) -> Process:
    """A process around `mean`, `scale` being how far values typically lie from it."""
    few = slice(None, None, math.ceil(len(rows) / MOST_FITTED))
    apart, residual = _apart(rows[few], widths), (values - mean)[few]
    linear = OFFSET + SLOPE * np.outer(mean[few], mean[few])
    columns = rows.shape[1]
    centre = np.array([*[math.log(LENGTH * math.sqrt(columns / 4))] * columns, math.log(NOISE)])
    spread = np.array([*[LENGTH_SPREAD] * columns, NOISE_SPREAD])
    found = minimize(
        _loss,
        centre,
        args=(apart, residual, linear, centre, spread, scale),
        jac=True,
        method="L-BFGS-B",
        bounds=[*[BOUNDS] * columns, NOISE_BOUNDS],
        options={"maxiter": STEPS},
    ).x
    return _conditioned(rows, values, mean, widths, np.exp(found[:-1]), math.exp(found[-1]), scale)


def _conditioned(
    rows: Rows, values: Rows, mean: Rows, widths: NDArray[np.int64], lengths: Rows, noise: float, scale: float
) -> Process:
    features = _scaled(rows, widths, lengths)
    kernel = _matern(np.sqrt(squared_distances(features, features))) + OFFSET + SLOPE * np.outer(mean, mean)
    kernel[np.diag_indices(len(rows))] += noise
    factor = cholesky(kernel, lower=True, check_finite=False)
    alpha = cho_solve((factor, True), values - mean, check_finite=False)
    variance = (SHAPE * scale**2 + 0.5 * (values - mean) @ alpha) / (SHAPE + 0.5 * len(rows))
    return Process(widths, rows, values, mean, lengths, features, factor, alpha, float(variance), noise)


def _loss(
    theta: Rows, apart: Rows, residual: Rows, linear: Rows, centre: Rows, spread: Rows, scale: float
) -> tuple[float, Rows]:
    """Negative log posterior and its gradient. `apart` holds squared distances, column by column."""
    noise, weights = math.exp(theta[-1]), np.exp(-2 * theta[:-1])
    count = len(residual)
    root = np.sqrt(np.tensordot(weights, apart, 1))
    decay = np.exp(-ROOT5 * root)
    kernel = (1 + ROOT5 * root + 5 / 3 * root**2) * decay + linear
    kernel[np.diag_indices(count)] += noise
    try:
        factor = cholesky(kernel, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        return 1e10, np.zeros_like(theta)
    inverse = cho_solve((factor, True), np.eye(count), check_finite=False)
    alpha = inverse @ residual
    fit_to = SHAPE * scale**2 + 0.5 * residual @ alpha
    power = SHAPE + 0.5 * count
    off = (theta - centre) / spread
    loss = power * math.log(fit_to) + np.log(np.diag(factor)).sum() + 0.5 * off @ off
    pull = 0.5 * inverse - 0.5 * power / fit_to * np.outer(alpha, alpha)
    shaped = pull * (5 / 3) * (1 + ROOT5 * root) * decay
    gradient = np.append(weights * np.tensordot(apart, shaped, 2), noise * np.trace(pull))
    return float(loss), gradient + off / spread


# ---- distances


def spread_out(rows: Rows, widths: NDArray[np.int64]) -> Rows:
    """Choices as one column each, so that two different choices are 1 apart, and a choice and none at all half of that."""
    parts = []
    for place, width in enumerate(widths):
        column = rows[:, place, None]
        parts.append(column if not width else (column == np.arange(width)) / math.sqrt(2.0))
    return np.concatenate(parts, axis=1)


def _scaled(rows: Rows, widths: NDArray[np.int64], lengths: Rows) -> Rows:
    return spread_out(rows, widths) / np.repeat(lengths, np.maximum(widths, 1))


def squared_distances(a: Rows, b: Rows) -> Rows:
    return np.asarray(np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T, 0.0))


def _apart(rows: Rows, widths: NDArray[np.int64]) -> Rows:
    """Squared distances between rows, one matrix per column."""
    return np.stack([squared_distances(part, part) for part in _columns(rows, widths)])


def _columns(rows: Rows, widths: NDArray[np.int64]) -> list[Rows]:
    features = spread_out(rows, widths)
    return np.split(features, np.cumsum(np.maximum(widths, 1))[:-1], axis=1)


def _matern(distance: Rows) -> Rows:
    return np.asarray((1 + ROOT5 * distance + 5 / 3 * distance**2) * np.exp(-ROOT5 * distance))
