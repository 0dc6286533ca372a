"""SMAC3 at full fidelity: a random forest over the whole conditional space, its own defaults for hyper-parameter optimisation.

SMAC is told how many trainings it has, of which it spends at most a quarter on its initial design, and begins with what the space publishes.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autokd.rules import Value
from autokd.space import Field, Space
from autokd.space_fields import among
from benchmarks.search.replay import Replay
from benchmarks.search.tables import Point

if TYPE_CHECKING:
    import ConfigSpace


def smac(replay: Replay) -> None:
    """Ask and tell until the budget is spent; a training that diverges is told as the worst so far."""
    with tempfile.TemporaryDirectory() as scratch:
        _search(replay, Path(scratch))


def _search(replay: Replay, scratch: Path) -> None:
    from smac import HyperparameterOptimizationFacade, Scenario
    from smac.runhistory.dataclasses import TrialInfo, TrialValue
    from smac.runhistory.enumerations import StatusType

    logging.getLogger("smac").setLevel(logging.ERROR)
    translated = _Translated(replay.table.space, replay.seed)
    scenario = Scenario(
        translated.space,
        deterministic=True,
        n_trials=int(replay.budget),
        seed=replay.seed,
        output_directory=scratch,
    )
    optimiser = HyperparameterOptimizationFacade(
        scenario, lambda config, seed=0: 0.0, overwrite=True, logging_level=False
    )
    first = [TrialInfo(translated.configuration(point), seed=0) for _, point in replay.table.space.first]
    worst: float | None = None
    while True:
        trial = first.pop(0) if first else optimiser.ask()
        value = replay.full(translated.point(trial.config))
        worst = value if worst is None else worst if value is None else min(value, worst)
        told = worst if value is None else value
        state = StatusType.CRASHED if told is None else StatusType.SUCCESS
        optimiser.tell(trial, TrialValue(cost=0.0 if told is None else -told, status=state))


class _Translated:
    """A space in SMAC's words. Choices and steps are told as their numbers, which spares the types of values."""

    def __init__(self, space: Space, seed: int) -> None:
        import ConfigSpace

        self.own = space
        self.space = ConfigSpace.ConfigurationSpace(seed=seed)
        self.fields = {field.name: field for field in space.fields if field.searched and _possible(field, space)}
        for field in self.fields.values():
            self.space.add(_parameter(field))
        for field in self.fields.values():
            conditions = [self._condition(field, name, values) for name, values in field.when if name in self.fields]
            if conditions:
                self.space.add(conditions[0] if len(conditions) == 1 else ConfigSpace.AndConjunction(*conditions))

    def point(self, configuration: Any) -> Point:
        told = dict(configuration)
        values = {name: _value(self.fields[name], code) for name, code in told.items()}
        return self.own.complete(values)

    def configuration(self, point: Point) -> ConfigSpace.Configuration:
        import ConfigSpace

        codes = {name: _code(field, point[name]) for name, field in self.fields.items() if name in point}
        return ConfigSpace.Configuration(self.space, values=codes)

    def _condition(self, field: Field, name: str, values: tuple[Value, ...]) -> Any:
        import ConfigSpace

        codes = [_code(self.fields[name], value) for value in values]
        return ConfigSpace.InCondition(self.space[field.name], self.space[name], codes)


def _possible(field: Field, space: Space) -> bool:
    """Whether it can exist, given the fields that are fixed."""
    fixed = {other.name: other.fixed for other in space.fields if not other.searched}
    return all(name not in fixed or among(fixed[name], values) for name, values in field.when)


def _parameter(field: Field) -> Any:
    import ConfigSpace

    if field.kind == "choice":
        return ConfigSpace.Categorical(field.name, [str(number) for number in range(len(field.choices))])
    if field.kind == "float":
        return ConfigSpace.Float(field.name, (field.low, field.high), log=field.log)
    if field.step == 1:
        return ConfigSpace.Integer(field.name, (int(field.low), int(field.high)), log=field.log)
    return ConfigSpace.Integer(field.name, (0, int(field.high - field.low) // field.step))


def _code(field: Field, value: Any) -> Any:
    if field.kind == "choice":
        return str(field.choices.index(value))
    return (value - int(field.low)) // field.step if field.kind == "int" and field.step > 1 else value


def _value(field: Field, code: Any) -> Value:
    if field.kind == "choice":
        return field.choices[int(code)]
    if field.kind == "int":
        return int(field.low) + int(code) * field.step if field.step > 1 else int(code)
    return min(max(float(code), field.low), field.high)
