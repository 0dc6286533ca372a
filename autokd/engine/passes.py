"""What losses cost beside one pass of every network over the rows of a step: known before training, without torch.

A loss that is not named here costs nothing that counts, and hears the teacher. A test holds this table against the losses themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from autokd.recipe import PeerSpec, Recipe, TermSpec
from autokd.rules import Value


@dataclass(frozen=True)
class Passes:
    """Per row of the step."""

    student: float = 0.0  # more rows through the network that learns, forward and backward
    frozen: float = 0.0  # through copies of it that do not learn, forward
    teacher: float = 0.0  # through the live teacher; forward and backward count as three
    listens: bool = True  # to what the teacher says of the step's own rows


Given = Mapping[str, Value]  # fields of a term or system; those left out are at their defaults


def _of_triplet(given: Given) -> Passes:
    """The negatives of the rows: said by the student, or by the teacher if the student is the anchor."""
    if given.get("negatives", "dataset") != "dataset":
        return Passes()
    return Passes(teacher=1.0) if given.get("anchor", "teacher") == "student" else Passes(student=1.0)


def _of_amkd(given: Given) -> Passes:
    """Rows at the boundary, driven there in steps of a forward and a backward pass."""
    portion, steps = float(given.get("portion", 0.25)), int(given.get("steps", 10))
    return Passes(student=portion, teacher=portion * (3 * steps + 1))


PASSES: dict[str, Callable[[Given], Passes]] = {  # by objective
    "tfkd_reg": lambda given: Passes(listens=False),
    "byot": lambda given: Passes(listens=False),  # its heads, about a quarter of a small student, are not counted
    "past": lambda given: Passes(frozen=1.0, listens=False),
    "triplet": _of_triplet,
    "triplet_embedding": _of_triplet,
    "msst": lambda given: Passes(student=1.0, teacher=1.0, listens=False),
    "amkd": _of_amkd,
}
OF_SYSTEMS: dict[str, Callable[[Given], Passes]] = {  # by system of peers; `teacher` and `listens` mean nothing there
    "ckd_mkt": lambda given: Passes(frozen=1.0 if given.get("first", 0.25) else 0.0),  # every network's earlier self
}


def of_term(term: TermSpec) -> Passes:
    return PASSES.get(term.objective, lambda given: Passes())(term.fields)


def of_peers(spec: PeerSpec) -> Passes:
    return OF_SYSTEMS.get(spec.system, lambda given: Passes())(spec.fields) if spec.count else Passes()


def listens(recipe: Recipe) -> bool:
    """Whether some loss reads what the teacher says of the rows of a step."""
    return any(of_term(term).listens for term in recipe.terms)
