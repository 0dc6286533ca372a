"""The tape: recorded once by whoever is first, replayed by all, and never in the way, whatever happens to its folder."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from autokd.core import tape_store
from autokd.core.tape_file import FORMAT, Field, Segment, size_of, write
from autokd.core.tape_folder import abandoned, entries, lock_of, path_of
from autokd.core.tape_store import Place, Tape, listing

SOURCE, OTHER, THIRD = "a1" * 8, "b2" * 8, "c3" * 8
ROWS = 6
FIELDS = {"logits": Field(torch.float16, (4,)), "images": Field(torch.uint8, (2, 3))}
LOGITS = frozenset({"logits"})
LIMIT = 10_000_000
DAY = 86_400


def place(epoch: int = 1, source: str = SOURCE, policy: str = "base", view: int = 0) -> Place:
    return Place(source, policy, view, epoch)


def rows_of(value: float, names: frozenset[str] = frozenset(FIELDS)) -> dict[str, Tensor]:
    return {name: torch.full((ROWS, *FIELDS[name].shape), value).to(FIELDS[name].dtype) for name in names}


def record(
    tape: Tape, where: Place, names: frozenset[str] = frozenset(FIELDS), value: float | None = None
) -> Segment | None:
    """As a core does it: ask, claim, ask again, record, else wait and begin again."""
    fields = {name: FIELDS[name] for name in names}
    while True:
        found = tape.find(where, names)
        if found is not None:
            return found
        with tape.claim(where) as mine:
            if mine or tape.closed is not None:
                block = rows_of(where.epoch if value is None else value, names)
                return tape.record(where, ROWS, fields, {"epoch": where.epoch}, [block])
        tape.wait(where, names, 5)


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def files_in(folder: Path) -> list[str]:
    """Everything below `folder` but descriptions."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != "source.json")


def refuse(*_: object, **__: object) -> int:
    raise OSError(30, "Read-only file system")


def forbidden() -> Iterator[dict[str, Tensor]]:
    raise AssertionError("rows were computed although they cannot be kept")
    yield {}


@pytest.fixture
def tape(tmp_path: Path) -> Tape:
    return Tape(tmp_path / "tape", LIMIT, {SOURCE: {"teacher": "resnet", "data": "digits", "seed": 3}})


# ---- recording and replaying


def test_what_is_recorded_is_found(tape: Tape) -> None:
    assert tape.find(place(), LOGITS) is None
    recorded = record(tape, place())
    found = tape.find(place(), LOGITS)
    assert recorded is not None and found is recorded and (found.rows, found.meta) == (ROWS, {"epoch": 1})
    assert torch.equal(found.fields["logits"], rows_of(1)["logits"])
    assert files_in(tape.folder) == [f"{SOURCE}/base-v0-e00001.images+logits.safetensors"]
    assert tape.notes == [] and tape.closed is None


def test_another_tape_of_the_same_folder_finds_it(tape: Tape) -> None:
    record(tape, place())
    found = Tape(tape.folder, LIMIT).find(place(), frozenset(FIELDS))
    assert found is not None and torch.equal(found.fields["images"], rows_of(1)["images"])


@pytest.mark.parametrize(
    "elsewhere", [place(2), place(source=OTHER), place(policy="jda-p0.3-m1"), place(view=1), place(100_000)]
)
def test_another_place_is_not_served(tape: Tape, elsewhere: Place) -> None:
    record(tape, place())
    assert tape.find(elsewhere, LOGITS) is None
    record(tape, elsewhere, value=50)
    for where, value in ((place(), 1), (elsewhere, 50)):
        found = Tape(tape.folder, LIMIT).find(where, LOGITS)
        assert found is not None and float(found.fields["logits"][0, 0]) == value


def test_a_segment_with_more_fields_serves_and_one_with_fewer_does_not(tape: Tape) -> None:
    record(tape, place(), LOGITS)
    assert tape.find(place(), LOGITS) is not None and tape.find(place(), frozenset({"logits", "images"})) is None
    record(tape, place(), frozenset({"logits", "images"}))
    found = Tape(tape.folder, LIMIT).find(place(), LOGITS)
    assert found is not None and found.fields.keys() == FIELDS.keys()
    assert len(files_in(tape.folder)) == 1, "the one with fewer fields is of no use any more"


def test_what_is_there_is_not_computed_again(tape: Tape) -> None:
    record(tape, place())
    with tape.claim(place()) as mine:
        assert mine
        assert tape.record(place(), ROWS, FIELDS, {}, forbidden()) is not None


def test_a_segment_is_checked_once_and_then_kept_open(tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tape, place())
    opened: list[Path] = []
    real = tape_store.open_segment
    monkeypatch.setattr(tape_store, "open_segment", lambda path, check=True: opened.append(path) or real(path, check))
    again = Tape(tape.folder, LIMIT)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: again.find(place(), LOGITS), range(32)))
    assert len(opened) == 1 and all(segment is found[0] for segment in found)


def test_few_segments_are_kept_open(tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape_store, "OPEN", 3)
    segments = [record(tape, place(epoch)) for epoch in range(6)]
    again = [tape.find(place(epoch), LOGITS) for epoch in range(5, -1, -1)][::-1]
    assert [a is b for a, b in zip(segments, again, strict=True)] == [False] * 3 + [True] * 3


def test_finding_is_using(tape: Tape) -> None:
    record(tape, place())
    (entry,) = entries(tape.folder)
    for finder in (tape, Tape(tape.folder, LIMIT)):
        age(entry.path, DAY)
        finder.find(place(), LOGITS)
        assert time.time() - entry.path.stat().st_mtime < 60


def test_rows_that_are_not_as_announced_are_an_error_and_leave_nothing(tape: Tape) -> None:
    for blocks in ([], [{"logits": torch.zeros(ROWS, 4)}]):
        with pytest.raises(ValueError), tape.claim(place()):
            tape.record(place(), ROWS, FIELDS, {}, blocks)
    assert files_in(tape.folder) == [] and tape.notes == []


@pytest.mark.parametrize(
    "bad", [place(source="../x"), place(policy="a/b"), place(policy=""), place(-1), place(view=-1)]
)
def test_places_that_cannot_be_files_are_an_error(tape: Tape, bad: Place) -> None:
    with pytest.raises(ValueError, match="file name"), tape.claim(bad):
        pass
    with pytest.raises(ValueError, match="file name"):
        tape.record(bad, ROWS, FIELDS, {}, forbidden())


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt])
def test_what_the_computation_raises_is_raised(tape: Tape, error: type[BaseException]) -> None:
    def blocks() -> Iterator[dict[str, Tensor]]:
        yield {name: tensor[:2] for name, tensor in rows_of(1).items()}
        raise error("of the user's own data set")

    with pytest.raises(error, match="of the user's own"), tape.claim(place()):
        tape.record(place(), ROWS, FIELDS, {}, blocks())
    assert files_in(tape.folder) == [] and tape.notes == [] and tape.closed is None
    assert record(tape, place()) is not None


# ---- damage


def damage(path: Path, byte: int) -> None:
    with open(path, "r+b") as file:
        file.seek(byte)
        old = file.read(1)
        file.seek(byte)
        file.write(bytes([old[0] ^ 1]))


@pytest.mark.parametrize("byte", [0, 30, -1])
def test_a_flipped_byte_is_found_and_recorded_again(tape: Tape, byte: int) -> None:
    record(tape, place())
    (entry,) = entries(tape.folder)
    damage(entry.path, byte % entry.bytes)
    again = Tape(tape.folder, LIMIT)
    assert again.find(place(), LOGITS) is None and again.find(place(), LOGITS) is None
    assert not entry.path.exists() and len(again.notes) == 1 and str(entry.path) in again.notes[0]
    assert record(again, place()) is not None and Tape(tape.folder, LIMIT).find(place(), LOGITS) is not None


def test_a_torn_file_is_found_and_recorded_again(tape: Tape) -> None:
    record(tape, place())
    (entry,) = entries(tape.folder)
    os.truncate(entry.path, entry.bytes // 2)
    again = Tape(tape.folder, LIMIT)
    assert record(again, place()) is not None and len(again.notes) == 1 and "torn" in again.notes[0]


def test_another_sound_file_serves_where_one_is_damaged(tape: Tape) -> None:
    full = frozenset(FIELDS)
    for names in (full, LOGITS):
        path = path_of(tape.folder, place(), names)
        write(path, ROWS, {name: FIELDS[name] for name in names}, {}, [rows_of(1, names)])
    damage(path_of(tape.folder, place(), LOGITS), -1 % path_of(tape.folder, place(), LOGITS).stat().st_size)
    found = tape.find(place(), LOGITS)
    assert found is not None and found.fields.keys() == FIELDS.keys() and len(tape.notes) == 1


def test_an_older_format_is_recorded_again(tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tape, place())
    monkeypatch.setattr("autokd.core.tape_file.FORMAT", FORMAT + 1)
    monkeypatch.setattr(tape_store, "FORMAT", FORMAT + 1)
    again = Tape(tape.folder, LIMIT)
    assert again.find(place(), LOGITS) is None and f"of format {FORMAT}," in again.notes[0]
    assert record(again, place()) is not None


def test_a_file_that_cannot_be_read_is_missing_and_stays(tape: Tape) -> None:
    path = path_of(tape.folder, place(), LOGITS)
    path.mkdir(parents=True)  # opening it is an OSError, for root too
    assert tape.find(place(), LOGITS) is None and path.exists() and "cannot be read" in tape.notes[0]


@pytest.mark.parametrize("removable", [True, False])
def test_what_its_reader_rejects_is_not_given_again(
    tape: Tape, removable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tape, place())
    record(tape, place(2))
    assert (
        tape.has(place(), LOGITS) and not tape.has(place(), frozenset({"embedding"})) and not tape.has(place(3), LOGITS)
    )
    with monkeypatch.context() as disk:
        if not removable:
            disk.setattr(Path, "unlink", refuse)
        tape.reject(place(), "its outputs are not the teacher's")
    assert tape.find(place(), LOGITS) is None and not tape.has(place(), LOGITS) and tape.has(place(2), LOGITS)
    assert len(tape.notes) == 1 and "base-v0-e00001" in tape.notes[0] and "not the teacher's" in tape.notes[0]
    again = record(tape, place(), value=9)
    assert again is not None and float(again.fields["logits"][0, 0]) == 9 and tape.find(place(), LOGITS) is again


# ---- several at once


def test_one_of_many_threads_records(tape: Tape) -> None:
    computed: Counter[int] = Counter()

    def lane(number: int) -> Segment | None:
        where = place(number % 3)
        while True:
            found = tape.find(where, LOGITS)
            if found is not None:
                return found
            with tape.claim(where) as mine:
                if mine:

                    def blocks() -> Iterator[dict[str, Tensor]]:
                        computed[where.epoch] += 1
                        time.sleep(0.05)
                        yield rows_of(where.epoch)

                    return tape.record(where, ROWS, FIELDS, {}, blocks())
            tape.wait(where, LOGITS, 5)

    with ThreadPoolExecutor(12) as threads:
        found = list(threads.map(lane, range(12)))
    assert computed == {0: 1, 1: 1, 2: 1}
    assert all(
        segment is not None and float(segment.fields["logits"][0, 0]) == n % 3 for n, segment in enumerate(found)
    )
    assert [name for name in files_in(tape.folder) if "lock" in name] == []


def test_a_claim_is_one_threads_and_comes_back(tape: Tape) -> None:
    with tape.claim(place()) as mine:
        assert mine
        with tape.claim(place()) as second, tape.claim(place(2)) as elsewhere:
            assert not second and elsewhere
    with tape.claim(place()) as mine:
        assert mine
    assert not lock_of(tape.folder, place()).exists()


def test_waiting_ends_when_the_claim_is_given_back(tape: Tape) -> None:
    claimed, finish = threading.Event(), threading.Event()

    def recorder() -> None:
        with tape.claim(place()):
            claimed.set()
            finish.wait(10)

    thread = threading.Thread(target=recorder)
    thread.start()
    claimed.wait(10)
    begun = time.monotonic()
    tape.wait(place(), LOGITS, 0.15)
    assert 0.15 <= time.monotonic() - begun < 5, "it has a limit"
    threading.Timer(0.1, finish.set).start()
    begun = time.monotonic()
    tape.wait(place(), LOGITS, 20)
    assert time.monotonic() - begun < 10
    thread.join()


def test_nobody_waits_for_nobody(tape: Tape) -> None:
    begun = time.monotonic()
    tape.wait(place(), LOGITS, 20)
    lock = lock_of(tape.folder, place())
    lock.parent.mkdir(parents=True)
    lock.touch()  # left by a killed process
    tape.wait(place(), LOGITS, 20)
    assert time.monotonic() - begun < 5


LANE = """
import sys, time, torch
from pathlib import Path
from autokd.core.tape_store import Field, Place, Tape
torch.set_num_threads(1)
tape, where, fields = Tape(Path(sys.argv[1]), 10**7), Place("a1" * 8, "base", 0, 1), {"logits": Field(torch.float16, (4,))}
def blocks():
    print("computing", flush=True)
    time.sleep(float(sys.argv[2]))
    yield {"logits": torch.ones(6, 4).half()}
print("ready", flush=True)
sys.stdin.readline()
while True:
    found = tape.find(where, frozenset(fields))
    if found is not None:
        break
    with tape.claim(where) as mine:
        if mine:
            found = tape.record(where, 6, fields, {}, blocks())
            break
    tape.wait(where, frozenset(fields), 20)
print("sum", int(found.fields["logits"].sum()), tape.notes, flush=True)
"""


def lane_process(folder: Path, seconds: float) -> subprocess.Popen[str]:
    """A process of its own that wants one place; it begins at a line on its stdin."""
    command = [sys.executable, "-c", LANE, str(folder), str(seconds)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def begin(lane: subprocess.Popen[str]) -> None:
    assert lane.stdin is not None and lane.stdout is not None and lane.stdout.readline() == "ready\n"
    lane.stdin.write("\n")
    lane.stdin.flush()


def test_one_of_two_processes_records_and_the_other_finds(tape: Tape) -> None:
    lanes = [lane_process(tape.folder, 0.3) for _ in range(2)]
    for lane in lanes:
        begin(lane)
    said = [lane.communicate(timeout=50) for lane in lanes]
    assert sorted(out for out, _ in said) == ["computing\nsum 24 []\n", "sum 24 []\n"], said
    assert len(files_in(tape.folder)) == 1


def test_a_killed_process_gives_its_claim_back_and_its_leftover_is_found(tape: Tape) -> None:
    lane = lane_process(tape.folder, 600)
    begin(lane)
    assert lane.stdout is not None and lane.stdout.readline() == "computing\n"
    with tape.claim(place()) as mine:
        assert not mine
    (temporary,) = tape.folder.rglob("*.tmp")
    age(temporary, DAY)
    assert not abandoned(temporary), "its writer is alive"
    threading.Timer(0.1, lane.send_signal, [signal.SIGKILL]).start()
    tape.wait(place(), LOGITS, 30)
    lane.communicate(timeout=10)
    assert record(tape, place(), LOGITS) is not None
    age(temporary, DAY)
    assert abandoned(temporary) and tape_store.verify(tape.folder) == (1, [temporary])
    assert len(files_in(tape.folder)) == 1


# ---- room

SIZE = size_of(ROWS, FIELDS, {"epoch": 1})


def test_the_limit_is_obeyed_and_the_rest_is_not_recorded(tmp_path: Path) -> None:
    tape = Tape(tmp_path, 3 * SIZE + SIZE // 2)
    assert tape.room() == tape.limit
    kept = [record(tape, place(epoch)) is not None for epoch in range(1, 6)]
    assert kept == [True, True, True, False, False], "early epochs of one's own source stay"
    assert sum(entry.bytes for entry in entries(tmp_path)) == 3 * SIZE and tape.room() == SIZE // 2
    assert len(tape.notes) == 1 and "the tape is full" in tape.notes[0] and "\n" not in tape.notes[0]
    assert tape.closed is None


def test_a_segment_larger_than_the_limit_is_never_computed(tmp_path: Path) -> None:
    tape = Tape(tmp_path, SIZE - 1)
    with tape.claim(place()) as mine:
        assert mine and tape.record(place(), ROWS, FIELDS, {"epoch": 1}, forbidden()) is None
    assert len(tape.notes) == 1 and "raise tape_limit" in tape.notes[0]


def test_others_make_room_the_longest_unused_first(tmp_path: Path) -> None:
    tape = Tape(tmp_path, 4 * SIZE)
    for number, (source, epoch) in enumerate([(OTHER, 1), (THIRD, 1), (OTHER, 2), (SOURCE, 1)]):
        record(tape, place(epoch, source))
        age(path_of(tmp_path, place(epoch, source), frozenset(FIELDS)), DAY * (9 - number))
    age(path_of(tmp_path, place(1, SOURCE), frozenset(FIELDS)), 20 * DAY)  # the oldest of all, but its own
    assert tape.room(SOURCE) == 3 * SIZE and tape.room() == 4 * SIZE and tape.room(OTHER) == 2 * SIZE
    assert record(tape, place(2)) is not None
    assert {entry.place for entry in entries(tmp_path)} == {place(1), place(2), place(1, THIRD), place(2, OTHER)}
    assert record(tape, place(3)) is not None and record(tape, place(4)) is not None
    assert {entry.place for entry in entries(tmp_path)} == {place(epoch) for epoch in (1, 2, 3, 4)}
    assert sorted(path.name for path in tmp_path.iterdir()) == [SOURCE, "locks"], "empty folders go"
    assert record(tape, place(5)) is None


def test_what_was_used_lately_is_spared(tmp_path: Path) -> None:
    tape = Tape(tmp_path, 2 * SIZE)
    record(tape, place(1, OTHER))
    record(tape, place(2, OTHER))
    for epoch, seconds in ((1, 3 * DAY), (2, 500)):
        age(path_of(tmp_path, place(epoch, OTHER), frozenset(FIELDS)), seconds)
    assert tape.room(SOURCE) == SIZE
    assert record(tape, place(1)) is not None and record(tape, place(2)) is None
    assert {entry.place for entry in entries(tmp_path)} == {place(2, OTHER), place(1)}


def test_nothing_is_removed_if_that_would_not_be_enough(tmp_path: Path) -> None:
    small = Tape(tmp_path, 2 * SIZE)
    record(small, place(1, OTHER), LOGITS)
    age(next(iter(entries(tmp_path))).path, DAY)
    small.limit = SIZE - 1
    assert record(small, place()) is None and len(entries(tmp_path)) == 1


def test_older_formats_and_leftovers_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as past:
        past.setattr("autokd.core.tape_file.FORMAT", 0)
        write(path_of(tmp_path, place(7), LOGITS), ROWS, {"logits": FIELDS["logits"]}, {}, [rows_of(1, LOGITS)])
    tape = Tape(tmp_path, 10**9)
    record(tape, place(1, OTHER))
    leftover = tmp_path / OTHER / f".base-v0-e00002.logits.safetensors.123-456{'.tmp'}"
    leftover.write_bytes(b"x" * 500)
    ages = {path_of(tmp_path, place(1, OTHER), frozenset(FIELDS)): 9 * DAY, leftover: 120}
    for path, seconds in ages.items():
        age(path, seconds)
    tape.limit = sum(
        path.stat().st_size for path in tmp_path.rglob("*") if path.name.endswith((".safetensors", ".tmp"))
    )
    tape.limit += SIZE - 500
    assert record(tape, place(2)) is not None and not leftover.exists() and len(entries(tmp_path)) == 3
    tape.limit = sum(entry.bytes for entry in entries(tmp_path)) + SIZE - 1
    assert record(tape, place(3)) is not None
    assert {entry.place for entry in entries(tmp_path)} == {place(1, OTHER), place(2), place(3)}


def test_a_full_disk_is_told_and_nothing_is_computed(tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tape.folder.parent)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(total=10**10, free=256 * 10**6 + SIZE - 1))
    assert tape.room() == SIZE - 1
    with tape.claim(place()):
        assert tape.record(place(), ROWS, FIELDS, {"epoch": 1}, forbidden()) is None
    assert len(tape.notes) == 1 and "no room for a segment" in tape.notes[0] and "free space" in tape.notes[0]
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(total=10**10, free=256 * 10**6 + SIZE))
    assert record(tape, place()) is not None, "room may come back"


def test_a_disk_that_fills_up_in_the_middle(tape: Tape) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE - 1, hard))
    try:
        with tape.claim(place()):
            assert tape.record(place(), ROWS, FIELDS, {"epoch": 1}, forbidden()) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_in(tape.folder) == [] and len(tape.notes) == 1 and "is full" in tape.notes[0]
    assert tape.closed is None and record(tape, place()) is not None


# ---- folders that cannot be used


def test_a_folder_that_cannot_be_made_closes_the_tape(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    tape = Tape(tmp_path / "file" / "tape", LIMIT)
    assert tape.find(place(), LOGITS) is None
    with tape.claim(place()) as mine:
        assert not mine
    assert tape.closed is not None and "name a tape folder elsewhere" in tape.closed and "\n" not in tape.closed
    assert tape.notes == [tape.closed] and tape.room() == 0
    assert tape.record(place(), ROWS, FIELDS, {}, forbidden()) is None
    tape.wait(place(), LOGITS, 20)
    assert record(tape, place()) is None and tape.notes == [tape.closed]


def test_a_folder_that_becomes_unusable_in_mid_run_closes_the_tape(tape: Tape) -> None:
    found = record(tape, place())
    shutil.rmtree(tape.folder)
    tape.folder.write_text("in the way")
    assert record(tape, place(2)) is None and tape.closed is not None
    assert tape.find(place(), LOGITS) is found, "what is open stays"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_replayed_and_not_recorded(tape: Tape) -> None:
    record(tape, place())
    folders = [tape.folder, *(path for path in tape.folder.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        again = Tape(tape.folder, LIMIT)
        assert again.find(place(), LOGITS) is not None and again.closed is None
        assert record(again, place(2)) is None and again.closed is not None and "writable" in again.closed
    finally:
        for folder in folders:
            folder.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("function", ["os.open", "os.replace"])
def test_so_it_is_where_writing_is_refused(tape: Tape, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What root, too, meets on a disk that is mounted read-only."""
    record(tape, place())

    again = Tape(tape.folder, LIMIT)
    monkeypatch.setattr(function, refuse)
    assert again.find(place(), LOGITS) is not None
    with again.claim(place(2)) as mine:
        assert mine == (function == "os.replace")
        assert again.record(place(2), ROWS, FIELDS, {}, [rows_of(2)]) is None
    assert again.closed is not None and "Read-only file system" in again.closed
    assert len(files_in(tape.folder)) == 1


def test_a_folder_that_is_deleted_in_mid_run_is_made_again(tape: Tape) -> None:
    first = record(tape, place())
    shutil.rmtree(tape.folder)
    assert record(tape, place(2)) is not None and record(tape, place(1)) is first
    assert first is not None and torch.equal(first.fields["images"], rows_of(1)["images"])
    assert tape.notes == [] and listing(tape.folder)[0].about["teacher"] == "resnet"


def test_a_folder_that_is_deleted_while_a_segment_is_recorded(tape: Tape) -> None:
    def blocks() -> Iterator[dict[str, Tensor]]:
        shutil.rmtree(tape.folder)
        yield rows_of(1)

    with tape.claim(place()):
        assert tape.record(place(), ROWS, FIELDS, {"epoch": 1}, blocks()) is None
    assert tape.closed is None and len(tape.notes) == 1 and "was deleted" in tape.notes[0]
    assert record(tape, place()) is not None


def test_a_description_lies_beside_the_segments(tape: Tape) -> None:
    record(tape, place())
    record(tape, place(1, OTHER))
    about = {summary.source: summary.about for summary in listing(tape.folder)}
    assert about[SOURCE] == {"format": FORMAT, "teacher": "resnet", "data": "digits", "seed": 3}
    assert about[OTHER] == {"format": FORMAT}
