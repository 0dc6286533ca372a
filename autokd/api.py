"""search, resume, distill: check the arguments, open the run folder, hand over to a session of work.

The path of one search: here -> new_search -> session -> orchestrate (ray_tune or inline) -> director -> engine decides, core trains ->
delivery -> report.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from autokd.arguments import check_settings, vocabulary
from autokd.budget import Budget
from autokd.constraints import Limits, parse_limits
from autokd.core import checkpoint
from autokd.core.core import TrainingCore
from autokd.core.device import default_device
from autokd.core.materials import Materials, calibrate
from autokd.core.run import load_student
from autokd.delivery import read_recipe
from autokd.engine.ablation import When
from autokd.engine.engine import Engine
from autokd.engine.passes import listens
from autokd.errors import BudgetError, InputError, RunFolderError
from autokd.goals import check_preference, parse_goals
from autokd.ledger import Ledger
from autokd.new_search import Asked, begin
from autokd.orders import Order
from autokd.outcome import Distilled, SearchResult, saved_teacher
from autokd.probe import parse_probe
from autokd.recipe import Recipe
from autokd.result import Result
from autokd.run_folder import RunFolder
from autokd.scope import CostOf, space_for
from autokd.session import HIDDEN, Session, Settings, open_lanes, work
from autokd.space import Space
from autokd.stage0 import check_stages0, made_ready, stages0_of
from autokd.students import name_of
from autokd.taping import tape_place, tape_plan
from autokd.teacher import Teacher, evaluate
from autokd.telling import say
from autokd.warm_start import earlier_searches, task_of

DISTILL_EPOCHS = 60


def search(
    teacher: Teacher,
    budget: str | Budget,
    *,
    space: str | Path | Space | None = None,
    objectives: Sequence[str] | None = None,
    students: Sequence[object] | None = None,
    constraints: Mapping[str, object] | None = None,
    goals: Sequence[str] | None = None,
    prefer: str | None = None,
    warm_start: str | Path | Sequence[str | Path] | None = None,
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
    tape: bool | str | Path = True,
    tape_limit: str | int | None = None,
    ablation: When = "auto",
    verbose: bool = True,
) -> SearchResult:
    """Find the best student for `teacher` that `budget` can buy.

    budget        "30m", "200 trials" or "5000 epochs"; a fifth of it goes to retraining the winner and its controls
    space         a shipped space's name or a YAML file; by default the one for such data: "digits", "vectors" or "images"
    objectives    only these distillation losses, of those in the space
    students      only these families; your own as "module:attribute", a family object, or an nn.Module class
    constraints   {"params": "50k", "flops": …, "bytes": "64 kB", "memory": …, "latency_ms": 5}; by default params: "teacher/10"
    goals         ["accuracy", "params"]: a front instead of one student; costs are params, flops, bytes, memory, latency_ms
    prefer        whom of the front to take: "accuracy", "knee", "params<=20k"; without it result.best asks for one
    warm_start    earlier searches as a prior: run folders, ledgers, "mlflow:<experiment>"
    epochs        of a full training; by default what the budget affords, at most what the space says
    seed          of everything random; the finals use other seeds
    run_dir       a new folder for everything; by default runs/<name>-<time>
    executor      "ray", or "inline": one lane in this process
    lanes         trials trained at a time; by default one per core, or per GPU
    tracking_uri  of MLflow; by default $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db; tracking=False turns it off
    ray_address   of a running cluster; by default Ray is started on this machine and stopped afterwards
    tape          a folder for the teacher's outputs, so that it runs once; True: the user's cache; False: it runs in every trial
    tape_limit    of that folder, "10GB"; by default a tenth of what is free on its disk, at most 20 GB
    ablation      of the winner, one change at a time: "auto" if the finals leave enough budget, True keeps a tenth of it, False none

    Everything is checked before anything is trained; all errors are subclasses of AutokdError.
    """
    budget = Budget.parse(budget)
    check_settings(executor, lanes, epochs, seed, device, name, ray_address, ablation)
    _check_given(teacher, run_dir)
    chosen = space_for(teacher, space, objectives, students)
    check_stages0(teacher, stages0_of(chosen))
    limits, where = parse_limits(constraints, teacher.cost), tape_place(tape, tape_limit)
    engine = Engine(chosen, limits, CostOf(teacher.data), teacher.cost, lanes or 1, seed, where is not None, ablation)
    engine.sampler.check_satisfiable()
    uri, shown = _checked_uri(tracking_uri) if tracking else (None, None)
    wanted = _wanted(teacher, chosen, constraints, goals, prefer, warm_start, uri or tracking_uri)
    asked = (wanted, where, device or default_device(), epochs, run_dir, name, executor, lanes, ray_address)
    _introduce(teacher, verbose)
    with ExitStack() as stack:
        return work(begin(Asked(teacher, budget, engine, *asked, uri, shown, verbose), stack))


def resume(
    run_dir: str | Path,
    budget: str | Budget | None = None,
    *,
    teacher: Teacher | None = None,
    students: Sequence[object] = (),
    executor: str | None = None,
    lanes: int | None = None,
    tracking_uri: str | None = None,
    ray_address: str | None = None,
    verbose: bool = True,
) -> SearchResult:
    """Continue a killed or finished search. `budget` is added to what it had, in the same unit.

    A teacher of your own that could not be saved in the run folder must be passed again, and so must `students` that were given
    as objects, and a tracking URI that holds a secret. Raises RunFolderError, BudgetError.
    """
    more = None if budget is None else Budget.parse(budget)
    check_settings(executor, lanes, ray_address=ray_address)
    for each in students:
        name_of(each)
    folder = RunFolder.existing(run_dir)
    with ExitStack() as stack:
        stack.callback(folder.close)
        ledger = Ledger(folder.ledger)
        stack.callback(ledger.close)
        for problem in ledger.problems:
            say(verbose, f"ledger: {problem}")
        result = Result(folder.path)
        head, total = result.head, _total_budget(result, more)
        teacher = _same_teacher(teacher, folder, head)
        settings = _settings_again(Settings.from_dict(head["settings"]), executor, ray_address)
        uri = _uri_again(settings, tracking_uri)
        if result.history.finished and more is None:
            say(verbose, f"this search is finished ({result.history.finished}); give it more budget to go on")
            _deliver_what_is_left(folder, settings, uri, verbose)
            return SearchResult(folder.path)
        chosen = Space.from_dict(head["space"], vocabulary())
        device = settings.setting.device
        modules = made_ready(teacher, stages0_of(chosen), chosen.objectives, device, verbose)
        opened = stack.enter_context(
            open_lanes(
                settings.executor,
                settings.ray_address,
                lanes,
                Materials(teacher.data, modules),
                device,
                settings.cohort,
            )
        )
        limits = Limits(**head["constraints"])
        taped, cost_of = settings.tape is not None, CostOf(teacher.data)
        engine = Engine(chosen, limits, cost_of, teacher.cost, opened.lanes, head["seed"], taped, settings.ablation)
        done = f"{len(result.history.trials)} trials, {ledger.elapsed:.0f} s spent so far"
        say(verbose, f"continuing {folder.path}: {done}, budget {total}")
        return work(Session(teacher, folder, ledger, engine, total, settings, opened, uri, verbose))


def distill(
    teacher: Teacher,
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    epochs: int | None = None,
    seed: int = 0,
    device: str | None = None,
    folder: str | Path | None = None,
    tape: bool | str | Path = False,
    tape_limit: str | int | None = None,
    verbose: bool = True,
) -> Distilled:
    """Train one recipe: of a past winner (recipe.json), or the prior of a space, by file or name ("papers/…" are published ones).

    `epochs` defaults to those of that winner or space, else 60.

    With `folder`, the student's weights are kept there. `tape` as in `search`: of use where several recipes are trained with the
    same seed, since a single training reads each of the teacher's outputs once. Raises RecipeError before training if the recipe is wrong, TrialFailure
    if the training fails.
    """
    check_settings(seed=seed, device=device)
    recipe, known = read_recipe(recipe)
    recipe.check(vocabulary())
    cost = CostOf(teacher.data)(recipe.student)
    total = known or DISTILL_EPOCHS if epochs is None else epochs
    if total < 1:
        raise BudgetError(f"epochs must be at least 1, got {total}; leave it out for the default")
    objectives, device = [term.objective for term in recipe.terms], device or default_device()
    modules = made_ready(teacher, (recipe.stage0,), objectives, device, verbose)
    with _scratch(folder) as scratch:
        measured = calibrate(teacher.data, modules, recipe, device)
        taped, _ = tape_plan(teacher, objectives, total, tape_place(tape, tape_limit))
        core = TrainingCore(teacher.data, modules, scratch, measured.setting, tape=taped)
        core.checkpoint_path("student").unlink(missing_ok=True)
        size = f"{recipe.student.family}, {cost.params:,} parameters"
        seconds = measured.epoch_seconds + (measured.teacher_seconds if listens(recipe) else 0.0)
        say(verbose, f"distilling {size}: {total} epochs, about {total * seconds:.0f} s, {measured.setting}")
        report = core.advance(Order(trial="student", recipe=recipe, seed=seed, to=total, total=total))
        tensors, _ = checkpoint.load(core.checkpoint_path("student"))
    student = load_student(recipe, teacher.data.input_shape, teacher.data.classes, tensors)
    test = evaluate(student, teacher.data, teacher.data.test, teacher.task.name)
    return Distilled(recipe, student, total, seed, teacher.task.metric, report.metrics, test, report.history, cost)


# ---- arguments of a new search


def _check_given(teacher: object, run_dir: str | Path | None) -> None:
    if not isinstance(teacher, Teacher):
        kind = type(teacher).__name__
        raise InputError(f"search needs an autokd.Teacher, got {kind}; wrap the module: autokd.Teacher(module, data)")
    if run_dir is not None:
        RunFolder.check_new(run_dir)


def _wanted(
    teacher: Teacher,
    space: Space,
    constraints: Mapping[str, object] | None,
    goals: Sequence[str] | None,
    prefer: str | None,
    warm_start: str | Path | Sequence[str | Path] | None,
    tracking_uri: str | None,
) -> dict[str, Any]:
    """What a front is made of and begun with, as the ledger's head holds it."""
    metric = teacher.task.metric
    aims = parse_goals(goals, metric)
    probe = parse_probe(constraints, aims)
    wanted: dict[str, Any] = {"goals": aims, "prefer": check_preference(prefer, metric)}
    wanted["probe"] = None if probe is None else probe.to_dict()
    if warm_start is not None:
        wanted["warm_start"] = earlier_searches(warm_start, space, task_of(teacher, space), tracking_uri)
    return wanted


def _introduce(teacher: Teacher, verbose: bool) -> None:
    """The teacher's accuracy, measured and said first. Raises TeacherError if it knows nothing."""
    known = f"validation {teacher.task.metric} {teacher.value:.2%}, {teacher.cost.params:,} parameters"
    say(verbose, f"teacher {teacher.name}: {known}")
    teacher.require_knowledge()


def _checked_uri(uri: str | None) -> tuple[str, str]:
    """The tracking URI to use, and as it may be shown and kept."""
    from autokd.tracking import check, redact

    checked = check(uri)
    return checked, redact(checked)


# ---- arguments of a resumed search


def _total_budget(result: Result, more: Budget | None) -> Budget:
    before = Budget.from_dict(result.history.budget or result.head["budget"])
    if more is None:
        return before
    if more.kind != before.kind:
        raise BudgetError(f"more budget must be in {before.kind} as before, got {more}; the search had {before}")
    return Budget(before.kind, before.amount + more.amount)


def _same_teacher(teacher: Teacher | None, folder: RunFolder, head: Mapping[str, Any]) -> Teacher:
    teacher = teacher or saved_teacher(folder)
    expected = head["teacher"]["fingerprint"]
    if teacher.fingerprint != expected:
        raise RunFolderError(
            f"a search goes on with the teacher and data it began with ({expected}), got {teacher.fingerprint}; pass that teacher"
        )
    return teacher


def _settings_again(settings: Settings, executor: str | None, ray_address: str | None) -> Settings:
    """As before, but for what is named now. An address of an earlier cluster is not used with the inline executor."""
    if executor is not None:
        settings = replace(
            settings, executor=executor, ray_address=None if executor == "inline" else settings.ray_address
        )
    return settings if ray_address is None else replace(settings, ray_address=ray_address)


def _uri_again(settings: Settings, given: str | None) -> str | None:
    if not settings.tracking:
        return None
    kept = settings.tracking_uri if HIDDEN not in (settings.tracking_uri or "") else None
    return _checked_uri(given or kept)[0]


def _deliver_what_is_left(folder: RunFolder, settings: Settings, uri: str | None, verbose: bool) -> None:
    if settings.tracking:
        from autokd.tracking import sync

        say(verbose, str(sync(folder.path, uri)))


# ---- arguments of distill


@contextmanager
def _scratch(folder: str | Path | None) -> Iterator[Path]:
    """The given folder, made if need be, or one that is removed afterwards."""
    if folder is not None:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"folder {folder} cannot be written: {error.strerror}; name another one") from None
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="autokd-") as scratch:
        yield Path(scratch)
