"""search, resume, distill: check the arguments, open the run folder, hand over to an executor, deliver the student.

The path of one search: here -> orchestrate (ray_tune or inline) -> director -> engine decides, core trains -> delivery -> report.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autokd import __version__
from autokd.budget import Budget
from autokd.constraints import Cost, parse_limits
from autokd.core import checkpoint
from autokd.core.core import Blueprint, TrainingCore, choose_precision
from autokd.core.device import Setting, default_device
from autokd.core.run import load_student
from autokd.data import Data
from autokd.delivery import ABOUT, Delivered, deliver, load_delivered
from autokd.engine.engine import Engine
from autokd.errors import BudgetError, InputError, RecipeError, RunFolderError, nearest
from autokd.ledger import Ledger
from autokd.objectives import objective_rules
from autokd.orchestrate.director import Director
from autokd.orchestrate.inline import run_inline
from autokd.orders import Order
from autokd.plan import Plan, make_plan
from autokd.progress import Progress, plan_table, result_table
from autokd.recipe import Recipe, StudentSpec, Vocabulary
from autokd.result import Result
from autokd.run_folder import RunFolder
from autokd.space import Space
from autokd.students import families_rules
from autokd.students import resolve as resolve_family
from autokd.students.describe import describe
from autokd.teacher import Teacher, evaluate

if TYPE_CHECKING:
    from autokd.tracking import Tracker

EXECUTORS = ("ray", "inline")
DISTILL_EPOCHS = 60


class SearchResult(Result):
    """What a search found. Reads the run folder; the student comes with weights, in eval mode."""

    def __init__(self, run_dir: str | Path, teacher: Teacher | None = None) -> None:
        super().__init__(run_dir)
        self._teacher = teacher
        self._delivered: Delivered | None = None

    def student(self) -> nn.Module:
        """The best student: (N, *input_shape) float rows -> (N, classes) logits. Raises RunFolderError if there is none yet."""
        return self._student().module

    def report(self, folder: str | Path | None = None) -> Path:
        """Write one self-contained HTML page and PNGs, by default into the run folder. Returns the page's path."""
        from autokd.report import write_report

        return write_report(self, Path(folder) if folder is not None else RunFolder(self.run_dir).report)

    def export(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the student as .onnx, .pt2 or .safetensors, checked against the module. Raises ExportError."""
        from autokd.export import export_student

        delivered = self._student()
        metadata = {**delivered.about, "recipe": delivered.recipe.to_dict(), "autokd": __version__}
        return export_student(
            delivered.module, _float_rows(self._data(), 1), path, metadata=metadata, overwrite=overwrite
        )

    def _student(self) -> Delivered:
        if self._delivered is None:
            self._delivered = load_delivered(RunFolder(self.run_dir).student, self._data())
        return self._delivered

    def _data(self) -> Data:
        if self._teacher is None:
            self._teacher = Teacher.load(_saved_teacher(RunFolder(self.run_dir)))
        return self._teacher.data


@dataclass(frozen=True)
class Distilled:
    """One recipe, trained."""

    recipe: Recipe
    student: nn.Module  # eval mode
    epochs: int
    seed: int
    metrics: dict[str, float]  # validation
    test: dict[str, float]
    history: list[dict[str, Any]]  # one entry an epoch: loss, terms, metrics, seconds
    cost: Cost

    def headline(self) -> str:
        """The result in one sentence."""
        validation, test = self.metrics["accuracy"], self.test["accuracy"]
        return f"a student of {self.cost.params:,} parameters after {self.epochs} epochs: {validation:.2%} validation, {test:.2%} test"

    def to_dict(self) -> dict[str, Any]:
        """A summary that json.dumps takes."""
        known = {name: value for name, value in vars(self).items() if name not in ("student", "recipe", "cost")}
        return {**known, "recipe": self.recipe.to_dict(), "params": self.cost.params, "flops": self.cost.flops}


def search(
    teacher: Teacher,
    budget: str | Budget,
    *,
    space: str | Path | Space | None = None,
    objectives: Sequence[str] | None = None,
    students: Sequence[str] | None = None,
    constraints: Mapping[str, object] | None = None,
    epochs: int | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    name: str | None = None,
    executor: str = "ray",
    lanes: int | None = None,
    device: str | None = None,
    tracking: bool = True,
    tracking_uri: str | None = None,
    ray_address: str | None = None,
    verbose: bool = True,
) -> SearchResult:
    """Find the best student for `teacher` that `budget` can buy.

    budget        "30m", "200 trials" or "5000 epochs"; a fifth of it goes to retraining the winner and its controls
    space         a shipped space's name or a YAML file; by default "digits" for images below 16x16, else "classification"
    objectives    only these distillation losses, of those in the space
    students      only these families, or your own as "module:attribute"
    constraints   {"params": 50_000 | "50k" | "teacher/10", "flops": …}; by default a tenth of the teacher's parameters
    epochs        of a full training; by default what the budget affords, at most what the space says
    run_dir       a new folder for everything; by default runs/<name>-<time>
    executor      "ray", or "inline": one lane in this process
    lanes         trials trained at a time; by default one per core, or per GPU
    tracking_uri  of MLflow; by default $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db; tracking=False turns it off
    ray_address   of a running cluster; by default Ray is started on this machine and stopped afterwards

    Everything is checked before anything is trained; all errors are subclasses of AutokdError.
    """
    budget, executor = Budget.parse(budget), _known_executor(executor)
    if not isinstance(teacher, Teacher):
        raise InputError(
            f"search needs an autokd.Teacher, got {type(teacher).__name__}; wrap the module: autokd.Teacher(module, data)"
        )
    if epochs is not None and epochs < 1:
        raise BudgetError(f"epochs must be at least 1, got {epochs}; leave it out to let the budget decide")
    if lanes is not None and lanes < 1:
        raise InputError(f"lanes must be at least 1, got {lanes}; leave it out for one per core")
    chosen = _space_for(teacher, space, objectives, students)
    limits = parse_limits(constraints, teacher.cost)
    cost_of = _CostOf(teacher.data)
    engine = Engine(chosen, limits, cost_of, teacher.cost, lanes or 1, seed)
    engine.sampler.check_satisfiable()
    if tracking:
        _check_tracking(tracking_uri)
    _say(
        verbose,
        f"teacher {teacher.name}: validation {teacher.task.metric} {teacher.value:.2%}, {teacher.cost.params:,} parameters",
    )
    teacher.require_knowledge()

    with ExitStack() as stack:
        cluster_lanes = stack.enter_context(_lanes(executor, ray_address, lanes))
        engine.lanes = cluster_lanes.lanes
        folder = RunFolder.create(run_dir, name or teacher.data.name)
        stack.callback(folder.close)
        ledger = Ledger(folder.ledger)
        stack.callback(ledger.close)
        device = device or default_device()
        first = engine.sampler.first_recipe()
        precision, timings = choose_precision(teacher.data, teacher.module, first, device, folder.checkpoints)
        plan = make_plan(
            budget,
            chosen.epochs,
            engine.lanes,
            timings[precision],
            teacher.value,
            precision,
            epochs,
            tuple(teacher.data.notes),
        )
        settings = _Settings(executor, device, precision, tracking, tracking_uri, ray_address)
        head = _head(folder, name or folder.path.name, teacher, budget, chosen, limits.to_dict(), plan, settings, seed)
        ledger.append("search", **head)
        if teacher.can_be_saved:
            teacher.save(folder.teacher)
        if verbose:
            _console().print(plan_table(head["plan"], {**head, "elapsed": 0.0}))
        return _work(_Session(teacher, folder, ledger, engine, budget, settings, cluster_lanes), verbose)


def resume(
    run_dir: str | Path,
    budget: str | Budget | None = None,
    *,
    teacher: Teacher | None = None,
    executor: str | None = None,
    lanes: int | None = None,
    ray_address: str | None = None,
    verbose: bool = True,
) -> SearchResult:
    """Continue a killed or finished search. `budget` is added to what it had, in the same unit.

    A teacher of your own that could not be saved in the run folder must be passed again. Raises RunFolderError, BudgetError.
    """
    more = None if budget is None else Budget.parse(budget)
    folder = RunFolder.existing(run_dir)
    with ExitStack() as stack:
        stack.callback(folder.close)
        ledger = Ledger(folder.ledger)
        stack.callback(ledger.close)
        result = Result(folder.path)
        for problem in ledger.problems:
            _say(verbose, f"ledger: {problem}")
        head = result.head
        total = _total_budget(result, more)
        teacher = _same_teacher(teacher, folder, head)
        if result.history.finished and more is None:
            _say(verbose, f"this search is finished ({result.history.finished}); give it more budget to go on")
            _deliver_what_is_left(folder, ledger, head, verbose)
            return SearchResult(folder.path, teacher)
        settings = _Settings(**{**head["settings"], **({"executor": _known_executor(executor)} if executor else {})})
        if ray_address is not None:
            settings = _Settings(**{**vars(settings), "ray_address": ray_address})
        chosen = Space.from_dict(head["space"], vocabulary())
        limits = parse_limits({k: v for k, v in head["constraints"].items() if v is not None}, teacher.cost)
        cluster_lanes = stack.enter_context(_lanes(settings.executor, settings.ray_address, lanes))
        engine = Engine(chosen, limits, _CostOf(teacher.data), teacher.cost, cluster_lanes.lanes, head["seed"])
        _say(
            verbose,
            f"continuing {folder.path}: {len(result.history.trials)} trials so far, {ledger.elapsed:.0f} s spent, budget {total}",
        )
        return _work(_Session(teacher, folder, ledger, engine, total, settings, cluster_lanes), verbose)


def distill(
    teacher: Teacher,
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    epochs: int | None = None,
    seed: int = 0,
    device: str | None = None,
    folder: str | Path | None = None,
    verbose: bool = True,
) -> Distilled:
    """Train one recipe, for example recipe.json of a past winner. `epochs` defaults to those of that winner, else 60.

    Raises RecipeError before training if the recipe is wrong, TrialFailure if the training fails. With `folder`, the student
    is saved there.
    """
    recipe, known = _read_recipe(recipe)
    recipe.check(vocabulary())
    cost = _CostOf(teacher.data)(recipe.student)
    total = epochs or known or DISTILL_EPOCHS
    if total < 1:
        raise BudgetError(f"epochs must be at least 1, got {total}")
    device = device or default_device()
    target = Path(folder) if folder is not None else None
    with _scratch(target) as scratch:
        precision, _ = choose_precision(teacher.data, teacher.module, recipe, device, scratch)
        core = TrainingCore(teacher.data, teacher.module, scratch, Setting(device, precision))
        _say(
            verbose, f"distilling {recipe.student.family} ({cost.params:,} parameters) for {total} epochs, {precision}"
        )
        report = core.advance(Order(trial="student", recipe=recipe, seed=seed, to=total, total=total))
        tensors, _ = checkpoint.load(core.checkpoint_path("student"))
    student = load_student(recipe, teacher.data, tensors)
    test = evaluate(student, teacher.data, teacher.data.test, teacher.task.name)
    return Distilled(recipe, student, total, seed, report.metrics, test, report.history, cost)


def vocabulary() -> Vocabulary:
    """The names recipes and spaces may use."""
    return Vocabulary(families_rules(), objective_rules())


# ---- one session of work on a search


@dataclass(frozen=True)
class _Settings:
    """How a search is run; kept in the ledger for resume. The tracking URI is kept as given, without it being shown."""

    executor: str
    device: str
    precision: str
    tracking: bool
    tracking_uri: str | None
    ray_address: str | None


@dataclass(frozen=True)
class _Session:
    teacher: Teacher
    folder: RunFolder
    ledger: Ledger
    engine: Engine
    budget: Budget
    settings: _Settings
    cluster: Any  # a Cluster of the ray executor, or _OneLane


@dataclass(frozen=True)
class _OneLane:
    """What the inline executor runs on."""

    lanes: int = 1


def _work(session: _Session, verbose: bool) -> SearchResult:
    """Run the search to its end, deliver, report, track."""
    ledger, folder, teacher = session.ledger, session.folder, session.teacher
    tracker = _tracker(session)
    with ExitStack() as stack:
        if tracker is not None:
            tracker.start()
        progress = Progress(
            list(ledger.events), verbose=int(verbose), status=(lambda: tracker.status) if tracker else lambda: ""
        )
        ledger.listen(progress.event)
        director = Director(session.engine, ledger)
        ledger.append("session", pid=os.getpid(), budget=session.budget.to_dict(), lanes=session.cluster.lanes)
        stack.enter_context(progress)
        try:
            reason = _execute(session, director)
        except KeyboardInterrupt:
            stack.close()
            if tracker is not None:
                tracker.finish(timeout=10)
            _say(verbose, f"interrupted; nothing is lost: continue with  autokd resume {folder.path}")
            raise
        deliver(director.history, folder, ledger, teacher)
        ledger.append("finish", reason=reason)
    result = SearchResult(folder.path, teacher)
    page = result.report()
    summary = _finish_tracking(tracker, result, page.parent) if tracker is not None else None
    if verbose:
        _show(result, page, tracker, summary)
    return result


def _execute(session: _Session, director: Director) -> str:
    setting = Setting(session.settings.device, session.settings.precision)
    blueprint = Blueprint(session.teacher.data, session.teacher.module, str(session.folder.checkpoints), setting)
    if session.settings.executor == "inline":
        core = blueprint.build()
        try:
            return run_inline(director, core)
        finally:
            core.close()
    from autokd.orchestrate.ray_tune import run_ray

    return run_ray(director, blueprint, session.cluster, session.folder.path)


@contextmanager
def _lanes(executor: str, address: str | None, lanes: int | None) -> Iterator[Any]:
    if executor == "inline":
        if address is not None:
            raise InputError("the inline executor has no cluster: leave out ray_address, or use executor='ray'")
        yield _OneLane()
        return
    from autokd.orchestrate.ray_tune import connect

    with connect(address, lanes) as cluster:
        yield cluster


# ---- tracking


def _check_tracking(uri: str | None) -> None:
    from autokd.tracking import check

    check(uri)


def _tracker(session: _Session) -> Tracker | None:
    if not session.settings.tracking:
        return None
    from autokd.tracking import Tracker

    return Tracker(session.settings.tracking_uri, session.folder.path, session.ledger)


def _finish_tracking(tracker: Tracker, result: SearchResult, artifacts: Path) -> Any:
    module, example = None, None
    if result.best is not None:
        module, example = result.student(), _float_rows(result._data(), 2)
    return tracker.finish(artifacts=artifacts, model=module, example=example)


def _float_rows(data: Data, count: int) -> NDArray[np.float32]:
    """The first training rows as networks take them."""
    rows = data.train.x[:count]
    return rows.astype(np.float32) / np.float32(255 if rows.dtype == np.uint8 else 1)


def _deliver_what_is_left(folder: RunFolder, ledger: Ledger, head: Mapping[str, Any], verbose: bool) -> None:
    if not head["settings"]["tracking"]:
        return
    from autokd.tracking import sync

    _say(verbose, str(sync(folder.path, head["settings"]["tracking_uri"])))


# ---- arguments


class _CostOf:
    """Parameters and FLOPs of a student for one data set."""

    def __init__(self, data: Data) -> None:
        self.shape, self.classes = data.input_shape, data.classes

    def __call__(self, spec: StudentSpec) -> Cost:
        family = resolve_family(spec.family)
        misfit = family.misfit(self.shape)
        if misfit is not None:
            raise InputError(f"family '{spec.family}' does not take rows of shape {self.shape}: {misfit}")
        return describe(family, spec.fields, self.shape, self.classes, name=spec.family)


def _space_for(
    teacher: Teacher,
    source: str | Path | Space | None,
    objectives: Sequence[str] | None,
    students: Sequence[str] | None,
) -> Space:
    shape = teacher.data.input_shape
    if source is None:
        source = "digits" if len(shape) == 3 and max(shape[1:]) < 16 else "classification"
    space = Space.load(source, vocabulary())
    if objectives is not None:
        space = space.restrict(objectives)
    wanted = list(students) if students is not None else None
    if wanted is None and len(shape) == 1:
        wanted = ["mlp"]  # the only registered family for vectors
    return space if wanted is None else space.with_families(wanted)


def _known_executor(name: str) -> str:
    if name not in EXECUTORS:
        raise InputError(f"unknown executor '{name}'; {nearest(name, EXECUTORS)}")
    return name


def _read_recipe(source: Recipe | Mapping[str, Any] | str | Path) -> tuple[Recipe, int | None]:
    """The recipe, and the epochs of the winner it was, if it lies beside one."""
    if isinstance(source, Recipe):
        return source, None
    if isinstance(source, Mapping):
        return Recipe.from_dict(dict(source)), None
    path = Path(source)
    try:
        text = path.read_text()
    except OSError as error:
        raise RecipeError(f"recipe file {path} cannot be read: {error.strerror}; give a recipe.json") from None
    beside = path.with_name(ABOUT)
    known = int(json.loads(beside.read_text())["epochs"]) if beside.exists() else None
    return Recipe.from_json(text), known


def _total_budget(result: Result, more: Budget | None) -> Budget:
    before = Budget.from_dict(result.history.budget or result.head["budget"])
    if more is None:
        return before
    if more.kind != before.kind:
        raise BudgetError(f"more budget must be in {before.kind} as before, got {more}; the search had {before}")
    return Budget(before.kind, before.amount + more.amount)


def _saved_teacher(folder: RunFolder) -> Path:
    if not folder.teacher.exists():
        raise RunFolderError(f"{folder.path} does not hold its teacher (a module of your own); pass teacher=")
    return folder.teacher


def _same_teacher(teacher: Teacher | None, folder: RunFolder, head: Mapping[str, Any]) -> Teacher:
    teacher = teacher or Teacher.load(_saved_teacher(folder))
    expected = head["teacher"]["fingerprint"]
    if teacher.fingerprint != expected:
        raise RunFolderError(
            f"a search goes on with the teacher and data it began with ({expected}), got {teacher.fingerprint}; pass that teacher"
        )
    return teacher


def _head(
    folder: RunFolder,
    name: str,
    teacher: Teacher,
    budget: Budget,
    space: Space,
    constraints: dict[str, Any],
    plan: Plan,
    settings: _Settings,
    seed: int,
) -> dict[str, Any]:
    return {
        "search_id": f"{name}-{os.urandom(4).hex()}",
        "name": name,
        "seed": seed,
        "budget": budget.to_dict(),
        "space": space.to_dict(),
        "constraints": constraints,
        "rungs": list(plan.rungs),
        "lanes": plan.lanes,
        "executor": settings.executor,
        "settings": vars(settings),
        "metric": teacher.task.metric,
        "teacher": {
            "name": teacher.name,
            "params": teacher.cost.params,
            "flops": teacher.cost.flops,
            "value": teacher.value,
            "value_loss": teacher.metrics["loss"],
            "fingerprint": teacher.fingerprint,
        },
        "data": teacher.data.describe(),
        "plan": plan.to_dict(),
        "versions": {"autokd": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


# ---- the terminal


def _console() -> Any:
    from rich.console import Console

    return Console()


def _say(verbose: bool, line: str) -> None:
    if verbose:
        _console().print(line, highlight=False, soft_wrap=True)


def _show(result: SearchResult, page: Path, tracker: Tracker | None, summary: Any) -> None:
    console = _console()
    console.print(result_table(result))
    console.print(result.headline(), highlight=False)
    console.print(f"run folder  {result.run_dir}", highlight=False, soft_wrap=True)
    console.print(f"report      {page}", highlight=False, soft_wrap=True)
    if tracker is not None:
        console.print(f"MLflow      {summary}", highlight=False, soft_wrap=True)


@contextmanager
def _scratch(folder: Path | None) -> Iterator[Path]:
    import tempfile

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="autokd-") as scratch:
        yield Path(scratch)
