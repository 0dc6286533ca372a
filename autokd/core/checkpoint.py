"""Checkpoints: one safetensors file each, JSON in its header, written atomically, with a checksum. No pickle.

A file holds tensors by name and a `meta` dict. The checksum covers both, so that a flipped byte anywhere is found on loading.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from autokd.errors import CheckpointError


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write atomically: a reader sees the old file or the new one, never a part. Raises CheckpointError on a full disk."""
    owned = _owned(tensors)
    text = json.dumps(meta, sort_keys=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(owned, temporary, metadata={"meta": text, "checksum": _checksum(owned, text)})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink()
        raise CheckpointError(
            f"checkpoint {path} cannot be written: {error}; free space or choose another run_dir"
        ) from None


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and meta. Raises CheckpointError if the file is torn, foreign, or fails its checksum."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        text, expected = header["meta"], header["checksum"]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}; the trial starts again") from None
    if _checksum(tensors, text) != expected:
        raise CheckpointError(f"checkpoint {path} fails its checksum; the trial starts again")
    return tensors, json.loads(text)


def _owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, on the CPU, and none sharing memory with another: safetensors refuses tied weights."""
    owned: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().to("cpu").contiguous()
        place = plain.untyped_storage().data_ptr()
        owned[name] = plain.clone() if place in places else plain
        places.add(place)
    return owned


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
