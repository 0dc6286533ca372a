"""What lies in a tape's folder: names, locks, a listing, verifying, clearing. Only files that a tape has named are ever touched.

<folder>/<source>/<policy>-v<view>-e<epoch>.<fields>.safetensors   segments; fields as in logits+stages.0-11
<folder>/<source>/source.json                                      what the source is, for people
<folder>/locks/                                                    locks of what is being recorded
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from autokd.core.tape_file import FIELD_NAME, FORMAT, TEMPORARY, format_of, open_segment
from autokd.errors import InputError, TapeError, nearest
from autokd.sizes import UNITS, existing

ABOUT = "source.json"
LOCKS = "locks"
LARGEST, SHARE = 20 * UNITS["GB"], 10  # a default limit is at most so much, and one part in so many of what is free
PAUSE = 60  # seconds a file without a writer is left alone: it may be about to get its name
SOURCE = re.compile(r"[0-9a-f]{8,64}")
POLICY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=-]*")
SEGMENT = re.compile(rf"({POLICY.pattern})-v([0-9]+)-e([0-9]{{5,}})\.([A-Za-z0-9_.+-]+)\.safetensors")
NUMBERED = re.compile(r"(.*\.)(0|[1-9][0-9]{0,3})")  # one field of several, as teachers have for their stages
RANGE = re.compile(r"(.*\.)([0-9]{1,4})-([0-9]{1,4})")
WRITTEN = re.compile(rf"\.({SEGMENT.pattern}|source\.json)\.[0-9]+-[0-9]+{re.escape(TEMPORARY)}")
LOCK = re.compile(rf"({SOURCE.pattern}\.{POLICY.pattern}|room)\.lock")


class Place(NamedTuple):
    """Where a segment belongs: one view of one epoch of one source under one view policy."""

    source: str  # hex digest of all that matters: teacher, data, seed, precision, versions
    policy: str
    view: int
    epoch: int

    @property
    def stem(self) -> str:
        """The beginning of its files' names. Raises ValueError for what cannot stand in one."""
        if not (SOURCE.fullmatch(self.source) and POLICY.fullmatch(self.policy) and min(self.view, self.epoch) >= 0):
            raise ValueError(f"{self} cannot be a file name: {SOURCE.pattern}, {POLICY.pattern}, whole numbers from 0")
        return f"{self.policy}-v{self.view}-e{self.epoch:05d}"


class Entry(NamedTuple):
    """A segment's file as it lies there, unopened."""

    path: Path
    place: Place
    fields: frozenset[str]
    bytes: int
    used: float  # unix time: its last use is its modification time


@dataclass(frozen=True)
class Summary:
    """All segments of one source."""

    source: str
    about: Mapping[str, Any]
    policies: tuple[str, ...]
    epochs: int  # different ones
    segments: int
    bytes: int
    used: float  # unix time of the last use
    current: bool  # whether this version of autokd reads them all


def path_of(folder: Path, place: Place, fields: frozenset[str]) -> Path:
    """The file of these fields of a place. Raises ValueError for names that no file can have."""
    stem = place.stem
    wrong = [name for name in fields if not FIELD_NAME.fullmatch(name)]
    if wrong or not fields:
        raise ValueError(f"fields {sorted(fields)} cannot be a file name: {FIELD_NAME.pattern}")
    return folder / place.source / f"{stem}.{joined(fields)}.safetensors"


def joined(fields: frozenset[str]) -> str:
    """Names of fields as part of a file's name, whose length does not grow with the number of stages.

    >>> joined(frozenset({"logits", "stages.0", "stages.1", "stages.2"}))
    'logits+stages.0-2'
    """
    words = sorted(name for name in fields if not NUMBERED.fullmatch(name))
    numbered = sorted((found[1], int(found[2])) for found in map(NUMBERED.fullmatch, fields) if found)
    for _, run in groupby(enumerate(numbered), key=lambda item: (item[1][0], item[1][1] - item[0])):
        (_, (stem, first)), *others = run
        words.append(f"{stem}{first}" + (f"-{others[-1][1][1]}" if others else ""))
    return "+".join(sorted(words))


def split(text: str) -> frozenset[str]:
    """The inverse of `joined`."""
    fields: set[str] = set()
    for word in text.split("+"):
        run = RANGE.fullmatch(word)
        fields |= {word} if run is None else {f"{run[1]}{n}" for n in range(int(run[2]), int(run[3]) + 1)}
    return frozenset(fields)


def entries(folder: Path, source: str | None = None) -> list[Entry]:
    """Every segment, or those of one source. Files that vanish while they are being listed are left out."""
    found = (_entry(item) for item in _files(folder, source))
    return [entry for entry in found if entry is not None]


def lock_of(folder: Path, place: Place | None = None) -> Path:
    """The lock of whoever records a place, or of whoever makes room."""
    name = "room" if place is None else f"{place.source}.{place.stem}"
    return folder / LOCKS / f"{name}.lock"


def entries_at(folder: Path, place: Place) -> list[Entry]:
    """The segments of one place."""
    beginning = f"{place.stem}."
    found = (_entry(item) for item in _files(folder, place.source) if item.name.startswith(beginning))
    return [entry for entry in found if entry is not None and entry.place == place]


def used(folder: Path) -> int:
    """Bytes of all segments, those that are being written included."""
    total = 0
    for item in _files(folder):
        if SEGMENT.fullmatch(item.name) or WRITTEN.fullmatch(item.name):
            with suppress(FileNotFoundError):
                total += item.stat().st_size
    return total


def temporaries(folder: Path) -> list[tuple[Path, int]]:
    """Files that are being written, or were by a process that was killed, and their bytes."""
    found = []
    for item in _files(folder):
        if WRITTEN.fullmatch(item.name):
            with suppress(FileNotFoundError):
                found.append((Path(item.path), item.stat().st_size))
    return found


def abandoned(path: Path) -> bool:
    """Whether the writer of a temporary file is gone: a living one holds its lock."""
    try:
        with open(path, "rb") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime < PAUSE:
                return False
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False


def describe(folder: Path, source: str, about: Mapping[str, Any]) -> None:
    """Say beside a source's segments what it is, once. Raises OSError if that cannot be written."""
    path = folder / source / ABOUT
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{ABOUT}.{os.getpid()}-{threading.get_native_id()}{TEMPORARY}")
        temporary.write_text(json.dumps({"format": FORMAT, **about}, indent=1), encoding="utf-8")
        os.replace(temporary, path)


# ---- locks


@contextmanager
def held(path: Path, patient: bool = False) -> Iterator[bool]:
    """Whether this caller has the lock: one thread of one process at a time. A process that is killed releases it.

    `patient` waits until it has. The file is removed with the lock. Raises OSError where no locks can be had.
    """
    descriptor = _take(path, patient)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            with suppress(OSError):  # while it is locked, see _take; and only our own, should the folder be a new one
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    path.unlink()
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough where a forked child has the descriptor too
            os.close(descriptor)


def _take(path: Path, patient: bool) -> int | None:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the folder was removed in between
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if patient else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the one before us removed the file we locked: others cannot see our lock


# ---- for people


def default_folder() -> Path:
    """Where tapes are kept unless another folder is named: in the user's cache, beside fitted teachers."""
    from platformdirs import user_cache_path

    return user_cache_path("autokd") / "tape"


def default_limit(folder: Path) -> int:
    """20 GB, or a tenth of what the disk has free if that is less. What the tape holds already counts as free."""
    return min(LARGEST, (shutil.disk_usage(existing(folder)).free + used(folder)) // SHARE)


def listing(folder: Path) -> list[Summary]:
    """What is recorded, the source that was used last first."""
    sources: dict[str, list[Entry]] = {}
    for entry in entries(folder):
        sources.setdefault(entry.place.source, []).append(entry)
    found = [_summary(folder, source, members) for source, members in sources.items()]
    return sorted(found, key=lambda summary: -summary.used)


def verify(folder: Path) -> tuple[int, list[Path]]:
    """Compare every checksum: the number of sound segments, and the files that were not and have been removed.

    Leftovers of killed processes are among these. Raises OSError for files that cannot be read or removed.
    """
    good, bad = 0, [path for path, _ in temporaries(folder) if abandoned(path)]
    for entry in entries(folder):
        try:
            open_segment(entry.path)
            good += 1
        except TapeError:
            bad.append(entry.path)
        except FileNotFoundError:  # another process has removed it
            continue
    remove(bad)
    return good, bad


def clear(folder: Path, source: str | None = None, older_than: float | None = None) -> int:
    """Remove segments and leftovers: all, those of one source, those not used for `older_than` seconds. Bytes freed.

    `source` may be the beginning of its name. Raises InputError if it is no source's or several's. Searches that are
    using what is removed go on: their maps stay readable, and they record what they need again.
    """
    chosen = None if source is None else _one_source(folder, source)
    now = time.time()
    old = [entry for entry in entries(folder, chosen) if older_than is None or now - entry.used > older_than]
    dead = [(path, size) for path, size in temporaries(folder) if abandoned(path)]
    removed = dead + [(entry.path, entry.bytes) for entry in old]
    remove([path for path, _ in removed])
    for name in _names(folder / LOCKS):
        if LOCK.fullmatch(name):
            with held(folder / LOCKS / name):  # if nobody has it, it goes
                pass
    return sum(size for _, size in removed)


def remove(paths: Iterable[Path]) -> None:
    """Remove files of sources, and each folder in which only its description is left."""
    parents = set()
    for path in paths:
        path.unlink(missing_ok=True)
        parents.add(path.parent)
    for parent in parents:
        if _names(parent) == [ABOUT]:
            (parent / ABOUT).unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            parent.rmdir()


# ---- inside


def _files(folder: Path, source: str | None = None) -> Iterator[os.DirEntry[str]]:
    """All files in the folders of sources."""
    for name in _names(folder) if source is None else [source]:
        if SOURCE.fullmatch(name):
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder / name) as items:
                yield from items


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _entry(item: os.DirEntry[str]) -> Entry | None:
    named = SEGMENT.fullmatch(item.name)
    if named is None:
        return None
    path = Path(item.path)
    try:
        about = item.stat()
    except FileNotFoundError:
        return None
    place = Place(path.parent.name, named[1], int(named[2]), int(named[3]))
    return Entry(path, place, split(named[4]), about.st_size, about.st_mtime)


def _summary(folder: Path, source: str, members: list[Entry]) -> Summary:
    return Summary(
        source,
        _about(folder / source / ABOUT),
        tuple(sorted({entry.place.policy for entry in members})),
        len({entry.place.epoch for entry in members}),
        len(members),
        sum(entry.bytes for entry in members),
        max(entry.used for entry in members),
        all(format_of(entry.path) == FORMAT for entry in members),
    )


def _about(path: Path) -> Mapping[str, Any]:
    """A description is for people: one that cannot be read is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _one_source(folder: Path, beginning: str) -> str:
    known = [name for name in _names(folder) if SOURCE.fullmatch(name)]
    found = [name for name in known if beginning and name.startswith(beginning)]
    if len(found) > 1:
        raise InputError(f"source '{beginning}' begins {len(found)} names; give more of it: {', '.join(found)}")
    if not found:
        raise InputError(f"unknown source '{beginning}' in {folder}; {nearest(beginning, known)}")
    return found[0]
