"""Run folders: new, in the way, in use, and found again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from autokd.errors import RunFolderError
from autokd.run_folder import RunFolder

HOLD = """
import sys
from autokd.run_folder import RunFolder
held = RunFolder.{how}({arguments})
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_new_folder_holds_what_a_search_needs(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "deep" / "run", "x")
    assert folder.checkpoints.is_dir() and not folder.ledger.exists()
    assert folder.path.is_absolute() and folder.teacher.parent == folder.student.parent == folder.path
    folder.close()
    folder.close()


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, "x").close()


def test_without_a_name_each_search_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [RunFolder.create(None, "digits") for _ in range(3)]
    assert len({folder.path for folder in folders}) == 3
    assert all(folder.path.parent == tmp_path / "runs" and folder.path.name.startswith("digits-") for folder in folders)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunFolderError, match="is not empty; name a new or empty folder"):
        RunFolder.create(tmp_path, "x")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_with_a_search_offers_to_resume(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_text("")
    with pytest.raises(RunFolderError, match="holds a search already; continue it with autokd.resume"):
        RunFolder.create(tmp_path, "x")


@pytest.mark.parametrize("below", ["", "run", "a/b"])
def test_a_file_in_the_way_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunFolderError, match="cannot be written.*name another folder"):
        RunFolder.create(tmp_path / "file" / below, "x")


def test_a_folder_without_a_search_cannot_be_resumed(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RunFolderError, match=r"holds no ledger.jsonl; give the folder that the search printed"):
            RunFolder.existing(path)
    assert not (tmp_path / "missing").exists()


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "run"
    code = HOLD.format(how="create", arguments=f"{str(path)!r}, 'x'")
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        (path / "ledger.jsonl").write_text("")
        with pytest.raises(RunFolderError, match="in use by another process; wait for it or stop it"):
            RunFolder.existing(path)
    finally:
        other.kill()
        other.communicate()
    RunFolder.existing(path).close()  # a killed process holds nothing


def test_the_same_process_cannot_open_it_twice(tmp_path: Path) -> None:
    first = RunFolder.create(tmp_path / "run", "x")
    first.ledger.write_text("")
    with pytest.raises(RunFolderError, match="in use"):
        RunFolder.existing(first.path)
    first.close()
    RunFolder.existing(first.path).close()
