"""A teacher with heads in training: what they say, live and on tape, in launched steps and in recorded ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sharing import Counting, assert_close, launched, losses, recorded, state, train
from tiny import CLASSES, EVERYTHING, ROWS, coarse, expert, headed, images, network, recipe, tape_plan, taped

from autokd.core.fingerprint import fingerprint
from autokd.core.headed import HEADS, new_heads, said, with_heads
from autokd.core.held import Held
from autokd.core.live import Live, LiveTeacher, Rehearsal, rehearsed_tape
from autokd.core.loop import feed
from autokd.core.replay import Replay
from autokd.data import Data
from autokd.errors import InputError, RecipeError, TeacherError
from autokd.protocols import Batch, Outputs, Shapes
from autokd.recipe import Recipe

torch.set_num_threads(1)
AUX = frozenset({"aux.stage", "aux.joint", "aux.projection", "aux.pooled"})
TURNED = {"augment": {"policy": "rotations", "crops": "shared"}, "ce_rows": "original"}
CASES: dict[str, dict[str, Any]] = {
    "mtkd_ssr": {},
    "mtkd_ssr of maps": {"fields": {"scd": "cwd", "lambda_c": 20.0}},
    "mtkd_ssr on maps of another size": {"family": coarse()},
    "hsakd": TURNED,
    "sskd": {**TURNED, "augment": {"policy": "rotations"}},
}


def of(case: str) -> Recipe:
    more = {"optim": {"lr": 0.01, "batch": 6}, **CASES[case]}
    term = {"objective": case.split()[0], "weight": 0.5, **more.pop("fields", {})}
    return recipe(terms=(term,), **more)


@pytest.fixture(autouse=True)
def no_student_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autokd.core.core.SETTLED", 100)


# ---- what they say


def test_a_call_gives_the_networks_own_logits_and_the_heads_change_its_name() -> None:
    backbone, x = expert(), torch.rand(4, 1, 8, 8)
    teacher = headed(expert())
    assert torch.equal(teacher(x), backbone(x))
    others = {fingerprint(backbone), fingerprint(teacher), fingerprint(headed(seed=4))}
    assert len(others) == 3 and fingerprint(teacher) == fingerprint(headed())


def test_a_live_teacher_says_what_was_asked_for_and_each_row_for_itself(tmp_path: Path) -> None:
    core = taped(tmp_path, None, teacher=headed())
    live, x = core.teaching.live, torch.rand(5, 1, 8, 8)  # type: ignore[union-attr]
    every = live.outputs(x, AUX)
    assert {kind: tuple(each.shape[1] for each in told) for kind, told in every.aux.items()} == {
        **live.shapes.aux,
        "pooled": (8, 16, 32),
    }
    assert live.shapes.aux == {"stage": (3, 3), "joint": (12, 12, 12), "projection": (32,)}
    assert every.stages == () and every.embedding is None, "nobody asked"
    alone = live.outputs(x[:1], AUX)
    for kind, told in alone.aux.items():
        for one, many in zip(told, every.aux[kind], strict=True):
            torch.testing.assert_close(one, many[:1], rtol=1e-4, atol=1e-5)
    assert live.outputs(x).aux == {} and set(live.outputs(x, frozenset({"aux.joint"})).aux) == {"joint"}


def test_the_heads_read_the_backbones_stages_and_embedding(tmp_path: Path) -> None:
    teacher, x = headed(), torch.rand(4, 1, 8, 8)
    live = taped(tmp_path, None, teacher=teacher).teaching.live  # type: ignore[union-attr]
    told = live.outputs(x, AUX | {"stages", "embedding"})
    for kind in HEADS:
        expected = said(teacher.heads.get_submodule(kind), kind, told)
        for one, other in zip(expected, told.aux[kind], strict=True):
            torch.testing.assert_close(one, other)
    for one, stage in zip(told.aux["pooled"], told.stages, strict=True):
        torch.testing.assert_close(one, stage.mean((2, 3)))


def test_a_teacher_without_heads_says_the_means_of_its_stages_alone(tmp_path: Path) -> None:
    live = taped(tmp_path, None).teaching.live  # type: ignore[union-attr]
    assert set(live.outputs(torch.rand(2, 1, 8, 8), AUX).aux) == {"pooled"} and live.shapes.aux == {}


@pytest.mark.parametrize(
    ("kind", "shapes"), [("stage", Shapes(3, 7)), ("joint", Shapes(3, 7)), ("projection", Shapes(3, 0))]
)
def test_what_heads_cannot_read_is_refused(kind: str, shapes: Shapes) -> None:
    with pytest.raises(TeacherError, match=rf"'{kind}' read .*, which this teacher does not put out; use"):
        new_heads(kind, shapes)
    with pytest.raises(TeacherError, match="unknown kind of heads"):
        new_heads("stages", Shapes(3, 7, ((4, 2, 2),)))


def test_a_rehearsal_puts_out_what_the_teacher_would(tmp_path: Path) -> None:
    live = LiveTeacher(headed(), torch.rand(2, 1, 8, 8), taped(tmp_path, None).setting)
    told = live.outputs(torch.rand(6, 1, 8, 8), AUX)
    for drawn in (Rehearsal(live.shapes, AUX, "cpu").of_rows(6), rehearsed_outputs(live.shapes)):
        assert {kind: [each.shape for each in parts] for kind, parts in drawn.aux.items()} == {
            kind: [each.shape for each in parts] for kind, parts in told.aux.items()
        }


def rehearsed_outputs(shapes: Shapes) -> Outputs:
    tape = rehearsed_tape(shapes, AUX | {"logits"}, 6, "cpu")
    held, rows = Held(tape, "cpu", {}), torch.arange(6)
    held.fill(tape)
    return held.outputs(Batch(torch.zeros(6, 1), rows, rows, torch.zeros_like(rows), rows))


# ---- in training


@pytest.mark.parametrize("case", CASES)
def test_a_replayed_training_is_the_live_one_within_half_precision(tmp_path: Path, case: str) -> None:
    curves: dict[bool, list[float]] = {}
    for tape in (None, tmp_path / "tape"):
        plan = None if tape is None else tape_plan(tape, EVERYTHING | AUX)
        teacher = headed()
        its_core = taped(tmp_path / str(tape is None), plan, teacher=teacher)
        passes: list[int] = []
        teacher.backbone.register_forward_hook(lambda _, args, __, passes=passes: passes.append(len(args[0])))
        curves[tape is None] = losses(train(its_core, of(case), 2))
        views = 4 if "augment" in CASES[case] else 1
        assert passes.count(ROWS) == (0 if tape is None else 2 * views)
        assert any(4 < rows != ROWS for rows in passes) == (tape is None), "or this compares live with live"
    assert curves[False] == pytest.approx(curves[True], rel=4e-3)
    assert curves[False] != curves[True], "half precision leaves a trace"


@pytest.mark.parametrize("case", ["mtkd_ssr", "hsakd", "sskd"])
def test_whole_steps_train_as_launched_ones_do(tmp_path: Path, case: str) -> None:
    plan, ours = tape_plan(tmp_path / "tape", EVERYTHING | AUX), Counting()
    plain = launched(tmp_path / "plain", tape=plan, teacher=headed())
    its_core = recorded(tmp_path / "ours", ours, tape=plan, teacher=headed())
    theirs, report = train(plain, of(case), 3), train(its_core, of(case), 3)
    assert report.notes == () and ours.records == 2 and ours.replays >= 5
    assert_close(state(its_core), state(plain), tolerance=1e-3)
    assert losses(report) == pytest.approx(losses(theirs), rel=1e-4)


def test_heads_that_are_not_on_the_tape_are_read_live_and_that_is_said(tmp_path: Path) -> None:
    its_core = taped(tmp_path / "core", tape_plan(tmp_path / "tape", frozenset({"logits"})), teacher=headed())
    notes = train(its_core, of("hsakd"), 1).notes
    assert any("aux.joint of the teacher are not on the tape" in note for note in notes)


def test_rotated_rows_and_their_heads_come_back_from_the_tape(tmp_path: Path) -> None:
    its_core = taped(tmp_path, tape_plan(tmp_path / "tape", EVERYTHING | AUX), teacher=headed())
    assert its_core.teaching is not None
    run = its_core.new(of("sskd"), 0, its_core.setting)
    needs = AUX | {"logits"}
    signal = its_core.teaching.epoch(needs, run.recipe.augment, 0, 0, 1)
    assert isinstance(signal, Replay) and sorted(signal.views) == [0, 1, 2, 3] and signal.made is None
    live = Live(its_core.teaching.live, needs)
    pairs = zip(feed(run, its_core.rows, signal), feed(run, its_core.rows, live), strict=True)
    for (batch, told), (same, expected) in pairs:
        assert torch.equal(batch.x, same.x) and told is not None and expected is not None
        for kind, parts in expected.aux.items():
            for one, other in zip(told.aux[kind], parts, strict=True):
                torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)


def test_what_needs_rotations_or_heads_is_refused_before_training(tmp_path: Path) -> None:
    its_core = taped(tmp_path, None, teacher=headed())
    for name in ("hsakd", "sskd"):
        with pytest.raises(RecipeError, match=rf"'{name}' compares rotated views, augment.policy is 'base'; set it"):
            its_core.new(recipe(terms=({"objective": name, "weight": 1.0},)), 0, its_core.setting)
    bare = taped(tmp_path, None)
    with pytest.raises(RecipeError, match="'mtkd_ssr' needs heads of kind 'stage' on the teacher"):
        bare.new(of("mtkd_ssr"), 0, bare.setting)
    assert with_heads(Shapes(CLASSES, 4), ()).aux == {}


def test_rotations_of_oblong_images_are_refused_in_one_line(tmp_path: Path) -> None:
    square = images(60)
    oblong = Data(square.train.x[:, :, :6], square.train.y, name="oblong")
    its_core = taped(tmp_path, None, oblong, network())
    with pytest.raises(InputError, match="rotations need square images") as caught, its_core.trying(recipe()):
        its_core.step_seconds(recipe(augment={"policy": "rotations"}), its_core.setting, 2)
    assert "\n" not in str(caught.value)
