"""A short name for what a network computes: weights, buffers, structure, and the settings its parts keep as attributes.

What is recorded of a network is found again by this name, so that networks which compute different things must differ in it.
Code alone is not looked at.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # where an object lies in this process
HOW = {"fused"}  # attributes of parts that say how they are run, not what they compute
PLAIN = (bool, int, float, complex, str, type(None), torch.dtype)


def fingerprint(module: nn.Module) -> str:
    """Sixteen hex digits; equal for equal networks in any process, device, layout or mode."""
    of_torch = vars(nn.Module())  # hooks, mode and the like: networks are recorded in eval mode
    digest = hashlib.sha256(ADDRESS.sub("", f"{module!r}").encode())
    for name, part in module.named_modules():
        digest.update(f"{name} {_named(type(part))}".encode())
        for attribute, value in sorted(vars(part).items()):
            if attribute not in of_torch and attribute not in HOW:
                _add(digest.update, attribute, value)
    for name, value in sorted({**module.state_dict(), **dict(module.named_buffers())}.items()):
        _add(digest.update, name, value)
    return digest.hexdigest()[:16]


def _add(update: Callable[[bytes], None], name: str, value: Any) -> None:
    """A value under its name. What is no number, word, tensor, function or collection of these counts by its type alone."""
    if isinstance(value, Tensor):
        update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        update(_plain(value.detach()).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
    elif isinstance(value, PLAIN):
        update(f"{name} {value!r}".encode())
    elif isinstance(value, FunctionType | BuiltinFunctionType | type):
        update(f"{name} {_named(value)}".encode())
    else:
        update(f"{name} {_named(type(value))}".encode())
        for key, each in _members(value):
            _add(update, key, each)


def _plain(value: Tensor) -> Tensor:
    """Dense numbers of an ordinary type."""
    dense = value if value.layout is torch.strided else value.to_dense()
    return dense.dequantize() if dense.is_quantized else dense


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(key), each) for key, each in value.items() if isinstance(key, str | int))
    elif isinstance(value, tuple | list):
        yield from ((str(number), each) for number, each in enumerate(value))


def _named(what: Any) -> str:
    return f"{what.__module__}.{what.__qualname__}"
