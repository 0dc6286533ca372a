"""Collaborative peers: networks that are trained together and teach each other.

A new system is a class in one of the files (or a new one), a line in `SYSTEMS` and a heading in docs/methods.md or a page in docs/methods/.
"""

from __future__ import annotations

from collections.abc import Mapping

from autokd.errors import RecipeError, nearest
from autokd.peers.base import PeerSystem
from autokd.peers.ensembles import KDCL
from autokd.peers.fusion import FFCL
from autokd.peers.gate import ONE
from autokd.peers.mutual import DML
from autokd.peers.transfer import CKDMKT
from autokd.recipe import PeerSpec
from autokd.rules import Rule

SYSTEMS: dict[str, type[PeerSystem]] = {
    "dml": DML,  # Zhang 2018
    "kdcl": KDCL,  # Guo 2020
    "one": ONE,  # Lan 2018
    "ffcl": FFCL,  # Li 2021
    "ckd_mkt": CKDMKT,  # Gou 2024
}


def resolve(name: str) -> type[PeerSystem]:
    """The class behind a registered name. Raises RecipeError."""
    if name not in SYSTEMS:
        raise RecipeError(f"unknown system of peers '{name}'; {nearest(name, SYSTEMS)}")
    return SYSTEMS[name]


def system_of(spec: PeerSpec) -> PeerSystem | None:
    """A new one, not built yet; None without peers. Raises RecipeError."""
    return resolve(spec.system)(**spec.fields) if spec.count else None


def system_rules() -> dict[str, Mapping[str, Rule]]:
    """Name in recipes -> rules of the parameters, for `Vocabulary.systems`."""
    return {name: system.fields for name, system in SYSTEMS.items()}
