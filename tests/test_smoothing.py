"""Teachers fine-tuned to be smoother: the penalties in closed form, the original left alone, the copy kept, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Coarse, expert, images, weights
from torch import Tensor, nn

import autokd
from autokd.augment.base import base_view
from autokd.cli_input import teacher_of
from autokd.core.data import to_float
from autokd.data import Data
from autokd.errors import TeacherError
from autokd.smoothing import STEP, directions, lipschitz, running_mean, slope, variation
from autokd.students.tap import Tap
from autokd.teacher import ABOUT, Teacher

torch.set_num_threads(1)
BUILDER = f"{__name__}:Coarse"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own, and one core: others may be busy with other tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in ("teacher", "smoothing"):
        monkeypatch.setattr(f"autokd.{module}.cpu_count", lambda: 1)
    return tmp_path / "cache"


def teacher(rows: int = 60) -> Teacher:
    """One that knows something, of a registered family."""
    return Teacher(expert(), images(rows), name="expert", about={"family": "resnet", "spec": {"width": 8}, "epochs": 6})


def smooth(of: Teacher, told: list[tuple[int, int, float]] | None = None, **knobs: Any) -> Teacher:
    settings = {
        "epochs": 1,
        "share": 1.0,
        "on_epoch": None if told is None else lambda *epoch: told.append(epoch),
        **knobs,
    }
    return autokd.smooth(of, **settings)  # type: ignore[no-any-return]


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(weights(one).values(), weights(other).values(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


# ---- penalties


def test_lipschitz_is_the_sum_of_the_norms_of_the_layers() -> None:
    conv, norm, bare, linear = nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False), nn.Linear(2, 2)
    network = nn.Sequential(conv, norm, bare, nn.Flatten(), linear, nn.BatchNorm1d(2, track_running_stats=False))
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, -2, 3, -4, 0, 0, 0.5, 0]).view(2, 1, 2, 2))
        norm.weight.copy_(torch.tensor([-3.0, 1.0]))
        norm.running_var.copy_(torch.tensor([4.0, 0.04]) - norm.eps)  # type: ignore[union-attr]
        bare.running_var.copy_(torch.tensor([0.25, 1.0]) - bare.eps)  # type: ignore[union-attr]
        linear.weight.copy_(torch.tensor([[1.0, -2.0], [-3.0, 0.5]]))
    assert float(lipschitz(network)) == pytest.approx(10.5 + 5.0 + 2.0 + 4.0, rel=1e-6)
    lipschitz(network).backward()  # type: ignore[no-untyped-call]
    assert norm.weight.grad is not None and norm.weight.grad.tolist() == pytest.approx([0.0, 5.0])


def test_a_mean_of_equal_predictions_is_that_prediction() -> None:
    p = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    mean = torch.full_like(p, 7.0)  # whatever was there before the first visit
    for visit in range(5):
        mean = running_mean(mean, p, visit)
    torch.testing.assert_close(mean, p, rtol=0, atol=1e-15)
    assert float(running_mean(torch.tensor(2.0), torch.tensor(8.0), 2)) == 4.0


def test_directions_have_unit_length_and_slopes_are_those_of_a_linear_map() -> None:
    x = torch.randn(6, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, matrix = directions(x), torch.randn(24, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert u.flatten(1).norm(dim=1).tolist() == pytest.approx([1.0] * 6)

    def embedding(rows: Tensor) -> Tensor:
        return rows.flatten(1) @ matrix

    found = float(slope(embedding(x + STEP * u), embedding(x)))
    assert found == pytest.approx(float(embedding(u).square().sum(1).mean()), rel=1e-9)


def test_variation_of_a_ramp_is_its_two_slopes() -> None:
    ramp = torch.arange(4.0)[:, None] + 2 * torch.arange(5.0)
    assert float(variation([ramp.expand(2, 3, 4, 5), ramp[:1].expand(2, 3, 1, 5)])) == pytest.approx(1 + 2 + 2)
    assert float(variation([torch.ones(2, 3, 1, 1)])) == 0.0


# ---- fine-tuning


def test_a_copy_is_smoothed_and_tells_how(own_cache: Path, tmp_path: Path) -> None:
    original, told = teacher(), list[tuple[int, int, float]]()
    before, state = weights(original.module), torch.get_rng_state()
    smoother = smooth(original, told, lip=1e-4, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in original.module.state_dict().items())
    assert not same(original.module, smoother.module) and smoother.module is not original.module
    assert not smoother.module.training and not any(each.requires_grad for each in smoother.module.parameters())
    assert told == [(1, 1, smoother.value)] and smoother.value > 0.6
    about = smoother.about["smoothed"]
    assert about["of"] == original.fingerprint and about["version"] == 1
    assert [about[name] for name in ("lip", "view", "time", "jac", "tv", "epochs", "lr", "seed")] == [
        1e-4, 1.0, 0.0, 0.0, 0.0, 1, 0.005, 3
    ]  # fmt: skip
    again = Teacher.load(smoother.save(tmp_path / "saved"))
    assert same(again.module, smoother.module) and again.about["smoothed"] == about and again.name == "expert-smooth"


def test_it_is_taken_from_the_cache_unless_something_differs(own_cache: Path) -> None:
    told: list[tuple[int, int, float]] = []
    first = smooth(teacher(), told)
    assert same(smooth(teacher(), told).module, first.module) and len(told) == 1
    (about,) = own_cache.rglob(ABOUT)
    about.write_text("torn")
    assert same(smooth(teacher(), told).module, first.module) and len(told) == 2, "the same seed, the same teacher"
    other = teacher()
    with torch.no_grad():
        next(other.module.parameters()).add_(0.01)
    for of, knobs in ((teacher(), {"seed": 1}), (teacher(), {"lip": 0.0}), (other, {}), (teacher(), {"cache": False})):
        count = len(told)
        smooth(of, told, **knobs)
        assert len(told) == count + 1


def measured(name: str, network: nn.Module, data: Data) -> float:
    """A penalty of a network in eval mode, on all training rows."""
    raw = torch.tensor(data.train.x)
    x, other = to_float(raw), to_float(base_view(raw, 5, 0, torch.arange(len(raw)), 1, data.pad, data.flip))
    tap = Tap(network, x[:2])
    torch.manual_seed(0)
    with torch.no_grad():
        seen, near, moved = tap(x), tap(other), tap(x + STEP * directions(x))
    tap.close()
    assert seen.embedding is not None and near.embedding is not None and moved.embedding is not None
    found = {
        "lip": lipschitz(network),
        "view": (seen.embedding - near.embedding).square().mean(),
        "jac": slope(moved.embedding, seen.embedding),
        "tv": variation(seen.stages),
    }
    return float(found[name])


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("name", "weight"), [("lip", 0.01), ("view", 10.0), ("jac", 0.5), ("tv", 3.0)])
def test_each_penalty_lowers_what_it_penalises(name: str, weight: float) -> None:
    original, nothing = teacher(150), dict.fromkeys(("lip", "view", "time", "jac", "tv"), 0.0)
    knobs = {**nothing, "epochs": 5, "lr": 0.02, "cache": False}
    smoother, control = smooth(original, **{**knobs, name: weight}), smooth(original, **{**knobs, name: 1e-9})
    after, without = (measured(name, each.module, original.data) for each in (smoother, control))
    assert after < min(without, measured(name, original.module, original.data))
    assert smoother.value > 0.5


def test_predictions_are_held_to_their_mean_from_the_second_epoch_on() -> None:
    knobs = {"lip": 0.0, "view": 0.0, "cache": False}
    held, free = smooth(teacher(), time=50.0, epochs=2, **knobs), smooth(teacher(), time=1e-9, epochs=2, **knobs)
    assert not same(held.module, free.module) and held.about["smoothed"]["epochs"] == 2
    with pytest.raises(TeacherError, match="time compares epochs, and share=0.15 of 6 is one"):
        autokd.smooth(teacher(), time=1.0)


def test_without_penalties_nothing_changes() -> None:
    original = teacher()
    smoother = smooth(original, lip=0, view=0)
    assert same(smoother.module, original.module) and smoother.module is not original.module


def test_a_module_of_ones_own_is_smoothed_and_kept_with_its_builder(own_cache: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = Coarse()
    plain = smooth(Teacher(own, images(60)), lip=1e-4, jac=0.1, tv=0.1)
    assert not same(plain.module, own) and not plain.can_be_saved and not list(own_cache.rglob(ABOUT))
    built = smooth(Teacher(own, images(60), builder=BUILDER), lip=1e-4, jac=0.1, tv=0.1)
    assert same(Teacher.load(built.save(tmp_path / "saved")).module, plain.module) and list(own_cache.rglob(ABOUT))


def test_vectors_have_no_second_view() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    data = Data(rows, (rows[:, 0] > 0).astype(int))
    torch.manual_seed(0)
    linear = Teacher(nn.Linear(5, 2), data)
    smoother = smooth(linear, lip=0.01)
    assert smoother.about["smoothed"]["view"] == 0 and not same(linear.module, smoother.module)


def test_a_share_of_the_schedule_is_trained() -> None:
    told: list[tuple[int, int, float]] = []
    autokd.smooth(teacher(), share=0.3, cache=False, on_epoch=lambda *epoch: told.append(epoch))
    assert [epoch[:2] for epoch in told] == [(1, 2), (2, 2)], "0.3 of the six it was fitted for"


def test_a_command_line_may_ask_for_it(tmp_path: Path) -> None:
    folder = str(teacher(150).save(tmp_path / "saved"))
    assert same(teacher_of(folder, None, None, False).module, expert())
    smoother = teacher_of(folder, None, None, False, smoother=True)
    assert smoother.name == "expert-smooth" and smoother.about["smoothed"]["of"] == teacher(150).fingerprint


# ---- what is refused


class Deaf(nn.Module):
    """Logits without a linear layer or maps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


class Uncopied(Coarse):
    def __deepcopy__(self, memo: object) -> Uncopied:
        raise RuntimeError("one of a kind\nreally")


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"lip": -1.0}, "must be 0 or more, got lip=-1.0"),
        ({"tv": float("nan")}, "got tv=nan"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"share": 0.0}, r"share in \(0, 1\]"),
        ({"share": 1.5}, "got share=1.5 of 1"),
        ({"epochs": 0}, "got share=1.0 of 0"),
        ({"lr": 1e25, "epochs": 3}, "no longer a number"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        smooth(teacher(), **knobs)


def test_penalties_on_what_a_teacher_does_not_have_are_refused() -> None:
    deaf = Teacher(Deaf(), images(60))
    with pytest.raises(TeacherError, match="view and jac compare embeddings"):
        smooth(deaf)
    with pytest.raises(TeacherError, match="tv smooths stage maps"):
        smooth(deaf, view=0, tv=1)
    with pytest.raises(TeacherError, match="copying it raised: one of a kind$"):
        smooth(Teacher(Uncopied(), images(60)))
