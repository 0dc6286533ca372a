"""The tape: segments in a folder, recorded once by whoever needs one first and replayed by every process and thread of a machine.

Whatever happens to the folder (full, read-only, deleted, damaged, used by others), a search goes on: a segment that cannot be
had is None, and `notes` and `closed` say why in one line each.
"""

from __future__ import annotations

import errno
import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any

from torch import Tensor

from autokd.core import tape_room
from autokd.core.tape_file import FORMAT, Field, Segment, Writer, open_segment, size_of
from autokd.core.tape_folder import (
    Entry,
    Place,
    Summary,
    clear,
    default_folder,
    default_limit,
    describe,
    entries_at,
    held,
    listing,
    lock_of,
    path_of,
    verify,
)
from autokd.errors import TapeError
from autokd.sizes import parse_size, size_words

__all__ = [
    "FORMAT",
    "Field",
    "Place",
    "Segment",
    "Summary",
    "Tape",
    "clear",
    "default_folder",
    "default_limit",
    "listing",
    "parse_size",
    "size_words",
    "verify",
]

OPEN = 32  # segments kept open; each is a file descriptor and no memory
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.25  # seconds between two looks at what another one records


class Tape:
    """One folder of segments, for all threads of a process.

    notes: what went wrong, one line each and each once. closed: why nothing can be recorded any more, or None.
    """

    def __init__(self, folder: Path, limit: int, about: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """`limit` in bytes, of everything in the folder. `about`: what each source is, for people; read when one is recorded."""
        self.folder, self.limit = folder, limit
        self.notes: list[str] = []
        self.closed: str | None = None
        self._about = {} if about is None else about
        self._lock = Lock()  # of everything below
        self._said: set[str] = set()
        self._open: OrderedDict[Path, tuple[Entry, Segment]] = OrderedDict()
        self._bad: set[Path] = set()  # files that cannot be removed
        self._gates: dict[Place, Lock] = {}

    # ---- replaying

    def find(self, place: Place, needs: frozenset[str]) -> Segment | None:
        """A sound segment that holds at least `needs`, or None. A file that is not sound is removed, with a note."""
        with self._gate(place):  # threads that want the same segment wait for the one that checks it
            kept = self._kept(place, needs)
            for entry in self._serving(place, needs) if kept is None else []:
                kept = self._opened(entry)
                if kept is not None:
                    break
        if kept is None:
            return None
        with suppress(OSError):  # read-only, or removed: its map is still good
            os.utime(kept[0].path)
        return kept[1]

    def has(self, place: Place, needs: frozenset[str]) -> bool:
        """Whether a file is there that may serve, unopened and unchecked."""
        return bool(self._serving(place, needs))

    def reject(self, place: Place, why: str) -> None:
        """Remove what is recorded at `place`, with a note: the caller knows that it is wrong, whatever its checksum says."""
        with self._gate(place):
            with self._lock:
                for path in [path for path, (entry, _) in self._open.items() if entry.place == place]:
                    del self._open[path]
            for entry in self._serving(place, frozenset()):
                self._discard(entry.path)
        where = f"{place.stem} in {self.folder / place.source}"
        self._say(f"tape segments of {where} were thrown away: {why}; they are recorded again")

    def wait(self, place: Place, needs: frozenset[str], seconds: float) -> None:
        """Return when whoever records `place` is done or dead, or after `seconds`."""
        until, pause = time.monotonic() + seconds, FIRST_PAUSE
        while self._is_being_recorded(place) and not self._serving(place, needs):
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(pause, left))
            pause = min(LONGEST_PAUSE, 1.5 * pause)

    # ---- recording

    @contextmanager
    def claim(self, place: Place) -> Iterator[bool]:
        """Whether this caller may record `place` now. Then ask `find` again: another one may just have finished.

        False while another thread or process records it (`wait`, and begin again), and whenever the tape is closed. A process
        that is killed gives its claim back.
        """
        with ExitStack() as stack:
            mine = False
            if self.closed is None:
                try:
                    mine = stack.enter_context(held(lock_of(self.folder, place)))
                except OSError as error:
                    self._close(error)
            yield mine

    def record(
        self,
        place: Place,
        rows: int,
        fields: Mapping[str, Field],
        meta: Mapping[str, Any],
        blocks: Iterable[Mapping[str, Tensor]],
    ) -> Segment | None:
        """Write and open a segment, with the claim on `place` held; None if it cannot be kept, and a note says why.

        `blocks` hold consecutive rows of every field on the CPU; none is asked for where there is no room, or the segment is there
        already. What they raise is raised. Raises ValueError for rows that are not as announced.
        """
        known = self.find(place, frozenset(fields))
        if known is not None or self.closed is not None:
            return known
        path, entry = path_of(self.folder, place, frozenset(fields)), None
        with self._giving_up(), ExitStack() as stack:
            with _disk(), held(lock_of(self.folder), patient=True):  # nobody else takes what is free now
                needed = size_of(rows, fields, meta)
                full = tape_room.make_room(self.folder, self.limit, place.source, needed)
                if full is not None:
                    self._say(tape_room.full_words(full, self.folder, self.limit, needed), full)
                    return None
                describe(self.folder, place.source, self._about.get(place.source, {}))
                writer = stack.enter_context(Writer(path, rows, fields, meta))
            for block in blocks:
                with _disk():
                    writer.add(block)
            with _disk():
                writer.finish()
                self._bad.discard(path)
                entry = Entry(path, place, frozenset(fields), path.stat().st_size, time.time())
        if entry is None:
            return None
        self._supersede(entry)
        kept = self._opened(entry, check=False)
        return None if kept is None else kept[1]

    def room(self, source: str | None = None) -> int:
        """Bytes that could still be recorded (of `source`, whose own segments are never removed to make room)."""
        if self.closed is not None:
            return 0
        try:
            return tape_room.room(self.folder, self.limit, source)
        except OSError:
            return 0

    # ---- inside

    def _gate(self, place: Place) -> Lock:
        with self._lock:
            return self._gates.setdefault(place, Lock())

    def _serving(self, place: Place, needs: frozenset[str]) -> list[Entry]:
        """The files that would do, the smallest first."""
        try:
            found = entries_at(self.folder, place)
        except OSError as error:
            self._say(f"the tape folder {self.folder} cannot be read ({error.strerror}); mend it or name another one")
            return []
        fitting = [entry for entry in found if needs <= entry.fields]
        return sorted((entry for entry in fitting if entry.path not in self._bad), key=lambda entry: entry.bytes)

    def _kept(self, place: Place, needs: frozenset[str]) -> tuple[Entry, Segment] | None:
        with self._lock:
            for path, (entry, segment) in self._open.items():
                if entry.place == place and needs <= entry.fields:
                    self._open.move_to_end(path)
                    return entry, segment
        return None

    def _opened(self, entry: Entry, check: bool = True) -> tuple[Entry, Segment] | None:
        try:
            before = os.stat(entry.path)
            segment = open_segment(entry.path, check)
        except TapeError as error:
            self._say(str(error))
            with suppress(OSError):
                if os.path.samestat(before, os.stat(entry.path)):  # and no new one, recorded in the meantime
                    self._discard(entry.path)
            return None
        except FileNotFoundError:
            return None
        except OSError as error:
            self._say(f"tape segment {entry.path} cannot be read ({error.strerror}); it is recorded again")
            return None
        with self._lock:
            self._open[entry.path] = (entry, segment)
            while len(self._open) > OPEN:
                self._open.popitem(last=False)
        return entry, segment

    def _discard(self, path: Path) -> None:
        """Remove a bad file; where that is not allowed, remember not to read it."""
        try:
            path.unlink(missing_ok=True)
        except OSError:
            with self._lock:
                self._bad.add(path)

    def _is_being_recorded(self, place: Place) -> bool:
        path = lock_of(self.folder, place)
        try:
            if self.closed is not None or not path.exists():
                return False
            with held(path) as free:
                return not free
        except OSError:
            return False

    def _supersede(self, new: Entry) -> None:
        """Segments of the same place with some of the same fields are of no use any more."""
        with suppress(OSError):
            for old in self._serving(new.place, frozenset()):
                if old.fields < new.fields:
                    old.path.unlink(missing_ok=True)

    # ---- saying why

    def _say(self, text: str, kind: str | None = None) -> None:
        """Note it, unless something of its kind was noted before."""
        with self._lock:
            if (kind or text) not in self._said:
                self._said.add(kind or text)
                self.notes.append(text)

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Goes on after what the disk refuses, with a note."""
        try:
            yield
        except _Lost as lost:
            self._give_up(lost.error)

    def _give_up(self, error: OSError) -> None:
        """A segment could not be written: say so, and close the tape where the next one cannot be either."""
        folder = f"the tape folder {self.folder}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "free space or name a tape folder elsewhere"
            self._say(f"the disk of {folder} is full ({error.strerror}); a segment is computed live; {remedy}", "disk")
        elif error.errno == errno.ENOENT:
            self._say(
                f"{folder} was deleted while a segment was recorded; it is computed live, and later ones are recorded"
            )
        else:
            self._close(error)

    def _close(self, error: OSError) -> None:
        what, remedy = "teacher outputs are computed live", "make it writable or name a tape folder elsewhere"
        self.closed = f"the tape folder {self.folder} cannot be written ({error.strerror}); {what}; {remedy}"
        self._say(self.closed)


class _Lost(Exception):
    """The disk has refused something, which is not the fault of whoever computes the rows."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Lost(error) from None
