"""Importance, methods and ablation as JSON tables, in the form that MLflow's pages show as tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autokd.result import Result


def write_tables(result: Result, folder: Path) -> list[Path]:
    """Write importance.json, methods.json and ablation.json, those that have rows."""
    importance = result.importance()
    rows: dict[str, list[dict[str, Any]]] = {
        "importance.json": importance.to_dict()["fields"] if importance else [],
        "methods.json": [entry.to_dict() for entry in result.methods()],
        "ablation.json": [{**entry.to_dict(), "judgement": entry.judgement()} for entry in result.ablation()],
    }
    return [_write(folder / name, table) for name, table in rows.items() if table]


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
    path.write_text(json.dumps(table) + "\n", encoding="utf-8")
    return path
