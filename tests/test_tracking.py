"""MLflow shows each trial once, whatever dies when, and no trouble of it reaches the search. Real stores and server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ledgers import write_search
from torch import nn

from autokd.errors import TeacherError, TrackingError
from autokd.ledger import Ledger
from autokd.recipe import Recipe
from autokd.report import write_report
from autokd.result import Result
from autokd.tracking import Tracker, check, free_port, load_model, open_ui, redact, sync
from autokd.tracking.runs import SEARCH, Runs

RECIPE = Recipe.from_flat(
    {"student.family": "resnet", "student.width": 8, "terms.kd.weight": 0.9, "terms.kd.temperature": 4.0}
)
RUNGS = (1, 3, 9)


class Story:
    """A small search, written through the real ledger on a clock that moves a second at each event."""

    def __init__(self, folder: Path, search_id: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.search_id = folder, search_id
        self.ledger = Ledger(folder / "ledger.jsonl", clock=self._tick)

    def _tick(self) -> float:
        self.now = getattr(self, "now", 1.7e9) + 1
        return self.now

    def begin(self) -> None:
        versions = {"autokd": "0.1.0", "torch": "2"}
        settings = {"tracking_uri": "http://me:hunter2@mlflow.example"}
        common = {
            "seed": 3,
            "budget": {"kind": "seconds", "amount": 90},
            "rungs": list(RUNGS),
            "lanes": 2,
            "executor": "inline",
        }
        about = {"teacher": {"name": "big", "params": 10**6}, "space": {"name": "digits"}, "versions": versions}
        self.ledger.append(
            "search", search_id=self.search_id, name=self.search_id, settings=settings, **common, **about
        )
        self.session()

    def session(self) -> None:
        self.ledger.append("session", pid=1, budget={"kind": "seconds", "amount": 90}, lanes=2)

    def start(self, trial: str, role: str = "search") -> None:
        fields = {"recipe": RECIPE.to_dict(), "point": {}, "source": "quasi-random", "seed": 0, "to": 1}
        self.ledger.append("start", trial=trial, role=role, params=1000, flops=40_000, group="", **fields)

    def rung(self, trial: str, epoch: int, value: float) -> None:
        below = max((rung for rung in (0, *RUNGS) if rung < epoch), default=0)
        rows = [
            {
                "epoch": e,
                "seconds": 0.2,
                "loss": 1 / e,
                "terms": {"kd": 0.5 / e},
                "metrics": {"accuracy": value, "loss": 1.0},
            }
            for e in range(below + 1, epoch + 1)
        ]
        extra = {"metrics": {"accuracy": value}, "seconds": 0.2, "checkpoint": "c", "precision": "float32"}
        self.ledger.append("rung", trial=trial, epoch=epoch, value=value, tiebreak=0.0, history=rows, **extra)

    def first_half(self) -> None:
        """t1 complete, t2 paused, t3 failed, t4 running in its second rung."""
        self.begin()
        for number, trial in enumerate(("t1", "t2", "t3", "t4")):
            self.start(trial)
            if trial != "t3":
                self.rung(trial, 1, 0.5 + number / 10)
        self.ledger.append("fail", trial="t3", reason="nan", message="the loss became NaN in epoch 1")
        for epoch in RUNGS[1:]:
            self.ledger.append("resume", trial="t1", to=epoch)
            self.rung("t1", epoch, 0.9)
        self.ledger.append("resume", trial="t4", to=3)

    def second_half(self) -> None:
        self.rung("t4", 3, 0.85)
        self.ledger.append("finals", winner="t1", seeds=[1])
        for trial, role in (("f1", "winner"), ("f2", "no_kd")):
            self.start(trial, role)
            for epoch in RUNGS:
                self.rung(trial, epoch, 0.95)
            self.ledger.append("test", role=role, trial=trial, value=0.94)
        self.ledger.append("finish", reason="budget")

    def tracker(self, uri: str, **more: Any) -> Tracker:
        tracker = Tracker(uri, self.folder, self.ledger, every=0.1, **more)
        tracker.start()
        return tracker


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sqlite store, shared: a new one takes more than a second."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def story(tmp_path: Path, request: pytest.FixtureRequest) -> Story:
    return Story(tmp_path / "run", request.node.name)


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def runs_of(uri: str, search_id: str) -> list[Any]:
    client = client_of(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.`autokd.search_id` = '{search_id}'"))


def snapshot(uri: str, search_id: str) -> dict[str, Any]:
    """Everything MLflow shows of a search; fails on a trial that is there twice."""
    client, shown = client_of(uri), {}
    for run in runs_of(uri, search_id):
        key = run.data.tags.get("autokd.trial_id", SEARCH)
        assert key not in shown, f"{key} is there twice"
        points = {
            name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        shown[key] = (run.info.status, run.info.end_time, run.data.params, run.data.tags, points)
    return shown


def statuses(uri: str, search_id: str) -> dict[str, str]:
    return {key: run[0] for key, run in snapshot(uri, search_id).items()}


def delivered(tracker: Tracker) -> bool:
    return tracker._left(tracker._mirror) == 0


def wait_for(true: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


ENDED = dict.fromkeys(("", "t1", "t2", "t4", "f1", "f2"), "FINISHED") | {"t3": "FAILED"}


# ---- what is shown


def test_a_search_is_shown_whole(store: str, story: Story) -> None:
    story.first_half()
    tracker = story.tracker(store)
    story.second_half()
    summary = tracker.finish()
    assert (summary.runs, summary.undelivered, summary.problems) == (7, 0, ())
    shown = snapshot(store, story.search_id)
    assert statuses(store, story.search_id) == ENDED
    assert all(run[1] for run in shown.values()), "an ended run has an end time"

    _, _, params, tags, points = shown["t4"]
    assert params == {name: str(value) for name, value in RECIPE.flat().items()} | {
        "seed": "0",
        "params": "1000",
        "flops": "40000",
    }
    assert tags["mlflow.parentRunId"] == summary.parent_run_id
    assert tags["mlflow.runName"] == "t4"
    assert (tags["autokd.role"], tags["autokd.rung"], tags["autokd.state"]) == ("search", "3", "stopped")
    assert points["val/accuracy"] == [(1, 0.8), (2, 0.85), (3, 0.85)]
    assert points["term/kd"] == [(1, 0.5), (2, 0.25), (3, 0.5 / 3)]
    assert points["value"] == [(1, 0.8), (3, 0.85)]
    assert points["train/loss"] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert {"seconds", "val/loss"} <= set(points)

    assert (shown["t3"][3]["autokd.reason"], shown["t3"][3]["autokd.state"]) == ("nan", "failed")
    assert "NaN in epoch 1" in shown["t3"][3]["autokd.message"]
    assert shown["f1"][4]["test"] == [(9, 0.94)]


def test_the_parent_sums_up_and_keeps_no_secrets(store: str, story: Story) -> None:
    story.first_half()
    story.second_half()
    (story.folder / "student").mkdir()
    (story.folder / "student" / "recipe.json").write_text(RECIPE.to_json())
    report = story.folder / "report"
    report.mkdir()
    (report / "index.html").write_text("<html>")
    summary = story.tracker(store).finish(artifacts=report)
    _, _, params, tags, points = snapshot(store, story.search_id)[SEARCH]
    assert params["budget.amount"] == "90" and params["teacher.params"] == "1000000" and params["space"] == "digits"
    assert params["settings.tracking_uri"] == "http://***@mlflow.example"
    assert (tags["autokd.version"], tags["autokd.winner"], tags["autokd.state"]) == ("0.1.0", "t1", "finished")
    best = [value for _, value in points["best_value"]]
    assert best == sorted(best) and best[-1] == 0.9, "the finals do not count as the search's best"
    assert points["test/no_kd"] == [(1, 0.94)]
    client = client_of(store)
    names = {item.path for item in client.list_artifacts(summary.parent_run_id)}
    assert names >= {"ledger.jsonl", "recipe.json", "report"}
    ledger = Path(client.download_artifacts(summary.parent_run_id, "ledger.jsonl")).read_text()
    assert "hunter2" not in ledger and ledger.count("\n") == len(story.ledger.events)


def test_importance_and_ablation_are_on_the_parent(store: str, tmp_path: Path) -> None:
    result = Result(write_search(tmp_path / "run", trials=60, ablation=True, name="why"))
    report = write_report(result, tmp_path / "run" / "report").parent
    tracker = Tracker(store, result.run_dir, Ledger(result.run_dir / "ledger.jsonl"), every=0.1)
    tracker.start()
    summary = tracker.finish(artifacts=report)
    assert summary.undelivered == 0 and summary.problems == ()
    shown = snapshot(store, str(result.head["search_id"]))
    _, _, _, tags, points = shown[SEARCH]
    found, ablation = result.importance(), result.ablation()
    assert found is not None and found.above_noise and len(ablation) == 2
    assert {name: [value for _, value in points[name]] for name in points if name.startswith("importance/")} == {
        f"importance/{entry.name}": [pytest.approx(entry.share)] for entry in found.above_noise
    }
    assert tags["autokd.importance"] == found.sentence()
    lost = next(entry for entry in ablation if entry.change == "without kd")
    assert [step for step, _ in points["ablation/without kd"]] == [1, 2, 3]
    assert points["ablation/without kd"][-1] == (3, pytest.approx(lost.mean))
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [
        {"path": "report/ablation.json", "type": "table"},
        {"path": "report/importance.json", "type": "table"},
        {"path": "report/methods.json", "type": "table"},
    ]
    ours = [run for key, run in shown.items() if "-ablation-" in key]
    assert len(ours) == 4 and {run[3]["autokd.role"] for run in ours} == {"ablation"}
    assert {run[3]["autokd.change"] for run in ours} == {"without kd", "optim.lr=0.03"}
    assert {run[3]["mlflow.parentRunId"] for run in ours} == {summary.parent_run_id}
    table = json.loads(
        Path(client_of(store).download_artifacts(summary.parent_run_id, "report/importance.json")).read_text()
    )
    assert [row[table["columns"].index("name")] for row in table["data"]] == [entry.name for entry in found.fields]


def test_a_paused_trial_is_not_running_and_a_resumed_one_is(store: str, story: Story) -> None:
    story.first_half()
    tracker = story.tracker(store)
    wait_for(lambda: delivered(tracker))
    now = {"": "RUNNING", "t1": "FINISHED", "t2": "FINISHED", "t3": "FAILED", "t4": "RUNNING"}
    assert statuses(store, story.search_id) == now
    assert snapshot(store, story.search_id)["t2"][3]["autokd.state"] == "paused"
    tracker.finish()
    assert statuses(store, story.search_id)["t4"] == statuses(store, story.search_id)[""] == "KILLED"


def test_curves_are_thinned() -> None:
    runs = Runs()
    head = {"n": 0, "time": 1.0, "elapsed": 0.0}
    runs.add(head | {"event": "search", "rungs": [500, 1000], "search_id": "s", "name": "s"})
    start = {
        "event": "start",
        "trial": "t",
        "role": "search",
        "recipe": RECIPE.to_dict(),
        "point": {},
        "source": "prior",
    }
    runs.add(head | start | {"seed": 0, "params": 1, "flops": 1, "to": 500})
    for low, high in ((0, 500), (500, 1000)):
        rows = [{"epoch": e, "seconds": 1.0, "loss": None, "metrics": {"a b$c": 0.5}} for e in range(low + 1, high + 1)]
        rung = {
            "event": "rung",
            "trial": "t",
            "epoch": high,
            "value": 0.5,
            "tiebreak": 0,
            "metrics": {},
            "history": rows,
        }
        runs.add(head | rung | {"seconds": 1.0, "checkpoint": "c"})
    steps = [step for name, _, _, step in runs.news["t"].metrics if name == "val/a b_c"]
    assert 50 <= len(steps) <= 102 and steps[-1] == 1000 and len(set(steps)) == len(steps)
    assert not any(name == "train/loss" for name, *_ in runs.news["t"].metrics), "no number, no point"


# ---- deaths


def test_delivering_twice_changes_nothing(store: str, story: Story) -> None:
    story.first_half()
    story.second_half()
    story.tracker(store).finish()
    before = snapshot(store, story.search_id)
    (story.folder / "tracking.json").unlink()
    assert sync(story.folder, store).undelivered == 0
    (story.folder / "tracking.json").write_text("{torn")
    assert sync(story.folder, store).runs == 7
    assert sync(story.folder).uri == store, "remembers where"
    assert snapshot(store, story.search_id) == before


KILLED = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from test_tracking import Story, delivered
stories = [Story(Path(sys.argv[1]) / name, name) for name in ("kept", "lost", "never")]
trackers = [story.tracker(sys.argv[2]) for story in stories]
for story in stories:
    story.first_half()
while not all(map(delivered, trackers)):
    time.sleep(0.05)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_search_ends_with_each_trial_once(store: str, tmp_path: Path) -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-c", KILLED, str(tmp_path), store, str(here), str(here.parent)]
    assert subprocess.run(command, timeout=50).returncode == -signal.SIGKILL
    assert statuses(store, "kept")[""] == "RUNNING"

    (tmp_path / "lost" / "tracking.json").unlink(missing_ok=True)
    for name in ("kept", "lost"):
        story = Story(tmp_path / name, name)
        tracker = story.tracker(store)
        story.session()
        wait_for(lambda tracker=tracker: delivered(tracker))
        assert statuses(store, name)["t4"] == "FINISHED", "it waits: nobody trains it"
        story.ledger.append("resume", trial="t4", to=3)
        story.second_half()
        assert tracker.finish().runs == 7
        assert statuses(store, name) == ENDED
    assert snapshot(store, "kept")["t4"][4] == snapshot(store, "lost")["t4"][4]

    assert "5 runs" in str(sync(tmp_path / "never", store))
    assert statuses(store, "never") == {
        "": "KILLED",
        "t1": "FINISHED",
        "t2": "FINISHED",
        "t3": "FAILED",
        "t4": "KILLED",
    }


def test_more_budget_reopens_the_search(store: str, story: Story) -> None:
    story.first_half()
    story.second_half()
    story.tracker(store).finish()
    tracker = story.tracker(store)
    story.session()
    story.start("t9")
    wait_for(lambda: statuses(store, story.search_id).get("t9") == "RUNNING")
    assert statuses(store, story.search_id)[""] == "RUNNING"
    story.ledger.append("finish", reason="interrupted by the user")
    tracker.finish()
    assert statuses(store, story.search_id) == ENDED | {"t9": "KILLED", "": "KILLED"}


def test_a_server_that_lost_its_runs_is_told_all_again(store: str, story: Story) -> None:
    story.first_half()
    story.tracker(store).finish()
    for run in runs_of(store, story.search_id):
        client_of(store).delete_run(run.info.run_id)
    story.session()
    story.second_half()
    assert story.tracker(store).finish().runs == 7
    assert statuses(store, story.search_id) == ENDED
    assert snapshot(store, story.search_id)["t1"][4]["value"] == [(1, 0.5), (3, 0.9), (9, 0.9)]


def test_a_run_deleted_by_hand_does_not_hold_up_the_others(store: str, story: Story) -> None:
    story.first_half()
    tracker = story.tracker(store)
    wait_for(lambda: delivered(tracker))
    victim = next(run for run in runs_of(store, story.search_id) if run.data.tags.get("autokd.trial_id") == "t4")
    client_of(store).delete_run(victim.info.run_id)
    story.second_half()
    summary = tracker.finish()
    assert summary.undelivered == 0 and "t4" in summary.problems[0]
    assert statuses(store, story.search_id) == {key: status for key, status in ENDED.items() if key != "t4"}


def test_one_tracker_for_a_folder(store: str, story: Story) -> None:
    story.first_half()
    tracker = story.tracker(store)
    wait_for(lambda: "5 runs" in tracker.status)
    refused = sync(story.folder, store, timeout=0.3)
    assert "another process is delivering" in str(refused)
    assert statuses(store, story.search_id)[""] == "RUNNING"
    tracker.finish()


# ---- trouble


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[[], int]]:
    """Starts an MLflow server on the port of the test, again after it was killed; gives its process id."""
    port, started = free_port(), []

    def start() -> int:
        started.append(open_ui(f"sqlite:///{tmp_path}/server.db", port))
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"), 40)
        return started[-1].pid

    start.uri = f"http://127.0.0.1:{port}"  # type: ignore[attr-defined]
    yield start
    for process in started:
        process.terminate()
        process.wait(20)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@pytest.mark.timeout(120)
def test_outages_at_the_start_in_the_middle_and_at_the_end(
    server: Any, tmp_path: Path, story: Story, monkeypatch: Any
) -> None:
    monkeypatch.chdir(story.folder)  # where the server keeps artifacts
    uri = server.uri
    story.first_half()
    tracker = story.tracker(uri)
    wait_for(lambda: "unreachable since" in tracker.status)
    assert "(connection refused)" in tracker.status and "events kept in the ledger, retrying" in tracker.status
    begun = time.monotonic()
    summary = tracker.finish(timeout=0.5)
    assert time.monotonic() - begun < 2
    assert summary.undelivered == len(story.ledger.events) and "autokd show --sync" in str(summary)

    process = server()
    story.session()
    tracker = story.tracker(uri)
    wait_for(lambda: tracker.status == f"MLflow: 5 runs in {uri}")

    os.kill(process, signal.SIGTERM)
    wait_for(lambda: not answers(f"{uri}/health"))
    story.ledger.append("resume", trial="t4", to=3)
    story.rung("t4", 3, 0.85)
    wait_for(lambda: "unreachable since" in tracker.status)
    story.ledger.append("finals", winner="t1", seeds=[1])

    net, rows = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), np.ones((2, 2, 2), np.float32)
    summary = tracker.finish(model=net, example=rows, timeout=0.5)
    assert summary.undelivered > 0 and summary.model is None
    server()
    summary = sync(story.folder)
    assert (summary.undelivered, summary.problems, summary.model) == (0, (), f"models:/{story.search_id}/1")
    assert statuses(uri, story.search_id)["t4"] == "FINISHED"
    assert snapshot(uri, story.search_id)["t4"][4]["value"] == [(1, 0.8), (3, 0.85)]
    assert torch.equal(load_model(summary.model, uri)(torch.from_numpy(rows)), net(torch.from_numpy(rows)))
    assert not (story.folder / "mlflow_model").exists()

    # the pages of `open_ui` also show what was written to their database directly
    other = Story(tmp_path / "other", "other")
    other.first_half()
    parent = other.tracker(f"sqlite:///{tmp_path}/server.db").finish().parent_run_id
    with urllib.request.urlopen(f"{uri}/get-artifact?path=ledger.jsonl&run_uuid={parent}", timeout=10) as reply:
        assert b'"event": "search"' in reply.read()
    with pytest.raises(TrackingError, match=r"port \d+ .* try port \d+"):
        open_ui(f"sqlite:///{tmp_path}/server.db", int(uri.rpartition(":")[2]))


def test_appending_costs_the_search_nothing(store: str, story: Story) -> None:
    story.begin()
    alone = _time_of_trials(Story(story.folder.parent / "alone", "alone"))
    tracker = story.tracker(store)
    tracked = _time_of_trials(story)
    assert tracked - alone < 0.1, (tracked, alone)
    assert tracker.finish().runs == 41


def _time_of_trials(story: Story) -> float:
    before = time.thread_time()
    for trial in range(40):
        story.start(f"x{trial}")
        for epoch in (1, 3, 5, 7, 9):
            story.rung(f"x{trial}", epoch, 0.5)
    return time.thread_time() - before


def test_off(story: Story) -> None:
    tracker = Tracker("nonsense://", story.folder, story.ledger, enabled=False)
    tracker.start()
    assert (tracker.status, str(tracker.finish()), tracker.uri) == ("MLflow: off", "MLflow: off", "")


def test_the_environment_is_given_back(store: str, story: Story, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    before = dict(os.environ)
    tracker = story.tracker(store)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77", "the user's word counts"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
    tracker.finish()
    telemetry = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    assert dict(os.environ) | telemetry == before | telemetry


def test_mlflow_is_imported_late() -> None:
    code = (
        "import sys, autokd.tracking; sys.exit(any(name in sys.modules for name in ('mlflow', 'torch', 'sqlalchemy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


# ---- models


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm2d(1), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(x).flatten(1))


def test_the_winner_is_a_registered_model(store: str, story: Story, monkeypatch: Any) -> None:
    import mlflow

    story.first_half()
    story.second_half()
    net, rows = Net().train(), np.random.default_rng(0).random((9, 1, 8, 8), np.float32)
    summary = story.tracker(store).finish(model=net, example=rows, model_name="small/er: 1")
    assert (summary.model, summary.problems) == ("models:/small_er_ 1/1", ())
    assert net.training, "the caller's module is left alone"
    loaded = load_model(summary.model, store)
    assert isinstance(loaded, Net) and not loaded.training
    assert torch.equal(loaded(torch.from_numpy(rows)), net.eval()(torch.from_numpy(rows)))

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    info = mlflow.models.get_model_info(summary.model)
    assert info.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    assert info.run_id == summary.parent_run_id and info.saved_input_example_info is not None
    needs = Path(mlflow.artifacts.download_artifacts(summary.model), "requirements.txt").read_text()
    assert f"torch=={torch.__version__.partition('+')[0]}" in needs and "autokd==0.1.0" in needs
    assert mlflow.pytorch.load_model(summary.model)(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    logged = client_of(store).get_run(summary.parent_run_id).outputs.model_outputs
    assert len(logged) == 1

    story.session()
    story.ledger.append("finish", reason="budget")
    again = story.tracker(store).finish(model=net, example=rows, model_name="small/er: 1")
    assert again.model == "models:/small_er_ 1/2"


def test_a_model_that_cannot_be_saved_is_only_a_problem(store: str, story: Story) -> None:
    story.first_half()
    story.second_half()
    summary = story.tracker(store).finish(model=nn.Linear(3, 2), example=np.zeros((2, 5), np.float32))
    assert summary.model is None and "the model was not registered" in summary.problems[0]
    assert statuses(store, story.search_id) == ENDED


def test_a_model_that_is_not_there_is_one_line(store: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://before.example")
    with pytest.raises(TeacherError, match="no PyTorch model can be loaded from 'models:/nobody/1'") as caught:
        load_model("models:/nobody/1", store)
    assert "\n" not in str(caught.value)
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://before.example"


# ---- addresses


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:s3cr3t@host:5000/x", "http://***@host:5000/x"),
        ("postgresql+psycopg2://u:p@ss@db/x", "postgresql+psycopg2://***@db/x"),
        ("https://host/?access_token=abc&page=2", "https://host/?access_token=***&page=2"),
        ("failed: https://t0ken@host refused, see a@b", "failed: https://***@host refused, see a@b"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
    ],
)
def test_redact(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("htpp://host:5000", "did you mean 'http'"),
        ("mlruns", "refuses folders, got 'mlruns'; use a database (sqlite:///mlflow.db)"),
        ("file:///tmp/mlruns", "refuses folders"),
        ("C:\\runs", "refuses folders"),
        ("http://", "must name a host"),
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        ("sqlite:////dev/null/x.db", "cannot"),
        (f"sqlite:///{__file__}", "must be a sqlite file"),
        ("gopher://u:pw@h", "'gopher://***@h'"),
    ],
)
def test_bad_addresses_are_one_line(uri: str, says: str) -> None:
    with pytest.raises(TrackingError) as caught:
        check(uri)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_good_addresses(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert check(None) == f"sqlite:///{tmp_path}/mlflow.db"
    assert not list(tmp_path.iterdir()), "looking leaves nothing behind"
    assert check("sqlite:///deep/er/x.db") == f"sqlite:///{tmp_path}/deep/er/x.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    assert check(None) == "https://mlflow.example"
    with pytest.raises(TrackingError, match="is a server already"):
        open_ui(None, 5000)


def test_passwords_are_not_kept(tmp_path: Path, story: Story, monkeypatch: Any) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"http://me:hunter2@127.0.0.1:{free_port()}"
    story.first_half()
    tracker = story.tracker(uri)
    wait_for(lambda: "unreachable" in tracker.status)
    tracker._mirror.save()
    summary = tracker.finish(timeout=0.1)
    assert "hunter2" not in tracker.status + str(summary) + (story.folder / "tracking.json").read_text()
    with pytest.raises(TrackingError, match="give the tracking URI again"):
        sync(story.folder)
    shutil.rmtree(story.folder)


def test_the_best_value_is_of_the_highest_rung_not_the_highest_anywhere(tmp_path: Path) -> None:
    from autokd.ledger import Ledger
    from autokd.tracking.runs import Runs

    budget, ledger, runs = {"kind": "trials", "amount": 3.0}, Ledger(tmp_path / "ledger.jsonl"), Runs()
    ledger.listen(runs.add)
    ledger.append("search", rungs=[1, 3], budget=budget, seed=0)
    for trial, epoch, value in (("t1", 1, 0.8), ("t1", 3, 0.7), ("t2", 1, 1.0)):
        if epoch == 1:
            facts = {"point": {}, "source": "prior", "seed": 0, "to": 1, "params": 1, "flops": 1}
            ledger.append("start", trial=trial, role="search", recipe=RECIPE.to_dict(), **facts)
        facts = {"tiebreak": 0.0, "metrics": {}, "seconds": 1.0, "history": [], "checkpoint": "c"}
        ledger.append("rung", trial=trial, epoch=epoch, value=value, **facts)
    assert [value for name, value, *_ in runs.news[SEARCH].metrics if name == "best_value"] == [0.8, 0.7]
