"""Heads on a teacher: trained once, kept, and there when a loss wants them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import events_of
from tiny import CLASSES, SHAPE, expert, images, network, recipe, weights
from torch.nn import functional

import autokd
from autokd import heads
from autokd.core.data import to_float
from autokd.core.device import Setting
from autokd.core.headed import HEADS, Headed, said
from autokd.core.live import LiveTeacher
from autokd.errors import InputError, RecipeError, TeacherError
from autokd.heads import default_epochs, fit_heads, kinds_for, with_fitted_heads
from autokd.students import FAMILIES
from autokd.teacher import Teacher

torch.set_num_threads(1)


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Teacher:
    """One that knows its images, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Teacher(expert(), images(60))


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of heads that are trained from now on."""
    seen: list[str] = []
    train = heads._trained

    def watched(teacher: Teacher, kind: str, *more: Any) -> Any:
        seen.append(kind)
        return train(teacher, kind, *more)

    monkeypatch.setattr(heads, "_trained", watched)
    return seen


@pytest.mark.parametrize("kind", HEADS)
def test_heads_learn_and_the_teacher_does_not(teacher: Teacher, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []
    loss = heads._loss
    monkeypatch.setattr(heads, "_loss", lambda *given: _kept(loss(*given), losses))
    before = weights(teacher.module)
    found = fit_heads(teacher, kind, epochs=6, cache=False)
    after = weights(teacher.module)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not any(parameter.requires_grad for parameter in (*found.parameters(), *teacher.module.parameters()))
    assert not any(part.training for part in (*found.modules(), *teacher.module.modules()))
    count = len(found)
    assert sum(losses[-count:]) < 0.97 * sum(losses[:count])


def _kept(loss: torch.Tensor, losses: list[float]) -> torch.Tensor:
    losses.append(float(loss.detach()))
    return loss


def test_stage_heads_know_classes(teacher: Teacher) -> None:
    found = fit_heads(teacher, "stage", epochs=12, cache=False)
    x, y = to_float(torch.tensor(teacher.data.val.x)), torch.tensor(teacher.data.val.y)
    told = LiveTeacher(teacher.module, x[:2], Setting()).outputs(x, frozenset({"stages"}))
    for logits in said(found, "stage", told):
        assert float(functional.cross_entropy(logits, y)) < 0.9 * math.log(CLASSES)


def test_heads_are_trained_once(teacher: Teacher, trainings: list[str], tmp_path: Path) -> None:
    first, again = fit_heads(teacher, "stage", epochs=1), fit_heads(teacher, "stage", epochs=1)
    assert trainings == ["stage"] and not any(part.training for part in again.modules())
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in first.state_dict().items())
    other = Teacher(network(), images(60))
    for fitted, changes in ((teacher, {"epochs": 2}), (teacher, {"seed": 1}), (other, {}), (teacher, {"cache": False})):
        fit_heads(fitted, "stage", **{"epochs": 1, **changes})  # type: ignore[arg-type]
    assert trainings == ["stage"] * 5
    kept = list((tmp_path / "cache" / "autokd" / "teachers" / "heads").iterdir())
    assert len(kept) == 4


def test_a_torn_file_is_trained_again(teacher: Teacher, trainings: list[str], tmp_path: Path) -> None:
    fit_heads(teacher, "stage", epochs=1)
    (kept,) = (tmp_path / "cache" / "autokd" / "teachers" / "heads").iterdir()
    kept.write_bytes(kept.read_bytes()[:-7])
    fit_heads(teacher, "stage", epochs=1)
    assert trainings == ["stage"] * 2


def test_training_them_again_gives_the_same_and_leaves_the_generator(teacher: Teacher) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one, two = (fit_heads(teacher, "joint", epochs=1, cache=False).state_dict() for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_default_lengths_are_a_share_of_the_teachers_own(teacher: Teacher) -> None:
    assert (default_epochs(teacher, "stage"), default_epochs(teacher, "joint")) == (10, 3)
    teacher.about["epochs"] = 5
    assert (default_epochs(teacher, "stage"), default_epochs(teacher, "joint")) == (1, 1)


def test_kinds_that_losses_want() -> None:
    assert kinds_for(["kd", "at"]) == frozenset()
    assert kinds_for(["kd", "mtkd_ssr", "sskd", "hsakd"]) == frozenset(HEADS)


def test_a_teacher_is_handed_on_as_it_is_where_no_heads_are_wanted(teacher: Teacher, trainings: list[str]) -> None:
    said_: list[str] = []
    assert with_fitted_heads(teacher, (), "cpu", said_.append) is teacher.module and said_ == [] == trainings
    teacher.about["epochs"] = 3
    module = with_fitted_heads(teacher, ("stage", "joint"), "cpu", said_.append)
    assert isinstance(module, Headed) and sorted(module.heads) == ["joint", "stage"] and not module.training
    assert said_ == ["teacher heads (joint): 1 epoch", "teacher heads (stage): 1 epoch"]
    with_fitted_heads(teacher, ("stage", "joint"), "cpu", said_.append)
    assert len(said_) == len(trainings) == 2, "they are there"


def test_teachers_and_numbers_that_do_not_do_are_refused(teacher: Teacher) -> None:
    flat = Teacher(FAMILIES["mlp"].build({"width": 8, "depth": 2}, SHAPE, CLASSES), images(60))
    with pytest.raises(TeacherError, match="'stage' read stages, which this teacher does not put out; use"):
        fit_heads(flat, "stage", epochs=1)
    with pytest.raises(InputError, match="heads need at least 1 epoch, got 0"):
        fit_heads(teacher, "stage", epochs=0)


# ---- where a loss wants them

SPACE = """
version: 1
about: heads
task: classification
epochs: {max: 2}
fields:
  student.family: {choice: [resnet]}
  student.resnet.width: {int: [4, 6], prior: 4}
  select.staged: {choice: [mtkd_ssr]}
  terms.mtkd_ssr.weight: {float: [0.1, 2], log: true, prior: 0.5}
  augment.policy: base
  optim.batch: 16
"""


def test_a_search_trains_them_first_and_a_resumed_one_finds_them(
    teacher: Teacher, trainings: list[str], tmp_path: Path, capsys: Any
) -> None:
    teacher.about["epochs"] = 3
    (tmp_path / "heads.yaml").write_text(SPACE)
    run = tmp_path / "run"
    given: dict[str, Any] = {"constraints": {"params": "teacher/2"}, "executor": "inline", "tracking": False}
    autokd.search(teacher, "1 trials", space=tmp_path / "heads.yaml", epochs=2, run_dir=run, ablation=False, **given)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "teacher heads (stage): 1 epoch" and trainings == ["stage"]
    (head,) = events_of(run, "search")
    assert "the teacher has heads trained for this search: stage" in head["plan"]["notes"]
    assert "aux.stage" in head["settings"]["tape"]["payload"]
    assert events_of(run, "rung") and not events_of(run, "fail")
    autokd.resume(run, "1 trials", teacher=teacher, verbose=False)
    assert trainings == ["stage"] and not events_of(run, "fail")


@pytest.mark.parametrize(
    ("objective", "kind", "more"),
    [
        ("mtkd_ssr", "stage", {}),
        ("hsakd", "joint", {"augment": {"policy": "rotations", "crops": "shared"}, "ce_rows": "original"}),
        ("sskd", "projection", {"augment": {"policy": "rotations"}, "ce_rows": "original", "ce_weight": 0.1}),
    ],
)
def test_distill_trains_them_first(
    teacher: Teacher, trainings: list[str], objective: str, kind: str, more: dict[str, Any], capsys: Any
) -> None:
    teacher.about["epochs"] = 3
    wanted = recipe(terms=({"objective": objective, "weight": 0.5},), optim={"lr": 0.02}, **more)
    done = autokd.distill(teacher, wanted, epochs=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == f"teacher heads ({kind}): 1 epoch" and lines[1].startswith("distilling")
    assert trainings == [kind] and len(done.history) == 2
    assert all(math.isfinite(log["loss"]) for log in done.history)
    assert any(name.startswith(objective) for name in done.history[0]["terms"])


def test_distill_refuses_before_anything_is_trained(
    teacher: Teacher, trainings: list[str], no_training: list[str]
) -> None:
    with pytest.raises(RecipeError, match="'hsakd' compares rotated views, augment.policy is 'base'"):
        autokd.distill(teacher, recipe(terms=({"objective": "hsakd", "weight": 1.0},)), epochs=1)
    flat = Teacher(FAMILIES["mlp"].build({"width": 8, "depth": 2}, SHAPE, CLASSES), images(60))
    with pytest.raises(TeacherError, match="read stages, which this teacher does not put out"):
        autokd.distill(flat, recipe(terms=({"objective": "mtkd_ssr", "weight": 1.0},)), epochs=1)
    assert trainings == no_training == []
