"""The most memory that a network's activations take at one time, found by watching its tensors come and go. Nothing need be computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """While active, `most` is the largest sum of bytes held by tensors made inside; those of `weights` are left out.

    Tensors that share storage (views, results written in place) count once. To be used without gradients, which hold more.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.most = 0
        self._live = 0
        self._known = {_storage(tensor) for tensor in weights}
        self._holders: dict[int, set[int]] = {}  # storage -> tensors over it

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._hold(leaf)
        return result

    def _hold(self, tensor: Tensor) -> None:
        storage, size = _storage(tensor), tensor.untyped_storage().nbytes()
        if storage in self._known:
            return
        if storage not in self._holders:
            self._holders[storage] = set()
            self._live += size
            self.most = max(self.most, self._live)
        if id(tensor) not in self._holders[storage]:
            self._holders[storage].add(id(tensor))
            weakref.finalize(tensor, self._release, storage, id(tensor), size)

    def _release(self, storage: int, tensor: int, size: int) -> None:
        self._holders[storage].discard(tensor)
        if not self._holders[storage]:
            del self._holders[storage]
            self._live -= size


def _storage(tensor: Tensor) -> int:
    """What tells storages apart, also on the meta device, where none has an address."""
    key: int = tensor.untyped_storage()._cdata
    return key
