"""Any network, seen as `Outputs`: its logits, the embedding under its classifier, and one map per resolution.

The network is run once on an example to find out where these arise; forward hooks then catch them in every call. A
network may name its stages itself with an attribute `stage_names`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from autokd.errors import InputError, nearest
from autokd.protocols import Outputs, Shapes

EVERYTHING = frozenset({"logits", "embedding", "stages"})
Place = tuple[str, int]  # a submodule's name, and which of its calls within one forward pass


class Tap:
    """Calls a network and returns Outputs, in train and eval mode, with gradients as the network gives them.

    `want`, of {"logits", "embedding", "stages"}, says what is caught; with the logits alone no hook is set. `shapes`
    always tells everything. Nothing is kept between calls. One thread at a time. Raises InputError for outputs that are
    not (N, classes) and for stage names that do not fit.

    Embedding: the input, flattened, of the last nn.Linear that puts out as many numbers as there are classes. Stages,
    unless named: the output of the submodule that finishes last at each resolution of more than one place.
    """

    def __init__(self, module: nn.Module, example_input: Tensor, want: frozenset[str] = EVERYTHING) -> None:
        unknown = sorted(want - EVERYTHING)
        if unknown:
            raise InputError(f"unknown output '{unknown[0]}' wanted; {nearest(unknown[0], EVERYTHING)}")
        self.module = module
        seen = _probe(module, example_input)
        self.shapes: Shapes = Shapes(seen.classes, seen.width, tuple(shape for _, shape in seen.stages))
        self._embedding: Place | None = seen.embedding if "embedding" in want else None
        self._stages: tuple[Place, ...] = tuple(place for place, _ in seen.stages) if "stages" in want else ()
        self._calling = False
        self._calls: Counter[str] = Counter()
        self._maps: dict[Place, Tensor] = {}
        self._input: Tensor | None = None
        tapped = {name for name, _ in (*self._stages, *([self._embedding] if self._embedding else []))}
        self._handles = [self._hook(name) for name in sorted(tapped)]

    def __call__(self, x: Tensor) -> Outputs:
        """(N, ...) -> Outputs."""
        self._calling = True
        try:
            logits = logits_of(self.module(x))
            embedding = None if self._input is None else self._input.flatten(1)
            return Outputs(logits, embedding, tuple(self._maps[place] for place in self._stages))
        finally:
            self._calling, self._input = False, None
            self._maps.clear()
            self._calls.clear()

    def close(self) -> None:
        """Take the hooks off the network; calls give logits alone from then on. Harmless when done twice."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._embedding, self._stages = None, ()

    def _hook(self, name: str) -> torch.utils.hooks.RemovableHandle:
        part = self.module.get_submodule(name)
        return part.register_forward_hook(lambda _, args, output: self._catch(name, args, output))

    def _catch(self, name: str, args: tuple[Tensor, ...], output: object) -> None:
        if not (
            self._calling and isinstance(output, Tensor)
        ):  # others may call the network too: keep nothing of theirs
            return
        place = (name, self._calls[name])
        self._calls[name] += 1
        if place in self._stages:
            self._maps[place] = output
        if place == self._embedding:
            self._input = args[0]


def logits_of(output: object) -> Tensor:
    """The logits in a network's output: a tensor, {"logits": …}, {"out": …}, `.logits`, or the first of a tuple."""
    if isinstance(output, Tensor):
        return output
    found: object = None
    if isinstance(output, Mapping):
        found = output.get("logits", output.get("out"))
    elif hasattr(output, "logits"):
        found = output.logits
    elif isinstance(output, tuple | list) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        kind = f"a mapping with {', '.join(map(str, output))}" if isinstance(output, Mapping) else type(output).__name__
        raise InputError(f"a network must return logits (a tensor, or under 'logits'), got {kind}; wrap its forward")
    return found


# ---- finding out


def places(module: nn.Module, example: Tensor) -> tuple[str | None, tuple[str, ...]]:
    """Names of the submodules a Tap hooks: the one that hears the embedding, None if none does, and those that put out the stages."""
    seen = _probe(module, example)
    return seen.embedding[0] if seen.embedding else None, tuple(name for (name, _), _ in seen.stages)


@dataclass
class _Seen:
    """What one forward pass showed."""

    classes: int = 0
    maps: list[tuple[Place, tuple[int, ...]]] = field(default_factory=list)  # 4-D outputs, in order of finishing
    linears: list[tuple[Place, int, int]] = field(default_factory=list)  # place, flattened input width, output width
    embedding: Place | None = None
    width: int = 0
    stages: list[tuple[Place, tuple[int, ...]]] = field(default_factory=list)


def _probe(module: nn.Module, example: Tensor) -> _Seen:
    """One forward pass in eval mode, without gradients; modes are put back and no statistics are touched."""
    seen = _Seen()
    calls: Counter[str] = Counter()
    modes = {part: part.training for part in module.modules()}

    def watch(name: str, part: nn.Module, args: tuple[object, ...], output: object) -> None:
        place = (name, calls[name])
        calls[name] += isinstance(output, Tensor)
        if isinstance(output, Tensor) and output.dim() == 4:
            seen.maps.append((place, tuple(output.shape[1:])))
        if isinstance(part, nn.Linear) and isinstance(output, Tensor) and args and isinstance(args[0], Tensor):
            seen.linears.append((place, args[0].flatten(1).shape[-1], output.shape[-1]))

    handles = [
        part.register_forward_hook(lambda part, args, output, name=name: watch(name, part, args, output))
        for name, part in module.named_modules()
    ]
    try:
        module.eval()
        with torch.no_grad():
            logits = logits_of(module(example))
    finally:
        for handle in handles:
            handle.remove()
        for part, training in modes.items():
            part.training = training
    if logits.dim() != 2 or len(logits) != len(example):
        got = f"{tuple(logits.shape)} for {len(example)} rows"
        raise InputError(f"a network must return logits (rows, classes), got {got}; reshape them in its forward")
    seen.classes = logits.shape[1]
    for place, inputs, outputs in seen.linears:
        if outputs == seen.classes:
            seen.embedding, seen.width = place, inputs
    names = getattr(module, "stage_names", None)
    seen.stages = _automatic(seen.maps, example) if names is None else _named(module, tuple(names), seen.maps)
    return seen


def _automatic(maps: list[tuple[Place, tuple[int, ...]]], example: Tensor) -> list[tuple[Place, tuple[int, ...]]]:
    """The last map of each resolution with the input's proportions, within one place (token axes have others)."""
    if example.dim() != 4:
        return []
    full_h, full_w = example.shape[2:]
    last: dict[tuple[int, ...], tuple[Place, tuple[int, ...]]] = {}
    for place, shape in maps:
        h, w = shape[1:]
        if place[0] and h * w > 1 and abs(h * full_w - w * full_h) <= max(full_h, full_w):
            last.pop((h, w), None)
            last[h, w] = (place, shape)
    return list(last.values())


def _named(
    module: nn.Module, names: tuple[str, ...], maps: list[tuple[Place, tuple[int, ...]]]
) -> list[tuple[Place, tuple[int, ...]]]:
    """The last map of each submodule that the network names as a stage."""
    known = [name for name, _ in module.named_modules() if name]
    last = {place[0]: (place, shape) for place, shape in maps}
    for name in names:
        if name not in known:
            raise InputError(f"stage_names holds '{name}', which is no submodule; {nearest(name, known)}")
        if name not in last:
            raise InputError(f"stage '{name}' must put out (rows, channels, height, width) when the network is called")
    return [last[name] for name in names]
