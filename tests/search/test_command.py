"""The whole command, on a small table, with real processes."""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path

import pytest

from benchmarks.search import __main__ as command
from benchmarks.search.diswot import DEPTHS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [f"{a},{b},{c},0,{60 + a + b / 2 + c / 4}" for a, b, c in product(DEPTHS, repeat=3)]
    (tmp_path / "diswot_s1.csv").write_text("\n".join(["depth1,depth2,depth3,acc_plain,acc_kd", *rows]))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> None:
    results = ["--data", str(folder), "--results", str(folder / "results"), "--processes", "1"]
    monkeypatch.setattr(sys, "argv", ["search", *results, *words])
    command.main()


def test_everything_is_measured_once_and_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--tasks",
        "diswot",
        "--seeds",
        "2",
        "--most",
        "5",
        "--only",
        "regret,limits",
        "--methods",
        "autokd,random",
    ]
    run(monkeypatch, folder, *words)
    said = capsys.readouterr().out
    assert "held-out: 1 tasks, 2 seeds" in said and "| autokd |" in said and "above the limit" in said
    lines = (folder / "results" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["method"] for line in lines].count("autokd") == 2 and len(lines) == 4
    assert (folder / "results" / "regret-epochs.png").stat().st_size > 5_000
    run(monkeypatch, folder, *words)
    assert capsys.readouterr().out.splitlines()[:-1] == said.splitlines()[:-1], "all but the time it took"
    assert len((folder / "results" / "results.jsonl").read_text().splitlines()) == 4


def test_what_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, tmp_path, "--short", "--only", "limits", "--methods", "autokd")
    assert "Not measured, since they are not in" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, "--tasks", "lcbench-3945", "--methods", "autokd")
    assert "name the folder with --data" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, "--methods", "hyperband")
    assert "'hyperband' is none of autokd, random" in capsys.readouterr().err
