"""Tasks: what is learned. One file each."""

from __future__ import annotations

from autokd.protocols import Task
from autokd.tasks.classification import Classification

TASKS: dict[str, Task] = {
    "classification": Classification(),
}
