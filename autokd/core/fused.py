"""Networks of one shape as one: a student and its peers run forward together, each layer of all of them in one operation.

Parameters stay where they are and are stacked anew in every call, inside the autograd graph, so that optimisers and
checkpoints know nothing of it. Worth it only where operations are too small to fill the device: `pays` measures that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from autokd.students.tap import logits_of

REPEATS = 5
LEAST_GAIN = 0.1  # of the time; less is within the noise of a short measurement


def alike(modules: Sequence[nn.Module]) -> bool:
    """Whether these networks, two or more, differ in nothing but the values of their parameters and buffers.

    They must be in one mode, and without hooks, which would be called once for all and see stacked tensors.
    """
    if len(modules) < 2 or any(_hooked(part) for module in modules for part in module.modules()):
        return False
    first, *others = map(_blueprint, modules)
    return all(other == first for other in others)


class Stacked:
    """Calls `modules`, which must be `alike`, as one network: (N, ...) -> one tensor of logits (N, C) for each.

    Values, gradients and running statistics are those of separate calls, up to rounding; dropout differs between the
    networks. Raises what torch.vmap raises for operations that it cannot batch.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = tuple(modules)

    def __call__(self, x: Tensor) -> list[Tensor]:
        parameters = _stacked([dict(module.named_parameters()) for module in self.modules])
        buffers = _stacked([dict(module.named_buffers()) for module in self.modules])
        together = torch.vmap(self._one, in_dims=(0, 0, None), randomness="different")
        logits, after = together(parameters, buffers, x)
        self._write_back(after)
        return list(logits.unbind(0))

    def _one(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits and buffers of one network: `functional_call` leaves replaced buffers in the dict that it is given."""
        state = {**parameters, **buffers}
        logits = logits_of(functional_call(self.modules[0], state, (x,)))
        return logits, {name: state[name] for name in buffers}

    @torch.no_grad()
    def _write_back(self, after: dict[str, Tensor]) -> None:
        pairs: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}  # the fused copy wants one type at a time
        for name, stacked in after.items():
            to, source = pairs.setdefault(stacked.dtype, ([], []))
            to += [module.get_buffer(name) for module in self.modules]
            source += stacked.unbind(0)
        for to, source in pairs.values():
            torch._foreach_copy_(to, source)  # torch has no public name for it


def pays(
    separate: Callable[[], object],
    stacked: Callable[[], object],
    timer: Callable[[Callable[[], object]], float] | None = None,
) -> bool:
    """Whether `stacked` takes at least 10 % less time than `separate`: medians of calls in turn, after one to warm up.

    Both do the same work and are called several times, so hand over copies of what they change. `timer` gives the
    seconds of one call. False if `stacked` raises: some user's networks cannot be batched.
    """
    seconds = timer or _seconds
    separate()
    try:
        stacked()
        times = [(seconds(separate), seconds(stacked)) for _ in range(REPEATS)]
    except Exception:  # whatever a user's own network raises under vmap
        return False
    return median(after for _, after in times) <= (1 - LEAST_GAIN) * median(before for before, _ in times)


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()  # this lane's only
    return time.perf_counter() - begun


def _stacked(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def _blueprint(module: nn.Module) -> list[Any]:
    """Everything that decides what a forward pass computes, but the values of tensors."""
    parts = [(name, type(part), _settings(part)) for name, part in module.named_modules()]
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return [parts, [(name, t.shape, t.dtype, t.device, t.requires_grad) for name, t in tensors]]


def _settings(part: nn.Module) -> dict[str, Any]:
    """Strides, probabilities, modes, …: attributes of plain types."""
    return {name: value for name, value in vars(part).items() if _plain(value)}


def _plain(value: object) -> bool:
    return all(map(_plain, value)) if isinstance(value, tuple) else isinstance(value, bool | int | float | str | None)


def _hooked(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks)  # torch has no public name for them
