"""autokd: find the best small student for a large teacher that a budget can buy.

    import autokd
    teacher = autokd.Teacher.fit("digits")
    result = autokd.search(teacher, budget="90s")
    result.student()

Names are loaded when first used, so that `import autokd` is quick and imports neither torch, ray nor mlflow.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {  # public name -> the module that defines it
    "search": "api",
    "resume": "api",
    "distill": "api",
    "vocabulary": "api",
    "SearchResult": "outcome",
    "Distilled": "outcome",
    "Teacher": "teacher",
    "smooth": "smoothing",
    "Smoothed": "smoothed",
    "Data": "data",
    "Recipe": "recipe",
    "Space": "space",
    "Budget": "budget",
    "Result": "result",
    "Objective": "protocols",
    "StudentFamily": "protocols",
    "Outputs": "protocols",
    "Batch": "protocols",
    "Shapes": "protocols",
    "AutokdError": "errors",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'autokd' has no attribute '{name}'")
    return getattr(importlib.import_module(f"autokd.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
