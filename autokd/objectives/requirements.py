"""What objectives refuse before training: networks without what they compare."""

from __future__ import annotations

import math

from autokd.errors import RecipeError
from autokd.protocols import Ask, Shapes


def require_stages(name: str, student: Shapes, teacher: Shapes) -> None:
    """Raise RecipeError unless both networks have stage maps."""
    for who, shapes in (("student", student), ("teacher", teacher)):
        if not shapes.stages:
            raise RecipeError(
                f"objective '{name}' compares stage maps, the {who} has 0 stages; "
                "use a convolutional network, or kd, dkd, dist, rkd"
            )


def require_two_stages(name: str, student: Shapes) -> None:
    """Raise RecipeError unless the student has a stage before its last one."""
    if len(student.stages) < 2:
        raise RecipeError(
            f"objective '{name}' needs stages before the last, the student has {len(student.stages)} stages; "
            "use a convolutional network of two or more, or tfkd_reg or past"
        )


def require_positions(name: str, sizes: list[tuple[int, int]]) -> None:
    """Raise RecipeError unless one of these (height, width), at which stages are compared, has two positions."""
    if max(map(math.prod, sizes)) < 2:
        raise RecipeError(
            f"objective '{name}' needs maps of more than one position, all are 1×1; use kd, dkd, dist or rkd"
        )


def require_embedding(name: str, student: Shapes, teacher: Shapes) -> None:
    """Raise RecipeError unless both networks have an embedding."""
    for who, shapes in (("student", student), ("teacher", teacher)):
        if shapes.embedding < 1:
            raise RecipeError(
                f"objective '{name}' compares embeddings, the {who}'s has width {shapes.embedding}; use kd or dist"
            )


def require_three_classes(name: str, classes: int) -> None:
    """Raise RecipeError if standardised logits could say nothing but which class is first: two are always ±1."""
    if classes < 3:
        raise RecipeError(f"objective '{name}': standardise needs at least 3 classes, got {classes}; leave it at false")


def require_ask(name: str, ask: Ask | None) -> Ask:
    """Who answers. Raises RecipeError if nobody does."""
    if ask is None:
        raise RecipeError(
            f"objective '{name}' asks for rows of its own, and nobody answers; train it in a training core"
        )
    return ask
