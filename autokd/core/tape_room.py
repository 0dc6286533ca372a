"""Room for another segment: what the limit and the disk allow, and what goes first when there is not enough."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from autokd.core.tape_file import FORMAT, format_of
from autokd.core.tape_folder import abandoned, entries, remove, temporaries, used
from autokd.sizes import UNITS, existing, size_words

RECENT = 600  # seconds since its last use in which a segment may belong to a search that is running
RESERVE, RESERVE_SHARE = 256 * UNITS["MB"], 50  # left free on every disk: at least so much, and one part in so many


def room(folder: Path, limit: int, source: str | None) -> int:
    """Bytes that could be recorded for `source`, counting what may be removed for it. Raises OSError."""
    gain = sum(size for _, size in dispensable(folder, source))
    return max(0, min(limit - used(folder), free_to_use(folder)) + gain)


def make_room(folder: Path, limit: int, source: str, needed: int) -> str | None:
    """None when `needed` bytes fit, else why they do not: "limit" or "disk". Raises OSError.

    Removes what it must, and nothing if that would not be enough. Two may not do this at the same time.
    """
    over, short = used(folder) + needed - limit, needed - free_to_use(folder)
    missing = max(over, short)
    removable = dispensable(folder, source) if missing > 0 else []
    if sum(size for _, size in removable) < missing:
        return "limit" if over >= short else "disk"
    chosen = []
    for path, size in removable:
        if missing > 0:
            chosen.append(path)
            missing -= size
    remove(chosen)
    return "disk" if needed > free_to_use(folder) else None  # others may still have open what was removed


def dispensable(folder: Path, source: str | None) -> list[tuple[Path, int]]:
    """What may be removed for `source`, first things first, with its bytes.

    Leftovers and files of another format; then segments of other sources, the longest unused first, but none used lately. The
    source's own stay: early epochs are read by every trial, late ones by few.
    """
    leftovers = [(path, size) for path, size in temporaries(folder) if abandoned(path)]
    known = sorted(entries(folder), key=lambda entry: entry.used)
    foreign = {entry.path for entry in known if format_of(entry.path) != FORMAT}
    before = time.time() - RECENT
    others = [e for e in known if e.path not in foreign and e.place.source != source and e.used < before]
    chosen = [*(entry for entry in known if entry.path in foreign), *others]
    return leftovers + [(entry.path, entry.bytes) for entry in chosen]


def free_to_use(folder: Path) -> int:
    """Bytes that may be written on the disk of `folder`, there or not, before its reserve is touched; negative when it is."""
    disk = shutil.disk_usage(existing(folder))
    return disk.free - max(RESERVE, disk.total // RESERVE_SHARE)


def full_words(reason: str, folder: Path, limit: int, needed: int) -> str:
    """Why `make_room` found none, with the remedy."""
    what = f"a segment of {size_words(needed)}"
    if reason == "limit":
        beside = f"beside {size_words(used(folder))} in its limit of {size_words(limit)}"
        remedy = "raise tape_limit, or remove old segments with autokd tape clear"
        return f"the tape is full: {what} does not fit {beside}; what is missing is computed live; {remedy}"
    return f"the disk of the tape folder {folder} has no room for {what}; it is computed live; free space or name a tape folder elsewhere"
