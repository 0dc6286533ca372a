"""What this machine offers to a search, and what is missing."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch

from autokd import __version__
from autokd.core.device import candidates, cpu_count, default_device
from autokd.core.tape_store import default_folder, default_limit, size_words
from autokd.kernels.build import why_not
from autokd.space import shipped_spaces
from autokd.teacher import cache_folder

PACKAGES = (
    *(
        "torch",
        "torchvision",
        "ray",
        "optuna",
        "mlflow",
        "numpy",
        "scikit-learn",
        "scipy",
        "pandas",
        "pydantic",
        "safetensors",
    ),
    *("matplotlib", "plotly", "onnx", "onnxscript", "onnxruntime"),
)


def examine() -> dict[str, Any]:
    """Findings by topic; "missing" lists what must be installed, with the command."""
    versions = {name: _version(name) for name in PACKAGES}
    absent = [name for name, version in versions.items() if version is None]
    device = default_device()
    return {
        "autokd": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device if device == "cpu" else f"{device}: {torch.cuda.get_device_name(0)}",
        "precisions": ", ".join(candidates(device)),
        "kernels": why_not() or "batch norm, compiled for this machine",
        "lanes": torch.cuda.device_count() if device == "cuda" else cpu_count(),
        "spaces": ", ".join(shipped_spaces()),
        "cache": str(cache_folder()),
        "tape": f"{default_folder()}, at most {size_words(default_limit(default_folder()))}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None),
        "missing": f"pip install {' '.join(absent)}" if absent else "",
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
