"""Shared by the integration tests: a tiny teacher, one finished search, and an environment of their own.

Nothing here touches the user's caches, tracking stores or clusters, and nothing leaves the machine.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autokd.ledger import read_events

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "160",  # error lines and tables are not wrapped
}
TINY = {"width": 48, "depth": 2}  # of the teacher; students get half of it


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_works() -> None:
    """A shell starts what runs in its background with SIGINT ignored, and children would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches in a temporary folder, no telemetry, one thread, no tracking server of the user's."""
    wanted = QUIET | {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}
    before = {name: os.environ.get(name) for name in (*wanted, "MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    for name in before:
        os.environ.pop(name, None)
    os.environ.update(wanted)
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="session")
def tiny() -> Any:
    """A teacher of the digits that knows them by nine in ten, after a second of training."""
    import autokd

    return autokd.Teacher.fit("digits", family="mlp", spec=TINY, epochs=6)


@pytest.fixture(scope="session")
def teacher_folder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny teacher, saved: what a command line can name."""
    return Path(tiny.save(tmp_path_factory.mktemp("saved") / "teacher"))


QUICK: dict[str, Any] = {
    "students": ["mlp"],
    "constraints": {"params": "teacher/2"},
    "epochs": 3,
    "executor": "inline",
    "tracking": False,
    "verbose": False,
}


@pytest.fixture(scope="session")
def quick(tiny: Any) -> Any:
    """`search` with the smallest settings; keywords replace them."""
    import autokd

    def search(run_dir: Path, budget: str = "6 trials", teacher: Any = tiny, **more: Any) -> Any:
        return autokd.search(teacher, budget, run_dir=run_dir, **{**QUICK, **more})

    return search


@pytest.fixture(scope="session")
def finished(quick: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished search, tracked into a database beside it. Only to be looked at: `copied` is for changing."""
    folder = tmp_path_factory.mktemp("finished")
    return quick(folder / "run", tracking=True, tracking_uri=f"sqlite:///{folder}/mlflow.db", name="small")


@pytest.fixture
def copied(finished: Any, tmp_path: Path) -> Path:
    """A run folder of one's own, as `finished` left it, without tracking."""
    folder = tmp_path / "run"
    shutil.copytree(finished.run_dir, folder)
    text = (folder / "ledger.jsonl").read_text()
    (folder / "ledger.jsonl").write_text(text.replace('"tracking": true', '"tracking": false'))
    return folder


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every attempt to train an epoch is noted here, and fails."""
    attempts: list[str] = []

    def refuse(*_: Any, **__: Any) -> None:
        attempts.append("an epoch")
        raise AssertionError("something was trained although the input is wrong")

    monkeypatch.setattr("autokd.core.core.train_epoch", refuse)
    monkeypatch.setattr("autokd.teacher.train_epoch", refuse)
    return attempts


def events_of(run_dir: Path, *kinds: str) -> list[dict[str, Any]]:
    """The ledger's events, of these kinds if any are named."""
    events, _, _ = read_events(Path(run_dir) / "ledger.jsonl")
    return [event for event in events if not kinds or event["event"] in kinds]
