"""`autokd tape`: what people see of a tape, and what they can do about it."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from autokd.cli import main
from autokd.core.tape_file import Field
from autokd.core.tape_store import Place, Tape

SOURCE, OTHER = "a1" * 8, "b2" * 8
ABOUT = {SOURCE: {"teacher": "resnet [bold] w=64", "data": "digits", "seed": 3}}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `autokd tape …` in this process: (exit code, stdout, stderr)."""

    def run(line: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["autokd", "tape", *shlex.split(line)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three epochs of one source, one old epoch of another."""
    tape = Tape(tmp_path, 10**7, ABOUT)
    field = {"logits": Field(torch.float16, (100,))}
    places = [*(Place(SOURCE, "base", 0, epoch) for epoch in (1, 2, 3)), Place(OTHER, "jda-p0.3-m1", 1, 1)]
    for place in places:
        with tape.claim(place):
            assert tape.record(place, 5, field, {}, [{"logits": torch.zeros(5, 100).half()}]) is not None
    (old,) = (tmp_path / OTHER).glob("*.safetensors")
    os.utime(old, (time.time() - 8 * 86400,) * 2)
    return tmp_path


def segments(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.safetensors"))


def test_the_list_tells_what_is_there(call: Any, folder: Path) -> None:
    code, out, err = call(f"--dir {folder}")
    assert (code, err) == (0, "")
    first, second = (next(line for line in out.splitlines() if source[:12] in line) for source in (SOURCE, OTHER))
    for word in ("resnet [bold] w=64", "digits", " 3 ", "base", "kB", "ago"):
        assert word in first, word
    assert "jda-p0.3-m1" in second and "192 h ago" in second
    assert f"in {folder}; a search lets it grow to" in out and "another version" not in out


def test_other_formats_are_marked(call: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autokd.core.tape_folder.FORMAT", 2)
    _, out, _ = call(f"--dir {folder}")
    assert f"{SOURCE[:12]} *" in out and "* another version" in out


@pytest.mark.parametrize("where", ["", "--dir nowhere"])
def test_an_empty_tape_says_what_a_tape_is(
    call: Any, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, out, err = call(where)
    assert (
        (code, err) == (0, "") and "Nothing is recorded in" in out and "replay it instead of running the teacher" in out
    )
    assert list(tmp_path.iterdir()) == []


def test_verify_finds_and_removes_what_is_damaged(call: Any, folder: Path) -> None:
    assert call(f"verify --dir {folder}") == (0, "4 segments are sound, 0 were not and have been removed\n", "")
    path = next(iter(sorted(folder.rglob("*.safetensors"))))
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    code, out, err = call(f"verify --dir {folder}")
    assert (code, err) == (1, "") and out.splitlines()[0] == f"removed {path}" and not path.exists()
    assert out.splitlines()[1].startswith("3 segments are sound, 1 were not")


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ("", 0),
        ("--source b2b2", 3),
        ("--source a1", 1),
        ("--older-than 7d", 3),
        ("--older-than 9d", 4),
        ("--older-than 1h --source a1", 4),
    ],
)
def test_clear_removes_what_was_asked_for(call: Any, folder: Path, options: str, left: int) -> None:
    before = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    code, out, err = call(f"--dir {folder} clear {options}")
    assert (code, err) == (0, "") and len(segments(folder)) == left
    after = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    assert out.endswith(" freed\n") and (out == "0 B freed\n") == (before == after)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("clear --older-than 7", "--older-than must be a time"),
        ("clear --older-than '3 trials'", "write for example 7d"),
        ("clear --source ff", "unknown source 'ff'"),
        ("--dir FILE", "must be a folder"),
        ("verify --dir FILE", "must be a folder"),
        ("claer", "No such command"),
        ("verify extra", "unexpected extra argument"),
    ],
)
def test_wrong_command_lines_are_told_in_one_line(call: Any, folder: Path, line: str, said: str) -> None:
    file = folder / "file"
    file.write_text("")
    line = line.replace("FILE", str(file)) if "FILE" in line else f"--dir {folder} {line}"
    code, out, err = call(line)
    assert code == 2 and out == "" and err.startswith("error: ") and said in err and err.count("\n") == 1, err
    assert len(segments(folder)) == 4


@pytest.mark.parametrize("command", ["", "verify", "clear"])
def test_help_teaches(call: Any, command: str) -> None:
    code, out, err = call(f"{command} --help")
    assert (code, err) == (0, "") and out.startswith(f"Usage: autokd tape {command}".rstrip()) and "--dir" in out
