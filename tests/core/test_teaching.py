"""The tape in training: what is replayed is what the live teacher would have said, and nothing recorded is used for anything else."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import (
    CLASSES,
    EVERYTHING,
    KD,
    ROWS,
    expert,
    images,
    network,
    order,
    passes_of,
    recipe,
    segments,
    tape_plan,
    taped,
)
from torch import Tensor, nn
from torch.nn import functional

from autokd.augment.views import augmented_views
from autokd.core import replay, teaching
from autokd.core.core import TrainingCore
from autokd.core.device import Setting
from autokd.core.live import Live
from autokd.core.loop import feed
from autokd.core.replay import Replay
from autokd.core.teaching import fingerprint
from autokd.data import Data
from autokd.protocols import Batch
from autokd.recipe import AugmentSpec, Recipe
from autokd.students import FAMILIES, name_of

torch.set_num_threads(1)
WEIGHTS = {"kd": 0.5, "dkd": 0.5, "dist": 0.5, "rkd": 0.5, "at": 100.0, "fitnet": 0.5}
TERM = {name: {"objective": name, "weight": weight} for name, weight in WEIGHTS.items()}
JDA = {"policy": "jda", "p": 0.3}
SLOW = {"lr": 0.01}  # so that rounding is not amplified from step to step


@pytest.fixture(autouse=True)
def no_student_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three epochs are too few for some; curves are compared, not students."""
    monkeypatch.setattr("autokd.core.core.SETTLED", 100)


def with_terms(*names: str, **more: Any) -> Recipe:
    return recipe(terms=tuple(TERM[name] for name in names), **{"optim": SLOW, **more})


def vectors(rows: int = 60) -> Data:
    draw = np.random.default_rng(0)
    y = np.arange(rows) % CLASSES
    return Data((draw.normal(0, 1, (rows, 6)) + 2 * np.eye(CLASSES, 6)[y]).astype(np.float32), y, name="vectors")


def of_vectors() -> nn.Module:
    torch.manual_seed(5)
    return FAMILIES["mlp"].build({"width": 32, "depth": 2}, (6,), CLASSES)


def curve(its_core: TrainingCore, of: Recipe, to: int = 3, **more: Any) -> list[float]:
    """The loss of every epoch."""
    return [log["loss"] for log in its_core.advance(order(of, to=to, **more)).history]


# ---- replayed is live

RECIPES: dict[str, Callable[[], Recipe]] = {
    **{name: lambda name=name: with_terms(name) for name in TERM},
    "all with kd": lambda: with_terms("kd", "dist", "rkd", "at", "fitnet"),
    "all with dkd": lambda: with_terms("dkd", "dist", "rkd", "at", "fitnet"),
    "none views": lambda: with_terms("kd", "at", augment={"policy": "none"}),
    "jda 1/3": lambda: with_terms("kd", augment={**JDA, "rho": 0.333}),
    "jda 1/2": lambda: with_terms("kd", "rkd", augment={**JDA, "rho": 0.5}),
    "jda 2/3": lambda: with_terms("dist", "fitnet", augment={**JDA, "rho": 0.667}),
    "ccd": lambda: with_terms("kd", augment={**JDA, "ccd": True, "ccd_normalise": True}),
    "peers": lambda: with_terms("kd", "at", peers={"count": 2}),
    "another architecture": lambda: with_terms("kd", "rkd", "fitnet", family="plain"),
    "adamw": lambda: with_terms("kd", optim={"name": "adamw", "lr": 0.003}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_replayed_training_is_the_live_one_within_half_precision(tmp_path: Path, name: str) -> None:
    of, curves = RECIPES[name](), {}
    for tape in (None, tmp_path / "tape"):
        its_core = taped(tmp_path / str(tape is None), tape)
        passes = passes_of(its_core)
        curves[tape is None] = [curve(its_core, of, seed=seed) for seed in range(3)]
        views = 1 + augmented_views(of.augment)
        recorded = 3 * (1 if of.augment.policy == "none" else 3) * views
        assert passes.count(ROWS) == (0 if tape is None else recorded)
        others = [rows for rows in passes if 4 < rows != ROWS]
        assert bool(others) == (tape is None), "or this compares live with live"
    for live, replayed in zip(curves[True], curves[False], strict=True):
        assert replayed == pytest.approx(live, rel=4e-3)
    assert curves[True] != curves[False], "half precision leaves a trace"


def test_vectors_are_replayed_too(tmp_path: Path) -> None:
    of, curves = with_terms("kd", "rkd", family="mlp"), []
    for tape in (None, tmp_path / "tape"):
        its_core = taped(tmp_path / str(tape is None), tape, vectors(), of_vectors())
        passes = passes_of(its_core)
        curves.append([curve(its_core, of, seed=seed) for seed in range(3)])
        assert passes.count(ROWS) == (0 if tape is None else 3), (
            "nothing moves a vector: one segment for all epochs of a seed"
        )
    for live, replayed in zip(*curves, strict=True):
        assert replayed == pytest.approx(live, rel=4e-3)


@pytest.mark.parametrize("name", TERM)
def test_the_tolerance_would_show_rows_that_are_mixed_up(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = curve(taped(tmp_path / "live", None), with_terms(name))
    its_core = taped(tmp_path / "taped", tmp_path / "tape")
    monkeypatch.setattr(replay, "_rows", lambda field, index: field.index_select(0, (index + 1) % len(field)))
    assert curve(its_core, with_terms(name))[0] != pytest.approx(live[0], rel=4e-3)


def test_a_recipe_that_does_not_listen_needs_no_teacher(tmp_path: Path) -> None:
    of = recipe(augment={**JDA, "rho": 0.5})
    its_core = taped(tmp_path / "taped", tmp_path / "tape")
    passes = passes_of(its_core)
    assert curve(its_core, of) == curve(taped(tmp_path / "live", None), of)
    assert passes == [] and segments(tmp_path / "tape") == set()


def test_the_time_of_recording_is_told_beside_that_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = teaching.Teaching._record
    waits: list[float] = []

    def slowly(*args: Any) -> Any:
        waits.append(0.2)
        time.sleep(0.2)
        return slow(*args)

    monkeypatch.setattr(teaching.Teaching, "_record", slowly)
    first = taped(tmp_path / "one", tmp_path / "tape").advance(order(with_terms("kd"), to=2))
    again = taped(tmp_path / "two", tmp_path / "tape").advance(order(with_terms("kd"), to=2))
    assert len(waits) == 2 and all(log["recording"] >= 0.2 for log in first.history)
    assert all(log["recording"] < 0.2 for log in again.history) and first.seconds < sum(waits) + again.seconds


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(
    "augment",
    [
        {"policy": "base"},
        {"policy": "none"},
        *({"policy": "rotations", "crops": crops} for crops in ("own", "shared")),
        *({**JDA, "rho": rho} for rho in (0, 0.2, 0.5, 0.6, 0.75)),
    ],
)
def test_batches_of_a_replay_are_those_of_live_training_to_the_last_bit(
    tmp_path: Path, augment: dict[str, Any], dtype: type
) -> None:
    data = images(60)
    if dtype is np.float32:
        data = Data(data.train.x / np.float32(100), data.train.y, name="floats", pad=1, flip=True)
    its_core = taped(tmp_path, tmp_path / "tape", data)
    run = its_core.new(with_terms("kd", augment=augment), 3, its_core.setting)
    run.epoch = 2
    assert its_core.teaching is not None
    signal = its_core.teaching.epoch(run.of_teacher, run.recipe.augment, 3, 2, 4)
    assert isinstance(signal, Replay)
    kept = augment["policy"] == "jda" and augment["rho"] > 0 and dtype is np.uint8
    assert (signal.made is not None) == kept, "the rows of floats would not come back as they were"
    live = Live(its_core.teaching.live, run.of_teacher)
    pairs = zip(feed(run, its_core.rows, signal), feed(run, its_core.rows, live), strict=True)
    for (replayed, told), (made, said) in pairs:
        assert same(replayed, made)
        assert told is not None and said is not None
        torch.testing.assert_close(told.logits, said.logits, rtol=1e-3, atol=1e-3)


def same(one: Batch, other: Batch) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields_of(Batch)]
    return all((a is None and b is None) or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in pairs)


class Staged(nn.Module):
    """Twelve stages, which names sort otherwise than numbers."""

    def __init__(self, stages: int = 12) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stage_names = [f"body.{2 * number + 1}" for number in range(stages)]
        self.body = nn.Sequential(
            *(part for i in range(stages) for part in (nn.Conv2d(1 if i == 0 else 2, 2, 3, padding=1), nn.Tanh()))
        )
        self.head = nn.Linear(2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return 5 * self.head(self.body(x).mean((2, 3)))


@pytest.mark.parametrize("kind", ["stages", "attention"])
def test_many_stages_come_back_in_their_order(tmp_path: Path, kind: str) -> None:
    needs = frozenset({"logits", kind})
    its_core = taped(tmp_path, tape_plan(tmp_path / "tape", needs), teacher=Staged())
    assert its_core.teaching is not None and len(its_core.teaching.shapes.stages) == 12
    run = its_core.new(with_terms("kd"), 0, its_core.setting)
    signal = its_core.teaching.epoch(needs, run.recipe.augment, 0, 0, 1)
    live = Live(its_core.teaching.live, needs)
    assert isinstance(signal, Replay)
    for (_, told), (_, said) in zip(feed(run, its_core.rows, signal), feed(run, its_core.rows, live), strict=True):
        for one, other in zip(getattr(told, kind), getattr(said, kind), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


# ---- what a segment is of


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Two epochs of base and of jda views, of an expert and seed 0."""
    its_core = taped(tmp_path / "first", tmp_path / "tape")
    for augment in ({"policy": "base"}, JDA):
        curve(its_core, with_terms("kd", augment=augment), to=2)
    assert len(segments(tmp_path / "tape")) == 4, "the base views of both are the same"
    return tmp_path / "tape"


FREE: dict[str, Recipe] = {
    "temperature": recipe(terms=({**KD, "temperature": 9.0},), augment=JDA),
    "weights": recipe(terms=({**KD, "weight": 0.1, "schedule": "linear", "share": 0.5},), ce_weight=0.3, augment=JDA),
    "rho": recipe(terms=(KD,), augment={**JDA, "rho": 0.1}),
    "ccd": recipe(terms=(KD,), augment={**JDA, "ccd": True}),
    "batch": recipe(terms=(KD,), augment=JDA, optim={"batch": 9}),
    "peers": recipe(terms=(KD,), augment=JDA, peers={"count": 1}),
    "architecture": recipe("plain", width=8, terms=(KD,), augment=JDA),
    "losses": with_terms("dist", "at", "fitnet", "rkd", augment=JDA),
    "optimiser": recipe(terms=(KD,), augment=JDA, optim={"name": "adamw", "lr": 0.001, "schedule": "constant"}),
    "base views": recipe(terms=(KD,)),
}


@pytest.mark.parametrize("name", FREE)
def test_a_second_core_records_nothing_whatever_is_free(tmp_path: Path, recorded: Path, name: str) -> None:
    before = segments(recorded)
    its_core = taped(tmp_path / "second", recorded)
    passes = passes_of(its_core)
    curve(its_core, FREE[name], to=2)
    assert segments(recorded) == before
    assert all(rows <= teaching.CHECKED for rows in passes), "the teacher was run"
    assert its_core.teaching is not None and its_core.teaching.notes == []


def test_students_precision_layout_and_threads_are_free(tmp_path: Path, recorded: Path) -> None:
    before = segments(recorded)
    curve(taped(tmp_path / "second", recorded, precision="bf16", layout="contiguous", threads=1), FREE["rho"], to=2)
    assert segments(recorded) == before


def test_more_views_are_recorded_beside_those_that_are_there(tmp_path: Path, recorded: Path) -> None:
    before = segments(recorded)
    its_core = taped(tmp_path / "second", recorded)
    passes = passes_of(its_core)
    curve(its_core, recipe(terms=(KD,), augment={**JDA, "rho": 0.6}), to=2)
    new = segments(recorded) - before
    assert passes.count(ROWS) == 2 and len(new) == 2 and all("-v2-" in name for name in new)


def nudged() -> nn.Module:
    module = expert()
    with torch.no_grad():
        next(iter(module.parameters())).view(-1)[0] += 1e-4
    return module


def other_pixel() -> Data:
    data = images(60)
    data.train.x[7, 0, 3, 3] ^= 1
    return data


def moved(**changes: Any) -> Data:
    data = images(60)
    for name, value in changes.items():
        setattr(data, name, value)
    return data


MISSES: dict[str, dict[str, Any]] = {
    "weights": {"teacher": nudged},
    "data": {"data": other_pixel},
    "pad": {"data": lambda: moved(pad=2)},
    "flip": {"data": lambda: moved(flip=True)},
    "teacher's precision": {"teacher_precision": "bf16"},
    "seed": {"seed": 1},
    "p": {"augment": {**JDA, "p": 0.31}},
    "magnitude": {"augment": {**JDA, "magnitude": 1.1}},
    "chain": {"augment": {**JDA, "chain": "cifar10"}},
}


@pytest.mark.parametrize("name", MISSES)
def test_a_changed_key_misses(tmp_path: Path, recorded: Path, name: str) -> None:
    change = {key: value() if callable(value) else value for key, value in MISSES[name].items()}
    augment, seed = change.pop("augment", JDA), change.pop("seed", 0)
    before = segments(recorded)
    its_core = taped(tmp_path / "second", recorded, **change)
    passes = passes_of(its_core)
    curve(its_core, with_terms("kd", augment=augment), to=2, seed=seed)
    new = segments(recorded) - before
    base_is_shared = name in ("p", "magnitude", "chain")
    assert before <= segments(recorded), "what others recorded stays"
    assert len(new) == passes.count(ROWS) == (2 if base_is_shared else 4)


def test_views_of_another_version_and_another_torch_miss(
    tmp_path: Path, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = segments(recorded)
    monkeypatch.setattr(teaching, "VERSION", teaching.VERSION + 1)
    curve(taped(tmp_path / "second", recorded), with_terms("kd"), to=1)
    assert len(segments(recorded) - before) == 1
    monkeypatch.setattr(torch, "__version__", "3.1.4+cpu")
    curve(taped(tmp_path / "third", recorded), with_terms("kd"), to=1)
    assert len(segments(recorded) - before) == 2


def test_one_segment_serves_all_epochs_of_a_view_that_never_changes(tmp_path: Path) -> None:
    its_core = taped(tmp_path, tmp_path / "tape")
    passes = passes_of(its_core)
    curve(its_core, with_terms("kd", augment={"policy": "none"}))
    assert (
        passes.count(ROWS) == 1
        and max(passes) == ROWS
        and [name.split("/")[1].split(".")[0] for name in segments(tmp_path / "tape")] == ["none-v0-e00000"]
    )


def test_final_seeds_have_segments_of_their_own(tmp_path: Path) -> None:
    its_core = taped(tmp_path, tmp_path / "tape")
    for seed in (0, 1000, 1001):
        curve(its_core, with_terms("kd"), to=2, seed=seed)
    found = segments(tmp_path / "tape")
    assert len(found) == 6 and len({name.split("/")[0] for name in found}) == 3


# ---- which teacher it is


class Small(nn.Module):
    """A teacher whose weights say little of what it does with them."""

    def __init__(
        self, activation: nn.Module | None = None, stride: int = 1, gain: float = 3.0, how: Any = functional.relu
    ) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Conv2d(1, 6, 3, stride=stride)
        self.activation, self.gain, self.how = activation or nn.ReLU(), gain, how
        self.head = nn.Linear(6, CLASSES)
        self.register_buffer("shift", torch.zeros(6), persistent=False)
        self.scale = torch.ones(6)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.how(self.activation(self.body(x)) - 0.05).mean((2, 3))
        return self.gain * self.head(self.scale * maps + self.shift)


def shifted(name: str) -> nn.Module:
    module = Small()
    getattr(module, name)[0] += 0.02
    return module


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "activation": lambda: Small(nn.SiLU()),
    "stride": lambda: Small(stride=2),
    "a number it keeps": lambda: Small(gain=3.02),
    "a function it keeps": lambda: Small(how=functional.gelu),
    "a buffer that is not saved": lambda: shifted("shift"),
    "a plain tensor": lambda: shifted("scale"),
    "one more layer of no weights": lambda: nn.Sequential(Small(), nn.Identity()),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_structure_with_equal_weights_misses(tmp_path: Path, name: str) -> None:
    curve(taped(tmp_path / "first", tmp_path / "tape", teacher=Small()), with_terms("kd"), to=1)
    before = segments(tmp_path / "tape")
    curve(taped(tmp_path / "second", tmp_path / "tape", teacher=OTHERS[name]()), with_terms("kd"), to=1)
    after = segments(tmp_path / "tape")
    assert before < after and len({name.split("/")[0] for name in after}) == 2


def test_the_same_teacher_is_recognised_whatever_its_mode_and_layout() -> None:
    assert fingerprint(Small()) == fingerprint(Small().train()) == fingerprint(copy.deepcopy(Small()))
    module = network()
    plain = fingerprint(module)
    assert (
        fingerprint(module.to(memory_format=torch.channels_last)) == plain == fingerprint(module.requires_grad_(False))
    )
    assert fingerprint(network(seed=2)) != plain


class Odd(Small):
    """Its state holds more than tensors, and its words the address of something."""

    def get_extra_state(self) -> Any:
        return {"scale": [1, 2], "table": torch.ones(2)}

    def set_extra_state(self, state: Any) -> None:
        pass

    def extra_repr(self) -> str:
        return f"{object()!r}"


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(0, 3),
        torch.ones(3, 2).T,
        torch.tensor(3),
        torch.ones(2).bfloat16(),
        torch.ones(2) > 0,
        torch.ones(2, dtype=torch.complex64),
        torch.eye(3).to_sparse(),
    ],
    ids=["empty", "transposed", "scalar", "bf16", "bool", "complex", "sparse"],
)
def test_tensors_of_every_kind_count(tensor: Tensor) -> None:
    one, other = Small(), Small()
    one.extra = tensor
    other.extra = tensor.clone()
    assert fingerprint(one) == fingerprint(other) != fingerprint(Small())
    other.extra = torch.stack([tensor, tensor])
    assert fingerprint(one) != fingerprint(other)


def test_teachers_whose_state_is_more_than_tensors_are_recorded(tmp_path: Path) -> None:
    kept = [object() for _ in range(50)]  # so that addresses differ
    for name in ("first", "second"):
        its_core = taped(tmp_path / name, tmp_path / "tape", teacher=Odd())
        curve(its_core, with_terms("kd"), to=1)
        kept.append(its_core)
    assert len(segments(tmp_path / "tape")) == 1


# ---- rows that have more than one label


class Pixels:
    """Rows of segmentation: a class for every pixel. Logits are (N, classes·H·W)."""

    name, metric = "pixels", "accuracy"

    def loss(
        self, outputs: Any, batch: Batch, row_weight: Tensor | None = None, smoothing: float | Tensor = 0.0
    ) -> Tensor:
        return functional.cross_entropy(outputs.logits.unflatten(1, (CLASSES, 8, 8)), batch.y)

    def evaluate(self, forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> dict[str, float]:
        logits = forward(x).unflatten(1, (CLASSES, 8, 8))
        right = (logits.argmax(1) == y).float().mean()
        return {"accuracy": float(right), "loss": float(functional.cross_entropy(logits, y))}

    def chance(self, y: Tensor) -> float:
        return y.flatten().bincount().max().item() / y.numel()


class Dense:
    """Their data."""

    def __init__(self) -> None:
        self.x = torch.as_tensor(images(60).train.x)
        self.y = (self.x[:, 0].long() // 86).clamp(0, CLASSES - 1)
        self.data = images(60)
        self.val_x, self.val_y = self.x[:10], self.y[:10]

    def __len__(self) -> int:
        return len(self.x)

    def fetch(self, batches: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for index in batches:
            yield self.x[index], self.y[index]

    def close(self) -> None:
        """Nothing is open."""


class Painter(nn.Module):
    """Logits of every pixel."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, CLASSES, 1), nn.Flatten()
        )

    def forward(self, x: Tensor) -> Tensor:
        return 4 * self.body(x)


class Painters:
    """A family of them."""

    fields: dict[str, Any] = {}

    def misfit(self, input_shape: tuple[int, ...]) -> str | None:
        return None

    def build(self, spec: Any, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        return Painter()


@pytest.mark.parametrize("augment", [{"policy": "none"}, {"policy": "none", "rho": 0.0}])
def test_a_row_may_have_a_label_for_every_pixel(
    tmp_path: Path, augment: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autokd.core.core.TASKS", {"pixels": Pixels()})
    monkeypatch.setattr("autokd.core.core.Resident", lambda *_: Dense())
    of = recipe(name_of(Painters()), terms=(TERM["kd"], TERM["at"]), augment=augment, optim=SLOW)
    curves = []
    for tape in (None, teaching.TapePlan(str(tmp_path / "tape"), 10**9, EVERYTHING)):
        torch.manual_seed(0)
        its_core = TrainingCore(images(60), Painter(8), tmp_path / str(tape is None), Setting(), "pixels", tape)
        curves.append(curve(its_core, of))
    assert curves[1] == pytest.approx(curves[0], rel=2e-3) and curves[0][-1] < curves[0][0]
    assert len(segments(tmp_path / "tape")) == 1
    run = its_core.new(of, 0, its_core.setting)
    batch, told = next(feed(run, its_core.rows, its_core.teaching.epoch(run.of_teacher, run.recipe.augment, 0, 0, 1)))  # type: ignore[union-attr]
    assert batch.y.shape == (len(batch.x), 8, 8) and told is not None and told.logits.shape[1] == CLASSES * 64


@pytest.mark.parametrize("rho", [0.2, 0.5, 0.6])
def test_augmented_rows_keep_the_labels_of_every_pixel(tmp_path: Path, rho: float) -> None:
    its_core = TrainingCore(images(60), None, tmp_path, Setting())
    its_core.rows = Dense()
    run = its_core.new(recipe(augment={**JDA, "rho": rho}), 0, its_core.setting)
    for batch, _ in feed(run, its_core.rows, None):
        assert torch.equal(batch.y, Dense().y[batch.index]) and len(batch.y) == len(batch.view)


# ---- views


@pytest.mark.parametrize(
    ("rho", "views"),
    [
        (0.0, 0),
        (0.1, 1),
        (1 / 3, 1),
        (0.5, 1),
        (0.51, 2),
        (0.6, 2),
        (2 / 3, 2),
        (0.667, 2),
        (0.6666, 2),
        (0.67, 3),
        (0.75, 3),
    ],
)
def test_as_many_views_are_recorded_as_a_batch_may_have(rho: float, views: int) -> None:
    assert augmented_views(AugmentSpec(policy="jda", rho=rho)) == views
    assert augmented_views(AugmentSpec(policy="base", rho=rho)) == 0
