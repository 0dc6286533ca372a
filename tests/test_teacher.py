"""Teachers: fitted, cached, saved, loaded, and refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CLASSES, images, network, weights
from torch import Tensor, nn

from autokd.core import checkpoint
from autokd.data import Data
from autokd.errors import AutokdError, InputError, TeacherError
from autokd.teacher import ABOUT, WEIGHTS, Teacher, cache_folder


class Own(nn.Module):
    """A teacher of one's own, with tied weights and a buffer."""

    def __init__(self, width: int = CLASSES, dropout: float = 0.5) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.head, self.drop = nn.Linear(64, width), nn.Dropout(dropout)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(self.second(self.first(x.flatten(1)).relu())) * self.scale)
        return logits


class Raises(Own):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("expects 3 channels\nand more")


class Constant(Own):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0 + torch.eye(CLASSES)[0]


def not_a_module() -> str:
    return "teacher"


def needs(argument: int) -> nn.Module:
    return Own(argument)


BUILDER = f"{__name__}:Own"


def fitted(data: Data | None = None, **more: object) -> Teacher:
    settings = {"family": "mlp", "spec": {"width": 16, "depth": 1}, "epochs": 5, **more}
    return Teacher.fit(images() if data is None else data, **settings)  # type: ignore[arg-type]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own, and one core: others may be busy with other tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("autokd.teacher.cpu_count", lambda: 1)
    assert cache_folder().is_relative_to(tmp_path)
    return tmp_path / "cache"


def same(one: Teacher, other: Teacher) -> bool:
    return one.fingerprint == other.fingerprint


# ---- fitting and its cache


def test_a_fitted_teacher_knows_its_data_and_is_cached(own_cache: Path) -> None:
    told: list[tuple[int, int, float]] = []
    first = fitted(on_epoch=lambda *epoch: told.append(epoch))
    assert [epoch[:2] for epoch in told] == [(n, 5) for n in range(1, 6)]
    assert first.value == pytest.approx(told[-1][2]) and first.value > 0.8
    first.require_knowledge()
    told.clear()
    again = fitted(on_epoch=lambda *epoch: told.append(epoch))
    assert not told and same(first, again) and again.name == first.name == "mlp-tiny"
    assert not list(own_cache.rglob("*.npy")), "a cached teacher is given its data, which need not lie there twice"


@pytest.mark.parametrize("other", [{"seed": 1}, {"epochs": 4}, {"spec": {"width": 17, "depth": 1}}, {"cache": False}])
def test_another_setting_is_another_teacher(own_cache: Path, other: dict[str, object]) -> None:
    told: list[int] = []
    fitted()
    fitted(on_epoch=lambda *epoch: told.append(epoch[0]), **other)
    assert told


def test_other_data_is_another_teacher(own_cache: Path) -> None:
    told: list[int] = []
    fitted()
    fitted(images(seed=5), on_epoch=lambda *epoch: told.append(epoch[0]))
    assert told


@pytest.mark.parametrize("damage", ["flip", "truncate", "no json", "another format", "list", "empty"])
def test_a_damaged_cache_is_trained_again(own_cache: Path, damage: str) -> None:
    first = fitted()
    [about] = own_cache.rglob(ABOUT)
    file = about.with_name(WEIGHTS)
    if damage == "flip":
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        texts = {"no json": "\xff{", "another format": '{"format": 99}', "list": "[]", "empty": ""}
        about.write_text(texts[damage])
    told: list[int] = []
    again = fitted(on_epoch=lambda *epoch: told.append(epoch[0]))
    assert told and again.value == pytest.approx(first.value, abs=0.2)
    told.clear()
    fitted(on_epoch=lambda *epoch: told.append(epoch[0]))
    assert not told, "the cache is whole again"


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fitted(epochs=1).value > 0


def test_fitting_leaves_the_threads_alone(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autokd.teacher.cpu_count", lambda: 2)
    before = torch.get_num_threads()
    fitted(epochs=1).metrics  # noqa: B018 (measured when looked at)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"family": "resnte"}, "did you mean 'resnet'"),
        ({"epochs": 0}, "at least 1 epoch"),
        ({"spec": {"widht": 8}}, "did you mean 'width'"),
        ({"spec": {"width": -1}}, "'width' must be"),
    ],
)
def test_what_cannot_be_fitted_is_refused(own_cache: Path, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fitted(**wrong)


def test_a_teacher_that_diverges_is_told(own_cache: Path) -> None:
    data = Data(np.full((60, 64), 1e30, dtype=np.float32) * np.arange(60)[:, None], np.arange(60) % 3)
    try:
        assert fitted(data).value >= 0  # normalised away, which is as good
    except TeacherError as error:
        assert "could not be trained" in str(error)


# ---- a module of one's own


def test_a_module_is_used_as_it_is_but_never_trained() -> None:
    module = Own().train()
    before = weights(module)
    teacher = Teacher(module, images())
    assert teacher.module is module and not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert 0 <= teacher.value <= 1 and teacher.value == teacher.evaluate(teacher.data.val)["accuracy"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert teacher.cost.params == sum(parameter.numel() for parameter in module.parameters())


def test_a_module_of_the_wrong_width_is_refused() -> None:
    with pytest.raises(TeacherError, match=r"must put out \(rows, classes\) = \(2, 3\) logits, got \(2, 10\)"):
        Teacher(Own(width=10), images())


def test_what_a_module_raises_is_told_in_one_line() -> None:
    with pytest.raises(TeacherError, match=r"raised on rows of shape \(2, 1, 8, 8\) .*: expects 3 channels$"):
        Teacher(Raises(), images())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("net", images()), "must be a torch nn.Module, got str"),
        ((Own(), (1, 2)), "must be an autokd.Data, got tuple"),
        ((Own(), images(), "clasification"), "did you mean 'classification'"),
    ],
)
def test_wrong_arguments_are_told(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        Teacher(*arguments[:2], **({"task": arguments[2]} if len(arguments) > 2 else {}))  # type: ignore[arg-type]


def test_a_teacher_at_chance_is_refused() -> None:
    teacher = Teacher(Constant(), images())
    assert teacher.value == pytest.approx(1 / 3, abs=0.05)
    with pytest.raises(
        TeacherError, match=r"must know more than chance: its validation accuracy is 0\.333, chance is 0\.333"
    ):
        teacher.require_knowledge()


# ---- saving and loading


def test_a_module_of_ones_own_is_saved_with_its_builder(tmp_path: Path) -> None:
    module = Own()
    with torch.no_grad():
        module.head.weight.add_(1)
    teacher = Teacher(module, images(), name="mine", builder=BUILDER)
    assert teacher.can_be_saved
    teacher.save(tmp_path / "saved")
    moved = (tmp_path / "saved").rename(tmp_path / "moved")
    again = Teacher.load(moved)
    assert same(teacher, again) and (again.name, again.builder) == ("mine", BUILDER)
    assert again.data.fingerprint == teacher.data.fingerprint and again.value == teacher.value
    assert same(teacher, Teacher.load(again.save(tmp_path / "once more")))
    assert same(teacher, Teacher.load(moved, teacher.data))


def test_a_registered_family_is_saved_without_one(own_cache: Path, tmp_path: Path) -> None:
    teacher = fitted()
    again = Teacher.load(teacher.save(tmp_path / "saved"))
    assert same(teacher, again) and again.can_be_saved


def test_a_module_nobody_can_build_is_not_saved(tmp_path: Path) -> None:
    teacher = Teacher(Own(), images())
    assert not teacher.can_be_saved
    with pytest.raises(TeacherError, match="only be saved with builder='module:attribute'"):
        teacher.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("builder", ["Own", "no.such.module:make", f"{__name__}:nothing", "", ":", "json:"])
def test_a_builder_that_cannot_be_found_is_told_at_once(builder: str) -> None:
    with pytest.raises(TeacherError, match="must name an importable function"):
        Teacher(Own(), images(), builder=builder)


@pytest.mark.parametrize(
    "builder, message", [("needs", "must take no arguments"), ("not_a_module", "must return an nn.Module")]
)
def test_a_builder_that_makes_no_module_is_told_on_loading(tmp_path: Path, builder: str, message: str) -> None:
    Teacher(Own(), images(), builder=f"{__name__}:{builder}").save(tmp_path)
    with pytest.raises(TeacherError, match=message):
        Teacher.load(tmp_path)


def test_weights_of_another_architecture_are_told(tmp_path: Path) -> None:
    Teacher(Own(), images(), builder=BUILDER).save(tmp_path)
    checkpoint.save(tmp_path / WEIGHTS, network().state_dict(), {})
    with pytest.raises(TeacherError, match="do not fit its architecture") as caught:
        Teacher.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_other_data_are_not_the_same_teacher() -> None:
    module = Own()
    assert not same(Teacher(module, images()), Teacher(module, images(seed=3)))


def test_a_folder_without_a_teacher_is_told(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="must hold a readable teacher.json"):
        Teacher.load(tmp_path)
    with pytest.raises(TeacherError, match="needs its data"):
        Teacher.load("models:/mine/1")


def test_no_change_of_the_description_gives_a_traceback(own_cache: Path, tmp_path: Path) -> None:
    """Every value of it replaced by one of each kind: the teacher is loaded, or one of our own errors says why not."""
    teacher = fitted()
    teacher.save(tmp_path)
    about = json.loads((tmp_path / ABOUT).read_text())
    for name in about:
        for value in (None, 7, "x", [], {}, {"width": "y"}):
            (tmp_path / ABOUT).write_text(json.dumps({**about, name: value}))
            try:
                Teacher.load(tmp_path, teacher.data)
            except AutokdError as error:
                assert "\n" not in str(error)
        (tmp_path / ABOUT).write_text(json.dumps({key: kept for key, kept in about.items() if key != name}))
        try:
            Teacher.load(tmp_path, teacher.data)
        except AutokdError as error:
            assert "\n" not in str(error)
