"""Every error a user can meet. Each message states the rule, the value and the remedy, on one line.

AutokdError
├── InputError               something given to autokd is wrong; nothing has been trained yet
│   ├── RecipeError          a recipe breaks a rule
│   ├── SpaceError           a search-space file breaks a rule (names file and line)
│   ├── BudgetError          a budget cannot be read or buys nothing
│   ├── DataError            arrays, labels or splits cannot be used
│   ├── TeacherError         the teacher does not fit its data, or knows no more than chance
│   ├── ConstraintError      no student can satisfy the constraints
│   ├── GoalError            goals or a preference among them cannot be read, or nobody satisfies them
│   └── WarmStartError       an earlier search is absent, is none, or has no trial that fits
├── RunFolderError           the run folder is missing, unwritable, not empty, or of another search
│   └── LedgerError          the ledger cannot be used at all (torn last lines are repaired, not raised)
├── CheckpointError          a checkpoint is torn or fails its checksum; the trial starts again
├── TapeError                a segment of the tape is torn, foreign or fails its checksum; it is recorded again
├── ClusterError             Ray cannot be reached or lacks what a lane needs
├── TrackingError            MLflow cannot be used where it was asked for by name (never during a search)
├── ExportError              the exported student differs from the module, or the format is unknown
└── TrialFailure             one trial ended in NaN, at chance, or in an exception; the search goes on
    └── Infeasible           an untrained student does not keep to a measured limit; it is not trained
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class AutokdError(Exception):
    """Base of all errors autokd raises on purpose."""


class InputError(AutokdError, ValueError):
    """Something given to autokd is wrong; raised before anything is trained."""


class RecipeError(InputError):
    """A recipe breaks a rule."""


class SpaceError(InputError):
    """A search space breaks a rule; the message names file and line."""


class BudgetError(InputError):
    """A budget cannot be read, or buys nothing."""


class DataError(InputError):
    """Arrays, labels or splits cannot be used."""


class TeacherError(InputError):
    """The teacher does not fit its data, raises on it, or knows no more than chance."""


class ConstraintError(InputError):
    """No student of the space can satisfy the constraints."""


class GoalError(InputError):
    """Goals or a preference among them cannot be read, or nobody satisfies them."""


class WarmStartError(InputError):
    """An earlier search is absent, is none, or has no trial that fits the space."""


class RunFolderError(AutokdError):
    """The run folder is missing, unwritable, not empty, or belongs to another search."""


class LedgerError(RunFolderError):
    """The ledger cannot be used at all."""


class CheckpointError(AutokdError):
    """A checkpoint is torn or fails its checksum."""


class TapeError(AutokdError):
    """A segment of the tape is torn, foreign, of another format, or fails its checksum. A search records it again."""


class ClusterError(AutokdError):
    """Ray cannot be reached, or lacks what a lane needs."""


class TrackingError(AutokdError):
    """MLflow cannot be used where it was asked for by name."""


class ExportError(AutokdError):
    """The exported student differs from the module, or the format is unknown."""


class TrialFailure(AutokdError):
    """One trial failed. `reason` is one of "nan", "chance", "exception"."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[TrialFailure], tuple[Any, ...]]:
        return type(self), (self.reason, str(self))


class Infeasible(TrialFailure):
    """An untrained student does not keep to a measured limit. No failure: its trial is not trained, and scored infeasible."""

    def __init__(self, latency_ms: float, message: str) -> None:
        super().__init__("infeasible", message)
        self.latency_ms = latency_ms

    def __reduce__(self) -> tuple[type[TrialFailure], tuple[Any, ...]]:
        return type(self), (self.latency_ms, str(self))


def nearest(name: object, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the nearest known one, and all of them if they are few.

    >>> nearest("resnte", ["resnet", "plain"])
    "did you mean 'resnet'? known: plain, resnet"
    """
    names = sorted(map(str, known))
    close = get_close_matches(str(name), names, n=1, cutoff=0.5)
    guess = f"did you mean '{close[0]}'? " if close else ""
    shown = ", ".join(names[:24]) + (", …" if len(names) > 24 else "")
    return f"{guess}known: {shown or '(none)'}"
