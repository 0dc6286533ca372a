"""Outputs of networks that were not written for autokd."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from autokd.errors import InputError
from autokd.protocols import Shapes
from autokd.students.tap import Tap, logits_of

torch.set_num_threads(1)


class Block(nn.Module):
    """As torchvision's BasicBlock: one ReLU module used twice, shortcut only where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class UserResNet(nn.Module):
    """Laid out as torchvision's resnet18, narrower; the last stage shares its size with none."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(Block(4, 4, 1), Block(4, 4, 1))
        self.layer2 = nn.Sequential(Block(4, 8, 2), Block(8, 8, 1))
        self.layer3 = nn.Sequential(Block(8, 12, 2), Block(12, 12, 1))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(12, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer1(self.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Functional(nn.Module):
    """Everything but the weights is a function, one convolution is used at two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.hidden = nn.Linear(16, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.shared(functional.relu(self.first(x))))
        x = functional.relu(self.shared(functional.max_pool2d(x, 2)), inplace=True)
        x = functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.out(functional.relu(self.hidden(x)))


X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_stages_and_embedding_of_a_torchvision_like_network_are_its_layers():
    module = UserResNet().eval()
    tap = Tap(module, X)
    assert tap.shapes == Shapes(5, 12, ((4, 16, 16), (8, 8, 8), (12, 4, 4)))
    expected: dict[str, torch.Tensor] = {}
    for name in ("layer1", "layer2", "layer3"):
        module.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: expected.update({name: y}))
    outputs = tap(X)
    assert all(got is want for got, want in zip(outputs.stages, expected.values(), strict=True))
    torch.testing.assert_close(outputs.embedding, expected["layer3"].mean((2, 3)))
    torch.testing.assert_close(outputs.logits, module.fc(outputs.embedding))


def test_torchvision_resnet18_itself():
    models = pytest.importorskip("torchvision.models")
    tap = Tap(models.resnet18(num_classes=7), torch.rand(1, 3, 64, 64))
    assert tap.shapes == Shapes(7, 512, ((64, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)))


def test_reused_modules_functional_relu_and_nested_networks():
    inner = Functional()
    tap = Tap(nn.Sequential(nn.Identity(), nn.ModuleDict({"net": inner})["net"]), torch.rand(1, 1, 8, 8))
    assert tap.shapes == Shapes(3, 6, ((4, 8, 8), (4, 4, 4)))
    x = torch.rand(3, 1, 8, 8)
    outputs = tap(x)
    first = functional.relu(inner.shared(functional.relu(inner.first(x))))
    torch.testing.assert_close(functional.relu(outputs.stages[0]), first)
    torch.testing.assert_close(inner.out(outputs.embedding), outputs.logits)


def test_stage_names_come_first():
    module = UserResNet()
    module.stage_names = ("layer3", "layer1.0")
    tap = Tap(module, X)
    assert tap.shapes.stages == ((12, 4, 4), (4, 16, 16))
    assert [tuple(stage.shape[1:]) for stage in tap(X).stages] == [(12, 4, 4), (4, 16, 16)]


@pytest.mark.parametrize(
    ("names", "message"), [(("layer9",), "no submodule; did you mean 'layer"), (("fc",), "'fc' must put out")]
)
def test_stage_names_that_do_not_fit_are_refused(names, message):
    module = UserResNet()
    module.stage_names = names
    with pytest.raises(InputError, match=message):
        Tap(module, X)


def test_probing_touches_no_mode_no_statistic_no_hook():
    module = UserResNet()
    module.layer1.eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    tap = Tap(module, X, want=frozenset({"logits"}))
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    outputs = tap(X)
    assert outputs.embedding is None
    assert outputs.stages == ()
    assert tap.shapes.embedding == 12


def test_a_network_that_raises_gets_its_modes_back():
    module = UserResNet()
    with pytest.raises(RuntimeError):
        Tap(module, torch.rand(1, 4, 16, 16))
    assert all(part.training for part in module.modules())
    assert not any(part._forward_hooks for part in module.modules())


def test_only_what_is_wanted_is_hooked():
    module = UserResNet()
    outputs = Tap(module, X, want=frozenset({"embedding"}))(X)
    assert outputs.embedding is not None
    assert outputs.stages == ()
    assert sum(len(part._forward_hooks) for part in module.modules()) == 1
    with pytest.raises(InputError, match="did you mean 'logits'"):
        Tap(module, X, want=frozenset({"logit"}))


def test_gradients_reach_the_weights_through_every_output_in_train_mode():
    module = UserResNet().train()
    outputs = Tap(module, X)(X)
    sum(stage.sum() for stage in outputs.stages).backward(retain_graph=True)
    assert module.conv1.weight.grad.abs().sum() > 0
    assert module.fc.weight.grad is None
    outputs.embedding.sum().backward(retain_graph=True)
    outputs.logits.sum().backward()
    assert module.fc.weight.grad.abs().sum() > 0


def test_nothing_is_kept_between_calls_nor_of_calls_by_others():
    module = UserResNet()
    tap = Tap(module, X)
    kept: list[weakref.ref] = []
    handle = module.layer2.register_forward_hook(lambda _, __, y: kept.append(weakref.ref(y)))
    tap(X)
    module(X)
    gc.collect()
    assert [ref() for ref in kept] == [None, None]
    handle.remove()
    with pytest.raises(RuntimeError):
        tap(torch.rand(1, 4, 16, 16))
    torch.testing.assert_close(tap(X).stages[0].shape, torch.Size([2, 4, 16, 16]))


def test_two_taps_share_a_network_and_close_is_final():
    module = UserResNet().eval()
    one, two = Tap(module, X), Tap(module, X)
    one.close()
    one.close()
    assert one(X).stages == ()
    assert len(two(X).stages) == 3
    two.close()
    assert not any(part._forward_hooks for part in module.modules())


def test_networks_without_linear_or_maps():
    pooled = nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert Tap(pooled, X).shapes == Shapes(5, 0, ((5, 16, 16),))
    assert Tap(pooled, X)(X).embedding is None
    assert Tap(nn.Linear(4, 2), torch.rand(1, 4)).shapes == Shapes(2, 4, ())


def test_a_gate_is_no_classifier_and_token_axes_are_no_stages():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.tokens, self.conv = nn.Linear(3, 4), nn.Linear(3, 8), nn.Conv2d(3, 5, 4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.tokens(x.permute(0, 2, 3, 1))  # (N, 16, 16, 8): 4-D, but height and width are not last
            maps = self.conv(x) * self.gate(x.mean((2, 3))).mean()
            return maps.mean((2, 3))

    assert Tap(Gated(), X).shapes == Shapes(5, 0, ((5, 4, 4),))


LOGITS = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"logits": LOGITS},
        {"out": LOGITS, "aux": None},
        SimpleNamespace(logits=LOGITS),
        (LOGITS, None),
        [LOGITS],
    ],
)
def test_logits_are_found(output):
    assert logits_of(output) is LOGITS


@pytest.mark.parametrize("output", [None, {"aux": LOGITS}, (), ("a",), SimpleNamespace(other=1), {"logits": None}])
def test_other_outputs_are_refused(output):
    with pytest.raises(InputError, match="must return logits"):
        logits_of(output)


def test_logits_of_another_rank_are_refused():
    with pytest.raises(InputError, match=r"logits \(rows, classes\), got \(2, 4, 16, 16\)"):
        Tap(nn.Conv2d(3, 4, 1), X)
