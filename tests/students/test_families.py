"""The battery over every family that can be searched; then what each promises of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autokd.errors import InputError, RecipeError
from autokd.protocols import StudentFamily
from autokd.students import FAMILIES, families_rules
from autokd.students.describe import count, describe
from autokd.students.normalise import set_normalisation
from autokd.students.tap import Tap
from tests.students.battery import Battery, check_logits_and_gradients, check_torch_export

torch.set_num_threads(1)
SMALL = {
    "resnet": {"width": 4, "depth1": 1, "depth2": 1, "depth3": 1},
    "plain": {"width": 4, "depth1": 2, "depth2": 1, "depth3": 1},
    "mobilenet": {"width": 4, "depth1": 1, "depth2": 2, "depth3": 1, "expand": 2},
    "mlp": {"width": 8, "depth": 2},
}
IMAGE_FAMILIES = ("resnet", "plain", "mobilenet")
SHAPE = (3, 16, 16)


def small(name: str, shape: tuple[int, ...] = SHAPE, classes: int = 5) -> nn.Module:
    return FAMILIES[name].build(SMALL[name], shape, classes)


@pytest.mark.parametrize("name", SMALL)
class TestEverySearchedFamily(Battery):
    specs, shape = SMALL, SHAPE

    def test_is_a_family_whose_defaults_and_bounds_keep_its_own_rules(self, name):
        family = FAMILIES[name]
        assert isinstance(family, StudentFamily)
        for rule in family.fields.values():
            assert all(rule.broken_by(value) is None for value in (rule.default, int(rule.low), int(rule.high)))
        assert families_rules()[name] is family.fields

    @pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (3, 32, 32)], ids=str)
    def test_takes_every_shape(self, name, shape):
        check_logits_and_gradients(small(name, shape), shape)

    def test_torch_export_gives_the_same_logits_for_any_batch(self, name):
        check_torch_export(small(name), SHAPE)

    def test_stages_are_named_submodules_that_halve(self, name):
        module = small(name)
        shapes = Tap(module, torch.rand(2, *SHAPE)).shapes
        expected = () if name == "mlp" else ((4, 16, 16), (8, 8, 8), (16, 4, 4))
        assert shapes.stages == expected
        assert shapes.embedding == module.head.in_features

    def test_unknown_fields_and_values_outside_the_range_are_refused(self, name):
        with pytest.raises(RecipeError, match="did you mean 'width'"):
            FAMILIES[name].build({"widht": 8}, SHAPE, 5)
        with pytest.raises(RecipeError, match=r"'width' must be int in \[4, \d+\], got 3"):
            FAMILIES[name].build({"width": 3}, SHAPE, 5)


@pytest.mark.parametrize("name", IMAGE_FAMILIES)
class TestImageFamilies:
    @pytest.mark.parametrize("shape", [(4,), (1, 7, 8), (3, 8)], ids=str)
    def test_refuses_what_is_no_image_of_8x8(self, name, shape):
        misfit = FAMILIES[name].misfit(shape)
        assert misfit is not None
        assert "8x8" in misfit
        assert "\n" not in misfit

    def test_takes_images(self, name):
        assert FAMILIES[name].misfit((1, 8, 8)) is None

    @pytest.mark.parametrize(("side", "first"), [(63, 63), (64, 32), (96, 48), (128, 32), (224, 56)])
    def test_large_images_are_shrunk_by_the_stem(self, name, side, first):
        module = small(name, (3, side, side))
        stages = Tap(module, torch.rand(1, 3, side, side)).shapes.stages
        assert stages[0 if name != "plain" else 0][1] == first

    def test_depth_0_leaves_a_stage_out(self, name):
        module = FAMILIES[name].build(SMALL[name] | {"depth2": 0}, SHAPE, 5)
        assert module.stage_names == ("stage1", "stage3")
        assert Tap(module, torch.rand(2, *SHAPE)).shapes.stages == ((4, 16, 16), (16, 8, 8))

    def test_every_depth_counts(self, name):
        params = [describe(FAMILIES[name], SMALL[name] | {"depth3": depth}, SHAPE, 5).params for depth in range(4)]
        assert params == sorted(set(params))


def test_resnet20_has_the_published_size():
    """He et al. 2016, table 6: 0.27 M parameters; 41 M multiply-accumulates. Ours adds two 1x1 shortcuts."""
    cost = describe(FAMILIES["resnet"], {"width": 16, "depth1": 3, "depth2": 3, "depth3": 3}, (3, 32, 32), 10)
    assert cost.params == 272_474
    assert cost.flops == pytest.approx(2 * 41e6, rel=0.02)


def test_mlp_takes_vectors_and_depth_0_is_a_linear_classifier():
    module = FAMILIES["mlp"].build({"depth": 0}, (6,), 3)
    assert FAMILIES["mlp"].misfit((6,)) is None
    assert module(torch.rand(2, 6)).shape == (2, 3)
    cost, linear = describe(FAMILIES["mlp"], {"depth": 0}, (6,), 3), count(nn.Linear(6, 3), (6,))
    assert (cost.params, cost.flops) == (linear.params, linear.flops)
    assert cost.bytes == linear.bytes + 4 * 2 * 6, "what it normalises by"
    assert "(2, 3)" in FAMILIES["mlp"].misfit((2, 3))


class TestNormalise:
    @pytest.mark.parametrize(("name", "shape"), [("plain", SHAPE), ("mlp", (3,))])
    def test_takes_raw_units_to_zero_mean_and_unit_deviation(self, name, shape):
        module = small(name, shape)
        x = torch.rand(64, *shape) * torch.tensor([1.0, 2, 3]).view(3, *(1 for _ in shape[1:])) + 5
        axes = (0, *range(2, x.dim()))
        mean, std = x.mean(axes), x.std(axes)
        assert set_normalisation(module, mean.numpy(), std.tolist())
        y = module.normalise(x)
        torch.testing.assert_close(y.mean(axes), torch.zeros(3), atol=1e-4, rtol=0)
        torch.testing.assert_close(y.std(axes), torch.ones(3), atol=1e-4, rtol=0)
        torch.testing.assert_close(module.normalise.mean, mean, atol=1e-4, rtol=0)
        torch.testing.assert_close(module.normalise.std, std)

    def test_is_the_identity_at_first_and_travels_in_the_state(self):
        module, other = small("mlp"), small("mlp")
        x = torch.rand(2, *SHAPE)
        assert torch.equal(module.normalise(x), x)
        set_normalisation(module, [0.1, 0.2, 0.3], [1, 2, 3])
        other.load_state_dict(module.state_dict())
        assert torch.equal(other.normalise(x), module.normalise(x))

    def test_refuses_what_does_not_fit(self):
        with pytest.raises(InputError, match="one number per channel, 3, got 1"):
            set_normalisation(small("mlp"), [0.5], [0.5])
        with pytest.raises(InputError, match="std must be positive"):
            set_normalisation(small("mlp"), [0.0] * 3, [1.0, 0.0, 1.0])

    def test_leaves_a_users_module_alone(self):
        assert not set_normalisation(nn.Linear(2, 2), [0.0], [1.0])
