"""Checkpoints: whole or refused, whatever happens to the file or the disk."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny import core, order, recipe
from torch import nn

from autokd.core import checkpoint
from autokd.errors import CheckpointError

TENSORS = {
    "float": torch.arange(6.0).reshape(2, 3),
    "step": torch.tensor(3.0),
    "count": torch.tensor([7], dtype=torch.int64),
    "half": torch.randn(4).bfloat16(),
    "mask": torch.tensor([True, False]),
    "none": torch.zeros(0, 3),
}
META = {"epoch": 3, "history": [{"loss": 0.5, "name": "é"}]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "a" / "t.safetensors", TENSORS, META)
    return tmp_path / "a" / "t.safetensors"


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_saved_is_loaded(path: Path) -> None:
    tensors, meta = checkpoint.load(path)
    assert meta == META and tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)
    assert [file.name for file in path.parent.iterdir()] == ["t.safetensors"]


def test_every_flipped_byte_is_found(path: Path) -> None:
    whole = path.read_bytes()
    for place in range(len(whole)):
        torn = bytearray(whole)
        torn[place] ^= 0x55
        path.write_bytes(torn)
        with pytest.raises(CheckpointError, match="t.safetensors"):
            checkpoint.load(path)


def test_every_truncation_is_found(path: Path) -> None:
    whole = path.read_bytes()
    for size in {*range(0, len(whole), 7), len(whole) - 1}:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            checkpoint.load(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a pickle", b"\x00" * 64])
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match="starts again"):
        checkpoint.load(tmp_path / "x")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(tmp_path / "none")


def test_tied_weights_and_views_are_saved(tmp_path: Path) -> None:
    tied = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    tied[1].weight = tied[0].weight
    big = torch.arange(12.0).reshape(3, 4)
    checkpoint.save(tmp_path / "t", {**tied.state_dict(), "column": big[:, 1], "row": big[1], "all": big}, {})
    tensors, _ = checkpoint.load(tmp_path / "t")
    assert torch.equal(tensors["0.weight"], tensors["1.weight"])
    assert torch.equal(tensors["column"], big[:, 1]) and torch.equal(tensors["row"], big[1])


def test_a_folder_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written"):
        checkpoint.save(tmp_path / "file" / "t.safetensors", TENSORS, META)


def test_a_full_disk_is_reported_and_the_old_file_kept(path: Path) -> None:
    before = path.read_bytes()
    with full_disk(4096), pytest.raises(CheckpointError, match="cannot be written.*free space"):
        checkpoint.save(path, {"large": torch.zeros(10_000)}, {})
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_core_that_cannot_save_says_so_rather_than_failing_the_trial(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="choose another run_dir"):
        core(tmp_path / "file").advance(order(recipe()))
    with full_disk(1024), pytest.raises(CheckpointError):
        core(tmp_path / "folder").advance(order(recipe()))
