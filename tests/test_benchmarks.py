"""The benchmark's own parts: images, the loops it compares with, its statistics, and that every claim is measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.progress import Progress

from autokd.engine.engine import Finish, Wait
from autokd.ledger import Ledger
from autokd.objectives.logits import KD
from autokd.orchestrate.director import Director
from autokd.orders import Order, Report
from autokd.protocols import Batch, Outputs
from benchmarks.core import figures, images, mdistiller_style, pairs, usual_loop
from benchmarks.core.measure import Absent, Measured, Repetition, Seat, Variant, measure
from benchmarks.core.options import SHORT, Options
from benchmarks.core.pairs import SIXTEEN, Pair
from benchmarks.core.usual_loop import Settings

TINY = Pair("tiny", 8, 8)
SOURCE = images.Source("digits", 160)
ALONE = Settings(workers=0, batch=64)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- images and pairs


def test_images_are_of_every_class_alike() -> None:
    found = images.load(SOURCE)
    assert found.x.shape == (160, 1, 8, 8) and found.x.dtype == np.uint8 and found.x.max() > 200
    assert np.bincount(found.y).tolist() == [16] * 10
    assert not found.flip and found.pad == 1
    data = images.as_data(found)
    assert len(data.train.y) == 160 and len(data.val.y) == 240 and data.classes == 10


def test_balanced_takes_the_first_of_each_class_first() -> None:
    assert images.balanced(np.array([0, 0, 0, 1, 2, 1], dtype=np.uint8), 4).tolist() == [0, 1, 3, 4]


def test_images_that_are_not_here_are_absent(tmp_path: Path) -> None:
    assert images.choose("auto", 10, str(tmp_path)).name == "digits"
    with pytest.raises(Absent, match="--data"):
        images.choose("cifar100", 10, str(tmp_path))
    with pytest.raises(Absent, match="one of cifar100"):
        images.choose("cifar", 10)


def test_packed_images_are_unpacked_exactly(tmp_path: Path) -> None:
    original = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    coded = original.copy()
    coded[:, 0] -= original[:, 1]
    coded[:, 2] -= original[:, 1]
    coded = np.diff(coded, axis=3, prepend=np.uint8(0))
    coded = np.diff(coded, axis=2, prepend=np.uint8(0))
    np.savez(tmp_path / "test.npz", r=coded, y=np.array([1, 2, 3], dtype=np.uint8))
    x, y = images._unpacked(tmp_path, ("test.npz", "test.npz"))
    assert np.array_equal(x, np.concatenate([original, original])) and y.tolist() == [1, 2, 3, 1, 2, 3]


def test_pairs_have_the_ratios_they_are_named_after() -> None:
    square = images.load(SOURCE)._replace(x=np.zeros((1, 3, 32, 32), dtype=np.uint8))
    assert [round(pairs.flops_ratio(pair, square)) for pair in pairs.PAIRS] == [16, 4, 4]
    assert len({recipe.id for recipe in pairs.twenty(SIXTEEN)}) == 20


def test_a_teacher_says_the_same_wherever_images_are_standardised() -> None:
    found = images.load(SOURCE)
    inside, outside = (pairs.teacher(TINY, found, normalises=where) for where in (True, False))
    x = torch.from_numpy(found.x[:8]).float() / 255
    mean, std = (torch.tensor(each).view(1, 1, 1) for each in found.moments)
    torch.testing.assert_close(inside(x), outside((x - mean) / std), atol=1e-4, rtol=1e-4)


# ---- the loops


def test_all_sides_have_the_same_loss() -> None:
    torch.manual_seed(0)
    student, teacher, index = 3 * torch.randn(16, 10), 3 * torch.randn(16, 10), torch.arange(16)
    batch = Batch(x=student, y=index % 10, index=index, view=torch.zeros_like(index), parent=index)
    own = KD(temperature=4.0)(Outputs(student), Outputs(teacher), batch)["kd"]
    torch.testing.assert_close(usual_loop.kd_loss(student, teacher, 4.0), own)


def test_the_usual_loop_learns_and_counts() -> None:
    found = images.load(replace(SOURCE, rows=400))
    teacher = pairs.teacher(TINY, found, normalises=False)
    student = pairs.network(TINY.student, found, seed=0, normalises=False)
    settings = replace(ALONE, ce_weight=1.0, kd_weight=0.0)
    loader, optim = usual_loop.train_loader(found, settings), usual_loop.optimiser(student, settings)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    torch.manual_seed(0)
    epochs = [usual_loop.train_epoch(student, teacher, loader, optim, settings) for _ in range(10)]
    assert [seen for seen, _ in epochs] == [384] * 10, "the last, smaller batch is dropped"
    assert epochs[-1][1] < 0.7 * epochs[0][1]
    held = torch.utils.data.DataLoader(usual_loop.val_set(found), batch_size=64)
    assert usual_loop.accuracy(student, held) > 0.4
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_mdistillers_settings() -> None:
    found = images.load(SOURCE)
    teacher = pairs.teacher(TINY, found, normalises=False)
    student = pairs.network(TINY.student, found, seed=0, normalises=False)
    data = mdistiller_style.Indexed(usual_loop.train_set(found))
    loader = torch.utils.data.DataLoader(data, batch_size=64)
    optim = torch.optim.SGD(student.parameters(), lr=0.05)
    seen, line = mdistiller_style.train_epoch(student, teacher, loader, optim)
    assert seen == 160 and "Top-5" in line
    first, second = mdistiller_style.top(torch.tensor([[0.1, 0.9, 0.5], [0.9, 0.1, 0.5]]), torch.tensor([1, 2]), (1, 2))
    assert (float(first), float(second)) == (50.0, 100.0)


def test_torchdistill_is_absent_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.core import torchdistill_loop

    monkeypatch.setitem(__import__("sys").modules, "torchdistill.core.distillation", None)
    with pytest.raises(Absent, match="pip install torchdistill"):
        torchdistill_loop.prepare(TINY, SOURCE, None, ALONE)


def test_torchdistill_trains_the_same_thing() -> None:
    distillation = pytest.importorskip("torchdistill.core.distillation")
    from benchmarks.core import torchdistill_loop

    assert torchdistill_loop.prepare(TINY, SOURCE, None, ALONE)() == 128
    found = images.load(SOURCE)
    teacher = pairs.teacher(TINY, found, normalises=False)
    student = pairs.network(TINY.student, found, seed=0, normalises=False)
    data = {"train": usual_loop.train_set(found)}
    whole = torchdistill_loop.config(ALONE)
    box = distillation.get_distillation_box(teacher, student, data, whole, torch.device("cpu"), None, False, 1)
    x, y, extra = next(iter(box.train_data_loader))
    with torch.no_grad():
        logits = student(x)
        kd = usual_loop.kd_loss(logits, teacher(x), ALONE.temperature)
        expected = ALONE.ce_weight * torch.nn.functional.cross_entropy(logits, y) + ALONE.kd_weight * kd
        torch.testing.assert_close(box.forward_process(x, y, extra), expected, atol=1e-3, rtol=1e-3)


# ---- measuring


def _sleeper(seconds: float, images_of: int) -> Repetition:
    def repetition() -> int:
        time.sleep(seconds)
        return images_of

    return repetition


def _threads() -> Repetition:
    return torch.get_num_threads


def _missing() -> Repetition:
    raise Absent("not here")


@pytest.mark.timeout(120)  # two processes import torch
def test_variants_are_measured_in_turns_on_their_seats() -> None:
    one, two = Seat("one", 1), Seat("two", 2)
    variants = [
        Variant("slow", partial(_sleeper, 0.2, 100), (one,)),
        Variant("lanes", partial(_sleeper, 0.2, 100), (one, two)),
        Variant("threads of one", _threads, (one,)),
        Variant("threads of two", _threads, (two,)),
        Variant("missing", _missing, (two,)),
    ]
    found = measure(variants, 2, Progress(disable=True))
    assert list(found) == [variant.name for variant in variants]
    assert found["missing"] == Measured("missing", absent="not here")
    assert (found["threads of one"].images, found["threads of two"].images) == (1, 2)
    assert len(found["slow"].costs) == 2 and all(2.0 <= cost < 4.0 for cost in found["slow"].costs)
    assert found["lanes"].images == 200
    assert all(1.0 <= cost < 1.9 for cost in found["lanes"].costs), "both lanes sleep at the same time"


# ---- figures


def test_ratios_are_formed_within_a_round() -> None:
    slow, fast = Measured("slow", (2.0, 30.0, 4.0), 10), Measured("fast", (1.0, 10.0, 2.0), 10)
    assert figures.ratios(slow, fast) == (2.0, 3.0, 2.0)
    bar = figures.ratio_bar("slow / fast", 2.5, slow, fast, at_most=True)
    assert bar.met is True and bar.row() == ("slow / fast", "at most 2.5x", "2.00 (2.00 to 3.00)x", "met")
    assert figures.ratio_bar("slow / fast", 2.5, slow, fast).met is False
    missing = figures.ratio_bar("claim", 2, Measured("a", absent="not here"), fast)
    assert missing.met is None and missing.row()[2:] == ("not here", "not measured")


def test_intervals_of_paired_differences() -> None:
    found = figures.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3 and found.sd == pytest.approx(1.5811, abs=1e-4)
    assert (found.low, found.high) == (pytest.approx(1.0368, abs=1e-3), pytest.approx(4.9632, abs=1e-3))
    assert figures.no_difference_bar("a", [0.01, 0.02, 0.03, 0.04, 0.05]).met is False
    assert figures.no_difference_bar("a", [0.01, -0.02, 0.0, 0.02, -0.01]).met is True
    assert figures.no_difference_bar("a", [0.0] * 5).met is True


def test_a_part_is_printed_as_markdown() -> None:
    part = figures.Part("Title", notes=["a note"], tables=[(("head",), [("a|b",)])])
    part.bars.append(figures.Bar("claim", "at most 1x", "0.9x", True))
    text = part.markdown()
    assert "## Title" in text and "| a\\|b |" in text and "| claim | at most 1x | 0.9x | met |" in text
    rows = figures.cost_rows({"v": Measured("v", (0.5, 0.4, 0.6), 128), "w": Measured("w", absent="why")})
    assert rows == [("v", "2000", "500 (400 to 600)", "128"), ("w", "-", "not measured: why", "-")]


# ---- what joins both sides


@pytest.mark.parametrize("options", [Options(), SHORT], ids=["whole", "short"])
def test_every_claim_is_measured(options: Options) -> None:
    pytest.importorskip("benchmarks.core.ours")
    from benchmarks.core import throughput

    variants = list(throughput._variants(options, SOURCE, dict.fromkeys(pairs.PAIRS), Path("tape")))
    names = [variant.name for variant in variants]
    assert len(set(names)) == len(names)
    costs = {name: Measured(name, (1.0, 1.0), 128) for name in names}
    assert all(bar.values for bar in throughput._bars(costs))
    assert len(list(throughput._also(costs))) >= 4


def test_the_fixed_recipes_are_handed_out_once_each(tmp_path: Path) -> None:
    pytest.importorskip("benchmarks.core.ours")
    from benchmarks.core.search import Fixed, _as_settings

    recipes = pairs.twenty(SIXTEEN)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("search", rungs=[2], budget={"kind": "trials", "amount": 20}, seed=0)
    director = Director(Fixed(recipes, epochs=2), ledger)  # type: ignore[arg-type]
    ledger.append("session", budget={"kind": "trials", "amount": 20})
    decisions = [director.next() for _ in recipes]
    orders = [each for each in decisions if isinstance(each, Order)]
    assert [order.recipe for order in orders] == recipes and {order.to for order in orders} == {2}
    assert isinstance(director.next(), Wait)
    for order in orders:
        director.report(Report(order.trial, 2, 0.5, 0.0, {"accuracy": 0.5, "loss": 1.0}, 1.0, [], "none", "fp32"))
    assert isinstance(director.next(), Finish)
    assert len({_as_settings(recipe) for recipe in recipes}) == 20
