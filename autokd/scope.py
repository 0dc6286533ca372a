"""What a search may choose from, for one teacher: its space, and what the students in it cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autokd.arguments import vocabulary
from autokd.constraints import Cost
from autokd.data import Data
from autokd.errors import InputError
from autokd.objectives import resolve as resolve_objective
from autokd.recipe import StudentSpec
from autokd.space import Space
from autokd.students import name_of
from autokd.students import resolve as resolve_family
from autokd.students.describe import describe
from autokd.teacher import Teacher


class CostOf:
    """Parameters and FLOPs of a student for one data set. Raises InputError if its family cannot take such rows."""

    def __init__(self, data: Data) -> None:
        self.shape, self.classes = data.input_shape, data.classes

    def __call__(self, spec: StudentSpec) -> Cost:
        family = resolve_family(spec.family)
        misfit = family.misfit(self.shape)
        if misfit is not None:
            raise InputError(f"family '{spec.family}' does not take rows of shape {self.shape}: {misfit}")
        return describe(family, spec.fields, self.shape, self.classes, name=spec.family)


def space_for(
    teacher: Teacher,
    source: str | Path | Space | None,
    objectives: Sequence[str] | None,
    students: Sequence[object] | None,
) -> Space:
    """The space named, or the one that suits the data, without what this teacher cannot teach. Raises InputError."""
    space = Space.load(_default_space(teacher.data.input_shape) if source is None else source, vocabulary())
    if objectives is not None:
        space = space.restrict(objectives)
    space = _what_the_teacher_can_teach(space, teacher, objectives or ())
    if students is None:
        return space
    names = [name_of(each) for each in students]
    space = space.with_families(names)
    for name in names:
        if not resolve_family(name).fields:  # one architecture: say now why it cannot be trained here
            CostOf(teacher.data)(StudentSpec(family=name))
    return space


def _what_the_teacher_can_teach(space: Space, teacher: Teacher, asked_for: Sequence[str]) -> Space:
    """Without the objectives that compare what this teacher does not put out. Raises InputError if one was asked for by name."""
    lacking = {name for name in ("embedding", "stages") if not getattr(teacher.shapes, name)}
    unmet = [name for name in space.objectives if resolve_objective(name).needs & lacking]
    for name in set(asked_for) & set(unmet):
        raise InputError(
            f"objective '{name}' compares {' and '.join(sorted(lacking))}, which this teacher does not have; leave it out"
        )
    return space.restrict([name for name in space.objectives if name not in unmet]) if unmet else space


def _default_space(input_shape: tuple[int, ...]) -> str:
    if len(input_shape) != 3:
        return "vectors"
    return "digits" if max(input_shape[1:]) < 16 else "images"
