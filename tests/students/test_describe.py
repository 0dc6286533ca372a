"""Costs without training: against closed forms, and for families that cannot be built on the meta device."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from autokd.errors import InputError
from autokd.students import FAMILIES, resolve
from autokd.students.describe import Cost, _measure, count, describe

torch.set_num_threads(1)


def test_flops_are_twice_the_multiply_accumulates_of_one_sample():
    conv = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=True), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 6 * 4, 7))
    weights = 3 * 5 * 9 + 5 + 120 * 7 + 7
    memory = 4 * (3 * 6 * 4 + 2 * 120)  # the input, what the convolution put out, and the rectifier's copy of it
    assert count(conv, (3, 6, 4)) == Cost(weights, 2 * (3 * 5 * 9 * 24 + 120 * 7), 4 * weights, memory)


def test_count_leaves_modes_and_statistics_alone():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 2))
    module[2].eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    count(module, (1, 8, 8))
    assert [module.training, module[1].training, module[2].training] == [True, True, False]
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_shared_weights_count_once():
    layer = nn.Linear(4, 4)
    assert count(nn.Sequential(layer, layer), (4,)) == Cost(20, 64, bytes=80, memory=4 * 4 * 3)


def test_memory_follows_what_is_alive():
    """A residual sum holds its skip; views and what is written in place hold nothing of their own."""

    class Residual(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kept = x.flatten(1).unflatten(1, (2, 3)).mul(2).relu_()
            return kept.mul(3).mul(4).add_(kept).flatten(1)[:, :2]

    assert count(Residual(), (6,)).memory == 4 * (6 + 3 * 6)


def test_bytes_are_those_of_the_delivered_weights(tmp_path: Path):
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    tensors = dict(module.state_dict())
    assert count(module, (1, 8, 8)).bytes == sum(t.nbytes for t in tensors.values())
    save_file(tensors, tmp_path / "weights.safetensors")
    header = int.from_bytes((tmp_path / "weights.safetensors").read_bytes()[:8], "little") + 8
    assert (tmp_path / "weights.safetensors").stat().st_size - header == count(module, (1, 8, 8)).bytes


class NeedsNumbers(nn.Module):
    """Looks at its weights while it is built, which the meta device cannot do."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(4, classes)
        if self.head.weight.abs().sum().item() == 0:
            raise ValueError("dead")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


def test_falls_back_to_a_real_module_and_keeps_the_generator():
    before = torch.get_rng_state()
    assert describe(resolve(NeedsNumbers), {}, (4,), 3) == Cost(15, 24, bytes=60, memory=4 * (4 + 3))
    assert torch.equal(before, torch.get_rng_state())


def test_output_unlike_the_classes_is_one_clear_line():
    with pytest.raises(InputError, match=r"student family 'wide' must put out 3 classes, got \(5,\)") as caught:
        describe(resolve(lambda: nn.Linear(4, 5)), {}, (4,), 3, name="wide")
    assert "\n" not in str(caught.value)


def test_a_module_that_cannot_take_the_inputs_is_one_clear_line():
    with pytest.raises(InputError, match=r"must take inputs of \(4,\), but RuntimeError: ") as caught:
        describe(resolve(lambda: nn.Linear(9, 3)), {}, (4,), 3)
    assert "\n" not in str(caught.value)


def test_defaults_and_missing_fields_share_one_entry_and_unhashable_families_work():
    class Unhashable:
        __hash__ = None
        fields = FAMILIES["mlp"].fields
        misfit, build = FAMILIES["mlp"].misfit, FAMILIES["mlp"].build

    spec = {name: rule.default for name, rule in FAMILIES["mlp"].fields.items()}
    cost = describe(FAMILIES["mlp"], {}, (4,), 3)
    assert describe(FAMILIES["mlp"], spec, (4,), 3) is cost
    assert describe(Unhashable(), {}, (4,), 3) == cost


def test_is_quick():
    """A few ms uncached on one core; the bound is loose because test machines are shared."""
    spec = tuple({"width": 16, "depth1": 1, "depth2": 1, "depth3": 1}.items())
    _measure(FAMILIES["resnet"], spec, (3, 32, 32), 10, "resnet")
    took = []
    for _ in range(5):
        start = time.perf_counter()
        _measure(FAMILIES["resnet"], spec, (3, 32, 32), 10, "resnet")
        took.append(time.perf_counter() - start)
    assert min(took) < 0.05
