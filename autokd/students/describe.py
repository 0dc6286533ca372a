"""What a student costs, told from its spec without training it: parameters, FLOPs, bytes, memory of its activations.

FLOPs are 2 x the multiply-accumulates of convolutions and matrix products for one sample, as torch's FlopCounterMode
counts them; batch norm, activations and pooling are left out, as in most papers (which often print half: MACs).
Measured, one CPU thread, uncached: 6 ms for a residual network of 3 blocks, 12 ms for ResNet-20, 59 ms for 54 blocks.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn

from autokd.constraints import Cost
from autokd.errors import InputError
from autokd.protocols import StudentFamily
from autokd.rules import Value
from autokd.students.memory import PeakMemory
from autokd.students.norm import BatchNorm
from autokd.students.tap import logits_of

# What a user's module may raise when it is built or run in a way it was not made for. Others (out of memory, a failed
# assertion) are no statement about how it fits.
MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def describe(
    family: StudentFamily,
    spec: Mapping[str, Value],
    input_shape: tuple[int, ...],
    classes: int,
    name: str | None = None,
) -> Cost:
    """The cost of `family.build(spec, …)`, remembered. Raises InputError where it cannot be built or run.

    Built on torch's meta device, so that no weight is drawn and nothing computed; a family that cannot be built there
    is built for real. Torch's generators are left as they were. `name` is for the message.
    """
    defaults = {field: rule.default for field, rule in family.fields.items()}
    arguments = (
        tuple(sorted((defaults | dict(spec)).items())),
        tuple(input_shape),
        classes,
        name or type(family).__name__,
    )
    if isinstance(family, Hashable):
        return _remembered(family, *arguments)
    return _measure(family, *arguments)


def count(module: nn.Module, input_shape: tuple[int, ...]) -> Cost:
    """The cost of any network, by running it on one sample of zeros where it lies. Modes are put back."""
    return _run(module, input_shape)[0]


def _measure(
    family: StudentFamily, spec: tuple[tuple[str, Value], ...], input_shape: tuple[int, ...], classes: int, name: str
) -> Cost:
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                cost, logits = _run(family.build(dict(spec), input_shape, classes), input_shape, disposable=True)
        except MISFITS:
            cost, logits = _run_for_real(family, dict(spec), input_shape, classes, name)
    if tuple(logits) != (1, classes):
        raise InputError(
            f"student family '{name}' must put out {classes} classes, got {tuple(logits)[1:]} for one sample"
        )
    return cost


_remembered = lru_cache(maxsize=4096)(_measure)


def _run_for_real(
    family: StudentFamily, spec: Mapping[str, Value], input_shape: tuple[int, ...], classes: int, name: str
) -> tuple[Cost, torch.Size]:
    try:
        return _run(family.build(spec, input_shape, classes), input_shape)
    except InputError:
        raise
    except MISFITS as error:
        text = str(error).strip().split("\n")[0]
        raise InputError(
            f"student family '{name}' must take inputs of {tuple(input_shape)}, but {type(error).__name__}: {text}"
        ) from error


def _run(module: nn.Module, input_shape: tuple[int, ...], disposable: bool = False) -> tuple[Cost, torch.Size]:
    from torch.utils.flop_counter import FlopCounterMode  # late: 0.2 s

    params = sum(parameter.numel() for parameter in module.parameters())
    weights = list({id(tensor): tensor for tensor in module.state_dict(keep_vars=True).values()}.values())
    size = sum(tensor.nbytes for tensor in weights)
    if disposable:
        _drop_norms(module)
    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter, PeakMemory(weights) as memory:
            logits: Tensor = logits_of(module(_zeros(module, input_shape)))
    finally:
        for part, training in modes.items():
            part.training = training
    return Cost(params, counter.get_total_flops(), size, memory.most), logits.shape


def _drop_norms(module: nn.Module) -> None:
    """Batch norm keeps shapes and counts no FLOPs, but on the meta device it takes two thirds of the time."""
    for part in list(module.modules()):
        for name, child in part.named_children():
            if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, BatchNorm):
                setattr(part, name, _Shaped())


class _Shaped(nn.Module):
    """Puts out something of its first input's shape, in memory of its own."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return torch.empty_like(x)


def _zeros(module: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """One sample in the type and on the device of the module's first floating-point weight."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return torch.zeros((1, *input_shape), device=parameter.device, dtype=parameter.dtype)
    return torch.zeros((1, *input_shape))
