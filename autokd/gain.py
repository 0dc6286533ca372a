"""Whether the search brought anything: the winner against a control, paired by seed, with the noise stated.

Rule: a gain is "larger than the noise" if the 95 % paired t interval of its mean (Student, 1908) excludes 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

from autokd import words
from autokd.recipe import Recipe

Split = Literal["validation", "test"]
CONTROLS = {"no_kd": "no distillation", "default_kd": "default KD"}
# Two-sided 95 % quantiles of Student's t for 1, 2, … degrees of freedom
T95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


def control_recipe(control: str, winner: Recipe) -> Recipe:
    """The recipe of a control: the winner's student, optimiser and epochs, less what the search brought."""
    return winner.without_distillation() if control == "no_kd" else winner.with_default_kd()


@dataclass(frozen=True)
class Retrained:
    """What was measured once per seed: validation `values` and `tests`, in the order of the seeds."""

    values: tuple[float, ...]
    tests: tuple[float, ...]

    @property
    def n(self) -> int:
        """Seeds it was retrained with."""
        return len(self.values)

    @property
    def value_mean(self) -> float | None:
        return mean(self.values) if self.values else None

    @property
    def value_sd(self) -> float | None:
        return sample_sd(self.values)

    @property
    def test_mean(self) -> float | None:
        return mean(self.tests) if self.tests else None

    @property
    def test_sd(self) -> float | None:
        return sample_sd(self.tests)


@dataclass(frozen=True)
class Gain:
    """Winner minus control, paired by seed, at equal epochs.

    `larger_than_noise` is whether the 95 % paired t interval [low, high] excludes 0; None if that cannot be said: fewer
    than two pairs, or pairs that all differ by the same amount, which say nothing about noise.
    """

    control: str
    split: Split
    mean: float
    sd: float | None
    n: int
    low: float | None
    high: float | None
    larger_than_noise: bool | None

    def sentence(self, metric: str = "accuracy") -> str:
        """The gain in honest words, a negative one too."""
        seeds = f"{self.n} paired seed{'s' if self.n > 1 else ''}"
        amount = words.difference(self.mean, self.sd, metric)
        against = f"{amount} of {self.split} {metric} against {CONTROLS[self.control]}"
        return f"{against} ({seeds}): {self._judgement()}."

    def _judgement(self) -> str:
        if self.n < 2:
            return "one seed cannot say whether this is more than noise"
        if self.larger_than_noise is None:
            return "all seeds differ equally, so the noise cannot be estimated"
        if not self.larger_than_noise:
            return "within the noise between seeds, no difference shown"
        return (
            "larger than the noise between seeds" if self.mean > 0 else "the search did worse, by more than the noise"
        )


def paired_gain(control: str, split: Split, differences: Sequence[float]) -> Gain | None:
    """Gain of paired differences, with the 95 % t interval; None without pairs."""
    if not differences:
        return None
    n, middle, sd = len(differences), mean(differences), sample_sd(differences)
    if sd is None:
        return Gain(control, split, middle, None, n, None, None, None)
    half = t_quantile(n - 1) * sd / math.sqrt(n)
    equal = sd < 1e-9  # seeds that differ by rounding only
    larger = (None if abs(middle) > 1e-9 else False) if equal else abs(middle) > half
    return Gain(control, split, middle, sd, n, middle - half, middle + half, larger)


def t_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t; beyond the table by its expansion in 1/degrees (Fisher and Cornish, 1960)."""
    if degrees <= len(T95):
        return T95[degrees - 1]
    z = 1.959964
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))


def sample_sd(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample; None for fewer than two values."""
    return stdev(values) if len(values) > 1 else None
