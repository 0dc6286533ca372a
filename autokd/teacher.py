"""The teacher: a frozen network together with the data it solves.

`autokd.search(teacher, budget)` needs nothing more. Its validation accuracy is measured once, in eval mode without gradients, before
anything is trained; a teacher that knows no more than chance is refused.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autokd.constraints import Cost
from autokd.core import checkpoint
from autokd.core.core import TrainingCore
from autokd.core.data import to_float
from autokd.core.device import Setting, cpu_count, default_device
from autokd.core.loop import train_epoch
from autokd.core.materials import calibrate
from autokd.core.run import Run, load_student
from autokd.data import Data, Split
from autokd.errors import CheckpointError, TeacherError, TrialFailure, nearest
from autokd.protocols import Shapes
from autokd.recipe import AugmentSpec, OptimSpec, Recipe, StudentSpec
from autokd.rules import Value, Vocabulary
from autokd.students import FAMILIES, families_rules
from autokd.students.describe import count
from autokd.students.tap import Tap, logits_of
from autokd.tasks import TASKS

FORMAT = 1
WEIGHTS, ABOUT, ROWS = "teacher.safetensors", "teacher.json", "data"
LARGE: dict[str, dict[str, Value]] = {  # what `fit` trains when no spec is given; published networks have no fields
    "resnet": {"width": 32, "depth1": 2, "depth2": 2, "depth3": 2},
    "plain": {"width": 32, "depth1": 2, "depth2": 2, "depth3": 2},
    "mobilenet": {"width": 32, "depth1": 2, "depth2": 2, "depth3": 2, "expand": 4},
    "mlp": {"width": 512, "depth": 3},
}
FIT_EPOCHS = 30
ALL_CORES = 0.8  # of one core's time, at most, for all of them to be used
SHORT = 10.0  # seconds of training on one core that are not worth a measurement
KEPT = {"name": str, "builder": str | None, "data": dict}  # in every description


class Teacher:
    """A frozen network and its data.

    `module` maps (N, *data.input_shape) float rows to (N, classes) logits; uint8 images reach it divided by 255, other data as they
    are. `builder`, "module:attribute", names a function that makes the module anew; with it a teacher of your own can be saved.
    Raises TeacherError if the module raises on the data or its output width is not the number of classes.
    """

    def __init__(
        self,
        module: nn.Module,
        data: Data,
        *,
        name: str = "teacher",
        task: str = "classification",
        builder: str | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TeacherError(
                f"a teacher must be a torch nn.Module, got {type(module).__name__}; pass the module itself"
            )
        if not isinstance(data, Data):
            raise TeacherError(
                f"a teacher's data must be an autokd.Data, got {type(data).__name__}; wrap the arrays in autokd.Data"
            )
        if task not in TASKS:
            raise TeacherError(f"unknown task '{task}'; {nearest(task, TASKS)}")
        self.module, self.data, self.name, self.task = module.eval().requires_grad_(False), data, name, TASKS[task]
        self.builder, self.about = builder, dict(about or {})
        if builder is not None:
            _builder(builder)
        self._check_output()

    # ---- making one

    @classmethod
    def fit(
        cls,
        data: Data | str,
        family: str = "resnet",
        *,
        spec: Mapping[str, Value] | None = None,
        epochs: int = FIT_EPOCHS,
        seed: int = 0,
        augment: AugmentSpec | None = None,
        cache: bool = True,
        on_epoch: Callable[[int, int, float], None] | None = None,
    ) -> Teacher:
        """Train a teacher of a named family on this machine, or take it from the cache if it was trained before.

        `augment` are the views it sees, base views of images if left out. `on_epoch(epoch, epochs, validation value)` is called after
        every epoch. Raises TeacherError for unknown families.
        """
        data = Data.load(data) if isinstance(data, str) else data
        if family not in FAMILIES:
            raise TeacherError(f"unknown family '{family}' for a teacher; {nearest(family, FAMILIES)}")
        if epochs < 1:
            raise TeacherError(f"a teacher needs at least 1 epoch, got {epochs}")
        fields = {**LARGE.get(family, {}), **(spec or {})}
        Recipe(student=StudentSpec.model_validate({"family": family, **fields})).check(Vocabulary(families_rules()))
        misfit = FAMILIES[family].misfit(data.input_shape)
        if misfit is not None:
            raise TeacherError(f"family '{family}' does not take rows of shape {data.input_shape}: {misfit}")
        about = {"family": family, "spec": fields, "epochs": epochs, "seed": seed, "data_fingerprint": data.fingerprint}
        about |= {} if augment is None else {"augment": augment.model_dump()}

        def make() -> Teacher:
            module = _fit(data, family, fields, epochs, seed, augment, on_epoch)
            return cls(module, data, name=f"{family}-{data.name}", about=about)

        return from_cache(about, data, make) if cache else make()

    @classmethod
    def load(cls, source: str | Path, data: Data | None = None) -> Teacher:
        """A teacher saved by `save`, or "models:/name/version" from MLflow's registry (`data` is needed then).

        Loading from a registry runs pickled code: use registries you trust. Raises TeacherError.
        """
        if str(source).startswith(("models:/", "runs:/")):
            return cls._from_registry(str(source), data)
        folder = Path(source)
        try:
            about = json.loads((folder / ABOUT).read_text())
        except (OSError, ValueError) as error:
            raise TeacherError(
                f"a teacher folder must hold a readable {ABOUT}, {folder}: {error}; write it with save()"
            ) from None
        version = about.get("format") if isinstance(about, dict) else None
        if version != FORMAT:
            raise TeacherError(f"teacher format must be {FORMAT}, got {version!r} in {folder}; save it again")
        wrong = [name for name, kind in KEPT.items() if name not in about or not isinstance(about[name], kind)]
        if wrong:
            raise TeacherError(f"{folder / ABOUT} must tell {', '.join(wrong)}; write it with save()")
        origin = about["data"]
        if origin.get("path") == ROWS:
            origin = {**origin, "path": str(folder / ROWS)}
        data = data or Data.from_origin(origin)
        module = _rebuild(about, data)
        try:
            tensors, _ = checkpoint.load(folder / WEIGHTS)
            module.load_state_dict(tensors)
        except CheckpointError as error:
            raise TeacherError(f"{str(error).partition(';')[0]}; save the teacher again") from None
        except RuntimeError as error:
            problem = " ".join(str(error).splitlines()[:2])
            raise TeacherError(f"weights in {folder} do not fit its architecture on {data.name}: {problem}") from None
        return cls(module, data, name=about["name"], builder=about.get("builder"), about=about)

    @classmethod
    def _from_registry(cls, uri: str, data: Data | None) -> Teacher:
        from autokd.tracking import load_model

        if data is None:
            raise TeacherError(f"a teacher from a registry needs its data: Teacher.load('{uri}', data=autokd.Data(…))")
        return cls(
            load_model(uri), data, name=uri.split(":/", 1)[1].strip("/").replace("/", "-v"), about={"registry": uri}
        )

    # ---- using it

    @cached_property
    def cost(self) -> Cost:
        return count(self.module, self.data.input_shape)

    @cached_property
    def shapes(self) -> Shapes:
        """Of what the teacher puts out: no stages or no embedding where it has none."""
        tap = Tap(self.module, to_float(torch.tensor(self.data.train.x[:2])))
        tap.close()
        return tap.shapes

    @cached_property
    def metrics(self) -> dict[str, float]:
        """On the validation split."""
        return self.evaluate(self.data.val)

    @property
    def value(self) -> float:
        return self.metrics[self.task.metric]

    def require_knowledge(self) -> None:
        """Raise TeacherError if the teacher is at chance on the validation split."""
        chance = self.task.chance(torch.as_tensor(self.data.val.y.copy()))
        if self.value <= chance:
            raise TeacherError(
                f"a teacher must know more than chance: its validation {self.task.metric} is {self.value:.3f}, chance is "
                f"{chance:.3f}; check that inputs are scaled as in its training (uint8 is divided by 255) and that labels agree"
            )

    def evaluate(self, split: Split) -> dict[str, float]:
        """Metrics on a split, float32, all cores."""
        return evaluate(self.module, self.data, split, self.task.name)

    @property
    def fingerprint(self) -> str:
        """Of weights and data: a search is only continued with the teacher it began with."""
        digest = hashlib.sha256(self.data.fingerprint.encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def can_be_saved(self) -> bool:
        return "family" in self.about or self.builder is not None

    def save(self, folder: str | Path) -> Path:
        """Write weights (safetensors) and description (JSON). Raises TeacherError for a module nobody could build again."""
        if not self.can_be_saved:
            raise TeacherError(
                "a module of your own can only be saved with builder='module:attribute', the function that makes it"
            )
        folder = Path(folder)
        rows_known = self.data.origin["kind"] != "arrays"
        if rows_known:
            return self._write(folder, self.data.origin)
        return self._write(folder, {**self.data.save(folder / ROWS), "path": ROWS})  # moves with the folder

    def _write(self, folder: Path, origin: Mapping[str, Any]) -> Path:
        """Weights first: where the description is, they are whole."""
        checkpoint.save(folder / WEIGHTS, self.module.state_dict(), {"name": self.name})
        about = {**self.about, "format": FORMAT, "name": self.name, "builder": self.builder, "data": dict(origin)}
        (folder / ABOUT).write_text(json.dumps(about, indent=1))
        return folder

    def _check_output(self) -> None:
        x = to_float(torch.tensor(self.data.train.x[:2]))
        try:
            with torch.no_grad():
                logits = logits_of(self.module.to("cpu")(x))
        except Exception as error:  # the module is the user's own: whatever it raises is reported in one line
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise TeacherError(f"the teacher raised on rows of shape {tuple(x.shape)} ({x.dtype}): {text}") from error
        shape = tuple(logits.shape)
        if shape != (2, self.data.classes):
            raise TeacherError(
                f"a teacher must put out (rows, classes) = (2, {self.data.classes}) logits, got {shape}; "
                "pass Data(classes=…) or a module with that many outputs"
            )


def evaluate(module: nn.Module, data: Data, split: Split, task: str) -> dict[str, float]:
    """Metrics of a module on a split, float32, eval mode."""
    x, y = to_float(torch.tensor(split.x)), torch.tensor(split.y)
    module = module.to("cpu").eval()

    def forward(rows: Tensor) -> Tensor:
        with torch.no_grad():
            return logits_of(module(rows))

    with Setting(threads=cpu_count()).on_its_threads():
        return TASKS[task].evaluate(forward, x, y)


def cache_folder() -> Path:
    """Where fitted teachers are kept: $XDG_CACHE_HOME or ~/.cache."""
    from platformdirs import user_cache_path

    return user_cache_path("autokd") / "teachers"


def from_cache(key: Mapping[str, Any], data: Data, make: Callable[[], Teacher]) -> Teacher:
    """The teacher that was made under this key before, or else a new one, which is kept if the cache can be written."""
    folder = cache_folder() / _key(key)
    if (folder / ABOUT).exists():
        with suppress(TeacherError):  # of an older version or torn: make it again
            return Teacher.load(folder, data)
    teacher = make()
    with suppress(CheckpointError, OSError):  # a cache that cannot be written costs time, not the teacher
        teacher._write(folder, data.origin)
    return teacher


def _key(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps({"format": FORMAT, **about}, sort_keys=True).encode()).hexdigest()[:16]


def _fit(
    data: Data,
    family: str,
    fields: Mapping[str, Value],
    epochs: int,
    seed: int,
    augment: AugmentSpec | None,
    on_epoch: Callable[[int, int, float], None] | None,
) -> nn.Module:
    recipe = Recipe(
        student=StudentSpec.model_validate({"family": family, **fields}),
        augment=augment or AugmentSpec(policy="base" if len(data.input_shape) == 3 else "none"),
        optim=OptimSpec(batch=64 if len(data.train.y) < 10_000 else 128, lr=0.05),
    )
    setting = _calibrated(data, recipe, epochs)
    core = TrainingCore(data, None, "", setting)
    run = Run(recipe, seed, data, core.task, None, core.example, setting)
    for epoch in range(1, epochs + 1):
        with setting.on_its_threads():
            log = train_epoch([run], core.rows, None, core.task, epochs)[0]
        if isinstance(log, TrialFailure):
            raise TeacherError(f"the teacher could not be trained: {log}")
        if on_epoch is not None:
            on_epoch(epoch, epochs, log["metrics"][core.task.metric])
    tensors, _ = run.state()
    run.close()
    return load_student(recipe, data.input_shape, data.classes, tensors)


def _calibrated(data: Data, recipe: Recipe, epochs: int) -> Setting:
    """As for a student, but on all cores where they help: on a busy machine they wait for each other."""
    measured = calibrate(data, None, recipe, default_device())
    one, seconds = measured.setting, measured.epoch_seconds
    many = replace(one, threads=cpu_count())
    if many == one or epochs * seconds < SHORT:
        return one
    on_many = TrainingCore(data, None, "", many).seconds_per_epoch(recipe, seed=0)
    return many if on_many < ALL_CORES * seconds else one


def _rebuild(about: Mapping[str, Any], data: Data) -> nn.Module:
    """The module a saved teacher describes, with untrained weights."""
    if about["builder"]:
        module: nn.Module = _builder(about["builder"])()
        return module
    try:
        return FAMILIES[about["family"]].build(about["spec"], data.input_shape, data.classes)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # also InputError: a field out of its range
        raise TeacherError(f"a saved teacher must name a family and its fields, got: {error}; save it again") from None


def _builder(name: str) -> Callable[[], nn.Module]:
    """The function that makes a teacher of the user's own. Raises TeacherError, as soon as the name is given."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise TeacherError(
            f"builder '{name}' must name an importable function without arguments, 'module:attribute': {error}"
        ) from None

    def build() -> nn.Module:
        try:
            made = found()
        except TypeError as error:
            raise TeacherError(f"builder '{name}' must take no arguments: {error}; wrap it in a function") from None
        if not isinstance(made, nn.Module):
            raise TeacherError(
                f"builder '{name}' must return an nn.Module, got {type(made).__name__}; return the module"
            )
        return made

    return build
