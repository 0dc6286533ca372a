"""One trial in training: its networks, objectives and optimiser, and how they are saved and restored."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from autokd.core.asking import Asking, Beside
from autokd.core.device import Setting
from autokd.core.dials import Dials
from autokd.core.fused import Stacked, alike, pays
from autokd.core.graphs import CudaCapture, Graphed
from autokd.core.optim import copy_slots, optimiser, parameters_of, shared_optimiser
from autokd.core.step import Forward, Step, TermScales
from autokd.data import Data
from autokd.errors import RecipeError
from autokd.objectives import resolve as resolve_objective
from autokd.peers import system_of
from autokd.protocols import Batch, Objective, Outputs, Samples, Shapes, Task, seed_everything
from autokd.recipe import Recipe
from autokd.students import resolve as resolve_family
from autokd.students.norm import fuse_norms
from autokd.students.normalise import set_normalisation
from autokd.students.tap import Tap

NEEDS_LOGITS = frozenset({"logits"})
_BUILDING = Lock()  # initial weights are drawn from torch's own generator, which lanes of one process share


class Run:
    """Student first, then peers; each network has its own objectives, since these may hold adaptors."""

    def __init__(
        self,
        recipe: Recipe,
        seed: int,
        data: Data,
        task: Task,
        teacher: Shapes | None,
        example: Tensor,
        setting: Setting,
        shared: bool = False,
        beside: Beside | None = None,
    ) -> None:
        """With `shared`, a place for trials of this structure in turn: it reads their numbers from `dials`.

        `beside` is what losses may ask for; without it those that ask are refused.
        """
        self.recipe, self.seed, self.epoch, self.setting = recipe, seed, 0, setting
        self.dials = Dials(recipe, setting.device) if shared else None
        self._made_of, self._beside = (data, task, teacher, example), beside
        self.fed_because = (
            ""  # why a GPU's steps are not whole ones, which begin at the indices of a batch, if they are not
        )
        self.history: list[dict[str, Any]] = []
        classes = {term.objective: resolve_objective(term.objective) for term in recipe.terms}
        self.system = system_of(recipe.peers)
        of_system = NEEDS_LOGITS if self.system is None else self.system.needs
        needs = NEEDS_LOGITS.union(of_system, *(cls.needs for cls in classes.values()))
        with _BUILDING:
            seed_everything(seed)
            networks = [build_student(recipe, data).to(setting.device) for _ in range(1 + recipe.peers.count)]
            modules = [network.to(memory_format=setting.memory_format) for network in networks]
            if setting.fused_norm:
                modules = [fuse_norms(module) for module in modules]
            self.taps = [Tap(module, example, want=needs) for module in modules]
            self.objectives = [self._objectives(classes, tap, teacher) for tap in self.taps]
            if self.system is not None:
                self.system.build([tap.shapes for tap in self.taps])
                self.system.adopt(modules)
                self.system.to(setting.device)
        if setting.compiled:
            for module in modules:
                module.compile()
        self.of_teacher = self._of_teacher(teacher)
        scales = None
        if recipe.term_scale == "initial":
            own = [cls.own_unit for cls in classes.values()]
            scales = TermScales(len(modules), own).to(setting.device)
        self.parts = nn.ModuleList([*modules, *self.objectives, *filter(None, (self.system, scales))])
        self.optimiser = self._optimiser()
        self._asking = self._asks()
        self.step = Step(
            recipe,
            task,
            self._forward(needs, example),
            self.objectives,
            self.optimiser,
            setting,
            self.dials,
            self.system,
            self._asking,
            scales,
        )
        # not recorded where losses ask: they may run the live teacher, which lanes share
        self.captured = None if shared or self.asks else captured(self.step, self.parts, setting)

    @property
    def student(self) -> nn.Module:
        return self.taps[0].module

    @property
    def notes(self) -> tuple[str, ...]:
        """Why a GPU's steps are not captured from the indices of a batch on, or not at all, if they are not."""
        uncaptured = "" if self.captured is None else self.captured.note
        fed = f"no CUDA graph of whole steps: {self.fed_because}" if self.fed_because else ""
        return tuple(note for note in (fed, uncaptured) if note)

    def train(self, batch: Batch, taught: Outputs | None, progress: float) -> None:
        """One step, at `progress` in [0, 1] of the whole training."""
        self.step.dial(progress)
        (self.captured or self.step)(batch, taught)

    @property
    def listens(self) -> bool:
        """Whether a loss reads what the teacher says of the rows of a step."""
        return any(objective.listens for objective in self._built(0))

    @property
    def asks(self) -> bool:
        """Whether a loss asks for other rows."""
        return any(objective.asks for objective in self._built(0))

    def begin_epoch(self, progress: float = 0.0) -> None:
        """Train mode, nothing summed up, and noise that depends on seed and epoch only: as after a resume, so without one.

        `progress` in [0, 1] is where in the whole training it begins.
        """
        self.parts.train()
        for asking in self._asking:
            asking.begin_epoch()
        for network, tap in enumerate(self.taps):
            for objective in self._built(network):
                objective.begin_epoch(tap.module, progress)
        if self.system is not None:
            self.system.begin_epoch([tap.module for tap in self.taps], progress)
        with _BUILDING:
            seed_everything(self.seed * 100_003 + self.epoch)
            self._noise = torch.get_rng_state()
        self.step.begin()

    def measure_terms(self, batches: Iterable[tuple[Batch, Outputs | None]]) -> None:
        """Before a first epoch: the units of the terms' weights, if they are not the losses' own. Nothing else is changed by it."""
        if self.step.scales is None:
            return
        self.parts.train()
        for asking in self._asking:
            asking.begin_epoch()
        before = [buffer.clone() for buffer in self.parts.buffers()]
        self.step.measure_terms(batches)
        with torch.no_grad():
            for buffer, kept in zip(self.parts.buffers(), before, strict=True):
                if buffer is not self.step.scales.units:
                    buffer.copy_(kept)

    @contextmanager
    def own_noise(self, alone: bool) -> Iterator[None]:
        """Dropout inside draws what it would draw if this run were trained alone."""
        if alone:
            yield
            return
        torch.set_rng_state(self._noise)
        yield
        self._noise = torch.get_rng_state()

    def place(self) -> Run:
        """A shared run of this one's structure."""
        return Run(self.recipe, self.seed, *self._made_of, self.setting, shared=True, beside=self._beside)

    def take_over(self, other: Run) -> None:
        """Weights, statistics, optimiser state, sums and dials of another run of the same structure, into this one's memory."""
        with torch.no_grad():
            for of, to in zip(_tensors(other.parts), _tensors(self.parts), strict=True):
                to.copy_(of)
        copy_slots(other.optimiser, self.optimiser)
        self.step.take_over(other.step)
        if self.dials is not None:
            self.dials.turn(other.recipe, other.objectives[0], other.system)

    def close(self) -> None:
        if self.captured is not None:
            self.captured.close()
        for tap in self.taps:
            tap.close()

    def _optimiser(self) -> torch.optim.Optimizer:
        spec, device = self.recipe.optim, self.setting.device
        parameters = [parameter for parameter in self.parts.parameters() if parameter.requires_grad]
        if self.dials is None:
            return optimiser(parameters, spec, device)
        for objectives in self.objectives:
            self.dials.lend(self.recipe, objectives, self.system)
        return shared_optimiser(parameters, spec, device, self.dials.lr)

    def _forward(self, needs: frozenset[str], example: Tensor) -> Forward:
        """Each network by itself; on a GPU a student and peers that put out logits alone as one, if that is measured to be faster."""
        taps, modules = self.taps, [tap.module for tap in self.taps]

        def separately(x: Tensor) -> list[Outputs]:
            return [tap(x) for tap in taps]

        if not (self.setting.on_gpu and needs == NEEDS_LOGITS and alike(modules)):
            return separately
        batch = example[:1].expand(self.recipe.optim.batch, *example.shape[1:]).contiguous()
        copies = [copy.deepcopy(module) for module in modules]  # whose statistics nobody minds
        with self.setting.autocast():
            faster = pays(lambda: [copied(batch) for copied in copies], partial(Stacked(copies), batch))
        stacked = Stacked(modules)
        return (lambda x: [Outputs(logits) for logits in stacked(x)]) if faster else separately

    def _of_teacher(self, teacher: Shapes | None) -> frozenset[str]:
        """What the objectives read of the teacher's outputs."""
        if teacher is None:
            return NEEDS_LOGITS
        read = [
            objective.of_teacher(tap.shapes, teacher)
            for network, tap in enumerate(self.taps)
            for objective in self._built(network)
        ]
        return NEEDS_LOGITS.union(*read)

    def _objectives(self, classes: Mapping[str, type[Objective]], tap: Tap, teacher: Shapes | None) -> nn.ModuleList:
        """New ones for a network. Those that listen stay unbuilt without a teacher: the first step says so."""
        data, device, built = self._made_of[0], self.setting.device, nn.ModuleList()
        samples = Samples(torch.tensor(data.train.y, device=device), data.value_range)
        for term in self.recipe.terms:
            self.recipe.check_views(term.objective, classes[term.objective].rotations)
            objective = classes[term.objective](**term.fields)
            objective.know(samples)
            if teacher is not None or not objective.listens:
                objective.build(tap.shapes, teacher or tap.shapes)
                objective.adopt(tap.module)
            built.append(objective.to(device))
        return built

    def _built(self, network: int) -> list[Objective]:
        """The losses of one network; nn.ModuleList tells only that they are modules."""
        return [objective for objective in self.objectives[network] if isinstance(objective, Objective)]

    def _asks(self) -> list[Asking]:
        """What each network's objectives may ask; none if nobody could answer. Raises RecipeError if one of them asks then."""
        asking = [term.objective for term, each in zip(self.recipe.terms, self._built(0), strict=True) if each.asks]
        if asking and self._beside is None:
            raise RecipeError(
                f"objective '{asking[0]}' asks for rows of its own, which only a training core has; leave it out"
            )
        if self._beside is None:
            return []
        return [Asking(self, network, self._beside) for network in range(len(self.taps))]

    # ---- saving and restoring

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that training goes on from. The teacher's weights are never inside."""
        tensors = {f"parts.{name}": tensor for name, tensor in self.parts.state_dict().items()}
        scalars: dict[str, float] = {}
        for index, slots in self.optimiser.state_dict()["state"].items():
            for name, value in slots.items():
                if isinstance(value, Tensor):
                    tensors[f"optimiser.{index}.{name}"] = value
                elif value is not None:
                    scalars[f"{index}.{name}"] = value
        meta = {"recipe": self.recipe.to_dict(), "seed": self.seed, "epoch": self.epoch, "history": self.history}
        return tensors, {**meta, "scalars": scalars}

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        parts = {name.removeprefix("parts."): t for name, t in tensors.items() if name.startswith("parts.")}
        self.parts.load_state_dict(parts)
        slots: dict[int, dict[str, Any]] = {}
        saved = {name.removeprefix("optimiser."): t for name, t in tensors.items() if name.startswith("optimiser.")}
        parameters = parameters_of(self.optimiser)
        for name, value in {**saved, **meta["scalars"]}.items():
            index, _, slot = name.partition(".")
            slots.setdefault(int(index), {})[slot] = _laid_out_as(parameters[int(index)], value)
        self.optimiser.load_state_dict({"state": slots, "param_groups": self.optimiser.state_dict()["param_groups"]})
        self.epoch, self.history = meta["epoch"], meta["history"]


def _laid_out_as(parameter: Tensor, value: Any) -> Any:
    """A slot of the optimiser in its parameter's memory layout: fused optimisers walk both as they lie in memory."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _tensors(parts: nn.Module) -> list[Tensor]:
    return [*parts.parameters(), *parts.buffers()]


def captured(step: Step, parts: nn.ModuleList, setting: Setting) -> Graphed | None:
    """The step as a CUDA graph, on a GPU."""
    return Graphed(step, CudaCapture(setting.device), modules=list(parts)) if setting.on_gpu else None


def build_student(recipe: Recipe, data: Data) -> nn.Module:
    """A new student of the recipe's architecture that takes rows in the data's own units."""
    module = resolve_family(recipe.student.family).build(recipe.student.fields, data.input_shape, data.classes)
    set_normalisation(module, data.mean, data.std)
    return module


def load_student(
    recipe: Recipe, input_shape: tuple[int, ...], classes: int, tensors: Mapping[str, Tensor]
) -> nn.Module:
    """The student inside a checkpoint's tensors, in eval mode; peers and adaptors are left behind."""
    module = resolve_family(recipe.student.family).build(recipe.student.fields, input_shape, classes)
    prefix = "parts.0."
    module.load_state_dict({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
    return module.eval()
