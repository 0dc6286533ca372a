"""What a training step does, operation by operation: recorded and replayed, or watched for what no recording can repeat.

`Twin` is to any device what CUDA graphs are to CUDA: memory is fixed when a step is recorded, and Python is not run
again. It is slower than the step itself; it is there so that steps can be tested where there is no GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # its documented home: "Extending PyTorch"

HOST_READS = frozenset(  # operations whose result, or the shape of it, the host waits for
    {
        "aten::_local_scalar_dense",  # item(), float(tensor), if tensor:
        "aten::nonzero",
        "aten::masked_select",
        "aten::_unique2",
        "aten::unique_dim",
        "aten::unique_consecutive",
        "aten::bincount",
        "aten::equal",
        "aten::_linalg_check_errors",
    }
)

Work = Callable[[], None]


class Replay(Protocol):
    """A recorded step."""

    def replay(self) -> None:
        """Do again what was recorded, with what the memory it reads holds now."""

    def reset(self) -> None:
        """Free it; not to be replayed afterwards."""


class Capture(Protocol):
    """How the steps of one lane are run and recorded. Belongs to one thread."""

    def run(self, work: Work) -> None:
        """Do it once, where recordings are made and replayed as well."""

    def record(self, work: Work) -> Replay:
        """Do it once and return what repeats it. Raises whatever `work` or the recording raises."""


class Twin:
    """Records on any device. Unlike on CUDA, a recording that fails has done a part of the step."""

    def run(self, work: Work) -> None:
        work()

    def record(self, work: Work) -> Replay:
        recording = _Recording()
        with recording:
            work()
        return recording


class _Recording(TorchDispatchMode):
    """The operations below autograd and autocast, with the memory they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Callable[..., Any], Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = mapped((args, kwargs or {}), Tensor.detach)  # before the call: unsqueeze_ and the like reshape it
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, given, mapped(result, Tensor.detach)))
        return result

    def replay(self) -> None:
        with torch.no_grad():
            for func, (args, kwargs), result in self.operations:
                again = func(*args, **kwargs)
                for old, new in zip(tensors_of(result), tensors_of(again), strict=True):
                    if old.data_ptr() != new.data_ptr():  # else it was done in place, or is a view
                        old.copy_(new)

    def reset(self) -> None:
        self.operations.clear()


# ---- what cannot be repeated


class Watch(TorchDispatchMode):
    """Finds the first operation inside that reads tensors of `kind` ("cuda", "cpu") on the host or moves them: `found`.

    `found` is its name, or "". Not complete: what it misses still fails when it is recorded.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.found = kind, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if not self.found and self._waits(name, args, result):
            self.found = name
        return result

    def _waits(self, name: str, args: Any, result: Any) -> bool:
        kinds = {tensor.device.type for tensor in tensors_of(args)}
        if name in ("aten::_to_copy", "aten::copy_"):
            return len(kinds | {result.device.type}) > 1
        if self.kind not in kinds:
            return False
        if name in ("aten::index", "aten::index_put_", "aten::index_put"):
            by_mask = any(index.dtype in (torch.bool, torch.uint8) for index in tensors_of(args[1]))
            filled = name != "aten::index" and args[2].numel() == 1  # one value needs no count of its places
            return by_mask and not filled
        return name in HOST_READS


def kept(modules: Iterable[nn.Module]) -> list[Any]:
    """What every submodule keeps: where its tensors lie, and its numbers. Equal before and after a repeatable step."""
    return [_mark(vars(part)) for module in modules for part in module.modules()]


def _mark(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.data_ptr(), value.shape
    if isinstance(value, Mapping):
        return [(key, _mark(each)) for key, each in value.items()]
    if isinstance(value, list | tuple | deque):
        return [_mark(each) for each in value]
    return value if isinstance(value, bool | int | float | str | None) else id(value)


# ---- structures of tensors: dataclasses, tuples, lists, mappings, None and numbers


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors inside, in the order of `mapped`."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        return [tensor for field in fields(value) for tensor in tensors_of(getattr(value, field.name))]
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for each in value for tensor in tensors_of(each)]


def shape_of(value: Any) -> Hashable:
    """Equal for structures that one recording can serve: of the same tensor shapes, types, devices, and numbers."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    if is_dataclass(value):
        return type(value), *(shape_of(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, list | tuple):
        return type(value), *map(shape_of, value)
    if isinstance(value, Mapping):
        return type(value), *((key, shape_of(each)) for key, each in value.items())
    return value


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with changed tensors."""
    if isinstance(value, Tensor):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: mapped(getattr(value, field.name), change) for field in fields(value)})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(each, change) for each in value))
    if isinstance(value, list | tuple):
        return type(value)(mapped(each, change) for each in value)
    if isinstance(value, Mapping):
        return {key: mapped(each, change) for key, each in value.items()}
    return value
