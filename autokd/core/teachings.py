"""The teacher as it was given and as stage 0 made it, on one device."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from autokd.core.data import Rows
from autokd.core.device import Setting
from autokd.core.live import LiveTeacher
from autokd.core.payload import TapePlan
from autokd.core.teaching import Teaching
from autokd.errors import InputError
from autokd.protocols import Shapes
from autokd.recipe import Recipe

Teachers = nn.Module | Mapping[str, nn.Module] | None  # a network, or one for each stage 0 that recipes may ask for
GIVEN = "none"


def by_stage0(teachers: Teachers) -> dict[str, nn.Module]:
    """A network alone is the teacher as it was given. The first one is what is measured."""
    if teachers is None:
        return {}
    return {GIVEN: teachers} if isinstance(teachers, nn.Module) else dict(teachers)


class Teachings:
    """A Teaching for each stage 0."""

    def __init__(
        self, teachers: Teachers, rows: Rows, example: Tensor, setting: Setting, tape: TapePlan | None
    ) -> None:
        """`example` are two rows as the networks see them."""
        with setting.on_its_threads():
            self._each = {
                stage0: Teaching(LiveTeacher(module, example, setting), rows, tape)
                for stage0, module in by_stage0(teachers).items()
            }

    def of(self, recipe: Recipe) -> Teaching | None:
        """Who teaches it; None without a teacher. Raises InputError for a stage 0 that was not made ready."""
        if recipe.terms and self._each and recipe.stage0 not in self._each:
            has = ", ".join(self._each)
            raise InputError(
                f"stage0 of the recipe is '{recipe.stage0}', and the teachers here are those of {has}; give that one, too"
            )
        return self._each.get(recipe.stage0)

    @property
    def given(self) -> Teaching | None:
        """Of the teacher as it was given."""
        return self._each.get(GIVEN)

    @property
    def shapes(self) -> Shapes | None:
        """What the teacher puts out, whatever its stage 0."""
        return next((teaching.shapes for teaching in self._each.values()), None)

    @property
    def notes(self) -> list[str]:
        return list(dict.fromkeys(note for teaching in self._each.values() for note in teaching.notes))

    def close(self) -> None:
        for teaching in self._each.values():
            teaching.close()
