"""Imports go down only, giants are imported in one place, and `import autokd` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "autokd"

# Floors from the ground up; a module may import from lower lines and from its own line's package. See docs/architecture.md.
FLOORS = [
    ["__init__"],
    ["errors"],
    ["rules"],
    ["recipe", "budget", "arrays", "sizes", "probe", "space_yaml"],
    ["constraints", "ledger", "orders", "words", "space_fields", "sources"],
    ["history", "gain", "space_names"],
    ["space_file", "goals"],
    ["space", "front", "finals"],
    ["importance", "ablation", "tally"],
    ["result", "run_folder"],
    ["summary"],
    ["engine"],
    ["protocols"],
    ["items"],
    ["stream"],
    ["data", "tasks", "kernels"],
    ["students", "augment"],
    ["objectives"],
    ["peers"],
    ["core"],
    ["tracking", "progress", "telling", "export", "report", "plan", "orchestrate", "arguments", "smoothed"],
    ["teacher"],
    ["delivery", "taping", "scope", "warm_start", "smoothing", "heads"],
    ["stage0"],
    ["outcome"],
    ["session"],
    ["new_search"],
    ["api", "doctor", "cli_input", "cli_tape"],
    ["cli"],
]
RANK = {name: floor for floor, names in enumerate(FLOORS) for name in names}
ONE_PLACE = {
    "ray": "orchestrate",
    "mlflow": "tracking",
    "matplotlib": "report",
    "plotly": "report",
    "onnx": "export.py",
    "onnxruntime": "export.py",
    "optuna": "engine/tpe.py",
}
NO_TORCH = [
    "engine",
    "recipe",
    "rules",
    "budget",
    "space",
    "ledger",
    "history",
    "result",
    "importance",
    "ablation",
    "orders",
    "constraints",
    "errors",
    "cli",
]


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The top-level module or package a file belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down(path: Path) -> None:
    own = room(path)
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "autokd" and len(parts) > 1 and parts[1] in RANK and parts[1] != own:
            assert RANK[parts[1]] < RANK[own], f"{path.name} may not import {name}: see docs/architecture.md"


@pytest.mark.parametrize("giant", ONE_PLACE)
def test_each_giant_is_imported_in_one_place(giant: str) -> None:
    users = {
        str(path.relative_to(PACKAGE)) for path in modules() for name in imported(path) if name.split(".")[0] == giant
    }
    assert users, f"nothing imports {giant}"
    assert all(user.startswith(ONE_PLACE[giant]) for user in users), users


def test_every_module_has_a_floor() -> None:
    assert {room(path) for path in modules()} == set(RANK)


@pytest.mark.parametrize("module", NO_TORCH)
def test_deciding_needs_no_torch(module: str) -> None:
    code = f"import autokd.{module}, sys; print([n for n in ('torch', 'ray', 'mlflow') if n in sys.modules])"
    if module == "engine":
        code = code.replace("autokd.engine", "autokd.engine.engine")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_autokd_is_light() -> None:
    code = "import sys; before = set(sys.modules); import autokd; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout and "pydantic" not in done.stdout


def test_every_public_name_exists() -> None:
    import autokd

    for name in autokd.__all__:
        assert getattr(autokd, name) is not None
