"""The processes of the lanes on a real Ray: they load while the driver goes on, and one of them measures while the others rest."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from conftest import events_of

from autokd.core.core import TrainingCore
from autokd.errors import ClusterError, InputError
from autokd.orchestrate.cluster import Cluster, connect
from autokd.orchestrate.cores import Cores, started
from autokd.orders import Order

pytestmark = pytest.mark.timeout(240)
SECONDS = 1.0


@dataclass(frozen=True)
class Clocked:
    """Materials that note in a folder what was done when, and in which process."""

    folder: str
    trouble: str = ""
    cohort: int = 1

    def note(self, what: str) -> None:
        with open(Path(self.folder) / "notes", "a") as file:
            file.write(f"{time.monotonic()} {os.getpid()} {what}\n")

    def warm_up(self, device: str) -> None:
        self.note("warming")
        time.sleep(SECONDS)
        self.note("warm")
        if self.trouble == "warming":
            raise ModuleNotFoundError("No module named 'theirs'")

    def measure(self, recipe: Any, device: str, count_lanes: bool) -> tuple[Any, str, bool]:
        self.note("measuring")
        if self.trouble == "student":
            raise InputError("the first student cannot be trained")
        return recipe, device, count_lanes

    def build(self, materials: Clocked) -> Clocked:
        assert materials.folder == self.folder
        return self

    def advance(self, order: Order) -> int:
        time.sleep(SECONDS / 2)
        return os.getpid()


def notes(folder: Path) -> list[tuple[float, int, str]]:
    lines = (folder / "notes").read_text().splitlines()
    return sorted((float(at), int(pid), what) for at, pid, what in map(str.split, lines))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with connect(None, 2) as found:
        yield found


def test_all_warm_up_at_once_and_then_one_measures(cluster: Cluster, tmp_path: Path) -> None:
    with started(cluster, Clocked(str(tmp_path)), "cpu") as cores:
        returned = time.monotonic()
        assert cores.measure("a recipe", True) == ("a recipe", "cpu", True)  # type: ignore[arg-type]
    told = notes(tmp_path)
    assert [what for _, _, what in told] == ["warming", "warming", "warm", "warm", "measuring"]
    assert returned < told[2][0], "the driver has the time for other things"
    assert len({pid for _, pid, _ in told}) == 2 and os.getpid() not in {pid for _, pid, _ in told}


def test_cores_are_of_the_size_a_search_turns_out_to_need(cluster: Cluster, tmp_path: Path) -> None:
    with started(cluster, Clocked(str(tmp_path)), "cpu", cohort=2) as cores:
        assert len(set(cores.places(2, 2))) == 2, "two places on each of two"
        before = pids(cores, tmp_path)
        again = cores.places(2, 1)
        assert len(again) == len(set(again)) == 2 and not before & pids(cores, tmp_path), "others, with one thread"
        assert pids(cores, tmp_path) == pids(cores, tmp_path), "and the same from then on"


def pids(cores: Cores, folder: Path) -> set[int]:
    """Of the processes that answer an order."""
    builder = [ray.put(Clocked(str(folder)))]
    actors = set(cores.places(2, cores._at_once))
    return set(ray.get([actor.advance.remote(cores.materials, builder, str(folder), None) for actor in actors]))


@pytest.mark.parametrize(
    ("trouble", "error", "told"),
    [
        ("warming", ClusterError, "a lane cannot take .* No module named 'theirs'"),
        ("student", InputError, "^the first"),
    ],
)
def test_what_a_lane_cannot_do_is_told_before_the_search(
    cluster: Cluster, tmp_path: Path, trouble: str, error: type[Exception], told: str
) -> None:
    with started(cluster, Clocked(str(tmp_path), trouble), "cpu") as cores, pytest.raises(error, match=told):
        cores.measure("a recipe", False)  # type: ignore[arg-type]


def test_a_run_folder_that_a_lane_does_not_see_is_told_at_once(cluster: Cluster, tmp_path: Path) -> None:
    from autokd.orchestrate.cores import advance

    materials = Clocked(str(tmp_path))
    with started(cluster, materials, "cpu") as cores, pytest.raises(ClusterError, match="every node must see"):
        advance(cores.places(2, 1)[0], cores.materials, [ray.put(materials)], str(tmp_path / "elsewhere"), None)  # type: ignore[arg-type]


def test_a_search_measures_its_first_recipe_once_and_in_a_lane(
    quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured in the driver")

    monkeypatch.setattr(TrainingCore, "step_seconds", refuse)
    result = quick(tmp_path / "run", "2 trials", executor="ray", lanes=2, verbose=True)
    out = capsys.readouterr().out
    kept = list((tmp_path / "run" / "checkpoints" / "calibration").glob("*.json"))
    first = next(event for event in result.events if event["event"] == "start")
    assert len(kept) >= 2, "its shape's and its family's"
    assert all(path.stat().st_mtime < first["time"] for path in kept), "before the first trial, and none after"
    assert out.index("Plan") < out.index("finished")
    said = [note for event in events_of(tmp_path / "run", "rung") for note in event.get("notes", [])]
    assert not [note for note in said if "students run in" in note], "the plan has said it"
    assert any("mlp students run in" in note for note in result.head["plan"]["notes"])
