"""search, resume and distill in this process, on real data with a real teacher: what they hand back, and that nothing is done twice."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, events_of
from small import nothing_is_faster
from torch import nn

import autokd
from autokd.errors import BudgetError, GoalError, InputError, RunFolderError

pytestmark = pytest.mark.timeout(120)


class Line(nn.Module):
    """A student of the user's own: one linear layer."""

    def __init__(self, classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = nn.Linear(int(np.prod(input_shape)), classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(x.flatten(1))
        return logits


@pytest.fixture(scope="module")
def blobs() -> autokd.Teacher:
    """A module and arrays of one's own: three clouds of points, told apart by the distance to their middles."""
    rng = np.random.default_rng(0)
    middles = rng.normal(size=(3, 6)).astype("float32") * 3
    y = np.arange(300) % 3
    x = (middles[y] + rng.normal(size=(300, 6))).astype("float32")
    layer = nn.Linear(6, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(2 * middles))
        layer.bias.copy_(-torch.tensor(middles).square().sum(1))
    return autokd.Teacher(layer, autokd.Data(x, y, name="blobs"))


def floats(x: Any) -> Any:
    """Rows as networks take them: uint8 images divided by 255."""
    return (x / np.float32(255 if x.dtype == np.uint8 else 1)).astype(np.float32)


# ---- what a finished search hands back


def test_a_search_ends_with_a_student_better_than_chance(finished: Any) -> None:
    best = finished.best
    assert finished.state == "finished" and finished.history.finished
    assert best.recipe.student.family == "mlp" and best.n == 3
    assert best.value_mean > 0.5 and best.test_mean > 0.5  # ten classes
    assert best.size_ratio >= 2 and best.params == finished.history.trials[best.trial].params
    assert [row.role for row in finished.rows()][:2] == ["teacher", "winner"]


def test_the_student_is_ready_to_use(finished: Any, tiny: Any) -> None:
    student = finished.student()
    with torch.no_grad():
        logits = student(torch.tensor(floats(tiny.data.val.x[:5])))
    assert not any(module.training for module in student.modules())
    assert logits.shape == (5, 10) and logits.dtype == torch.float32
    assert sum(parameter.numel() for parameter in student.parameters()) == finished.best.params
    right = (student(torch.tensor(floats(tiny.data.val.x))).argmax(1).numpy() == tiny.data.val.y).mean()
    seeds = [trial.value for trial in finished.history.finals("winner")]
    assert right == pytest.approx(max(seeds), abs=1e-6)


def test_the_leaderboard_holds_every_trial_once(finished: Any) -> None:
    board = finished.leaderboard()
    started = [event["trial"] for event in events_of(finished.run_dir, "start")]
    assert sorted(board["trial"]) == sorted(started) == sorted(set(started))
    assert (board["role"] == "search").sum() == 6
    assert {"student.family", "optim.lr", "params", "seconds"} <= set(board.columns)


def test_the_report_needs_nothing_else(finished: Any) -> None:
    page = finished.run_dir / "report" / "index.html"
    text = page.read_text(encoding="utf-8")
    fetched = re.findall(r"""(?:src|href)\s*=\s*["']?\s*(https?:|//)""", text.split("<script", 1)[0], re.IGNORECASE)
    assert fetched == [] and "@import" not in text.split("<script", 1)[0]
    assert not re.search(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)\s*=", text, re.IGNORECASE)
    assert len(list(page.parent.glob("*.png"))) >= 3


def test_the_recipe_beside_the_student_is_the_winners(finished: Any) -> None:
    text = (finished.run_dir / "student" / "recipe.json").read_text()
    assert autokd.Recipe.from_json(text) == finished.recipe


def test_the_test_split_is_read_once(finished: Any) -> None:
    read = [(event["role"], event["trial"]) for event in events_of(finished.run_dir, "test")]
    finals = [t for role in ("winner", "no_kd", "default_kd") for t in finished.history.finals(role)]
    assert len(read) == len(set(read)) == 1 + len(finals)
    order = [event["event"] for event in finished.events]
    assert set(order[order.index("test") :]) == {"test", "finish"}  # and after everything was decided


def test_export_to_onnx(finished: Any, tiny: Any, tmp_path: Path) -> None:
    import onnxruntime

    path = finished.export(tmp_path / "student.onnx")
    session = onnxruntime.InferenceSession(str(path))
    rows = floats(tiny.data.val.x[:3])
    got = session.run(None, {session.get_inputs()[0].name: rows})[0]
    with torch.no_grad():
        expected = finished.student()(torch.tensor(rows)).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_the_same_seed_gives_the_same_search(quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_is_faster(monkeypatch)
    pick = ("trial", "epoch", "value")
    told = []
    for name in ("first", "again"):
        quick(tmp_path / name, "3 trials", epochs=2)
        told.append([[event[key] for key in pick] for event in events_of(tmp_path / name, "rung")])
    assert told[0] == told[1] and len(told[0]) >= 3 + 6


# ---- MLflow


def test_mlflow_holds_the_search_and_its_trials_once(finished: Any) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished.run_dir.parent}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    nested = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(parents) == 1
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {parents[0].info.run_id}
    trials = [event["trial"] for event in events_of(finished.run_dir, "start")]
    assert sorted(run.data.tags["autokd.trial_id"] for run in nested) == sorted(trials)
    assert {run.info.status for run in runs} == {"FINISHED"}
    held = {item.path for item in client.list_artifacts(parents[0].info.run_id)}
    assert {"ledger.jsonl", "recipe.json", "report"} <= held


def test_the_registered_model_is_the_student(finished: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    from mlflow import MlflowClient

    uri = f"sqlite:///{finished.run_dir.parent}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    (version,) = MlflowClient(uri).search_model_versions("name = 'small'")
    model = mlflow.pytorch.load_model(f"models:/small/{version.version}")
    rows = torch.tensor(floats(tiny.data.val.x[:4]))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(rows), finished.student()(rows))
    info = mlflow.models.get_model_info(f"models:/small/{version.version}")
    assert info.signature is not None and info.saved_input_example_info is not None


# ---- going on


def test_resuming_a_finished_search_returns_it(copied: Path, tiny: Any, no_training: list[str]) -> None:
    before = (copied / "ledger.jsonl").read_bytes()
    result = autokd.resume(copied, teacher=tiny, verbose=False)
    assert result.best is not None and result.state == "finished"
    assert (copied / "ledger.jsonl").read_bytes() == before and no_training == []


def test_more_budget_goes_on_where_it_stopped(copied: Path) -> None:
    result = autokd.resume(copied, "3 trials", verbose=False)  # with the teacher kept in the folder
    searched = [trial.id for trial in result.history.in_role("search")]
    assert searched == [f"t{number:04d}" for number in range(1, 10)]
    reached = [(event["trial"], event["epoch"]) for event in events_of(copied, "rung")]
    assert len(reached) == len(set(reached))
    assert [event["event"] for event in result.events].count("search") == 1
    assert result.state == "finished" and result.best is not None
    for trial in result.history.trials.values():
        assert [row["epoch"] for row in trial.curve] == list(range(1, trial.epoch + 1)), trial.id
    read = [(event["role"], event["trial"]) for event in events_of(copied, "test")]
    assert len(read) == len(set(read))


def test_another_teacher_or_other_data_are_refused(copied: Path, tiny: Any, no_training: list[str]) -> None:
    other = autokd.Teacher(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), tiny.data)
    rows = tiny.data.train.x.copy()
    rows[0] = 1 - rows[0]
    data = autokd.Data(
        rows, tiny.data.train.y, x_test=tiny.data.test.x, y_test=tiny.data.test.y, x_val=tiny.data.val.x, y_val=tiny.data.val.y
    )  # fmt: skip
    for teacher in (other, autokd.Teacher(tiny.module, data)):
        with pytest.raises(RunFolderError, match="teacher and data it began with"):
            autokd.resume(copied, "3 trials", teacher=teacher, verbose=False)
    with pytest.raises(BudgetError, match="must be in trials as before, got 30s"):
        autokd.resume(copied, "30s", verbose=False)


def interrupt(monkeypatch: pytest.MonkeyPatch, when: Callable[[Any], bool]) -> None:
    """Ctrl-C at the first order for which `when` is true; then all is as before."""
    from autokd.core.core import TrainingCore

    advance = TrainingCore.advance

    def interrupted(core: Any, order: Any) -> Any:
        if when(order):
            monkeypatch.setattr(TrainingCore, "advance", advance)
            raise KeyboardInterrupt
        return advance(core, order)

    monkeypatch.setattr(TrainingCore, "advance", interrupted)


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
def test_an_interrupted_search_goes_on(
    damaged: bool, quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In mid-trial, after its first rung. A checkpoint that fails its checksum only means that its trial starts again."""
    interrupt(monkeypatch, lambda order: order.start > 0)
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "run")
    last = events_of(tmp_path / "run")[-1]
    assert last["event"] == "resume"
    if damaged:
        for path in (tmp_path / "run" / "checkpoints").glob("*.safetensors"):
            raw = bytearray(path.read_bytes())
            raw[-3] ^= 0xFF
            path.write_bytes(raw)
    result = autokd.resume(tmp_path / "run", verbose=False)
    assert result.state == "finished" and len(result.history.in_role("search")) == 6
    reached = [(event["trial"], event["epoch"]) for event in events_of(tmp_path / "run", "rung")]
    assert len(reached) == len(set(reached)) and last["trial"] in {trial for trial, epoch in reached if epoch == 3}
    for trial in result.history.trials.values():
        assert [row["epoch"] for row in trial.curve] == list(range(1, trial.epoch + 1)), trial.id
    assert (last["trial"] in {event["trial"] for event in events_of(tmp_path / "run", "retry")}) == damaged


def test_a_run_folder_is_used_by_one_process_at_a_time(copied: Path) -> None:
    from autokd.run_folder import RunFolder

    held = RunFolder.existing(copied)
    try:
        with pytest.raises(RunFolderError, match="in use by another process"):
            autokd.resume(copied, "3 trials", verbose=False)
    finally:
        held.close()


# ---- one recipe


def test_distill_trains_a_past_winner(finished: Any, tiny: Any, tmp_path: Path) -> None:
    done = autokd.distill(tiny, finished.run_dir / "student" / "recipe.json", folder=tmp_path, verbose=False)
    assert done.epochs == 3  # those of the winner
    assert done.recipe == finished.recipe and done.cost.params == finished.best.params
    assert len(done.history) == 3 and done.metrics["accuracy"] > 0.5 and done.test["accuracy"] > 0.5
    with torch.no_grad():
        assert done.student(torch.tensor(floats(tiny.data.val.x[:2]))).shape == (2, 10)
    assert json.loads(json.dumps(done.to_dict()))["recipe"] == finished.recipe.to_dict()
    assert list(tmp_path.glob("*.safetensors"))


def test_distill_in_the_same_folder_begins_again(
    finished: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_is_faster(monkeypatch)
    recipe = finished.recipe
    first, second = (autokd.distill(tiny, recipe, epochs=2, folder=tmp_path, verbose=False) for _ in range(2))
    assert len(second.history) == 2 and first.metrics == second.metrics


# ---- of one's own


def test_own_module_and_arrays(blobs: autokd.Teacher, quick: Any, tmp_path: Path) -> None:
    result = quick(tmp_path / "run", "3 trials", blobs, students=None, constraints={"params": 5000})
    assert {trial.recipe.student.family for trial in result.history.trials.values()} == {"mlp"}  # rows are vectors
    assert result.best.test_mean > 0.5 and result.student()(torch.zeros(2, 6)).shape == (2, 3)
    with pytest.raises(RunFolderError, match="pass teacher="):
        autokd.resume(tmp_path / "run", "1 trial", verbose=False)
    more = autokd.resume(tmp_path / "run", "1 trial", teacher=blobs, verbose=False)
    assert len(more.history.in_role("search")) == 4


def test_own_student_by_name(
    blobs: autokd.Teacher, quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_students.py").write_text(
        "from torch import nn\n\n\ndef line(classes):\n    return nn.Sequential(nn.Linear(6, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    result = quick(tmp_path / "run", "2 trials", blobs, students=["my_students:line"], constraints={"params": 100})
    assert result.recipe.student.family == "my_students:line" and result.best.params == 21
    assert result.failures == {} and result.best.value_mean > 0.5
    assert isinstance(result.student()[0], nn.Linear)


def test_own_student_as_a_class(blobs: autokd.Teacher, quick: Any, tmp_path: Path) -> None:
    result = quick(tmp_path / "run", "2 trials", blobs, students=[Line, "mlp"], constraints={"params": 500})
    families = {trial.recipe.student.family for trial in result.history.in_role("search")}
    assert families <= {"test_api:Line", "mlp"} and result.best is not None and result.failures == {}
    alone = quick(tmp_path / "alone", "2 trials", blobs, students=[Line], constraints={"params": 500})
    assert isinstance(alone.student(), Line)


def test_constraints_hold_for_every_trial(quick: Any, tmp_path: Path) -> None:
    result = quick(
        tmp_path / "run", "4 trials", students=["mlp", "plain"], constraints={"params": "2k", "flops": "60k"}
    )
    assert all(trial.params <= 2000 and trial.flops <= 60_000 for trial in result.history.trials.values())


def test_only_the_objectives_asked_for(quick: Any, tmp_path: Path) -> None:
    result = quick(tmp_path / "run", "4 trials", objectives=["dkd"])
    used = {term.objective for trial in result.history.in_role("search") for term in trial.recipe.terms}
    assert used == {"dkd"}


def test_a_budget_of_seconds_is_kept(quick: Any, tmp_path: Path) -> None:
    result = quick(tmp_path / "run", "6s", epochs=None)
    assert result.best is not None and result.head["rungs"][-1] >= 3
    assert result.history.elapsed < 25  # the first seed of the finals is trained in any case


def breaks(folder: Path, when: str) -> dict[str, Any]:
    """A module `broken_students` with a network that raises where `when` is true; the keywords that name it."""
    (folder / "broken_students.py").write_text(
        "from pathlib import Path\n\nfrom torch import nn\n\n\nclass Breaks(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.layer = nn.Linear(6, 3)\n\n    def forward(self, x):\n"
        f"        if len(x) > 2 and {when}:\n            raise RuntimeError('too many rows')\n        return self.layer(x)\n"
    )
    return {"students": ["broken_students:Breaks"], "constraints": {"params": 100}}


def test_a_student_that_cannot_be_trained_is_told_before_a_search(
    blobs: autokd.Teacher, quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = breaks(tmp_path, "True")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_students", raising=False)
    with pytest.raises(InputError, match="cannot be trained on blobs: RuntimeError: too many rows"):
        quick(tmp_path / "run", "3 trials", blobs, **named)
    assert not (tmp_path / "run").exists()


def test_a_search_of_which_all_trials_fail_says_so(
    blobs: autokd.Teacher, quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = breaks(tmp_path, f"Path({str(tmp_path / 'run' / 'ledger.jsonl')!r}).exists()")  # not while it is tried
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_students", raising=False)
    result = quick(tmp_path / "run", "3 trials", blobs, **named)
    assert result.best is None and result.failures == {"exception": 3}
    assert {trial.message for trial in result.history.trials.values()} == {"RuntimeError: too many rows"}
    with pytest.raises(RunFolderError, match="holds no student"):
        result.student()
    assert (tmp_path / "run" / "report" / "index.html").exists()


def test_the_teacher_is_cached(tiny: Any, no_training: list[str]) -> None:
    again = autokd.Teacher.fit("digits", family="mlp", spec=TINY, epochs=6)
    assert again.fingerprint == tiny.fingerprint and no_training == []


def test_a_search_needs_a_teacher(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="wrap the module"):
        autokd.search(tiny.module, "3 trials", run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_front_of_accuracy_and_latency(quick: Any, tmp_path: Path) -> None:
    limits = {"params": "teacher/2", "latency_ms": 1000}
    goals = {"goals": ["accuracy", "latency_ms"], "constraints": limits}
    result = quick(tmp_path / "run", "5 trials", **goals)
    front = result.pareto()
    assert front and all(0 < member.costs["latency_ms"] < 1000 and member.n == 3 for member in front)
    probed = [event for event in result.events if event["event"] == "probe"]
    assert len({event["architecture"] for event in probed}) == len(probed) > 0
    with pytest.raises(GoalError, match="there is no best student without a preference"):
        result.student()
    quickest = min(front, key=lambda member: member.costs["latency_ms"])
    module = result.student(prefer="latency_ms")
    assert sum(p.numel() for p in module.parameters()) == quickest.costs["params"]
    assert result.export(tmp_path / "student.safetensors", prefer="accuracy").exists()
    assert all(len(member.tests) == 3 for member in front)


def test_a_warm_start_from_an_earlier_search(finished: Any, quick: Any, tmp_path: Path) -> None:
    result = quick(tmp_path / "run", "3 trials", warm_start=finished.run_dir)
    sources = [trial.source for trial in result.history.in_role("search")]
    assert sources[1].startswith("warm start: t00") and result.head["warm_start"]["sources"][0]["weight"] == 1.0
    best = max(finished.history.in_role("search"), key=lambda trial: (trial.epoch, trial.value or 0))
    assert best.recipe in [trial.recipe for trial in result.history.in_role("search")]
