"""The Ray executor on real clusters: lanes are kept busy, workers and drivers may die, clusters are left as they were found."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from conftest import events_of

import autokd
from autokd.errors import ClusterError
from autokd.tracking import free_port

pytestmark = pytest.mark.timeout(240)

SLOW = """\
import time
from pathlib import Path

from torch import nn

SLOW = Path(__file__).with_name("slow")


class Slow(nn.Module):
    # takes its time while there is a file `slow` beside this one
    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Linear(64, classes)

    def forward(self, x):
        if self.training and SLOW.exists():
            time.sleep(0.03)
        return self.layer(x.flatten(1))
"""
COMMAND = [sys.executable, "-c", "from autokd.cli import main; main()"]


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A student that takes a second for three epochs, until the file is removed."""
    (tmp_path / "slow_students.py").write_text(SLOW)
    (tmp_path / "slow").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "slow_students", raising=False)
    yield tmp_path / "slow"


@pytest.fixture
def own_ray() -> Iterator[None]:
    """Ray as a user may have started it before."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def intervals(run_dir: Path) -> list[tuple[str, float, float]]:
    """(trial, begun, ended) of everything that was trained, in seconds of the search."""
    begun: dict[str, float] = {}
    found = []
    for event in events_of(run_dir, "start", "resume", "rung", "fail"):
        if event["event"] in ("start", "resume"):
            begun[event["trial"]] = event["elapsed"]
        else:
            found.append((event["trial"], begun.pop(event["trial"]), event["elapsed"]))
    assert begun == {}, "sent to a lane, but never heard of again"
    return found


def most_at_once(spans: list[tuple[str, float, float]]) -> int:
    edges = sorted([(begun, 1) for _, begun, _ in spans] + [(ended, -1) for _, _, ended in spans])
    busy = most = 0
    for _, step in edges:
        busy += step
        most = max(most, busy)
    return most


def check_whole(result: Any) -> None:
    """Every trial once, each epoch of it once, nothing left waiting."""
    reached = Counter((event["trial"], event["epoch"]) for event in events_of(result.run_dir, "rung"))
    assert set(reached.values()) == {1}
    assert set(Counter(event["trial"] for event in events_of(result.run_dir, "start")).values()) == {1}
    for trial in result.history.trials.values():
        assert trial.state in ("complete", "stopped", "failed"), trial
        assert [row["epoch"] for row in trial.curve] == list(range(1, trial.epoch + 1)), trial.id
    assert result.state == "finished" and result.best is not None


def processes(word: str) -> list[psutil.Process]:
    """Living descendants whose title holds this word; Ray names a worker after what it is doing."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if word in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # gone, or not to be looked at
            continue
    return found


def until(what: Callable[[], Any], seconds: float = 90) -> Any:
    """What it says, once it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := what():
            return answer
        time.sleep(0.05)
    raise AssertionError("waited in vain")


# ---- a search from beginning to end


def test_two_lanes_are_kept_busy_and_ray_is_stopped(quick: Any, tmp_path: Path) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    result = quick(tmp_path / "run", "8 trials", executor="ray", lanes=2)
    check_whole(result)
    assert result.failures == {} and events_of(result.run_dir, "retry") == []
    spans = intervals(result.run_dir)
    assert most_at_once(spans) == 2
    assert most_at_once([span for span in spans if "-" in span[0]]) == 2  # the finals as well
    tops = [trial for trial in result.history.in_role("search") if trial.state == "complete"]
    assert tops and all(sorted(trial.values) == [1, 3] for trial in tops)  # paused, then promoted
    assert {event["to"] for event in events_of(result.run_dir, "resume")} == {3}
    assert not ray.is_initialized()
    left = until(lambda: not (set(p.pid for p in processes("ray::")) - before), 20)
    assert left


ALIKE = """\
version: 1
about: one batch size and one view policy, so that trials which read the teacher live can share it
task: classification
epochs: {max: 3}
fields:
  select.logits: {choice: [kd, dkd]}
  student.family: {choice: [resnet]}
  student.resnet.width: {int: [4, 8]}
  student.resnet.depth1: 1
  student.resnet.depth2: 1
  student.resnet.depth3: 0
  ce_weight: {float: [0.1, 1]}
  terms.kd.weight: {float: [0.1, 2]}
  terms.kd.temperature: {float: [1, 8]}
  terms.dkd.weight: {float: [0.1, 2]}
  augment.policy: base
  optim.batch: 32
"""


def test_trials_that_share_a_live_teacher_come_to_a_lane_together(quick: Any, tmp_path: Path) -> None:
    (tmp_path / "alike.yaml").write_text(ALIKE)
    result = quick(
        tmp_path / "run", "8 trials", executor="ray", lanes=1, space=tmp_path / "alike.yaml", students=None, tape=False
    )
    check_whole(result)
    assert result.failures == {} and result.head["settings"]["cohort"] == 4 and result.head["settings"]["tape"] is None
    assert most_at_once(intervals(result.run_dir)) == 4, "on one lane"
    first = [event["elapsed"] for event in events_of(result.run_dir, "rung")][:4]
    assert max(first) - min(first) < 0.5, "they end together"


def test_lanes_as_many_as_cores_and_objects_as_students(quick: Any, tmp_path: Path, own_ray: None) -> None:
    """On the user's own Ray, which goes on living; a class that only this process has is sent along."""
    from torch import nn

    class Local(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.layer = nn.Linear(64, classes)

        def forward(self, x: Any) -> Any:
            return self.layer(x.flatten(1))

    result = quick(tmp_path / "run", "3 trials", executor="ray", students=[Local])
    check_whole(result)
    assert result.failures == {} and result.head["lanes"] == 2
    assert type(result.student()).__name__ == "Local"
    until(lambda: ray.available_resources().get("CPU", 0) > 1.99, 20)  # nothing of ours is left on it
    assert ray.get(ray.remote(lambda: 7).options(num_cpus=2).remote()) == 7
    assert {path.name for path in result.run_dir.iterdir()} >= {"ledger.jsonl", "student", "report"}
    assert not [path for path in result.run_dir.iterdir() if "tune" in path.name]


# ---- workers die


def test_killed_workers_cost_a_retry_and_nothing_else(quick: Any, slow: Path, own_ray: None) -> None:
    """kill -9 of a busy core, then of the Tune actor that waits for one; both in mid-trial, above the first rung."""
    run_dir = slow.parent / "run"
    killed: list[str] = []

    def kill_busy(word: str, resumed: int) -> None:
        until(lambda: len(events_of(run_dir, "resume")) >= resumed)
        before = len(events_of(run_dir, "retry"))
        for process in until(lambda: processes(word)):
            process.kill()
        killed.append(word)
        until(lambda: len(events_of(run_dir, "retry")) > before)

    def kill() -> None:
        until(lambda: (run_dir / "ledger.jsonl").exists())
        kill_busy("_CoreActor.advance", resumed=1)
        kill_busy("Trainable.train", resumed=2)
        slow.unlink()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    result = quick(
        run_dir,
        "9 trials",
        executor="ray",
        lanes=2,
        epochs=6,
        students=["slow_students:Slow"],
        constraints={"params": "1k"},
    )
    killer.join(1)
    assert len(killed) == 2 and not killer.is_alive()
    check_whole(result)
    assert result.failures == {}
    begun_before = [
        event["trial"]
        for place, event in enumerate(result.events)
        if event["event"] == "retry"
        and any(e["event"] == "rung" and e["trial"] == event["trial"] for e in result.events[:place])
    ]
    assert begun_before and all(result.history.trials[trial].retries for trial in begun_before)


# ---- the driver dies


def run_command(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """`autokd` in a process of its own, which leads a group as it does on a terminal."""
    environment = os.environ | {"PYTHONPATH": str(Path(autokd.__file__).parent.parent)}
    command, pipe = [*COMMAND, *arguments], subprocess.PIPE
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=pipe, stderr=pipe, start_new_session=True
    )


@pytest.fixture
def killed(slow: Path, teacher_folder: Path) -> Iterator[Path]:
    """The run folder of a search whose driver was killed after its fourth rung."""
    run_dir = slow.parent / "run"
    uri = f"sqlite:///{slow.parent}/mlflow.db"
    options = f"--budget 8trials --epochs 6 --students slow_students:Slow --constraint params=1k --lanes 2 --run-dir {run_dir}"
    driver = run_command(
        "search", "--teacher", str(teacher_folder), *options.split(), "--tracking-uri", uri, "--quiet", cwd=slow.parent
    )
    try:
        until(lambda: driver.poll() is not None or len(events_of(run_dir, "rung")) >= 4)
        assert driver.poll() is None, driver.communicate()[1]
        family = psutil.Process(driver.pid).children(recursive=True)
    finally:
        driver.kill()
        driver.wait()
    slow.unlink()
    yield run_dir
    for process in family:
        if process.is_running():
            process.kill()


def test_a_killed_driver_loses_nothing(killed: Path) -> None:
    before = [(e["trial"], e["epoch"]) for e in events_of(killed, "rung")]
    resumed = run_command("resume", str(killed), "--json", cwd=killed.parent)
    out, err = resumed.communicate(timeout=180)
    assert resumed.returncode == 0, err
    told = json.loads(out)
    assert told["state"] == "finished" and err == ""
    result = autokd.SearchResult(killed)
    check_whole(result)
    reached = [(e["trial"], e["epoch"]) for e in events_of(killed, "rung")]
    assert reached[: len(before)] == before and len(result.history.in_role("search")) == 8
    assert len(events_of(killed, "session")) == 2
    check_mlflow(killed)


def check_mlflow(run_dir: Path) -> None:
    """Each trial once, under one parent, and nothing running any more."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run_dir.parent}/mlflow.db")
    experiments = [each.experiment_id for each in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=1000)
    trials = [run.data.tags["autokd.trial_id"] for run in runs if "autokd.trial_id" in run.data.tags]
    assert sorted(trials) == sorted(event["trial"] for event in events_of(run_dir, "start"))
    assert len(runs) == len(trials) + 1
    assert "RUNNING" not in {run.info.status for run in runs}


def test_ctrl_c_leaves_a_search_that_can_go_on(slow: Path, teacher_folder: Path) -> None:
    run_dir = slow.parent / "run"
    options = (
        f"--budget 5m --epochs 6 --students slow_students:Slow --constraint params=1k --run-dir {run_dir} --no-tracking"
    )
    driver = run_command("search", "--teacher", str(teacher_folder), *options.split(), cwd=slow.parent)
    try:
        until(lambda: driver.poll() is not None or len(events_of(run_dir, "rung")) >= 2)
        assert driver.poll() is None, driver.communicate()[1]
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to the whole foreground
        out, err = driver.communicate(timeout=60)
    finally:
        driver.kill()
    assert driver.returncode == 130
    assert f"autokd resume {run_dir}" in out and "Traceback" not in out + err


# ---- clusters that are there already


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster as `ray start --head` makes it, on this machine only; its address."""
    port, folder = free_port(), Path("/tmp") / f"autokd-ray-{os.getpid()}"  # short: it holds sockets
    command = (
        f"start --head --port={port} --num-cpus=2 --include-dashboard=false --disable-usage-stats --temp-dir={folder}"
    )
    ray_command = Path(sys.executable).with_name("ray")
    done = subprocess.run([str(ray_command), *command.split()], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    yield f"127.0.0.1:{port}"
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join(process.cmdline()):
                process.kill()
        except psutil.Error:
            continue
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_attaching_to_a_running_cluster(quick: Any, tmp_path: Path, head: str) -> None:
    result = quick(tmp_path / "run", "4 trials", executor="ray", ray_address=head)
    check_whole(result)
    assert result.failures == {} and result.head["lanes"] == 2 and most_at_once(intervals(result.run_dir)) == 2
    assert not ray.is_initialized()
    with pytest.raises(ClusterError, match="the cluster has 2; ask for fewer"):
        quick(tmp_path / "other", executor="ray", ray_address=head, lanes=3)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:{port}", "Connection refused"),
        ("nowhere.invalid:6379", "no Ray cluster answers"),
        ("ray://127.0.0.1:10001", "Ray Client cannot carry a search"),
        ("nonsense", "must be 'auto' or HOST:PORT"),
    ],
)
def test_unreachable_clusters(address: str, reason: str, quick: Any, tmp_path: Path, no_training: list[str]) -> None:
    begun = time.monotonic()
    with pytest.raises(ClusterError, match=reason):
        quick(tmp_path / "run", executor="ray", ray_address=address.format(port=free_port()))
    assert time.monotonic() - begun < 10 and no_training == []
    assert not (tmp_path / "run").exists() and not ray.is_initialized()


def test_a_port_that_is_no_ray_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something listens, but never answers: the search does not wait without end."""
    from autokd.orchestrate import cluster

    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 4.0)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(ClusterError, match="no answer within 4 s"), cluster.connect(address, None):
            raise AssertionError("attached to nothing")
