"""Real epochs on tiny data: every loss, views, peers, and the accidents a trial can meet."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny import CLASSES, KD, SHAPE, core, headed, images, network, order, recipe, weights
from torch import Tensor, nn

from autokd.core import checkpoint
from autokd.core.core import TrainingCore
from autokd.core.data import steps as batches
from autokd.core.device import Setting
from autokd.core.loop import train_epoch
from autokd.core.run import load_student
from autokd.errors import TrialFailure
from autokd.objectives import OBJECTIVES
from autokd.recipe import Recipe
from autokd.rules import Rule, Value
from autokd.students import name_of
from autokd.students.tap import logits_of

ALONE = {name: {"objective": name, "weight": 0.5} for name in OBJECTIVES}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
TOGETHER = (["kd", "dist", "fitnet", "at", "rkd"], ["dkd", "dist", "fitnet", "at", "rkd"])


class Own(nn.Module):
    """A student of one's own, told by class attributes how to misbehave."""

    calls: ClassVar[Counter[str]] = Counter()
    rows: ClassVar[list[int]] = []

    def __init__(self, how: str = "well") -> None:
        super().__init__()
        self.how, self.body = how, nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        Own.calls["train" if self.training else "eval"] += 1
        Own.rows.append(len(x))
        logits: Tensor = self.body(x)
        if self.how == "raises" and self.training:
            raise RuntimeError("no such kernel\nsecond line")
        if self.how == "constant":
            return 0 * logits + torch.eye(CLASSES)[0]
        return logits * math.nan if self.how == "nan later" and not self.training else logits


class Family:
    """A family of them."""

    fields: Mapping[str, Rule] = {}

    def __init__(self, how: str) -> None:
        self.how, self.__qualname__ = how, f"Family.{how.replace(' ', '_')}"

    def misfit(self, input_shape: tuple[int, ...]) -> str | None:
        return None

    def build(self, spec: Mapping[str, Value], input_shape: tuple[int, ...], classes: int) -> nn.Module:
        return Own(self.how)


def own(how: str, **more: Any) -> Recipe:
    return recipe(name_of(Family(how)), **more)


# ---- learning


@pytest.mark.parametrize("family", ["resnet", "plain", "mobilenet", "mlp"])
def test_a_student_learns(tmp_path: Path, family: str) -> None:
    report = core(tmp_path).advance(order(recipe(family, width=8), to=6, total=6))
    first, last = report.history[0], report.history[-1]
    assert last["loss"] < 0.8 * first["loss"] and report.value > 0.6
    assert report.value == last["metrics"]["accuracy"] and report.tiebreak == -last["metrics"]["loss"]
    assert [row["epoch"] for row in report.history] == [1, 2, 3, 4, 5, 6]
    assert report.seconds == pytest.approx(sum(row["seconds"] for row in report.history))
    assert set(first["terms"]) == {"ce"} and first["lr"] >= 0


def fitting(names: list[str]) -> tuple[nn.Module, dict[str, Any]]:
    """A teacher with the heads that these losses read, if any does, and the views that they need."""
    classes = [OBJECTIVES[name] for name in names]
    teacher = headed(network()) if any(each.teacher_heads for each in classes) else network()
    return teacher, {"policy": "rotations" if any(each.rotations for each in classes) else "base"}


@pytest.mark.parametrize("names", [[name] for name in OBJECTIVES] + list(TOGETHER), ids="+".join)
def test_every_loss_trains_and_is_logged_by_name(tmp_path: Path, names: list[str]) -> None:
    teacher, views = fitting(names)
    of = recipe(terms=tuple(ALONE[name] for name in names), optim={"lr": 0.01}, augment=views)
    report = core(tmp_path, teacher=teacher).advance(order(of, to=2, total=2))
    for row in report.history:
        logged = {name.partition(".")[0] for name in row["terms"]}
        assert logged == {"ce", *names}
        assert row["loss"] == pytest.approx(sum(row["terms"].values()))
        assert all(math.isfinite(value) for value in row["terms"].values())
    module = core(tmp_path).advance(order(recipe(optim={"lr": 0.01}, augment=views), to=2, total=2, seed=0))
    assert module.history[1]["terms"]["ce"] != report.history[1]["terms"]["ce"], "the loss does not reach the student"


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_vanishing_weight_changes_nothing(tmp_path: Path, name: str) -> None:
    """Training is continuous in a term's weight at zero: the term's networks and draws disturb nothing else.

    Rows of its own are seen by a student's running statistics, as any others, whatever the weight.
    """
    students = []
    for terms in ((), ({**ALONE[name], "weight": 1e-12},)):
        teacher, views = fitting([name])
        its_core = core(tmp_path / str(len(terms)), teacher=teacher)
        its_core.advance(order(recipe(terms=terms, augment=views)))
        tensors, _ = checkpoint.load(its_core.checkpoint_path("t"))
        students.append({name: t for name, t in tensors.items() if name.startswith("parts.0.")})
    assert students[0].keys() == students[1].keys()
    for key, tensor in students[0].items():
        if not (OBJECTIVES[name].asks and key.rpartition(".")[2] in STATISTICS):
            assert torch.allclose(tensor.float(), students[1][key].float(), atol=1e-6), key


def test_a_warm_up_of_a_term_begins_at_nothing(tmp_path: Path) -> None:
    of = recipe(terms=({**KD, "schedule": "linear", "share": 1.0},), optim={"lr": 1e-9})
    its_core = core(tmp_path)
    terms = [row["terms"]["kd"] for row in its_core.advance(order(of, to=2, total=2)).history]
    steps = batches(len(its_core.rows), 16)
    ramp = [(steps - 1) / 2, steps + (steps - 1) / 2]  # means of 0, 1, … over each epoch's steps
    assert terms[0] / terms[1] == pytest.approx(ramp[0] / ramp[1], rel=0.1)


def test_reduced_precision_comes_close(tmp_path: Path) -> None:
    data = images()
    of = recipe(width=8, terms=(KD,))
    reports = [
        core(tmp_path / p, data, precision=p, teacher_precision=p).advance(order(of, to=3)) for p in ("fp32", "bf16")
    ]
    losses = [[row["loss"] for row in report.history] for report in reports]
    assert losses[0] == pytest.approx(losses[1], rel=0.1) and losses[0] != losses[1]
    assert [report.precision for report in reports] == ["fp32, channels_last", "bf16, channels_last"]


# ---- peers and views


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_each_network_runs_once_a_step(tmp_path: Path, count: int) -> None:
    its_core = core(tmp_path)
    of = own("well", terms=(KD,), peers={"count": count})
    taught = its_core.teaching.live.module  # type: ignore[union-attr]
    calls = Counter[str]()
    taught.register_forward_hook(lambda *_: calls.update(["teacher"]))
    run = its_core.new(of, 0, its_core.setting)
    Own.calls.clear()
    with its_core.setting.on_its_threads():
        train_epoch([run], its_core.rows, its_core.teaching, its_core.task, 3)
    steps = batches(len(its_core.rows), 16)
    assert Own.calls["train"] == (1 + count) * steps and calls["teacher"] == steps
    assert Own.calls["eval"] == 1, "the student alone is validated"
    assert ("peers" in run.history[-1]["terms"]) == (count > 0)


@pytest.mark.parametrize("count", [1, 3])
def test_only_the_student_is_deployed(tmp_path: Path, count: int) -> None:
    its_core = core(tmp_path)
    report = its_core.advance(order(recipe(terms=(KD,), peers={"count": count}), to=1))
    tensors, _ = checkpoint.load(its_core.checkpoint_path("t"))
    student = load_student(recipe(terms=(KD,)), SHAPE, CLASSES, tensors)
    with torch.no_grad():
        logits = student(its_core.rows.val_x.float() / 255)
    assert (logits.argmax(1) == its_core.rows.val_y).float().mean().item() == pytest.approx(report.value)
    assert not student.training


def test_peers_of_no_weight_leave_the_student_alone(tmp_path: Path) -> None:
    """Partners are constants to each other: without the mutual term, their presence is not felt to the last bit."""
    found = []
    for count in (0, 2):
        its_core = core(tmp_path / str(count))
        its_core.advance(order(recipe(terms=(KD,), peers={"count": count, "weight": 0.0}), to=2))
        found.append(checkpoint.load(its_core.checkpoint_path("t"))[0])
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items() if name.startswith("parts.0."))


def test_augmented_rows_are_trained_on_and_weighed(tmp_path: Path) -> None:
    jda = {"policy": "jda", "rho": 0.5, "p": 1.0}
    reports = {}
    for ccd in (False, True):
        its_core = core(tmp_path / str(ccd))
        Own.rows.clear()
        reports[ccd] = its_core.advance(order(own("well", terms=(KD,), augment={**jda, "ccd": ccd})))
        trained = sum(Own.rows) - len(its_core.rows.val_y) - 2 * 1
        assert trained == pytest.approx(2 * len(its_core.rows), abs=4)
    kd = [reports[ccd].history[0]["terms"]["kd"] for ccd in (False, True)]
    assert 1.1 * kd[0] < kd[1] < 2 * kd[0], "confident rows count up to twice"


# ---- the teacher


def test_the_teacher_stays_as_it_was(tmp_path: Path) -> None:
    teacher = network(width=16)
    before = weights(teacher)
    its_core = core(tmp_path, teacher=teacher)
    modes = []
    teacher.register_forward_hook(lambda module, *_: modes.append(module.training))
    teacher.train()  # as a careless owner would
    its_core.advance(order(recipe(terms=(KD, ALONE["fitnet"]), peers={"count": 1}), to=2))
    assert modes and not any(modes)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    tensors, meta = checkpoint.load(its_core.checkpoint_path("t"))
    assert {name.split(".")[0] for name in tensors} == {"parts", "optimiser"}
    assert all(
        tensor.shape != t.shape or not torch.equal(tensor, t)
        for tensor in tensors.values()
        for t in before.values()
        if t.numel() > 64
    )
    assert not any("teacher" in name for name in (*tensors, *meta))


def test_a_closed_core_leaves_no_hooks_on_the_teacher(tmp_path: Path) -> None:
    teacher = network()
    its_core = core(tmp_path, teacher=teacher)
    its_core.advance(order(recipe(terms=(ALONE["at"],))))
    assert any(part._forward_hooks for part in teacher.modules())
    its_core.close()
    assert not any(part._forward_hooks for part in teacher.modules())


def test_distillation_needs_a_teacher(tmp_path: Path) -> None:
    its_core = TrainingCore(images(), None, tmp_path, Setting())
    with pytest.raises(TrialFailure, match="needs a teacher"):
        its_core.advance(order(recipe(terms=(KD,))))
    assert its_core.advance(order(recipe())).epoch == 1


def test_losses_that_neither_listen_nor_ask_need_no_teacher(tmp_path: Path) -> None:
    of = recipe(terms=tuple(ALONE[name] for name, each in OBJECTIVES.items() if not (each.listens or each.asks)))
    history = TrainingCore(images(), None, tmp_path, Setting()).advance(order(of, to=3)).history
    assert {"tfkd_reg", "byot.ce", "byot.response", "byot.hint", "past"} <= history[0]["terms"].keys()
    assert all(math.isfinite(value) for row in history for value in row["terms"].values())
    assert [row["terms"]["past"] > 0 for row in history] == [False, False, True]  # after half of the epochs


def test_the_threads_of_the_process_are_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        core(tmp_path, threads=1).advance(order(recipe()))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# ---- accidents


def failure_of(its_core: TrainingCore, of: Recipe, to: int = 1) -> TrialFailure:
    with pytest.raises(TrialFailure) as caught:
        its_core.advance(order(of, to=to, total=4))
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_loss_that_is_no_number_fails_the_trial(tmp_path: Path) -> None:
    failure = failure_of(core(tmp_path), recipe("mlp", optim={"lr": 1e30, "warmup": 0}))
    assert failure.reason == "nan" and "epoch 1" in str(failure) and "lower optim.lr" in str(failure)
    assert not core(tmp_path).checkpoint_path("t").exists()


def test_metrics_that_are_no_number_fail_the_trial(tmp_path: Path) -> None:
    """The ledger holds numbers only, so that such a trial must end here."""
    assert failure_of(core(tmp_path), own("nan later")).reason == "nan"


def test_a_student_at_chance_fails_once_it_has_settled(tmp_path: Path) -> None:
    its_core = core(tmp_path)
    early = its_core.advance(order(own("constant"), to=2, total=4))
    assert early.value <= its_core.chance
    failure = failure_of(its_core, own("constant"), to=4)
    assert failure.reason == "chance" and "not above chance" in str(failure)


def test_what_a_student_raises_fails_its_trial_in_one_line(tmp_path: Path) -> None:
    failure = failure_of(core(tmp_path), own("raises"))
    assert (failure.reason, str(failure)) == ("exception", "RuntimeError: no such kernel")


def test_losses_that_cannot_be_compared_fail_the_trial(tmp_path: Path) -> None:
    failure = failure_of(core(tmp_path), recipe("mlp", terms=(ALONE["at"],)))
    assert failure.reason == "exception"


def test_a_deadline_stops_after_the_epoch_in_which_it_passes(tmp_path: Path) -> None:
    its_core = core(tmp_path)
    late = its_core.advance(order(recipe(), to=3, deadline=time.time() - 100))
    assert late.epoch == 1
    rest = its_core.advance(order(recipe(), to=3, start=1, deadline=time.time() + 100))
    assert rest.epoch == 3 and [row["epoch"] for row in rest.history] == [2, 3] and rest.retries == 0


def test_the_example_is_of_the_data(tmp_path: Path) -> None:
    its_core = core(tmp_path)
    assert its_core.example.shape == (2, *SHAPE) and its_core.example.max() <= 1
    assert logits_of(network()(its_core.example)).shape == (2, CLASSES)
