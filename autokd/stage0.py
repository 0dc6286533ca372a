"""Stage 0 of a distillation: what is done to the teacher before it teaches, once for all students.

A recipe says which (`stage0`); a search makes ready all that its space may choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import nn

from autokd.core.teachings import GIVEN
from autokd.errors import InputError
from autokd.heads import kinds_for, with_fitted_heads
from autokd.smoothing import VIEW, smooth
from autokd.space import Space
from autokd.teacher import Teacher
from autokd.telling import fitting, say


def _as_given(teacher: Teacher, verbose: bool) -> Teacher:
    return teacher


def _smooth(teacher: Teacher, verbose: bool) -> Teacher:
    """With the default knobs; a teacher without an embedding has no two of them to compare, as data without crops have none."""
    view = VIEW if teacher.shapes.embedding else 0.0
    with fitting(verbose, "smoothing the teacher") as on_epoch:
        smoother = smooth(teacher, view=view, on_epoch=on_epoch)
    smoother.require_knowledge()
    metric = teacher.task.metric
    say(verbose, f"teacher {smoother.name}: validation {metric} {smoother.value:.2%}, before {teacher.value:.2%}")
    return smoother


STAGES0: dict[str, Callable[[Teacher, bool], Teacher]] = {GIVEN: _as_given, "smooth": _smooth}


def stages0_of(space: Space) -> tuple[str, ...]:
    """What may be done to the teacher in a space. The teacher as given comes first, also where only controls listen to it."""
    named = next((entry.choices for entry in space.fields if entry.name == "stage0"), ())
    return (GIVEN, *sorted({str(name) for name in named} - {GIVEN}))


def check_stages0(teacher: Teacher, wanted: Iterable[str]) -> None:
    """Raise InputError if a teacher would be made smoother twice."""
    if "smooth" in wanted and "smoothed" in teacher.about:
        raise InputError(
            f"stage0 'smooth' needs the teacher as it was, got {teacher.name}, which was made smoother before; give the original (leave out --smooth)"
        )


def made_ready(
    teacher: Teacher, wanted: Iterable[str], objectives: Iterable[str], device: str, verbose: bool
) -> Mapping[str, nn.Module]:
    """The teacher's networks by stage 0, each with the heads that these objectives read. What is cached is not trained again."""
    check_stages0(teacher, wanted)
    kinds = kinds_for(objectives)
    ready = {name: STAGES0[name](teacher, verbose) for name in wanted}
    return {
        name: with_fitted_heads(each, kinds, device, lambda line: say(verbose, line)) for name, each in ready.items()
    }
