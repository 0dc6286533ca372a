"""Where a tape lies and what it holds is decided, and said, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small import FIT, nothing_is_faster
from tiny import KD, expert, images, recipe

import autokd
from autokd.arguments import vocabulary
from autokd.core.payload import TapePlan
from autokd.core.tape_store import default_folder, default_limit
from autokd.errors import InputError
from autokd.space import Space, spaces_folder
from autokd.taping import COHORT, TapePlace, cohort_size, tape_place, tape_plan
from autokd.teacher import Teacher

torch.set_num_threads(1)
LOSSES = ("kd", "dkd", "dist", "fitnet", "at", "rkd")


@pytest.fixture
def teacher() -> Teacher:
    return Teacher(expert(), images(60), name="expert")


# ---- where


def test_the_users_cache_unless_another_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tape_place(True, None) == TapePlace(default_folder(), default_limit(default_folder()))
    assert tape_place(tmp_path / "new", "1.5 GB") == TapePlace(tmp_path / "new", 1_500_000_000)
    assert tape_place(str(tmp_path), 10**6) == TapePlace(tmp_path, 10**6)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert tape_place("here", 0) == TapePlace(tmp_path / "here", 0)
    assert tape_place("~/mine", "1GB") == TapePlace(tmp_path / "home" / "mine", 10**9)
    assert list(tmp_path.iterdir()) == [], "nothing is made before something is recorded"


def test_no_tape_takes_no_limit() -> None:
    assert tape_place(False, None) is None
    with pytest.raises(InputError, match="tape_limit='1GB' needs a tape, got tape=False"):
        tape_place(False, "1GB")


BAD: dict[str, tuple[Any, Any, str]] = {
    "nothing": (None, None, "tape must be a folder, True or False, got None"),
    "a number": (3, None, "True or False, got 3"),
    "one": (1, None, "True or False, got 1"),
    "no name": ("", None, "True or False, got ''"),
    "blank": (" ", None, "True or False"),
    "an impossible name": ("a\0b", None, "can be used"),
    "an endless name": ("a" * 5000, None, "can be used"),
    "nobody's home": ("~no-such-user-here/tape", None, "can be used"),
    "a size of no unit": (True, "10", "write for example '10GB'"),
    "a negative size": (True, -1, "write for example"),
    "a size of nothing": (True, "", "write for example"),
    "true as a size": (True, True, "write for example"),
    "half a byte": (True, 0.5, "write for example"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_places_and_sizes_are_refused_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tape, limit, told = BAD[name]
    with pytest.raises(InputError) as caught:
        tape_place(tape, limit)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"tape must be a folder, got the file .*file; name another place"):
        tape_place(tmp_path / "file", None)


@pytest.mark.parametrize("tape", [None, 3, "a\0b"])
def test_a_search_refuses_before_it_trains(tape: Any, tmp_path: Path, teacher: Teacher, no_training: list[str]) -> None:
    with pytest.raises(InputError, match="tape must be"):
        autokd.search(teacher, "1 trial", run_dir=tmp_path / "run", tape=tape, executor="inline", verbose=False)
    assert not no_training and not (tmp_path / "run").exists()


# ---- what


def test_what_the_losses_read_is_recorded_and_said(tmp_path: Path, teacher: Teacher) -> None:
    expected = {
        ("kd", "dkd"): {"logits"},
        ("dist", "rkd"): {"logits", "embedding"},
        ("at",): {"logits", "attention"},
        ("fitnet", "at"): {"logits", "attention", "stages"},
        (): {"logits"},
    }
    for names, fields in expected.items():
        plan, told = tape_plan(teacher, names, 10, TapePlace(tmp_path, 10**9))
        assert plan == TapePlan(str(tmp_path), 10**9, frozenset(fields), "expert")
        assert told.notes == () and str(told).startswith(", ".join(sorted(fields)) + "; ")
        assert f"an epoch in {tmp_path}, at most 1.0 GB" in str(told)
    _, told = tape_plan(teacher, ["kd"], 10, TapePlace(tmp_path, 10**9))
    assert "logits; 234 B an epoch" in str(told), "39 rows of 3 classes, 2 bytes each"


def test_no_place_is_no_plan(teacher: Teacher) -> None:
    assert [str(each) for each in tape_plan(teacher, LOSSES, 10, None)] == [
        "None",
        "none: the teacher runs in every trial",
    ]


def test_what_does_not_fit_is_said_with_the_remedy(tmp_path: Path, teacher: Teacher) -> None:
    stages = 2 * (8 * 64 + 16 * 16 + 32 * 4) * 39 * 10
    plan, told = tape_plan(teacher, LOSSES, 10, TapePlace(tmp_path, 2 * stages - 1))
    assert plan is not None and plan.payload == {"logits", "embedding", "attention"}
    (note,) = told.notes
    assert note.startswith("stages are not recorded but computed live") and note.endswith("raise tape_limit")
    plan, told = tape_plan(teacher, LOSSES, 10, TapePlace(tmp_path, 0))
    assert plan is None and str(told) == "none: the teacher runs in every trial" and len(told.notes) == 4


def test_a_plan_survives_its_ledger(tmp_path: Path, teacher: Teacher) -> None:
    plan, _ = tape_plan(teacher, LOSSES, 10, TapePlace(tmp_path, 10**9))
    assert plan is not None and TapePlan.from_dict(plan.to_dict()) == plan


# ---- in use


def test_a_second_distillation_runs_the_teacher_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_is_faster(monkeypatch)
    known = FIT("digits", "mlp", spec={"width": 64, "depth": 2}, epochs=2, cache=False)
    rows, of = len(known.data.train.y), recipe("mlp", width=16, terms=(KD,), optim={"batch": 64})
    passes: list[int] = []
    known.module.register_forward_hook(lambda _, args, __: passes.append(len(args[0])))
    found = []
    for tape in (tmp_path / "tape", tmp_path / "tape", False):
        passes.clear()
        done = autokd.distill(known, of, epochs=2, tape=tape, tape_limit="1GB" if tape else None, verbose=False)
        found.append((sum(passes), done.history[-1]["loss"]))
    (first, loss), (second, again), (live, other) = found
    assert again == loss == pytest.approx(other, rel=4e-3)
    assert first - second == pytest.approx(2 * rows, abs=20) and live > second + 1.5 * rows


# ---- how many at a time


def space(folder: Path, *objectives: str, batch: str = "64", policy: str = "base") -> Space:
    """The digits' space with one batch size and one view policy, or with more of them."""
    text = (spaces_folder() / "digits.yaml").read_text().partition("first:")[0]
    lines = [line for line in text.splitlines() if not line.startswith(("  augment.", "  optim.batch"))]
    path = folder / "small.yaml"
    path.write_text("\n".join([*lines, f"  optim.batch: {batch}", f"  augment.policy: {policy}", ""]))
    return Space.load(path, vocabulary()).restrict(objectives)


def test_trials_share_a_live_teacher_only_where_some_need_it_and_would_meet(tmp_path: Path) -> None:
    def on(*fields: str) -> TapePlan:
        return TapePlan(str(tmp_path), 10**9, frozenset({"logits", *fields}))

    assert cohort_size(space(tmp_path, "kd", "fitnet"), on()) == COHORT
    assert cohort_size(space(tmp_path, "kd"), None) == COHORT
    for all_on_tape in (("kd", on()), ("rkd", on("embedding")), ("at", on("attention")), ("fitnet", on("stages"))):
        assert cohort_size(space(tmp_path, "kd", all_on_tape[0]), all_on_tape[1]) == 1
    for meet_rarely in ({"batch": "{choice: [32, 64]}"}, {"policy": "{choice: [none, base]}"}):
        assert cohort_size(space(tmp_path, "kd", "fitnet", **meet_rarely), on()) == 1
    assert cohort_size(Space.load("digits", vocabulary()), None) == 1
