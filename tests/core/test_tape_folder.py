"""A tape's folder: names go round, locks are exclusive, and nothing that is not a tape's is ever touched."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autokd.core import tape_folder
from autokd.core.tape_file import FORMAT, Field, write
from autokd.core.tape_folder import (
    Place,
    abandoned,
    clear,
    default_folder,
    default_limit,
    describe,
    entries,
    held,
    joined,
    listing,
    lock_of,
    path_of,
    split,
    temporaries,
    verify,
)
from autokd.errors import InputError

SOURCE, OTHER = "a1" * 8, "a2b3c4d5"
LOGITS = frozenset({"logits"})
HOUR, DAY = 3600, 86_400


def put(folder: Path, place: Place, seconds: float = 0, fields: frozenset[str] = LOGITS) -> Path:
    """A segment, last used so many seconds ago."""
    path = path_of(folder, place, fields)
    write(
        path,
        2,
        {name: Field(torch.float16, (3,)) for name in fields},
        {},
        [{n: torch.ones(2, 3).half() for n in fields}],
    )
    os.utime(path, (time.time() - seconds,) * 2)
    return path


# ---- names


STAGES = [f"{kind}.{number}" for kind in ("attention", "stages") for number in range(16)]


def test_names_of_segments_do_not_grow_with_the_stages_of_a_teacher(tmp_path: Path) -> None:
    place = Place(SOURCE, "jda-cifar100-p0.30000000000000004-m0.30000000000000004", 1, 12345)
    fields = frozenset(
        {
            "logits",
            "embedding",
            "rows",
            "fired",
            *(f"{kind}.{n}" for kind in ("attention", "stages") for n in range(1000)),
        }
    )
    name = path_of(tmp_path, place, fields).name
    assert len(name) < 180 and name.endswith(".attention.0-999+embedding+fired+logits+rows+stages.0-999.safetensors")


def test_a_segment_of_many_stages_is_kept_and_found(tmp_path: Path) -> None:
    fields = frozenset({"logits", *STAGES})
    path = put(tmp_path, Place(SOURCE, "base", 0, 1), fields=fields)
    (entry,) = entries(tmp_path)
    assert (entry.path, entry.fields) == (path, fields)
    assert path.name == "base-v0-e00001.attention.0-15+logits+stages.0-15.safetensors"
    assert listing(tmp_path)[0].segments == 1 and verify(tmp_path) == (1, [])


@given(
    st.frozensets(
        st.sampled_from([*STAGES, "logits", "rows", "a.b", "stages", "stages.01", "stages.x", "stages.12345"]),
        min_size=1,
    )
)
def test_names_of_fields_go_round(fields: frozenset[str]) -> None:
    assert split(joined(fields)) == fields
    assert split("+".join(sorted(fields))) == fields, "as they were written before"


def test_a_foreign_range_is_not_unfolded_without_end() -> None:
    assert split("stages.0-999999999") == {"stages.0-999999999"} and split("stages.7-3") == frozenset()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sources: one of two policies and three epochs, one of a single old segment."""
    for epoch in (1, 2, 3):
        put(tmp_path, Place(SOURCE, "base", 0, epoch), HOUR)
    put(tmp_path, Place(SOURCE, "jda-cifar100-p0.3-m1", 1, 3), 2 * HOUR)
    put(tmp_path, Place(OTHER, "base", 0, 1), 3 * DAY)
    describe(tmp_path, SOURCE, {"teacher": "resnet", "data": "digits", "seed": 0})
    return tmp_path


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# ---- names

names = st.from_regex(r"[A-Za-z][A-Za-z0-9_.]{0,8}", fullmatch=True)


@given(
    source=st.from_regex(r"[0-9a-f]{8,64}", fullmatch=True),
    policy=st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_.+=-]|-v1-e00001\.a){0,12}", fullmatch=True),
    view=st.integers(0, 10**6),
    epoch=st.integers(0, 10**6),
    fields=st.frozensets(names, min_size=1, max_size=4),
)
def test_names_go_round(source: str, policy: str, view: int, epoch: int, fields: frozenset[str]) -> None:
    place = Place(source, policy, view, epoch)
    path = path_of(Path("folder"), place, fields)
    named = tape_folder.SEGMENT.fullmatch(path.name)
    assert named is not None and path.parent == Path("folder") / source
    assert (named[1], int(named[2]), int(named[3]), frozenset(named[4].split("+"))) == (policy, view, epoch, fields)
    assert tape_folder.LOCK.fullmatch(lock_of(Path("folder"), place).name)


@pytest.mark.parametrize("fields", [frozenset(), frozenset({"a/b"}), frozenset({"a-b"}), frozenset({"a+b"})])
def test_fields_that_cannot_be_named_are_an_error(tmp_path: Path, fields: frozenset[str]) -> None:
    with pytest.raises(ValueError, match="file name"):
        path_of(tmp_path, Place(SOURCE, "base", 0, 1), fields)


def test_entries_are_what_was_put(folder: Path) -> None:
    found = {entry.place: entry for entry in entries(folder)}
    assert len(found) == 5 and {place.source for place in found} == {SOURCE, OTHER}
    entry = found[Place(SOURCE, "jda-cifar100-p0.3-m1", 1, 3)]
    assert entry.fields == LOGITS and entry.bytes == entry.path.stat().st_size
    assert abs(time.time() - entry.used - 2 * HOUR) < 60
    assert {entry.place.source for entry in entries(folder, OTHER)} == {OTHER}


@pytest.mark.parametrize("where", ["none", "file", "file/below"])
def test_no_folder_is_an_empty_one(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    assert listing(tmp_path / where) == [] and verify(tmp_path / where) == (0, []) and clear(tmp_path / where) == 0
    assert everything(tmp_path) == {"file"}


# ---- locks


def test_a_lock_is_had_once_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "room.lock"
    with held(path) as first, held(path) as second:
        assert first and not second and path.exists()
    assert not path.exists()


def test_a_lock_is_exclusive_among_threads_that_remove_its_file(tmp_path: Path) -> None:
    path, inside, most, times = tmp_path / "room.lock", 0, 0, 0

    def work() -> None:
        nonlocal inside, most, times
        for _ in range(40):
            with held(path, patient=True) as mine:
                assert mine
                inside += 1
                most, times = max(most, inside), times + 1
                time.sleep(0.0001)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (most, times, inside) == (1, 240, 0) and not path.exists()


def test_a_lock_whose_folder_was_made_anew_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "room.lock"
    with held(path):
        shutil.rmtree(tmp_path / "locks")
        (tmp_path / "locks").mkdir()
        path.write_text("another's")
    assert path.read_text() == "another's"


def test_a_lock_comes_back_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), held(tmp_path / "l"):
        raise KeyError
    with held(tmp_path / "l") as mine:
        assert mine


# ---- leftovers


def test_a_file_is_abandoned_when_its_writer_is_gone_for_a_while(folder: Path) -> None:
    leftover = folder / SOURCE / ".base-v0-e00009.logits.safetensors.1-2.tmp"
    leftover.write_bytes(b"part")
    assert temporaries(folder) == [(leftover, 4)] and not abandoned(leftover)
    os.utime(leftover, (time.time() - 120,) * 2)
    assert abandoned(leftover) and not abandoned(folder / "none")
    assert verify(folder) == (5, [leftover]) and temporaries(folder) == []


# ---- for people


def test_listing_sums_up(folder: Path) -> None:
    first, second = listing(folder)
    assert (first.source, second.source) == (SOURCE, OTHER), "the one that was used last is first"
    assert first.about == {"format": FORMAT, "teacher": "resnet", "data": "digits", "seed": 0} and second.about == {}
    assert first.policies == ("base", "jda-cifar100-p0.3-m1") and (first.epochs, first.segments) == (3, 4)
    assert first.bytes == sum(entry.bytes for entry in entries(folder, SOURCE)) and first.current
    assert abs(time.time() - first.used - HOUR) < 60


def test_listing_marks_other_formats(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autokd.core.tape_file.FORMAT", FORMAT + 1)
    put(folder, Place(OTHER, "base", 0, 2))
    assert [summary.current for summary in listing(folder)] == [False, True]


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_description_that_cannot_be_read_is_none(folder: Path, text: str) -> None:
    (folder / SOURCE / "source.json").write_text(text)
    assert [dict(summary.about) for summary in listing(folder)] == [{}, {}]


def test_verify_removes_what_is_damaged_and_keeps_the_rest(folder: Path) -> None:
    damaged = path_of(folder, Place(SOURCE, "base", 0, 2), LOGITS)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    assert verify(folder) == (4, [damaged]) and not damaged.exists()
    assert verify(folder) == (4, [])


def test_clear_removes_everything(folder: Path) -> None:
    total = sum(entry.bytes for entry in entries(folder))
    lock = lock_of(folder, Place(SOURCE, "base", 0, 1))
    lock.parent.mkdir()
    lock.touch()
    assert clear(folder) == total and everything(folder) <= {"locks"} and clear(folder) == 0


def test_clear_removes_one_source_named_by_its_beginning(folder: Path) -> None:
    size = sum(entry.bytes for entry in entries(folder, OTHER))
    assert clear(folder, source="a2") == size and {entry.place.source for entry in entries(folder)} == {SOURCE}
    assert not (folder / OTHER).exists()


@pytest.mark.parametrize(
    ("source", "said"), [("", "unknown"), ("ff", "known: a1"), ("a", "give more of it"), ("..", "unknown")]
)
def test_clear_of_what_is_no_source(folder: Path, source: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        clear(folder, source)
    assert len(entries(folder)) == 5


def test_clear_removes_what_is_old(folder: Path) -> None:
    clear(folder, older_than=1.5 * HOUR)
    assert {entry.place for entry in entries(folder)} == {Place(SOURCE, "base", 0, epoch) for epoch in (1, 2, 3)}


def test_clear_leaves_a_lock_that_is_held(folder: Path) -> None:
    lock = lock_of(folder, Place(SOURCE, "base", 0, 1))
    with held(lock):
        clear(folder)
        assert lock.exists()


def test_what_is_not_a_tapes_is_never_touched(folder: Path) -> None:
    """Somebody names his home folder."""
    foreign = [
        "thesis.txt",
        "thesis.safetensors",
        "locks/door.key",
        "photos/base-v0-e00001.logits.safetensors",
        f"{SOURCE}/notes.txt",
        f"{SOURCE}/.hidden.tmp",
        "deadbeef/source.json",
        "deadbeef01/model.safetensors",
    ]
    for name in foreign:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        os.utime(path, (1, 1))
    verify(folder)
    clear(folder)
    assert all((folder / name).read_text() == "mine" for name in foreign) and entries(folder) == []


# ---- defaults


def test_the_default_folder_is_in_the_users_cache() -> None:
    assert default_folder() == Path(os.environ["XDG_CACHE_HOME"]) / "autokd" / "tape"


def test_the_default_limit_does_not_shrink_as_the_tape_grows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage, held_bytes = shutil.disk_usage(folder), sum(entry.bytes for entry in entries(folder))
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=10**9 - held_bytes))
    assert default_limit(folder) == 10**8
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=10**13))
    assert default_limit(folder / "not" / "there" / "yet") == 20 * 10**9
