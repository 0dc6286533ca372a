"""Whatever happens to the tape or the teacher, training goes on, with the same numbers, and says once why it is slower."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    CLASSES,
    EVERYTHING,
    KD,
    ROWS,
    coarse,
    expert,
    images,
    order,
    passes_of,
    recipe,
    segments,
    tape_plan,
    taped,
    weights,
)
from torch import Tensor, nn
from torch.nn import functional

from autokd.core import teaching
from autokd.core.core import TrainingCore
from autokd.core.device import Setting
from autokd.core.live import Live, LiveTeacher, agree
from autokd.core.replay import LARGEST, to_record
from autokd.core.tape_store import Tape
from autokd.errors import TrialFailure
from autokd.orders import Report
from autokd.protocols import Outputs
from autokd.recipe import Recipe

torch.set_num_threads(1)
SLOW = {"lr": 0.01}
OF = recipe(terms=(KD,), optim=SLOW)
WITH_VIEWS = recipe(terms=(KD,), optim=SLOW, augment={"policy": "jda"})


@pytest.fixture(autouse=True)
def no_student_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autokd.core.core.SETTLED", 100)


def losses(*reports: Report) -> list[float]:
    return [log["loss"] for report in reports for log in report.history]


def trained(its_core: TrainingCore, of: Recipe = OF, to: int = 3, **more: Any) -> list[float]:
    return losses(its_core.advance(order(of, to=to, **more)))


def notes_of(its_core: TrainingCore) -> list[str]:
    assert its_core.teaching is not None
    assert all("\n" not in note for note in its_core.teaching.notes)
    return its_core.teaching.notes


def files(tape: Path) -> list[Path]:
    return [tape / name for name in sorted(segments(tape))]


# ---- segments that are not what they should be


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, Path.unlink])
def test_a_damaged_segment_is_recorded_again_and_nothing_changes(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    first = trained(taped(tmp_path / "first", tmp_path / "tape"), WITH_VIEWS)
    sound = {path: path.read_bytes() for path in files(tmp_path / "tape")}
    bad = [path for path in sound if "e00001" in path.name]
    for path in bad:
        damage(path)
    its_core = taped(tmp_path / "second", tmp_path / "tape")
    passes = passes_of(its_core)
    assert trained(its_core, WITH_VIEWS) == first
    assert passes.count(ROWS) == len(bad) == 2 and {path: path.read_bytes() for path in sound} == sound
    assert len(notes_of(its_core)) == (0 if damage is Path.unlink else 2)


class Scaled(nn.Module):
    """Another teacher of the same shapes; logits as small as one likes."""

    def __init__(self, gain: float = 1.0, seed: int | None = None) -> None:
        super().__init__()
        self.knows, self.gain = expert(), gain
        if seed is not None:
            torch.manual_seed(seed)
            nn.init.normal_(self.knows.head.weight, std=0.5)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Any:
        return self.gain * self.knows(x)


@pytest.mark.parametrize("gain", [1.0, 1e-3])
def test_a_segment_of_another_teacher_under_the_right_name_is_thrown_away(tmp_path: Path, gain: float) -> None:
    """As after an edit of a teacher's code, which no fingerprint sees: name and checksum are right, the numbers are not."""
    own, other = Scaled(gain), Scaled(gain, seed=3)
    first = trained(taped(tmp_path / "own", tmp_path / "tape", teacher=own), WITH_VIEWS, to=2)
    trained(taped(tmp_path / "other", tmp_path / "foreign", teacher=other), WITH_VIEWS, to=2)
    theirs = {path.name: path for path in files(tmp_path / "foreign")}
    for path in files(tmp_path / "tape"):
        shutil.copyfile(theirs[path.name], path)
    its_core = taped(tmp_path / "again", tmp_path / "tape", teacher=Scaled(gain))
    passes = passes_of(its_core)
    assert trained(its_core, WITH_VIEWS, to=2) == first and passes.count(ROWS) == 4
    assert len(notes_of(its_core)) == 4 and all(
        "its outputs are not those of the teacher" in n for n in notes_of(its_core)
    )
    third = taped(tmp_path / "third", tmp_path / "tape", teacher=Scaled(gain))
    assert trained(third, WITH_VIEWS, to=2) == first and notes_of(third) == [], "now they are the right ones"


def test_logits_agree_up_to_rounding_and_no_further() -> None:
    torch.manual_seed(0)
    told = 4 * torch.randn(4, 10)
    for scale, offset in ((1.0, 0.0), (1e-4, 0.0), (1.0, 100.0), (1e3, 0.0)):
        exact = scale * told + offset
        assert agree(exact, exact.half().float()) and agree(exact, exact.bfloat16().float())
        assert not agree(exact, exact.roll(1, 0)) and not agree(exact, exact.mean(1, keepdim=True).expand(4, 10))
    broken = told.clone()
    broken[1, 2] = math.nan
    assert agree(broken, broken.clone()) and not agree(broken, told) and not agree(told, broken)


# ---- folders that cannot be used


def live_curve(tmp_path: Path, to: int = 3) -> list[float]:
    return trained(taped(tmp_path / "live", None), to=to)


def in_two_goes(tmp_path: Path, tape: Path, between: Callable[[], None] = lambda: None) -> tuple[list[Report], Any]:
    its_core = taped(tmp_path / "its", tape)
    passes = passes_of(its_core)
    first = its_core.advance(order(OF, to=1))
    between()
    second = its_core.advance(order(OF, to=3, start=1))
    assert its_core.advance(order(OF, to=3, start=1)).notes == (), "said once"
    return [first, second], passes


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_in_the_folders_place(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    reports, passes = in_two_goes(tmp_path, tmp_path / place)
    assert losses(*reports) == live_curve(tmp_path) and ROWS not in passes
    (note,) = reports[0].notes
    assert "cannot be written" in note and "computed live" in note and "name a tape folder elsewhere" in note
    assert reports[1].notes == () and (tmp_path / "file").read_text() == "in the way"


def test_a_disk_that_refuses_to_be_written_is_replayed_as_far_as_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs are recorded, and then the disk is mounted read-only."""
    trained(taped(tmp_path / "first", tmp_path / "tape"), to=2)
    its_core = taped(tmp_path / "second", tmp_path / "tape")
    passes, opened = passes_of(its_core), os.open

    def refuse(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_CREAT and str(tmp_path / "tape") in str(path):
            raise OSError(30, "Read-only file system")
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    reports = [its_core.advance(order(OF, to=to, start=to - 1)) for to in (1, 2, 3)]
    assert losses(*reports) == pytest.approx(live_curve(tmp_path), rel=4e-3)
    assert [rows for rows in passes if rows > teaching.CHECKED] == [20, 19], "the third epoch alone is live"
    assert [len(report.notes) for report in reports] == [0, 0, 1] and "Read-only" in reports[2].notes[0]


def test_a_folder_that_is_deleted_between_two_epochs_is_made_again(tmp_path: Path) -> None:
    reports, passes = in_two_goes(tmp_path, tmp_path / "tape", lambda: shutil.rmtree(tmp_path / "tape"))
    assert losses(*reports) == pytest.approx(live_curve(tmp_path), rel=4e-3) and passes.count(ROWS) == 3
    assert [report.notes for report in reports] == [(), ()]
    assert len(segments(tmp_path / "tape")) == 2


def test_a_folder_that_becomes_a_file_between_two_epochs(tmp_path: Path) -> None:
    def spoil() -> None:
        shutil.rmtree(tmp_path / "tape")
        (tmp_path / "tape").write_text("in the way")

    reports, passes = in_two_goes(tmp_path, tmp_path / "tape", spoil)
    assert losses(*reports) == pytest.approx(live_curve(tmp_path), rel=4e-3) and passes.count(ROWS) == 1
    assert reports[0].notes == () and len(reports[1].notes) == 1


@pytest.mark.parametrize("limit", [1000, 30_000, 60_000])
def test_a_limit_that_is_too_small_for_all_epochs(tmp_path: Path, limit: int) -> None:
    its_core = taped(tmp_path / "its", tape_plan(tmp_path / "tape", frozenset({"logits", "attention"}), limit=limit))
    plan = its_core.teaching.plan  # type: ignore[union-attr]
    assert plan is not None and plan.limit == limit
    passes = passes_of(its_core)
    of = recipe(terms=(KD,), optim=SLOW)
    reports = [its_core.advance(order(of, to=to, start=to - 1)) for to in (1, 2, 3)]
    each = max((path.stat().st_size for path in files(tmp_path / "tape")), default=0)
    recorded = min(3, limit // each) if each else 0
    assert passes.count(ROWS) == recorded == len(segments(tmp_path / "tape"))
    assert losses(*reports) == pytest.approx(live_curve(tmp_path), rel=4e-3)
    said = [note for report in reports for note in report.notes]
    assert len(said) == (recorded < 3) and all("raise tape_limit" in note for note in said)
    assert sum(path.stat().st_size for path in files(tmp_path / "tape")) <= limit


# ---- what is not on the tape


def test_what_is_not_recorded_is_live_and_told_once(tmp_path: Path) -> None:
    its_core = taped(tmp_path / "its", tape_plan(tmp_path / "tape", frozenset({"logits"})))
    passes = passes_of(its_core)
    fitnet = recipe(terms=({"objective": "fitnet", "weight": 0.5},), optim=SLOW)
    reports = [its_core.advance(order(fitnet, to=to, start=to - 1)) for to in (1, 2)]
    assert losses(*reports) == trained(taped(tmp_path / "live", None), fitnet, to=2)
    assert ROWS not in passes and [len(report.notes) for report in reports] == [1, 0]
    assert reports[0].notes[0].startswith("stages of the teacher are not on the tape")


def test_attention_of_a_larger_map_falls_back_to_stages_or_to_the_live_teacher(tmp_path: Path) -> None:
    at = recipe(coarse(), terms=({"objective": "at", "weight": 10.0},), optim=SLOW)
    same_size = recipe(terms=({"objective": "at", "weight": 10.0},), optim=SLOW)
    live = trained(taped(tmp_path / "live", None), at)
    for name, payload in {"stages": EVERYTHING, "no stages": EVERYTHING - {"stages"}}.items():
        its_core = taped(tmp_path / name, tape_plan(tmp_path / f"tape of {name}", payload))
        passes = passes_of(its_core)
        run = its_core.new(at, 0, its_core.setting)
        assert run.of_teacher == {"logits", "stages"}
        assert its_core.new(same_size, 0, its_core.setting).of_teacher == {"logits", "attention"}
        assert trained(its_core, at) == pytest.approx(live, rel=4e-3)
        assert passes.count(ROWS) == (3 if name == "stages" else 0) and bool(notes_of(its_core)) == (name != "stages")
        assert isinstance(its_core.teaching.epoch(run.of_teacher, at.augment, 0, 0, 1), Live) == (name != "stages")  # type: ignore[union-attr]


# ---- teachers that are not what they should be


class Wrapped(nn.Module):
    """The expert, with something about it."""

    def __init__(self, change: Callable[[Wrapped, Tensor], Tensor]) -> None:
        super().__init__()
        self.knows, self.change, self.calls = expert(), change, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.change(self, self.knows(x))


def half_dropped(_: Wrapped, z: Tensor) -> Tensor:
    return functional.dropout(z, 0.5, training=True)


def rarely_dropped(_: Wrapped, z: Tensor) -> Tensor:
    """Whole rows, one in ten: four of them would often show nothing."""
    return z * (torch.rand(len(z), 1) > 0.1)


def counting(its: Wrapped, z: Tensor) -> Tensor:
    return z * (1 + 0.1 * its.calls)


def by_its_batch(_: Wrapped, z: Tensor) -> Tensor:
    """Batch norm without running statistics: a row's outputs depend on the rows beside it."""
    return 3 * functional.batch_norm(z, None, None, training=True)


@pytest.mark.parametrize("change", [half_dropped, rarely_dropped, counting, by_its_batch])
def test_a_teacher_that_does_not_repeat_itself_is_run_live(
    tmp_path: Path, change: Callable[[Wrapped, Tensor], Tensor]
) -> None:
    for attempt in range(3):
        torch.manual_seed(attempt)
        its_core = taped(tmp_path / str(attempt), tmp_path / "tape", teacher=Wrapped(change))
        reports = [its_core.advance(order(OF, to=to, start=to - 1)) for to in (1, 2)]
        assert [len(report.notes) for report in reports] == [1, 0]
        assert "other outputs for the same rows" in reports[0].notes[0] and "live" in reports[0].notes[0]
        assert segments(tmp_path / "tape") == set() and all(map(math.isfinite, losses(*reports)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_steady_teacher_is_not_suspected(tmp_path: Path, precision: str) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        its_core = taped(tmp_path / str(seed), tmp_path / "tape", images(300, seed), teacher_precision=precision)
        assert notes_of(its_core) == [] and its_core.teaching.has_on_tape(EVERYTHING)  # type: ignore[union-attr]


def test_a_teacher_left_in_train_mode_is_recorded_in_eval_mode(tmp_path: Path) -> None:
    """Its owner's module: batch norm would tell, and would learn."""
    teacher = expert().train()
    before, modes = weights(teacher), []
    first = trained(taped(tmp_path / "eval", tmp_path / "tape"))
    its_core = taped(tmp_path / "train", tmp_path / "second tape", teacher=teacher)
    teacher.register_forward_hook(lambda module, *_: modes.append(module.training))
    teacher.train()
    assert trained(its_core) == first and modes and not any(modes)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    for one, other in zip(files(tmp_path / "tape"), files(tmp_path / "second tape"), strict=True):
        assert (one.name, one.parent.name) == (other.name, other.parent.name), "it is the same teacher"
        assert one.read_bytes() == other.read_bytes()


def test_extreme_logits_are_kept_finite(tmp_path: Path) -> None:
    def huge(_: Wrapped, z: Tensor) -> Tensor:
        return 1e6 * z

    first = trained(taped(tmp_path / "first", tmp_path / "tape", teacher=Wrapped(huge)))
    assert all(map(math.isfinite, first))
    its_core = taped(tmp_path / "second", tmp_path / "tape", teacher=Wrapped(huge))
    passes = passes_of(its_core)
    assert trained(its_core) == first and ROWS not in passes and notes_of(its_core) == [], "and they are recognised"
    block = to_record(Outputs(torch.tensor([[1e6, -1e30, math.inf, -math.inf, 3.0]])))["logits"]
    assert block.tolist() == [[LARGEST, -LARGEST, LARGEST, -LARGEST, 3.0]] and block.dtype == torch.float16


@pytest.mark.parametrize("share", ["all rows", "one row"])
def test_a_teacher_that_says_no_numbers_fails_the_trial_and_not_the_tape(tmp_path: Path, share: str) -> None:
    def nan(_: Wrapped, z: Tensor) -> Tensor:
        return torch.where(z[:, :1] > (-math.inf if share == "all rows" else 4.0), math.nan, z)

    for name in ("first", "second"):
        its_core = taped(tmp_path / name, tmp_path / "tape", teacher=Wrapped(nan))
        with pytest.raises(TrialFailure) as caught:
            its_core.advance(order(OF, to=2))
        assert caught.value.reason == "nan"
        assert notes_of(its_core) == [] and len(segments(tmp_path / "tape")) == 1
        assert its_core.advance(order(recipe(), to=1)).epoch == 1, "others go on"


def test_what_a_teacher_raises_while_it_is_recorded_fails_the_trial_and_leaves_nothing(tmp_path: Path) -> None:
    def mortal(its: Wrapped, z: Tensor) -> Tensor:
        if len(z) == ROWS and its.calls > 6:
            raise RuntimeError("out of breath")
        return z

    its_core = taped(tmp_path / "its", tmp_path / "tape", teacher=Wrapped(mortal))
    with pytest.raises(TrialFailure, match="out of breath"):
        its_core.advance(order(OF, to=3))
    assert not list((tmp_path / "tape").rglob("*.tmp")) and not list((tmp_path / "tape" / "locks").glob("*.lock"))


def test_data_that_are_not_the_same_each_time_are_not_recorded(tmp_path: Path) -> None:
    data = images(60)
    data.deterministic = False
    its_core = taped(tmp_path / "its", tmp_path / "tape", data)
    (note,) = its_core.advance(order(OF, to=1)).notes
    assert "other rows each time" in note and segments(tmp_path / "tape") == set()


def test_the_live_teacher_takes_the_hooks_off_again() -> None:
    module = expert()
    live = LiveTeacher(module, torch.rand(2, 1, 8, 8), Setting())
    live.outputs(torch.rand(3, 1, 8, 8), EVERYTHING)
    assert any(part._forward_hooks for part in module.modules())
    live.close()
    assert not any(part._forward_hooks for part in module.modules())


# ---- several lanes on one folder


class Sleepy(nn.Module):
    """Takes its time over many rows, and no processor."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.knows, self.seconds = expert(), seconds

    def forward(self, x: Tensor) -> Any:
        if len(x) == ROWS:
            time.sleep(self.seconds)
        return self.knows(x)


def two_lanes(tmp_path: Path, of: Recipe, to: int, seconds: float) -> tuple[list[list[int]], list[Report], float]:
    """Each with a core of its own, in threads that begin at the same time; passes, reports, seconds until both were done."""
    cores = [taped(tmp_path / str(n), tmp_path / "tape", teacher=Sleepy(seconds)) for n in range(2)]
    passes, reports, ready = [passes_of(each) for each in cores], {}, threading.Barrier(3)

    def lane(number: int) -> None:
        ready.wait(20)
        reports[number] = cores[number].advance(order(of, to=to, total=to))

    threads = [threading.Thread(target=lane, args=(n,), daemon=True) for n in range(2)]
    for thread in threads:
        thread.start()
    ready.wait(20)
    begun = time.monotonic()
    for thread in threads:
        thread.join(40)
    assert not any(thread.is_alive() for thread in threads), "they wait for each other"
    return passes, [reports[n] for n in range(2)], time.monotonic() - begun


@pytest.mark.parametrize("of", [OF, WITH_VIEWS], ids=["base", "jda"])
def test_two_lanes_record_each_segment_once_and_share_the_work(tmp_path: Path, of: Recipe) -> None:
    epochs, seconds = 6, 0.1
    views = 1 if of is OF else 2
    passes, reports, _ = two_lanes(tmp_path, of, epochs, seconds)
    counts = [each.count(ROWS) for each in passes]
    assert sum(counts) == epochs * views == len(segments(tmp_path / "tape"))
    assert min(counts) >= epochs * views // 3, f"{counts}: one lane waited for the other instead of recording"
    assert [note for report in reports for note in report.notes] == []
    assert losses(reports[0]) == losses(reports[1]) and all(map(math.isfinite, losses(*reports)))


def test_a_lane_records_later_epochs_while_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No lane looks on while there is something left to record."""
    looked_on: list[str] = []
    wait = Tape.wait
    monkeypatch.setattr(
        Tape, "wait", lambda self, place, *rest: (looked_on.append(place.stem), wait(self, place, *rest))
    )
    _, _, taken = two_lanes(tmp_path, OF, 4, 0.3)
    assert len(looked_on) <= 1, f"only for the last one: {looked_on}"
    assert taken < 4 * 0.3 + 1.5


LANE = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
import autokd.core.core
from tiny import KD, ROWS, network, order, passes_of, recipe, taped
autokd.core.core.SETTLED = 100
torch.set_num_threads(1)
class Sleepy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.knows = network("mlp")
    def forward(self, x):
        time.sleep(0.15 * (len(x) == ROWS))
        return self.knows(x)
its_core = taped(Path(sys.argv[2]), Path(sys.argv[3]), teacher=Sleepy())
passes = passes_of(its_core)
print("ready", flush=True)
sys.stdin.readline()
report = its_core.advance(order(recipe("mlp", terms=(KD,)), to=4, total=40))
print(json.dumps([passes.count(ROWS), [log["loss"] for log in report.history], list(report.notes)]))
"""


def test_two_processes_record_each_segment_once(tmp_path: Path) -> None:
    lanes = []
    for number in range(2):
        folders = [str(Path(__file__).parent.parent), str(tmp_path / str(number)), str(tmp_path / "tape")]
        command = [sys.executable, "-c", LANE, *folders]
        lanes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for lane in lanes:
        assert lane.stdout is not None and lane.stdout.readline() == "ready\n"
    for lane in lanes:
        assert lane.stdin is not None
        lane.stdin.write("\n")
        lane.stdin.flush()
    told = [json.loads(lane.communicate(timeout=40)[0]) for lane in lanes]
    assert sum(count for count, _, _ in told) == 4 == len(segments(tmp_path / "tape"))
    assert min(count for count, _, _ in told) >= 1 and told[0][1:] == told[1][1:] and told[0][2] == []


def test_a_lane_that_is_stopped_holds_nobody_up_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process has claimed the first epoch and does not go on."""
    monkeypatch.setattr(teaching, "PATIENCE", 0.6)
    monkeypatch.setattr(teaching, "WAIT", 0.2)
    its_core = taped(tmp_path / "its", tmp_path / "tape")
    place = its_core.teaching._place(OF.augment, 0, 0, 0)  # type: ignore[union-attr]
    with Tape(tmp_path / "tape", 10**9).claim(place) as mine:
        assert mine
        begun = time.monotonic()
        report = its_core.advance(order(OF, to=3))
        first = time.monotonic() - begun
        begun = time.monotonic()
        other = recipe(terms=(KD,), optim=SLOW, ce_weight=0.5)
        its_core.advance(order(other, to=3))
        second = time.monotonic() - begun
    assert losses(report) == pytest.approx(live_curve(tmp_path), rel=4e-3)
    assert len(segments(tmp_path / "tape")) == 2, "later epochs are recorded"
    (note,) = report.notes
    assert "too long" in note and first >= 0.6 and second < first - 0.2, (
        "who has waited once does not wait so long again"
    )


# ---- on a GPU's memory


def test_few_bytes_of_segments_are_kept_on_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is torch's "meta": tensors without memory stand for those on a GPU."""
    its_core = taped(tmp_path / "its", tape_plan(tmp_path / "tape", frozenset({"logits"})))
    trained(its_core)
    its = its_core.teaching
    assert its is not None and its._tape is not None
    places = [its._place(OF.augment, 0, 0, epoch) for epoch in range(3)]
    found = [its._tape.find(place, frozenset({"logits"})) for place in places]
    size = ROWS * CLASSES * 2
    monkeypatch.setattr(its.live, "setting", replace(its.live.setting, device="meta"))
    monkeypatch.setattr(teaching, "KEPT_ON_GPU", 2 * size)
    for place, segment in zip(places, found, strict=True):
        assert segment is not None and its._on_device(place, segment)["logits"].device.type == "meta"
        assert its._on_device(place, segment)["logits"] is its._on_device(place, segment)["logits"]
    assert list(its._on_gpu) == places[1:]
    monkeypatch.setattr(teaching, "KEPT_ON_GPU", size - 1)
    assert found[0] is not None and its._on_device(places[0], found[0])["logits"].device.type == "cpu"
