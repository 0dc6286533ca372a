"""The run folder: where a search keeps its ledger, checkpoints, student and report.

ledger.jsonl   the truth                       student/      the winner: weights, recipe.json, student.json
teacher/       to resume without arguments     report/       index.html and PNGs
checkpoints/   one file per paused trial       tracking.json what MLflow has received
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import TextIO

from autokd.errors import RunFolderError

LEDGER = "ledger.jsonl"


class RunFolder:
    """An opened run folder, held by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.ledger = self.path / LEDGER
        self.checkpoints = self.path / "checkpoints"
        self.teacher = self.path / "teacher"
        self.student = self.path / "student"
        self.report = self.path / "report"
        self._lock: TextIO | None = None

    @classmethod
    def create(cls, path: str | Path | None, name: str) -> RunFolder:
        """A new folder, `runs/<name>-<time>` if none is given. Raises RunFolderError if it is in use or cannot be written."""
        folder = cls(
            Path(path) if path is not None else _unused(Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
        )
        cls.check_new(folder.path)
        try:
            folder.checkpoints.mkdir(parents=True, exist_ok=True)
            folder._take()
        except OSError as error:
            raise RunFolderError(
                f"run_dir {folder.path} cannot be written: {error.strerror}; name another folder"
            ) from None
        return folder

    @classmethod
    def check_new(cls, path: str | Path) -> None:
        """Raise RunFolderError if a new search may not begin there. Makes nothing."""
        folder = cls(Path(path))
        if folder.ledger.exists():
            raise RunFolderError(
                f"run_dir {folder.path} holds a search already; continue it with autokd.resume, or name a new folder"
            )
        if folder.path.is_dir() and any(folder.path.iterdir()):
            raise RunFolderError(f"run_dir {folder.path} is not empty; name a new or empty folder")
        above = next(each for each in (folder.path, *folder.path.parents) if each.exists())
        if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
            raise RunFolderError(
                f"run_dir {folder.path} cannot be written: {above} is no folder to write to; name another folder"
            )

    @classmethod
    def existing(cls, path: str | Path) -> RunFolder:
        """The folder of an earlier search. Raises RunFolderError if there is none, or another process works in it."""
        folder = cls(Path(path))
        if not folder.ledger.is_file():
            raise RunFolderError(f"run_dir {folder.path} holds no {LEDGER}; give the folder that the search printed")
        try:
            folder.checkpoints.mkdir(exist_ok=True)
            folder._take()
        except OSError as error:
            raise RunFolderError(
                f"run_dir {folder.path} cannot be written: {error.strerror}; check its permissions"
            ) from None
        return folder

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take(self) -> None:
        file = open(self.path / ".lock", "a")  # noqa: SIM115 (kept open while the folder is held)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise RunFolderError(f"run_dir {self.path} is in use by another process; wait for it or stop it") from None
        self._lock = file


def _unused(path: Path) -> Path:
    """The path, or with a number behind it if it exists."""
    number, candidate = 2, path
    while os.path.lexists(candidate):
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate
