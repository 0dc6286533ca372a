"""Published networks: the battery over one of each kind, then sizes, stage maps and smallest images of all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from autokd.core.fused import Stacked
from autokd.data import Data
from autokd.errors import RecipeError, SpaceError
from autokd.protocols import StudentFamily
from autokd.recipe import Recipe
from autokd.rules import Vocabulary
from autokd.space import Space
from autokd.students import FAMILIES, families_rules
from autokd.students.describe import describe
from autokd.students.tap import Tap
from autokd.students.zoo import ZOO
from autokd.teacher import Teacher
from tests.students.battery import Battery, check_torch_export
from tests.students.test_families import SMALL
from tests.tiny import images

torch.set_num_threads(1)
KINDS = ("resnet8x4", "wrn_16_2", "vgg8", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2")
SHAPE = (3, 32, 32)

# As published for 100 classes, in millions, and to the parameter as the layers of the definitions add up.
COUNTED = {
    "resnet20": (0.28, 278_324),
    "resnet32": (0.47, 472_756),
    "resnet56": (0.86, 861_620),
    "resnet110": (1.74, 1_736_564),
    "resnet8x4": (1.23, 1_233_540),
    "resnet32x4": (7.43, 7_433_860),
    "wrn_16_2": (0.70, 703_284),
    "wrn_40_1": (0.57, 569_780),
    "wrn_40_2": (2.26, 2_255_156),
    "vgg8": (3.97, 3_965_028),
    "vgg13": (9.46, 9_462_180),
    "mobilenet_v2": (0.81, 812_836),
    "shufflenet_v1": (0.95, 949_258),
    "shufflenet_v2": (1.36, 1_355_528),
}
STAGES = {  # what the benchmark compares; the embedding
    "resnet20": ((16, 32, 32), (32, 16, 16), (64, 8, 8), 64),
    "resnet8x4": ((64, 32, 32), (128, 16, 16), (256, 8, 8), 256),
    "wrn_16_2": ((32, 32, 32), (64, 16, 16), (128, 8, 8), 128),
    "wrn_40_1": ((16, 32, 32), (32, 16, 16), (64, 8, 8), 64),
    "vgg8": ((128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4), 512),
    "mobilenet_v2": ((12, 16, 16), (16, 8, 8), (48, 4, 4), (160, 2, 2), 1280),
    "shufflenet_v1": ((240, 16, 16), (480, 8, 8), (960, 4, 4), 960),
    "shufflenet_v2": ((116, 16, 16), (232, 8, 8), (464, 4, 4), 1024),
}
SAME = {"resnet32": "resnet20", "resnet56": "resnet20", "resnet110": "resnet20", "resnet32x4": "resnet8x4"}
SAME |= {"wrn_40_2": "wrn_16_2", "vgg13": "vgg8"}


def test_every_family_is_in_a_battery() -> None:
    assert set(FAMILIES) == {*SMALL, *ZOO}
    assert {ZOO[name].make for name in KINDS} == {published.make for published in ZOO.values()}


@pytest.mark.parametrize("name", KINDS)
class TestEveryKind(Battery):
    specs, shape = dict.fromkeys(KINDS, {}), (3, 20, 20)


@pytest.mark.parametrize("name", ZOO)
class TestEveryNetwork:
    def test_is_a_family_without_fields(self, name: str) -> None:
        assert isinstance(ZOO[name], StudentFamily)
        assert (ZOO[name].name, families_rules()[name]) == (name, {})
        with pytest.raises(RecipeError, match=f"'{name}' is one published network and has no fields, got width"):
            ZOO[name].build({"width": 8}, SHAPE, 100)

    def test_has_the_published_number_of_parameters(self, name: str) -> None:
        millions, exactly = COUNTED[name]
        assert describe(ZOO[name], {}, SHAPE, 100).params == exactly
        assert round(exactly / 1e6, 2) == millions

    def test_stages_are_those_that_the_benchmark_compares(self, name: str) -> None:
        shapes = Tap(ZOO[name].build({}, SHAPE, 5), torch.rand(1, *SHAPE)).shapes
        assert (*shapes.stages, shapes.embedding) == STAGES[SAME.get(name, name)]

    def test_the_smallest_image_leaves_four_places_and_a_smaller_one_is_refused(self, name: str) -> None:
        smallest = ZOO[name].smallest
        shape = (1, smallest, smallest + 3)
        assert ZOO[name].misfit(shape) is None
        stages = Tap(ZOO[name].build({}, shape, 5), torch.rand(1, *shape)).shapes.stages
        assert min(stages[-1][1:]) == 2
        for wrong in ((3, smallest - 1, 64), (3,)):
            misfit = ZOO[name].misfit(wrong)
            assert misfit is not None and f"'{name}' needs images" in misfit and f"{smallest}x{smallest}" in misfit


def test_stages_of_a_wide_network_are_sums_before_they_are_normalised() -> None:
    module = ZOO["wrn_16_2"].build({}, (1, 8, 8), 3).eval()
    tap = Tap(module, torch.rand(2, 1, 8, 8))
    with torch.no_grad():
        outputs = tap(torch.rand(2, 1, 8, 8))
        assert all((stage < 0).any() for stage in outputs.stages)
        assert torch.equal(outputs.embedding, module.last(outputs.stages[-1]).mean((2, 3)))


def test_shuffled_channels_come_from_every_group() -> None:
    unit = ZOO["shufflenet_v2"].build({}, SHAPE, 3).stage1[1].eval()
    x = torch.rand(1, 116, 4, 4)
    with torch.no_grad():
        y = unit(x)
    assert torch.equal(y[:, 0::2], x[:, :58]), "the half that passes lies on every second channel"


@pytest.mark.parametrize("name", ["wrn_16_2", "shufflenet_v2"])
def test_torch_export_of_blocks_that_no_searched_family_has(name: str) -> None:
    check_torch_export(ZOO[name].build({}, (3, 20, 20), 5), (3, 20, 20))


@pytest.mark.parametrize("name", ["wrn_16_2", "shufflenet_v1"])
def test_stacked_peers_compute_what_separate_ones_do(name: str) -> None:
    modules: list[nn.Module] = [ZOO[name].build({}, (1, 9, 9), 3).eval() for _ in range(2)]
    x = torch.rand(4, 1, 9, 9)
    with torch.no_grad():
        for stacked, module in zip(Stacked(modules)(x), modules, strict=True):
            torch.testing.assert_close(stacked, module(x), rtol=1e-4, atol=1e-4)


def test_is_fitted_saved_and_loaded_as_a_teacher(tmp_path: Path) -> None:
    data: Data = images(60)
    teacher = Teacher.fit(data, "resnet20", epochs=1, cache=False)
    again = Teacher.load(teacher.save(tmp_path / "teacher"))
    assert again.fingerprint == teacher.fingerprint
    assert (teacher.name, teacher.about["spec"]) == ("resnet20-tiny", {})


def test_can_be_chosen_in_a_space_and_a_recipe() -> None:
    vocabulary = Vocabulary(families_rules())
    head = "version: 1\nepochs: {max: 9}\nfields:\n  student.family: {choice: [wrn_16_2, vgg8]}\n"
    assert Space.parse(head, vocabulary).recipe({"student.family": "vgg8"}).student.family == "vgg8"
    Recipe.from_dict({"student": {"family": "wrn_16_2"}}).check(vocabulary)
    with pytest.raises(SpaceError, match="width"):
        Space.parse(f"{head}  student.wrn_16_2.width: 8\n", vocabulary)
