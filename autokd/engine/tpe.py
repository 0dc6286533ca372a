"""Optuna's multivariate, grouped TPE, fitted to one rung: for spaces of so many branches that no process learns them all.

Values are ranks within the rung (with several goals by one random weighing of them), failures are ranked worst, running trials are
imputed (constant liar). Earlier searches are told as ranks, drawn towards the middle by how little they are trusted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from autokd.engine.prior import Prior
from autokd.engine.rungs import best_and_newest, for_model
from autokd.history import History
from autokd.rules import Value
from autokd.space import Space
from autokd.space_fields import Point

if TYPE_CHECKING:
    import optuna

EPOCH = datetime(1970, 1, 1)  # when trials were run does not matter to the model
MOST = 100  # trials the model is fitted to, the best and the newest


class Tpe:
    """Proposes points of one space."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._recorded: dict[tuple[tuple[str, Value], ...], _Recorder] = {}

    def points(self, history: History, rung: int, seed: int) -> Iterator[Point]:
        """Points in the order of preference, without end."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna calls multivariate and group experimental
            study = self.study(history, rung, seed)
            while True:
                yield self.space.suggest(study.ask())

    def study(self, history: History, rung: int, seed: int) -> optuna.Study:
        """An Optuna study of one rung."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(
            multivariate=True, group=True, constant_liar=True, n_startup_trials=0, seed=seed
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        ranked = best_and_newest(for_model(history, rung, key=str(seed)), MOST)
        failed = [t for t in history.in_role("search") if t.state == "failed"][-MOST // 2 :]
        for place, trial in enumerate(ranked):
            study.add_trial(self.as_optuna(trial.point, 1 - place / (len(ranked) + bool(failed))))
        for trial in failed:
            study.add_trial(self.as_optuna(trial.point, 0.0))
        for point, value in Prior.of(history).told(history, own=len(ranked)):
            study.add_trial(self.as_optuna(point, value))
        for trial in history.running:
            if trial.role == "search" and rung not in trial.values:
                study.add_trial(self.as_optuna(trial.point, None))
        return study

    def as_optuna(self, point: Point, value: float | None) -> optuna.trial.FrozenTrial:
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
