"""The kernel of batch norm, residual and ReLU against float64, against torch's own, and on a machine without a compiler."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autokd.core.device import Setting, has_fused_norm
from autokd.core.fingerprint import fingerprint
from autokd.core.live import LiveTeacher
from autokd.kernels import build
from autokd.kernels.norm import fits, fused_norm
from autokd.students.norm import BatchNorm, fuse_norms
from tests.students.test_families import SHAPE as SMALL
from tests.students.test_families import small
from tests.tiny import core, images, order, recipe

SHAPES = [(4, 1, 3, 3), (6, 5, 4, 4), (8, 16, 8, 8), (3, 24, 5, 7), (2, 100, 3, 3), (2, 256, 2, 2), (2, 333, 1, 3)]
KINDS = [(False, False), (False, True), (True, False), (True, True)]  # residual, ReLU

pytestmark = pytest.mark.skipif(build.library() is None, reason=f"no kernel: {build.why_not()}")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def laid_out(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def problem(shape: tuple[int, ...], dtype: torch.dtype, residual: bool) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    x, r, dy = (laid_out(torch.randn(shape, generator=draw).to(dtype)) for _ in range(3))
    weight, bias = torch.rand(shape[1], generator=draw) + 0.5, torch.randn(shape[1], generator=draw)
    return {"x": 3 * x + 2, "r": r if residual else None, "dy": dy, "weight": weight, "bias": bias}


def results(given: dict[str, Any], relu: bool, call: Any, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Output, gradients and running statistics, all computed in `dtype` if it is given."""
    to = (lambda t: t.to(dtype)) if dtype else (lambda t: t.clone())
    norm = nn.BatchNorm2d(given["x"].shape[1]).to(dtype or torch.float32)
    norm.load_state_dict({**norm.state_dict(), "weight": given["weight"], "bias": given["bias"]})
    x = laid_out(to(given["x"])).requires_grad_()
    r = None if given["r"] is None else laid_out(to(given["r"])).requires_grad_()
    y = call(norm, x, r, relu)
    y.backward(to(given["dy"]))
    found = {"y": y.detach(), "dx": x.grad, "dweight": norm.weight.grad, "dbias": norm.bias.grad}
    found |= {"mean": norm.running_mean, "var": norm.running_var, "count": norm.num_batches_tracked}
    return found if r is None else {**found, "dr": r.grad}


def by_torch(norm: nn.BatchNorm2d, x: Tensor, r: Tensor | None, relu: bool) -> Tensor:
    y = norm(x) if r is None else norm(x) + r
    return functional.relu(y) if relu else y


def off(found: Tensor, truth: Tensor) -> float:
    """Root mean square error over the truth's own root mean square."""
    return float((found.double() - truth).norm() / truth.double().norm().clamp_min(1e-12))


@pytest.mark.parametrize(("residual", "relu"), KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_further_from_the_truth_than_torch(
    shape: tuple[int, ...], dtype: torch.dtype, residual: bool, relu: bool
) -> None:
    given = problem(shape, dtype, residual)
    truth = results(given, relu, by_torch, torch.float64)
    ours, theirs = results(given, relu, fused_norm), results(given, relu, by_torch)
    for name, exact in truth.items():
        assert ours[name].dtype == theirs[name].dtype and ours[name].shape == theirs[name].shape, name
        assert off(ours[name], exact) <= 1.5 * off(theirs[name], exact) + 1e-6, name


def test_a_mean_far_from_zero_does_not_drown_the_variance() -> None:
    given = problem((16, 8, 8, 8), torch.float32, False)
    given["x"] = laid_out(given["x"] + 3000)
    truth, ours = results(given, False, by_torch, torch.float64), results(given, False, fused_norm)
    assert off(ours["y"], truth["y"]) < 1e-3 and off(ours["var"], truth["var"]) < 1e-4


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_comes_through(bad: float, dtype: torch.dtype) -> None:
    given = problem((2, 4, 3, 3), dtype, True)
    given["x"][0, 1, 0, 0] = bad
    ours, theirs = results(given, True, fused_norm), results(given, True, by_torch)
    for name in ("y", "dx", "dweight"):
        assert torch.equal(ours[name].isnan(), theirs[name].isnan()), name
    assert ours["y"][:, 1].isnan().all() and not ours["y"][:, 0].isnan().any()


@pytest.mark.parametrize(
    "made",
    {
        "contiguous": (nn.BatchNorm2d(4), torch.rand(2, 4, 3, 3)),
        "float64": (nn.BatchNorm2d(4), laid_out(torch.rand(2, 4, 3, 3).double())),
        "rows": (nn.BatchNorm1d(4), torch.rand(2, 4)),
        "one row": (nn.BatchNorm2d(4), laid_out(torch.rand(1, 4, 1, 1))),
        "cumulative": (nn.BatchNorm2d(4, momentum=None), laid_out(torch.rand(2, 4, 3, 3))),
        "not affine": (nn.BatchNorm2d(4, affine=False), laid_out(torch.rand(2, 4, 3, 3))),
        "no statistics": (nn.BatchNorm2d(4, track_running_stats=False), laid_out(torch.rand(2, 4, 3, 3))),
    }.items(),
    ids=lambda item: item[0],
)
def test_what_it_is_not_made_for_is_left_to_torch(made: Any) -> None:
    norm, x = made[1]
    assert not fits(norm, x, None)


def test_threads_and_odd_residuals_are_left_to_torch() -> None:
    norm, x = nn.BatchNorm2d(4), laid_out(torch.rand(2, 4, 3, 3))
    assert fits(norm, x, x) and not fits(norm, x, x.bfloat16()) and not fits(norm, x, x[:1])
    torch.set_num_threads(2)
    assert not fits(norm, x, None)


@pytest.mark.parametrize(("residual", "relu"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eval_mode_is_no_further_from_the_truth_than_torch(dtype: torch.dtype, residual: bool, relu: bool) -> None:
    given = problem((6, 24, 5, 7), dtype, residual)
    norm = nn.BatchNorm2d(24).eval()
    norm.load_state_dict({**norm.state_dict(), "weight": given["weight"], "bias": given["bias"]})
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    with torch.no_grad():
        ours, theirs = (call(norm, given["x"], given["r"], relu) for call in (fused_norm, by_torch))
        r = None if given["r"] is None else given["r"].double()
        truth = by_torch(copy.deepcopy(norm).double(), given["x"].double(), r, relu)
    assert ours.dtype == dtype and off(ours, truth) <= 1.5 * off(theirs, truth) + 1e-6
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())


def test_eval_mode_with_gradients_and_a_single_row_behave_as_in_torch() -> None:
    fused, plain = BatchNorm(4), nn.BatchNorm2d(4)
    fuse_norms(fused)
    x = laid_out(torch.rand(2, 4, 3, 3)).requires_grad_()
    fused(x), plain(x)
    expected = torch.autograd.grad(plain.eval()(x).square().sum(), x)[0]
    assert torch.allclose(torch.autograd.grad(fused.eval()(x).square().sum(), x)[0], expected, atol=1e-6)
    with pytest.raises(ValueError, match="more than 1 value"):
        fused.train()(laid_out(torch.rand(1, 4, 1, 1)))


class Own(nn.Module):
    """A user's network: ReLU in place after a norm, a residual added by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.again = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm(self.first(x)), inplace=True)
        return self.head(functional.relu(self.again(self.second(y)).add_(y)).mean((2, 3)))


def test_a_users_own_network_trains_the_same() -> None:
    torch.manual_seed(0)
    plain, fused = Own(), Own()
    fused.load_state_dict(plain.state_dict())
    names = list(plain.state_dict())
    assert list(fuse_norms(fused).state_dict()) == names
    x, y = laid_out(torch.rand(16, 1, 8, 8)), torch.randint(0, 3, (16,))
    for module in (plain, fused):
        module.to(memory_format=torch.channels_last)
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(5):
            optimiser.zero_grad()
            functional.cross_entropy(module(x), y).backward()
            optimiser.step()
    for name, tensor in plain.state_dict().items():
        assert torch.allclose(tensor.float(), fused.state_dict()[name].float(), atol=1e-4), name
    assert type(fused.norm) is BatchNorm and fused.norm.num_batches_tracked == 5


def test_a_trial_trains_the_same_and_says_how(tmp_path: Path) -> None:
    reports = [
        core(tmp_path / str(fused), images(60), fused_norm=fused).advance(order(recipe(), to=3))
        for fused in (False, True)
    ]
    plain, fused = ([log["loss"] for log in report.history] for report in reports)
    assert fused == pytest.approx(plain, rel=1e-3)
    assert [report.precision for report in reports] == ["fp32, channels_last", "fp32, channels_last, fused norm"]


def test_a_teacher_is_run_with_it_and_given_back_as_it_was() -> None:
    module = small("resnet")
    name, x = fingerprint(module), torch.rand(6, *SMALL)
    found = []
    for fused in (False, True):
        live = LiveTeacher(module, x[:2], Setting(fused_norm=fused))
        assert {part.fused for part in module.modules() if isinstance(part, BatchNorm)} == {fused}
        assert fingerprint(module) == name
        found.append(live.outputs(x).logits)
        live.close()
    assert torch.allclose(*found, atol=1e-4)
    assert not any(part.fused for part in module.modules() if isinstance(part, BatchNorm))


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine that has compiled nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.library.cache_clear()
    yield tmp_path
    build.library.cache_clear()


@pytest.mark.parametrize("compiler", ["", "false", "/no/such/compiler"])
def test_without_a_compiler_torch_does_it(fresh: Path, compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler)
    assert not has_fused_norm("cpu")
    assert ("could not compile" if compiler == "false" else "no C++ compiler") in str(build.why_not())
    assert not list(fresh.rglob("*.so")) and not list(fresh.rglob("tmp*"))


def test_compiled_once_and_kept(fresh: Path) -> None:
    def paths() -> list[tuple[Path, int]]:
        build.library.cache_clear()
        assert build.library() is not None and build.why_not() is None
        return [(path, path.stat().st_mtime_ns) for path in build.cache_folder().iterdir()]

    first = paths()
    assert len(first) == 1 and fresh in first[0][0].parents and first == paths()


def test_a_core_without_the_kernel_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autokd.core.device.library", lambda: None)
    assert not has_fused_norm("cpu")
    assert core(tmp_path, images(60), fused_norm=True).setting == Setting()
