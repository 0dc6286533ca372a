"""The engine and what it is compared with, by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.search import asha, full_fidelity, ours, smac3
from benchmarks.search.priors import PRIORS
from benchmarks.search.replay import Replay

ROOT = Path(__file__).resolve().parents[2]
ABSENT = "absent"
RULES = "benchmarks/search/{tables,replay}.py"
ENGINE = (
    "autokd/engine/*.py",
    "autokd/{history,ledger,budget,recipe,rules,constraints}.py",
    "autokd/space*.py",
    "autokd/orchestrate/{director,simulate}.py",
    "benchmarks/search/ours.py",
)


@dataclass(frozen=True)
class Method:
    """One way to search. `planned`: it is told its budget, so that every budget is a search of its own."""

    search: Callable[[Replay], None]
    planned: bool = False
    sources: tuple[str, ...] = ("benchmarks/search/full_fidelity.py",)
    packages: tuple[str, ...] = ()

    def fingerprint(self, suite: str) -> str:
        """Changes with the code that decides what this method does on tables of a suite, and with its packages' versions."""
        return _fingerprint((RULES, f"benchmarks/search/{suite}*.*", *self.sources), self.packages)

    def missing(self) -> str | None:
        """A package that is not installed, or None."""
        return next((name for name in self.packages if _version(name) == ABSENT), None)


RAY = ("benchmarks/search/asha.py", "benchmarks/search/full_fidelity.py")
METHODS: dict[str, Method] = {
    "autokd": Method(ours.autokd_engine, planned=True, sources=ENGINE, packages=("optuna",)),
    "random": Method(full_fidelity.random_search),
    "one-epoch-top-k": Method(full_fidelity.one_epoch_then_top_k, planned=True),
    "architecture-first": Method(full_fidelity.architecture_first, planned=True),
    "asha-random": Method(asha.asha_random, sources=RAY, packages=("ray",)),
    "optuna-asha-default": Method(asha.optuna_asha_default, sources=RAY, packages=("ray", "optuna")),
    "optuna-asha-sane": Method(asha.optuna_asha_sane, sources=RAY, packages=("ray", "optuna")),
    "optuna-tpe": Method(full_fidelity.optuna_tpe, packages=("optuna",)),
    "optuna-gp": Method(full_fidelity.optuna_gp, packages=("optuna",)),
    "smac": Method(smac3.smac, planned=True, sources=("benchmarks/search/smac3.py",), packages=("smac",)),
}
COMPARED = tuple(METHODS)
OTHERS = {**PRIORS, "autokd-two-lanes": partial(ours.autokd_engine, lanes=2)}
METHODS |= {
    name: Method(search, planned=True, sources=(*ENGINE, "benchmarks/search/priors.py"), packages=("optuna",))
    for name, search in OTHERS.items()
}


@lru_cache(None)
def _fingerprint(sources: tuple[str, ...], packages: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for pattern in sources:
        for path in sorted(path for each in _alternatives(pattern) for path in ROOT.glob(each)):
            digest.update(path.read_bytes())
    for name in packages:
        digest.update(f"{name} {_version(name)}".encode())
    return digest.hexdigest()[:12]


def _alternatives(pattern: str) -> list[str]:
    """a/{b,c}.py as a/b.py and a/c.py."""
    before, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    inside, _, after = rest.partition("}")
    return [before + each + after for each in inside.split(",")]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ABSENT
