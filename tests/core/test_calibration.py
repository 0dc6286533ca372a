"""How a student is run is measured once, in order, and remembered; nothing is measured that could not pay for itself."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Lock

import pytest
import torch
from tiny import KD, expert, images, order, recipe, tape_plan

from autokd.core import calibration, checkpoint
from autokd.core.calibration import STEPS, WORTH, Calibrator, hand_on, timed_steps
from autokd.core.core import TrainingCore
from autokd.core.data import steps
from autokd.core.device import Setting
from autokd.core.live import Rehearsal
from autokd.core.loop import feed
from autokd.core.materials import calibrate
from autokd.core.tape_folder import held
from autokd.protocols import Shapes
from autokd.recipe import Recipe

torch.set_num_threads(1)
LONG = 10**6  # steps
SLOW = {"fp32": 1.0, "bf16": 1.0, "channels_last": 1.0, "contiguous": 1.0, "compiled": 1.0}  # factors of a second


class Fake:
    """Measures nothing: a setting's seconds are the product of its parts' factors."""

    def __init__(self, **factors: float) -> None:
        self.factors: Mapping[str, float] = {**SLOW, **factors}
        self.seen: list[str] = []

    def __call__(self, recipe: Recipe, setting: Setting, most: int) -> list[float]:
        assert most == STEPS
        self.seen.append(f"{setting.precision} {setting.layout}{' compiled' * setting.compiled}")
        parts = [setting.precision, setting.layout, *(["compiled"] if setting.compiled else [])]
        seconds = 1.0
        for part in parts:
            seconds *= self.factors[part]
        return [9.0, seconds, 9.0]  # the fastest counts


@pytest.fixture(autouse=True)
def both_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on hardware that computes in bf16."""
    monkeypatch.setattr(calibration, "candidates", lambda device: ("fp32", "bf16"))


def chosen(fake: Fake, base: Setting | None = None, steps_left: int = LONG) -> Setting:
    return Calibrator(base or Setting(), fake).setting_for(recipe(), steps_left)


# ---- what is chosen


def test_precision_first_then_the_layout() -> None:
    fake = Fake(bf16=0.5, contiguous=0.5)
    found = chosen(fake)
    assert fake.seen == ["fp32 channels_last", "bf16 channels_last", "bf16 contiguous"]
    assert (found.precision, found.layout, found.compiled) == ("bf16", "contiguous", False)
    fake = Fake(bf16=2.0, contiguous=0.5)
    assert chosen(fake).precision == "fp32" and fake.seen[-1] == "fp32 contiguous"


@pytest.mark.parametrize(("factor", "wins"), [(0.949, True), (0.951, False), (1.0, False), (3.0, False)])
def test_another_setting_must_save_five_per_cent(factor: float, wins: bool) -> None:
    assert (chosen(Fake(bf16=factor)).precision == "bf16") == wins
    assert (chosen(Fake(contiguous=factor)).layout == "contiguous") == wins


def test_the_margin_is_of_the_best_so_far() -> None:
    found = chosen(Fake(bf16=0.5, contiguous=0.96))
    assert (found.precision, found.layout) == ("bf16", "channels_last")


def test_what_is_not_chosen_stays_as_it_was_given() -> None:
    base = Setting("cpu", precision="bf16", teacher_precision="bf16", threads=3, layout="contiguous")
    found = chosen(Fake(), base)
    assert found == Setting("cpu", precision="fp32", teacher_precision="bf16", threads=3, layout="channels_last")


def test_bf16_is_not_measured_where_the_hardware_does_not_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "candidates", lambda device: ("fp32",))
    fake = Fake(bf16=0.1)
    assert chosen(fake).precision == "fp32" and fake.seen == ["fp32 channels_last", "fp32 contiguous"]


@pytest.mark.parametrize(
    ("device", "steps_left", "tried"),
    [("cpu", LONG, False), ("cuda", LONG, True), ("cuda:1", 201, True), ("cuda", 199, False)],
)
def test_compiling_is_tried_only_on_a_gpu_and_where_the_rest_of_the_training_pays(
    device: str, steps_left: int, tried: bool
) -> None:
    """A step takes a second: 0.3 of 200 steps are the 60 s that compiling may take."""
    fake = Fake(compiled=0.5)
    assert chosen(fake, Setting(device), steps_left).compiled == tried
    assert any("compiled" in seen for seen in fake.seen) == tried
    assert not chosen(Fake(compiled=0.97), Setting(device), steps_left).compiled


# ---- what is remembered


def test_a_shape_is_measured_once() -> None:
    fake = Fake(bf16=0.5)
    calibrator = Calibrator(Setting(), fake)
    first = calibrator.setting_for(recipe(terms=(KD,)), LONG)
    measured = len(fake.seen)
    for same in (
        recipe(),
        recipe(terms=(KD,), ce_weight=0.2),
        recipe(optim={"lr": 0.7}),
        recipe(augment={"policy": "none"}),
    ):
        assert calibrator.setting_for(same, LONG) == first and len(fake.seen) == measured


@pytest.mark.parametrize(
    "other",
    [
        recipe(width=5),
        recipe("plain"),
        recipe(optim={"batch": 32}),
        recipe(augment={"policy": "jda"}),
        recipe(peers={"count": 1}),
    ],
    ids=["width", "family", "batch", "views", "peers"],
)
def test_another_shape_is_measured_again(other: Recipe) -> None:
    fake = Fake()
    calibrator = Calibrator(Setting(), fake)
    calibrator.setting_for(recipe(), LONG)
    measured = len(fake.seen)
    calibrator.setting_for(other, LONG)
    assert len(fake.seen) == 2 * measured


def test_a_short_trial_takes_the_answer_of_its_family() -> None:
    fake = Fake(bf16=0.5)
    calibrator = Calibrator(Setting(), fake)
    short = int(STEPS * 3 / WORTH) - 1  # too short to pay for three candidates
    assert calibrator.setting_for(recipe(width=4), short).precision == "bf16", "somebody must be the first"
    measured = len(fake.seen)
    fake.factors = {**SLOW, "bf16": 2.0}
    assert calibrator.setting_for(recipe(width=8), short).precision == "bf16" and len(fake.seen) == measured
    assert calibrator.setting_for(recipe(width=8), short + 1).precision == "fp32", "a long one is measured itself"
    assert calibrator.setting_for(recipe(width=8), 1).precision == "fp32", "and known from then on"
    assert calibrator.setting_for(recipe(width=6), 1).precision == "bf16", "the family's is that of its first"
    assert calibrator.setting_for(recipe("plain"), short).precision == "fp32", "another family is another"


def test_what_was_measured_is_shared_through_the_folder(tmp_path: Path) -> None:
    first = Calibrator(Setting(), Fake(bf16=0.5, contiguous=0.4), tmp_path / "new" / "calibration")
    found = first.setting_for(recipe(), LONG)
    fake = Fake()
    other = Calibrator(Setting(teacher_precision="bf16"), fake, tmp_path / "new" / "calibration")
    again = other.setting_for(recipe(), LONG)
    assert fake.seen == [] and (again.precision, again.layout) == (found.precision, found.layout) == (
        "bf16",
        "contiguous",
    )
    assert again.teacher_precision == "bf16", "what is not measured here is each lane's own"
    assert other.setting_for(recipe(width=9), 1) == again and fake.seen == []
    kept = [json.loads(path.read_text()) for path in (tmp_path / "new" / "calibration").glob("*.json")]
    assert len(kept) == 2 and all(len(each["milliseconds"]) == 3 for each in kept)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"precision": "bf16"}', b"\xff\xfe\x00"])
def test_a_torn_file_is_measured_again(tmp_path: Path, content: bytes) -> None:
    Calibrator(Setting(), Fake(bf16=0.5), tmp_path).setting_for(recipe(), LONG)
    for path in tmp_path.glob("*.json"):
        path.write_bytes(content)
    fake = Fake(bf16=0.5)
    assert Calibrator(Setting(), fake, tmp_path).setting_for(recipe(), LONG).precision == "bf16" and fake.seen
    again = Fake()
    assert Calibrator(Setting(), again, tmp_path).setting_for(recipe(), LONG).precision == "bf16" and not again.seen


def test_a_folder_that_cannot_be_written_costs_a_measurement_only(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):
        fake = Fake(bf16=0.5)
        calibrator = Calibrator(Setting(), fake, tmp_path / "file")
        assert calibrator.setting_for(recipe(), LONG).precision == "bf16" and fake.seen
        measured = len(fake.seen)
        assert calibrator.setting_for(recipe(), LONG).precision == "bf16" and len(fake.seen) == measured


def test_what_a_student_raises_is_raised() -> None:
    def broken(*_: object) -> list[float]:
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        Calibrator(Setting(), broken).setting_for(recipe(), LONG)


def test_the_first_of_timed_steps_warms_up() -> None:
    taken = timed_steps(iter_of(calls := [0.05, 0.0, 0.0, 0.0]), 4, "cpu")
    assert len(taken) == 3 and max(taken) < 0.05 and calls == []
    assert len(timed_steps(lambda: None, 1, "cpu")) == 1


def iter_of(seconds: list[float]) -> object:
    return lambda: time.sleep(seconds.pop(0))


def test_what_was_measured_before_there_was_a_folder_is_handed_on(tmp_path: Path) -> None:
    before = Calibrator(Setting(), Fake(bf16=0.5, contiguous=0.5))
    found = before.setting_for(recipe(), 0)
    hand_on(tmp_path, found, recipe(), before.found(recipe()) or {}, seconds=10**6)
    fake = Fake()
    lane = Calibrator(found, fake, tmp_path)
    assert lane.setting_for(recipe(), LONG) == found and found.layout == "contiguous"
    assert lane.setting_for(recipe(width=9), 1) == found, "and for the short ones of its family"
    assert fake.seen == [] and lane.notes == [] and len(before.notes) == 1, "said by who measured"
    assert lane.setting_for(recipe(width=9), LONG).precision == "fp32" and fake.seen


@pytest.mark.parametrize(("seconds", "handed_on"), [(199.0, True), (201.0, False)])
def test_it_is_not_where_compiling_is_still_to_be_tried(tmp_path: Path, seconds: float, handed_on: bool) -> None:
    before = Calibrator(Setting("cuda"), Fake())
    base = before.setting_for(recipe(), 0)
    hand_on(tmp_path, base, recipe(), before.found(recipe()) or {}, seconds)
    assert bool(list(tmp_path.glob("*.json"))) == handed_on


# ---- several lanes


class Slowly(Fake):
    """Takes its time, and notes how many measure at once."""

    now = most = 0
    one_more = Lock()

    def __call__(self, recipe: Recipe, setting: Setting, most: int) -> list[float]:
        with Slowly.one_more:
            Slowly.now += 1
            Slowly.most = max(Slowly.most, Slowly.now)
        time.sleep(0.05)
        with Slowly.one_more:
            Slowly.now -= 1
        return super().__call__(recipe, setting, most)


def by_lanes(folder: Path, *recipes: Recipe, steps_left: int) -> tuple[list[Setting], list[Slowly]]:
    """Each by a lane of its own, all at the same time."""
    Slowly.now = Slowly.most = 0
    fakes = [Slowly(bf16=0.5) for _ in recipes]
    lanes = [Calibrator(Setting(), fake, folder) for fake in fakes]
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda lane, of: lane.setting_for(of, steps_left), lanes, recipes)
        return list(found), fakes


def test_lanes_do_not_measure_the_same_at_the_same_time(tmp_path: Path) -> None:
    found, fakes = by_lanes(tmp_path, recipe(), recipe(), recipe(ce_weight=0.2), steps_left=LONG)
    assert {each.precision for each in found} == {"bf16"} and Slowly.most == 1
    assert sorted(len(fake.seen) for fake in fakes) == [0, 0, 3]
    assert not list(tmp_path.glob("*.lock"))


def test_short_trials_wait_for_the_first_of_their_family_and_long_ones_for_nobody_else(tmp_path: Path) -> None:
    _, fakes = by_lanes(tmp_path / "short", recipe(width=4), recipe(width=8), steps_left=1)
    assert sorted(len(fake.seen) for fake in fakes) == [0, 3]
    _, fakes = by_lanes(tmp_path / "long", recipe(width=4), recipe(width=8), steps_left=LONG)
    assert [len(fake.seen) for fake in fakes] == [3, 3] and Slowly.most == 2


def test_a_lane_that_was_stopped_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "PATIENCE", 0.2)
    of, fake = recipe(), Fake(bf16=0.5)
    with held(tmp_path / f"{calibration._keys(of, Setting())[0]}.lock"):
        begun = time.monotonic()
        assert Calibrator(Setting(), fake, tmp_path).setting_for(of, LONG).precision == "bf16" and fake.seen
        assert time.monotonic() - begun >= 0.2


def test_what_measuring_raises_is_raised_and_the_claim_given_back(tmp_path: Path) -> None:
    def broken(*_: object) -> list[float]:
        raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"):
        Calibrator(Setting(), broken, tmp_path).setting_for(recipe(), LONG)
    assert not list(tmp_path.glob("*.lock"))


# ---- in a core


def test_calibrating_tells_costs_and_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice a lane would make, the seconds of that setting's steps, and no more measuring than that."""
    fake = Fake(bf16=0.5, contiguous=0.5)
    monkeypatch.setattr(TrainingCore, "step_seconds", lambda self, recipe, setting, most: fake(recipe, setting, most))
    of = recipe(terms=(KD,), optim={"batch": 8})
    measured = calibrate(images(60), expert(), of, "cpu")
    assert (measured.setting.precision, measured.setting.layout) == ("bf16", "contiguous") and len(fake.seen) == 3
    assert steps(39, 8) * 9.0 < measured.epoch_seconds < steps(39, 8) * 9.0 + 5, "the middle of 9, 0.25 and 9"
    assert measured.teacher_seconds > 0 and len(measured.notes) == 1
    assert measured.found["precision"] == "bf16" and len(measured.found["milliseconds"]) == 3


def core(folder: Path, calibrated: bool = True, **more: object) -> TrainingCore:
    plan = tape_plan(folder / "tape")
    return TrainingCore(images(60), expert(), folder, Setting(), tape=plan, calibrated=calibrated, **more)  # type: ignore[arg-type]


def test_a_core_runs_each_student_as_measured_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    its_core = core(tmp_path)
    fake = Fake(bf16=0.5, contiguous=0.5)
    monkeypatch.setattr(its_core._calibrator, "_measure", fake)
    report = its_core.advance(order(recipe(terms=(KD,)), to=1))
    assert report.precision == "bf16, contiguous" and len(fake.seen) == 3
    assert its_core.advance(order(recipe(terms=(KD,), ce_weight=0.1), to=1)).precision == "bf16, contiguous"
    assert len(fake.seen) == 3
    kept = checkpoint.load(its_core.checkpoint_path("t"))[1]["setting"]
    assert kept == {"precision": "bf16", "layout": "contiguous", "compiled": False}


def test_a_resumed_trial_keeps_its_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured again it might come out otherwise, and the trial with it."""
    of = recipe(terms=(KD,), optim={"batch": 8})
    first = core(tmp_path)
    monkeypatch.setattr(first._calibrator, "_measure", Fake(bf16=0.5, contiguous=0.5))
    first.advance(order(of, to=1))
    for path in (tmp_path / "calibration").glob("*"):
        path.unlink()
    second = core(tmp_path)
    fake = Fake(bf16=2.0)
    monkeypatch.setattr(second._calibrator, "_measure", fake)
    assert second.advance(order(of, to=2, start=1)).precision == "bf16, contiguous" and fake.seen == []
    second.checkpoint_path("t").unlink()
    report = second.advance(order(of, to=2, start=1))
    assert report.precision == "fp32, channels_last" and fake.seen and report.retries == 1, (
        "one that begins again does not"
    )


def test_a_core_that_is_told_its_setting_measures_nothing(tmp_path: Path) -> None:
    its_core = core(tmp_path, calibrated=False)
    assert its_core._calibrator is None
    assert its_core.advance(order(recipe(), to=1)).precision == "fp32, channels_last"
    assert not (tmp_path / "calibration").exists()


def test_measuring_for_real_leaves_training_and_teacher_as_they_are(tmp_path: Path) -> None:
    of = recipe(terms=(KD,), peers={"count": 1})
    measured, plain = core(tmp_path / "measured"), core(tmp_path / "plain", calibrated=False)
    passes: list[int] = []
    measured.teaching.live.module.register_forward_hook(lambda _, args, __: passes.append(len(args[0])))  # type: ignore[union-attr]
    seconds = measured.step_seconds(of, Setting(), 5)
    assert len(seconds) == 4 and all(0 < each < 10 for each in seconds) and passes == [], "as on a tape"
    assert list(measured.folder.glob("*.safetensors")) == []
    chosen_setting = measured.setting_for(of, LONG)
    if (chosen_setting.precision, chosen_setting.layout) == ("fp32", "channels_last"):
        curves = [[log["loss"] for log in its.advance(order(of, to=2)).history] for its in (measured, plain)]
        assert curves[0] == curves[1]


def test_a_rehearsed_teacher_gives_what_is_needed_and_draws_it_once(tmp_path: Path) -> None:
    its_core = core(tmp_path)
    assert its_core.teaching is not None
    shapes: Shapes = its_core.teaching.shapes
    for name, terms in {
        "kd": (KD,),
        "all": ({"objective": "at", "weight": 1.0}, {"objective": "rkd", "weight": 1.0}),
    }.items():
        run = its_core.new(recipe(terms=terms, augment={"policy": "jda", "rho": 0.3}), 0, Setting())
        signal = Rehearsal(shapes, run.of_teacher, "cpu")
        told = [said for _, said in feed(run, its_core.rows, signal)]
        assert len(told) == steps(len(its_core.rows), 16)
        real = its_core.teaching.live.outputs(its_core.example, run.of_teacher)
        for said in told:
            assert said is not None and said.stages == () == real.stages
            assert [each.shape[1:] for each in said.attention] == [each.shape[1:] for each in real.attention]
            assert (said.embedding is None) == (real.embedding is None) == (name == "kd")
            assert said.logits.shape[1:] == real.logits.shape[1:]
    assert signal.outputs(next(feed(run, its_core.rows, None))[0]) is told[0], "drawing it again would cost time"


def test_a_compiled_setting_compiles_the_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    its_core = core(tmp_path)
    of = recipe(terms=(KD,), peers={"count": 1})
    run = its_core.new(of, 0, replace(its_core.setting, compiled=True))
    assert compiled == [tap.module for tap in run.taps]
    its_core.new(of, 0, its_core.setting)
    assert len(compiled) == 2
