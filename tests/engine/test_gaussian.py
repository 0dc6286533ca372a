"""The Gaussian process and the acquisition: against closed forms, against finite differences, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import approx_fprime
from scipy.stats import norm

from autokd.engine import gaussian
from autokd.engine.acquisition import log_expected_improvement

NUMBERS = np.zeros(3, int)
MIXED = np.array([0, 0, 3])


def rows(count: int, widths: np.ndarray = NUMBERS, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drawn = rng.random((count, len(widths)))
    return np.where(widths > 0, np.floor(drawn * widths), drawn)


def curve(at: np.ndarray) -> np.ndarray:
    return np.sin(4 * at[:, 0]) + at[:, 1] ** 2


def test_the_gradient_is_that_of_the_loss() -> None:
    at = rows(20, MIXED)
    rng = np.random.default_rng(1)
    residual, mean, theta = rng.normal(size=20), rng.normal(size=20), np.array([-0.3, 0.2, 0.1, -2.0])
    linear = gaussian.OFFSET + gaussian.SLOPE * np.outer(mean, mean)
    known = (gaussian._apart(at, MIXED), residual, linear, np.zeros(4), np.ones(4), 1.0)
    _, gradient = gaussian._loss(theta, *known)
    estimate = approx_fprime(theta, lambda t: gaussian._loss(t, *known)[0], 1e-6)
    assert gradient == pytest.approx(estimate, abs=1e-3)


def test_it_learns_a_smooth_function_and_which_columns_matter() -> None:
    at, new = rows(60), rows(200, seed=1)
    process = gaussian.fit(at, curve(at), np.zeros(60), NUMBERS)
    mean, variance = process.predict(new, np.zeros(200))
    assert np.corrcoef(mean, curve(new))[0, 1] > 0.99
    assert process.lengths[2] > 2 * process.lengths[0], "the third column does nothing"
    assert np.mean(np.abs(mean - curve(new)) < 3 * np.sqrt(variance)) > 0.9
    there, sure = process.predict(at, np.zeros(60))
    assert there == pytest.approx(curve(at), abs=0.1) and sure.max() < variance.mean()


def test_it_agrees_with_scikit_learn_under_the_same_kernel() -> None:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    at, new, lengths, noise = rows(30), rows(50, seed=1), np.array([0.5, 0.8, 2.0]), 0.01
    kernel = Matern(lengths, nu=2.5) + ConstantKernel(gaussian.OFFSET)
    theirs = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None).fit(at, curve(at))
    ours = gaussian._conditioned(at, curve(at), np.zeros(30), NUMBERS, lengths, noise, 1.0)
    mean, variance = ours.predict(new, np.zeros(50))
    expected, deviation = theirs.predict(new, return_std=True)
    assert mean == pytest.approx(expected, abs=1e-6)
    assert variance / ours.variance == pytest.approx(deviation**2, abs=1e-6)


def test_a_mean_that_is_right_is_followed_and_one_that_is_wrong_is_left() -> None:
    at, new = rows(12), rows(100, seed=1)
    right = gaussian.fit(at, curve(at), curve(at), NUMBERS, 0.5)
    wrong = gaussian.fit(at, curve(at), -curve(at), NUMBERS, 0.5)
    assert right.predict(new, curve(new))[0] == pytest.approx(curve(new), abs=0.1)
    assert np.corrcoef(wrong.predict(new, -curve(new))[0], curve(new))[0, 1] > 0.5


def test_what_is_imputed_is_no_longer_uncertain_and_moves_nothing_else() -> None:
    at, running = rows(15), rows(1, seed=3)
    before = gaussian.fit(at, curve(at), np.zeros(15), NUMBERS)
    after = before.imputed(running, np.zeros(1))
    assert after.predict(running, np.zeros(1))[1] < 0.5 * before.predict(running, np.zeros(1))[1]
    new = rows(50, seed=4)
    assert after.predict(new, np.zeros(50))[0] == pytest.approx(before.predict(new, np.zeros(50))[0], abs=1e-6)


def test_choices_are_alike_or_not_and_none_is_between() -> None:
    at = np.array([[0.0], [1.0], [2.0], [0.5]])
    apart = gaussian._apart(at, np.array([3]))[0]
    assert apart[:3, :3] == pytest.approx(1 - np.eye(3))
    assert apart[3, :3] == pytest.approx([0.5] * 3)


@pytest.mark.parametrize("z", [-30.0, -6.0, -1.5, -0.5, 0.0, 2.0, 8.0])
def test_log_expected_improvement_is_the_integral(z: float) -> None:
    mean, deviation = 0.3, 0.7
    best = mean - z * deviation
    found = log_expected_improvement(np.array([mean]), np.array([deviation]), best)[0]
    shift = norm.logpdf(min(z, 0.0))  # so that the integral is of ordinary size
    upper = best + 40 * deviation
    area, _ = quad(
        lambda f: (f - best) * np.exp(norm.logpdf((f - mean) / deviation) - shift) / deviation, best, upper, limit=400
    )
    assert found == pytest.approx(np.log(area) + shift, abs=1e-3)


def test_log_expected_improvement_falls_for_ever() -> None:
    z = -np.logspace(0, 8, 60)
    found = log_expected_improvement(z, np.ones(60), 0.0)
    assert np.isfinite(found).all() and (np.diff(found) < 0).all()
