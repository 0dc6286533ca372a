"""Exported files are loaded without autokd and compared with the module."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autokd.errors import ExportError
from autokd.export import export_student

METADATA = {"classes": ["cat", "dog"], "mean": [0.5], "scale": "divide uint8 by 255", "recipe": {"version": 1}}
EXAMPLE = np.zeros((1, 1, 8, 8), dtype=np.float32)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def net() -> nn.Module:
    """Small, with BatchNorm statistics that matter and a pooled head."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 10))
    module(torch.randn(64, 1, 8, 8) * 3 + 1)
    return module


class Shy(nn.Module):
    """Behaves otherwise while it is traced, as a faulty exporter would make it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.linear(x.flatten(1))
        return out + 0.5 if torch.compiler.is_exporting() else out


class Fixed(nn.Module):
    """Cannot be traced with a free batch axis."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) if x.sum().item() > 0 else x.flatten(1) * 2


def expected(net: nn.Module, x: np.ndarray) -> np.ndarray:
    net = copy.deepcopy(net).eval()
    with torch.no_grad():
        return net(torch.from_numpy(x)).numpy()


def noise(batch: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, 1, 8, 8), dtype=np.float32)


@pytest.mark.timeout(60)
def test_onnx_runs_in_onnxruntime_with_any_batch(net: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    path = export_student(net, EXAMPLE, tmp_path / "student.onnx", metadata=METADATA)
    session = ort.InferenceSession(str(path))
    for batch in (1, 2, 5):
        got = session.run(["logits"], {"input": noise(batch)})[0]
        np.testing.assert_allclose(got, expected(net, noise(batch)), atol=1e-4)
    stored = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(stored["classes"]) == ["cat", "dog"] and stored["scale"] == METADATA["scale"]
    assert capfd.readouterr() == ("", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["student.onnx"]


@pytest.mark.timeout(60)
def test_onnx_is_checked_by_the_reference_without_onnxruntime(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export_student(net, EXAMPLE, tmp_path / "student.onnx", metadata={}).is_file()


@pytest.mark.timeout(60)
def test_pt2_runs_in_torch_with_any_batch(net: nn.Module, tmp_path: Path) -> None:
    path = export_student(net, EXAMPLE, tmp_path / "new" / "student.pt2", metadata=METADATA)
    extra = {"metadata.json": ""}
    module = torch.export.load(path, extra_files=extra).module()
    for batch in (1, 4):
        got = module(torch.from_numpy(noise(batch))).detach().numpy()
        np.testing.assert_allclose(got, expected(net, noise(batch)), atol=1e-4)
    assert json.loads(extra["metadata.json"]) == METADATA


def test_safetensors_loads_into_the_module(net: nn.Module, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    path = export_student(net, EXAMPLE, tmp_path / "student.safetensors", metadata=METADATA)
    fresh = copy.deepcopy(net)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    fresh.load_state_dict(safetensors.load_file(path))
    np.testing.assert_array_equal(expected(fresh, noise(3)), expected(net, noise(3)))
    assert json.loads(path.with_suffix(".json").read_text()) == METADATA


def test_tied_weights_survive_safetensors(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    first = nn.Linear(64, 64)
    second = nn.Linear(64, 64)
    second.weight = first.weight
    path = export_student(nn.Sequential(nn.Flatten(), first, second), EXAMPLE, tmp_path / "a.safetensors", metadata={})
    assert path.is_file()


def test_the_module_is_left_as_it_was(net: nn.Module, tmp_path: Path) -> None:
    net = net.to(torch.float64).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    export_student(net, EXAMPLE, tmp_path / "student.safetensors", metadata={})
    assert net.training and next(net.parameters()).dtype == torch.float64
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.timeout(60)
def test_a_file_that_differs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"differ by 0\.5.*try another format"):
        export_student(Shy(), EXAMPLE, tmp_path / "student.pt2", metadata={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_module_that_cannot_be_traced_is_explained(tmp_path: Path, suffix: str) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
    with pytest.raises(ExportError, match=f"must be traceable for {suffix}.*safetensors") as caught:
        export_student(Fixed(), EXAMPLE, tmp_path / f"student{suffix}", metadata={})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("blocked", ["student.safetensors", "student.json"])
def test_existing_files_are_kept_unless_told(net: nn.Module, tmp_path: Path, blocked: str) -> None:
    (tmp_path / blocked).write_text("mine")
    with pytest.raises(ExportError, match=f"{blocked} exists"):
        export_student(net, EXAMPLE, tmp_path / "student.safetensors", metadata={})
    assert (tmp_path / blocked).read_text() == "mine"
    export_student(net, EXAMPLE, tmp_path / "student.safetensors", metadata={}, overwrite=True)
    assert json.loads((tmp_path / "student.json").read_text()) == {}


@pytest.mark.parametrize("name", ["student", "student.onx", "student.tflite"])
def test_unknown_suffixes_name_the_known_ones(net: nn.Module, tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match=r"known: \.onnx, \.pt2, \.safetensors"):
        export_student(net, EXAMPLE, tmp_path / name, metadata={})


def test_a_missing_package_names_the_pip_command(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match="pip install onnx onnxscript"):
        export_student(net, EXAMPLE, tmp_path / "student.onnx", metadata={})


def test_the_example_must_be_one_input(net: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"got shape \(2, 1, 8, 8\); pass x\[:1\]"):
        export_student(net, EXAMPLE.repeat(2, axis=0), tmp_path / "a.pt2", metadata={})
