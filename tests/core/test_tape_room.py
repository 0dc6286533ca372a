"""Room for a segment: what is removed for it, in which order, and what never is. What a whole tape does: test_tape_store.py."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from autokd.core.tape_file import FORMAT
from autokd.core.tape_folder import Place, path_of, used
from autokd.core.tape_room import RECENT, dispensable, free_to_use, full_words, make_room, room

OWN, OTHER = "a1" * 8, "b2" * 8
SIZE = 100


def put(folder: Path, place: Place, seconds: float) -> Path:
    """The name and size of a segment: what decides over it is not its content. Last used so many seconds ago."""
    path = path_of(folder, place, frozenset({"logits"}))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * SIZE)
    os.utime(path, (time.time() - seconds,) * 2)
    return path


@pytest.fixture(autouse=True)
def every_file_is_of_this_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autokd.core.tape_room.format_of", lambda path: FORMAT)


@pytest.fixture
def aged(tmp_path: Path) -> list[Path]:
    """Segments of another source, from the longest unused to one that was used lately; older than all, one of its own."""
    put(tmp_path, Place(OWN, "base", 0, 1), 10**6)
    return [put(tmp_path, Place(OTHER, "base", 0, n), s) for n, s in enumerate((9000, 5000, RECENT + 60, RECENT - 60))]


def test_others_go_the_longest_unused_first_and_none_used_lately(tmp_path: Path, aged: list[Path]) -> None:
    assert dispensable(tmp_path, OWN) == [(path, SIZE) for path in aged[:3]]
    assert make_room(tmp_path, 5 * SIZE, OWN, 1) is None and [path.exists() for path in aged] == [
        False,
        True,
        True,
        True,
    ]
    assert make_room(tmp_path, 4 * SIZE, OWN, 0) is None and used(tmp_path) == 4 * SIZE, "nothing is removed in vain"
    assert make_room(tmp_path, 4 * SIZE, OWN, SIZE + 1) is None
    assert [path.exists() for path in aged] == [False, False, False, True]
    assert make_room(tmp_path, 3 * SIZE, OWN, SIZE + 1) == "limit" and used(tmp_path) == 2 * SIZE


def test_nothing_is_removed_if_that_would_not_be_enough(tmp_path: Path, aged: list[Path]) -> None:
    assert make_room(tmp_path, 5 * SIZE, OWN, 3 * SIZE + 1) == "limit" and all(path.exists() for path in aged)


def test_other_formats_go_before_all_others_also_ones_own(
    tmp_path: Path, aged: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = {put(tmp_path, Place(OWN, "base", 0, 2), 30), aged[1]}
    monkeypatch.setattr("autokd.core.tape_room.format_of", lambda path: None if path in foreign else FORMAT)
    assert [path for path, _ in dispensable(tmp_path, OWN)] == [aged[1], *(foreign - {aged[1]}), aged[0], aged[2]]


def test_leftovers_go_first_but_only_when_their_writer_is_gone(tmp_path: Path, aged: list[Path]) -> None:
    young, old = (tmp_path / OTHER / f".base-v0-e00009.logits.safetensors.{n}-1.tmp" for n in (1, 2))
    for path in (young, old):
        path.write_bytes(b"x" * SIZE)
    os.utime(old, (1, 1))
    assert [path for path, _ in dispensable(tmp_path, OWN)][:2] == [old, aged[0]]
    assert used(tmp_path) == 7 * SIZE


def test_room_is_what_is_left_and_what_may_go(tmp_path: Path, aged: list[Path]) -> None:
    assert room(tmp_path, 6 * SIZE, OWN) == 4 * SIZE and room(tmp_path, 6 * SIZE, OTHER) == 2 * SIZE
    assert room(tmp_path, 6 * SIZE, None) == 5 * SIZE and room(tmp_path, SIZE, OWN) == 0
    assert room(tmp_path / "none", 6 * SIZE, OWN) == 6 * SIZE


def disk(monkeypatch: pytest.MonkeyPatch, total: int, free: int) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(total=total, free=free))


def test_a_reserve_is_left_on_every_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, 10**9, 10**9)
    assert free_to_use(tmp_path) == 10**9 - 256 * 10**6
    disk(monkeypatch, 10**12, 10**10)
    assert free_to_use(tmp_path / "not" / "yet") == 10**10 - 2 * 10**10


def test_a_full_disk_is_told_from_a_full_tape(
    tmp_path: Path, aged: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk(monkeypatch, 10**9, 256 * 10**6 + SIZE)
    assert make_room(tmp_path, 10**6, OWN, SIZE) is None and all(path.exists() for path in aged)
    assert make_room(tmp_path, 10**6, OWN, SIZE + 1) == "disk", "what was removed is still open somewhere"
    assert not aged[0].exists() and aged[1].exists()
    assert room(tmp_path, 10**6, "c3" * 8) == 4 * SIZE


@pytest.mark.parametrize(("reason", "said"), [("limit", "raise tape_limit"), ("disk", "free space")])
def test_why_is_told_in_one_line(tmp_path: Path, reason: str, said: str) -> None:
    text = full_words(reason, tmp_path, 10**9, 5 * 10**6)
    assert said in text and "5.0 MB" in text and "\n" not in text
