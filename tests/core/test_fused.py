"""Stacked networks compute what separate ones do: values, gradients, running statistics."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from steps import batch_of
from tiny import CLASSES, network, weights
from torch import Tensor, nn
from torch.nn import functional

from autokd.core.fused import Stacked, alike, pays
from autokd.core.graphs import CudaCapture, Graphed, Twin
from autokd.peers.mutual import peer_losses
from autokd.protocols import Batch, Outputs

FAMILIES = ["resnet", "plain", "mobilenet", "mlp"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def three(family: str = "resnet", device: str = "cpu", **spec: Any) -> list[nn.Module]:
    return [network(family, seed=seed, **spec).to(device, memory_format=torch.channels_last) for seed in (1, 2, 3)]


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


# ---- the same results


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("device", DEVICES)
def test_values_gradients_and_statistics_are_those_of_separate_calls(device: str, family: str, training: bool) -> None:
    modules = [module.train(training) for module in three(family, device)]
    others = copy.deepcopy(modules)
    batch = batch_of(device=device)
    stacked, separate = Stacked(modules)(batch.x), [module(batch.x) for module in others]
    for logits in (stacked, separate):
        sum(functional.cross_entropy(each, batch.y) * (place + 1) for place, each in enumerate(logits)).backward()
    for place, (module, other) in enumerate(zip(modules, others, strict=True)):
        assert close(stacked[place], separate[place])
        assert all(close(a.grad, b.grad) for a, b in zip(module.parameters(), other.parameters(), strict=True))
        assert all(close(a.float(), b.float()) for a, b in zip(module.buffers(), other.buffers(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_statistics_move_in_training_only(family: str) -> None:
    modules = three(family)
    before = [weights(module) for module in modules]
    with torch.no_grad():
        Stacked([module.eval() for module in modules])(batch_of().x)
    assert all(
        torch.equal(a, b[name]) for m, b in zip(modules, before, strict=True) for name, a in m.state_dict().items()
    )
    Stacked([module.train() for module in modules])(batch_of().x)
    moved = [name for name, after in modules[2].state_dict().items() if not torch.equal(after, before[2][name])]
    assert moved and all("running" in name or "num_batches" in name for name in moved)


def test_parameters_stay_those_of_the_networks() -> None:
    modules = three()
    before = [id(parameter) for module in modules for parameter in module.parameters()]
    Stacked(modules)(batch_of().x)
    assert before == [id(parameter) for module in modules for parameter in module.parameters()]
    assert all(parameter.is_leaf for module in modules for parameter in module.parameters())


def test_logits_in_other_wrappings_are_found() -> None:
    class Named(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.inner(x)}

    modules = [module.eval() for module in three("mlp")]
    given, plain = Stacked([Named(module) for module in modules])(batch_of().x), Stacked(modules)(batch_of().x)
    assert all(torch.equal(a, b) for a, b in zip(given, plain, strict=True))


def test_dropout_differs_between_the_networks() -> None:
    modules = [nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, CLASSES)) for _ in range(2)]
    modules[1].load_state_dict(modules[0].state_dict())
    one, other = Stacked(modules)(batch_of().x)
    assert not torch.allclose(one, other)


def test_a_buffer_that_is_replaced_is_written_back() -> None:
    class Averaged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, CLASSES)
            self.register_buffer("mean", torch.zeros(CLASSES))

        def forward(self, x: Tensor) -> Tensor:
            logits = self.linear(x.flatten(1))
            self.mean = 0.9 * self.mean + logits.mean(0)  # type: ignore[has-type]
            return logits

    modules = [Averaged() for _ in range(2)]
    others = copy.deepcopy(modules)
    Stacked(modules)(batch_of().x)
    for module, other in zip(modules, others, strict=True):
        other(batch_of().x)
        assert isinstance(module.mean, Tensor) and close(module.mean, other.mean) and not module.mean.requires_grad


# ---- inside a recorded step


class Peers:
    """Networks that teach each other, run one by one or stacked."""

    def __init__(self, stacked: bool, device: str) -> None:
        self.modules = [module.train() for module in three("mlp", device)]
        self.stacked = Stacked(self.modules) if stacked else None
        parameters = [parameter for module in self.modules for parameter in module.parameters()]
        self.optimiser = torch.optim.SGD(parameters, lr=torch.full((), 0.1, device=device), momentum=0.9, fused=True)
        self.sum = torch.zeros((), device=device)

    def __call__(self, batch: Batch, taught: Outputs | None) -> None:
        logits = self.stacked(batch.x) if self.stacked else [module(batch.x) for module in self.modules]
        own = [functional.cross_entropy(each, batch.y) for each in logits]
        loss = torch.stack([*own, *peer_losses(logits)]).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.sum.copy_(loss.detach())


@pytest.mark.parametrize("device", DEVICES)
def test_a_recorded_step_of_stacked_peers_trains_as_separate_ones_do(device: str) -> None:
    def losses(step: Any, peers: Peers) -> Iterator[float]:
        for number in range(7):
            step(batch_of(seed=number, device=device), None)
            yield peers.sum.item()

    stacked, separate = Peers(True, device), Peers(False, device)
    graphed = Graphed(stacked, Twin() if device == "cpu" else CudaCapture(device), modules=stacked.modules)
    assert list(losses(graphed, stacked)) == pytest.approx(list(losses(separate, separate)), rel=1e-3)
    assert graphed.note == ""


# ---- which networks


def test_networks_of_one_recipe_are_alike() -> None:
    assert all(alike(three(family)) for family in FAMILIES)


class Odd(nn.Linear):
    pass


@pytest.mark.parametrize(
    "others",
    [
        [],
        [network("resnet", width=12)],
        [network("plain")],
        [network("resnet").eval()],
        [network("resnet").double()],
        [network("resnet").requires_grad_(False)],
        [network("resnet"), network("resnet", depth1=2)],
    ],
    ids=["one", "width", "family", "mode", "type", "frozen", "one of three"],
)
def test_others_are_not_alike(others: list[nn.Module]) -> None:
    assert not alike([network("resnet"), *others])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (nn.Conv2d(2, 2, 3, stride=1), nn.Conv2d(2, 2, 3, stride=2)),
        (nn.Dropout(0.1), nn.Dropout(0.2)),
        (nn.Linear(2, 2), Odd(2, 2)),
        (nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU())),
    ],
)
def test_equal_shapes_do_not_make_networks_alike(one: nn.Module, other: nn.Module) -> None:
    assert alike([one, copy.deepcopy(one)]) and not alike([one, other])


def test_networks_with_hooks_are_not_alike() -> None:
    modules = three("mlp")
    handle = modules[1].register_forward_hook(lambda *_: None)
    assert not alike(modules)
    handle.remove()
    assert alike(modules)


# ---- whether it pays


class Clock:
    """A timer that tells given seconds for each callable, and notes the calls."""

    def __init__(self, **seconds: list[float]) -> None:
        self.seconds = {name: iter(values) for name, values in seconds.items()}
        self.calls: list[str] = []

    def __call__(self, call: Any) -> float:
        self.calls.append(call.__name__)
        return next(self.seconds[call.__name__])


def separate() -> None: ...


def stacked() -> None: ...


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ([8.9] * 5, True),
        ([9.1] * 5, False),
        ([12.0] * 5, False),
        ([8.0, 8.0, 8.0, 50.0, 50.0], True),  # two hiccups of five
        ([1.0, 1.0, 11.0, 11.0, 11.0], False),
    ],
)
def test_it_pays_from_a_tenth_on(after: list[float], expected: bool) -> None:
    clock = Clock(separate=[10.0] * 5, stacked=after)
    assert pays(separate, stacked, clock) is expected
    assert clock.calls == ["separate", "stacked"] * 5  # in turn: a machine that slows down slows both


def test_networks_that_cannot_be_stacked_do_not_pay() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            logits = self.linear(x.flatten(1))
            return logits if logits.sum() > 0 else -logits

    modules = [Reads() for _ in range(2)]
    x = batch_of().x
    assert not pays(lambda: [module(x) for module in modules], lambda: Stacked(modules)(x), Clock())


def test_an_error_of_the_networks_themselves_is_raised() -> None:
    def broken() -> None:
        raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"):
        pays(broken, broken, Clock())


def test_real_calls_are_timed() -> None:
    waits = [torch.ones(200, 200), torch.ones(2, 2)]
    assert pays(lambda: [waits[0] @ waits[0] for _ in range(20)], lambda: waits[1] @ waits[1])
