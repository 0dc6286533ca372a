"""What every network of every family promises: searched ones in `test_families.py`, published ones in `test_zoo.py`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from autokd.students import FAMILIES
from autokd.students.describe import count, describe
from autokd.students.normalise import Normalise


def check_logits_and_gradients(module: nn.Module, shape: tuple[int, ...]) -> None:
    logits = module(torch.rand(4, *shape))
    assert logits.shape == (4, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def check_torch_export(module: nn.Module, shape: tuple[int, ...]) -> None:
    """The same logits, for any batch. Takes seconds for a deep network."""
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(module.eval(), (torch.rand(2, *shape),), dynamic_shapes=({0: batch},))
    x = torch.rand(7, *shape)
    torch.testing.assert_close(program.module()(x), module(x))


class Battery:
    """For a subclass that is parametrised by `name`."""

    specs: ClassVar[Mapping[str, Mapping[str, Any]]]  # a small network of each family
    shape: ClassVar[tuple[int, ...]]

    def small(self, name: str) -> nn.Module:
        return FAMILIES[name].build(self.specs[name], self.shape, 5)

    def test_gives_logits_and_gradients_to_every_parameter(self, name):
        check_logits_and_gradients(self.small(name), self.shape)

    def test_normalises_first_and_ends_in_head(self, name):
        module = self.small(name)
        assert isinstance(next(iter(module.children())), Normalise)
        assert isinstance(module.head, nn.Linear)
        assert module.head.out_features == 5

    def test_equal_seeds_give_equal_weights(self, name):
        torch.manual_seed(3)
        one = self.small(name).state_dict()
        torch.manual_seed(3)
        two = self.small(name).state_dict()
        assert all(torch.equal(one[key], two[key]) for key in one)

    def test_activations_neither_vanish_nor_explode_at_the_start(self, name):
        torch.manual_seed(0)
        module = FAMILIES[name].build({}, self.shape, 5)
        logits = module(torch.randn(16, *self.shape))
        assert 0.05 < logits.std() < 5

    def test_runs_in_bfloat16_channels_last(self, name):
        module = self.small(name).to(memory_format=torch.channels_last)
        x = torch.rand(4, *self.shape).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = module(x)
        assert torch.isfinite(logits).all()
        logits.float().sum().backward()

    def test_describe_agrees_with_the_real_module_and_draws_no_random_number(self, name):
        before = torch.get_rng_state()
        cost = describe(FAMILIES[name], self.specs[name], self.shape, 5)
        assert torch.equal(before, torch.get_rng_state())
        module = self.small(name)
        assert cost.params == sum(p.numel() for p in module.parameters())
        assert cost == count(module, self.shape)
        assert describe(FAMILIES[name], dict(reversed(self.specs[name].items())), self.shape, 5) is cost

    def test_deep_copies_are_independent(self, name):
        module = self.small(name)
        twin = copy.deepcopy(module)
        with torch.no_grad():
            twin.head.weight.zero_()
        assert module.head.weight.abs().sum() > 0
