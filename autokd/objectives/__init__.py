"""Distillation losses, grouped by what they compare (logits, features, relations, a network with itself, one with many) or ask for.

A new loss is a class in one of the files (or a new one), a line in `OBJECTIVES` and a heading in docs/methods.md or a page in docs/methods/. A
user's own loss needs none of that: a recipe names it as "module:attribute".
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping

from autokd.errors import RecipeError, nearest
from autokd.objectives import boundary, contrastive, features, logits, metric, mixed, own, relations, review, staged
from autokd.protocols import Objective
from autokd.rules import Rule

OBJECTIVES: dict[str, type[Objective]] = {
    "kd": logits.KD,  # Hinton 2015
    "dkd": logits.DKD,  # Zhao 2022
    "dist": logits.DIST,  # Huang 2022
    "fitnet": features.FitNet,  # Romero 2015
    "at": features.AT,  # Zagoruyko 2017
    "rkd": relations.RKD,  # Park 2019
    "cos": logits.Cosine,
    "nst": features.NST,  # Huang, Wang 2017
    "vid": features.VID,  # Ahn 2019
    "reviewkd": review.ReviewKD,  # Chen 2021
    "sp": relations.SP,  # Tung, Mori 2019
    "pkt": relations.PKT,  # Passalis, Tefas 2018
    "triplet": metric.Triplet,  # Oki 2020
    "triplet_embedding": metric.TripletEmbedding,
    "tfkd_reg": own.TfKDReg,  # Yuan 2020
    "byot": own.BYOT,  # Zhang 2019
    "past": own.Past,  # Furlanello 2018, Yuan 2020
    "crd": contrastive.CRD,  # Tian 2020
    "msst": mixed.MSST,  # Zhao 2022
    "amkd": boundary.AMKD,  # ICCIP 2020, on Heo 2019
    "mtkd_ssr": staged.MTKDSSR,  # Gou 2023
    "hsakd": staged.HSAKD,  # Yang 2021
    "sskd": staged.SSKD,  # Xu 2020
}


def resolve(name: str) -> type[Objective]:
    """The class behind a registered name or a user's "module:attribute". Raises RecipeError."""
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    if ":" not in name:
        raise RecipeError(
            f"unknown objective '{name}'; {nearest(name, OBJECTIVES)}; your own is named 'module:attribute'"
        )
    found = _imported(name)
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise RecipeError(
            f"objective '{name}' must be a subclass of autokd.protocols.Objective, got {found!r}; derive it"
        )
    _check_constructor(name, found)
    return found


def name_of(objective: type[Objective]) -> str:
    """A class's name in recipes: the registered one, else "module:attribute". RecipeError if not importable."""
    for name, known in OBJECTIVES.items():
        if known is objective:
            return name
    name = f"{objective.__module__}:{objective.__qualname__}"
    if "<locals>" in name or resolve(name) is not objective:
        raise RecipeError(
            f"objective '{name}' must be importable by its name; define the class at the top level of a module"
        )
    return name


def objective_rules(which: Iterable[str | type[Objective]] = tuple(OBJECTIVES)) -> dict[str, Mapping[str, Rule]]:
    """Name in recipes -> rules of the parameters, for `Vocabulary.objectives`. Raises RecipeError."""
    names = [item if isinstance(item, str) else name_of(item) for item in which]
    return {name: resolve(name).fields for name in names}


def _imported(name: str) -> object:
    module_name, _, path = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *path.split("."))):
        raise RecipeError(
            f"an objective of your own must be named 'module:attribute', got '{name}'; {nearest(name, OBJECTIVES)}"
        )
    try:
        found: object = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's own: whatever it raises is reported in one line
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RecipeError(
            f"objective '{name}': '{module_name}' must be importable, got {told}; check sys.path"
        ) from None
    for part in path.split("."):
        if not hasattr(found, part):
            raise RecipeError(f"objective '{name}': no '{part}' in it; {nearest(part, _public(found))}")
        found = getattr(found, part)
    return found


def _public(owner: object) -> list[str]:
    return [name for name in dir(owner) if not name.startswith("_")]


def _check_constructor(name: str, objective: type[Objective]) -> None:
    """Every field must be a keyword of __init__. One inherited from nn.Module takes none, whatever its signature."""
    own = objective.__init__ is not Objective.__init__
    taken = inspect.signature(objective).parameters if own else {}
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    missing = [field for field in objective.fields if field not in taken]
    if missing:
        raise RecipeError(
            f"objective '{name}': __init__ must take every field by keyword, '{missing[0]}' is not taken; add it"
        )
