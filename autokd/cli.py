"""The command line. One function per command, each a call of the API.

Exit codes: 0 done, 1 something outside the input went wrong (run folder, cluster, tracking), 2 the input is wrong,
3 the search found no student, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autokd import __version__
from autokd.cli_input import ablation_of, check_before_teacher, constraints_of, names_of, tape_of, teacher_of
from autokd.cli_tape import tape
from autokd.errors import AutokdError, InputError

if TYPE_CHECKING:
    from autokd.outcome import SearchResult

NO_STUDENT, INTERRUPTED = 3, 130
TEACHER_HELP = (
    "digits (built in), fit or fit:FAMILY with --data, a folder written by Teacher.save, models:/NAME/VERSION in MLflow, "
    "or module:attribute of your own with --data."
)
SMOOTH_HELP = "First fine-tune a copy of the teacher to be smoother (purf), and distil that."
DATA_HELP = "digits, a .npz with x_train, y_train[, x_test, y_test], or torchvision:NAME with --root."


def main() -> None:
    """Entry point: runs a command and turns errors into one line and an exit code."""
    sys.path.insert(0, os.getcwd())  # so that module:attribute finds what lies here
    try:
        code = cli.main(prog_name="autokd", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = 0
    except click.ClickException as error:
        code = _complain(f"{error.format_message()} (see {_path_of(error)} --help)", 2)
    except InputError as error:
        code = _complain(str(error), 2)
    except AutokdError as error:
        code = _complain(str(error), 1)
    except (click.exceptions.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except BrokenPipeError:
        code = 0
    except OSError as error:  # a full disk, a folder that may not be written to
        code = _complain(f"{error.strerror or error}: {error.filename}" if error.filename else str(error), 1)
    sys.exit(code if isinstance(code, int) else 0)


def _path_of(error: click.ClickException) -> str:
    """The command whose help tells more."""
    context = getattr(error, "ctx", None)
    return "autokd" if context is None else context.command_path


def _complain(message: str, code: int) -> int:
    click.echo("error: " + " ".join(message.split()), err=True)
    return code


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="autokd")
def cli() -> None:
    """Find the best small student for a large teacher that a budget can buy.

    \b
    autokd search --teacher digits --budget 90s            a first search, in two minutes
    autokd search --teacher my_models:teacher --data data.npz --budget 30m
    autokd resume runs/digits-…  --budget 10m              go on, with more budget
    autokd show runs/digits-…                              what was found
    autokd export runs/digits-… student.onnx               take it away
    """


# ---- searching


def _search_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of a search, in the order in which they are asked for."""
    options = [
        click.option("--teacher", required=True, help=TEACHER_HELP),
        click.option("--data", help=DATA_HELP + " Not needed where the teacher knows its data."),
        click.option("--root", type=click.Path(), help="Folder of a torchvision data set."),
        click.option("--smooth", is_flag=True, help=SMOOTH_HELP),
        click.option(
            "--budget", required=True, help="What the search may spend: 90s, 30m, 1h30m, '200 trials', '5000 epochs'."
        ),
        click.option("--space", help="A shipped space (see autokd spaces) or a YAML file. Default: by the data."),
        click.option("--objectives", help="Only these distillation losses, e.g. kd,dkd."),
        click.option("--students", help="Only these families, e.g. resnet,mobilenet, or your own module:attribute."),
        click.option(
            "--constraint",
            "constraints",
            multiple=True,
            help="params=50k, params=teacher/20, flops=2M, bytes=64kB, latency_ms=5. Repeatable.",
        ),
        click.option(
            "--goals", help="Several goals, a front of students: e.g. accuracy,params or accuracy,latency_ms."
        ),
        click.option("--prefer", help="Whom of the front to take: accuracy, knee, 'params<=20k'."),
        click.option(
            "--warm-start", multiple=True, help="An earlier search: run folder, ledger, mlflow:EXPERIMENT. Repeatable."
        ),
        click.option("--epochs", type=int, help="Epochs of a full training. Default: what the budget affords."),
        click.option("--seed", type=int, default=0, show_default=True),
        click.option("--run-dir", type=click.Path(), help="New folder for everything. Default: runs/NAME-TIME."),
        click.option("--name", help="Name of the search. Default: the data's."),
        click.option(
            "--executor", default="ray", show_default=True, help="ray, or inline for one lane in this process."
        ),
        click.option("--lanes", type=int, help="Trials trained at a time. Default: one per core or GPU."),
        click.option("--device", help="cpu or cuda. Default: cuda if there is one."),
        click.option("--tracking/--no-tracking", default=True, help="Log to MLflow.", show_default=True),
        click.option(
            "--tracking-uri", help="MLflow server or store. Default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."
        ),
        click.option(
            "--ray-address", help="Attach to a running Ray cluster, from one of its machines: auto or HOST:6379."
        ),
        click.option(
            "--tape",
            help="Folder of what the teacher said, shared by searches; off runs it live. Default: the user's cache.",
        ),
        click.option(
            "--tape-limit", help="Size of that folder, e.g. 10GB. Default: a tenth of the free disk, 20GB at most."
        ),
        click.option(
            "--ablation",
            default="auto",
            show_default=True,
            help="Train the winner with one thing changed at a time: auto if the finals leave enough budget, on keeps "
            "a tenth of it, off.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")(command)
    return click.option("--quiet", "-q", is_flag=True, help="No progress, no tables.")(command)


@cli.command()
@_search_options
@_output_options
def search(
    teacher: str,
    data: str | None,
    root: str | None,
    smooth: bool,
    budget: str,
    objectives: str | None,
    students: str | None,
    goals: str | None,
    warm_start: tuple[str, ...],
    constraints: tuple[str, ...],
    quiet: bool,
    as_json: bool,
    **rest: Any,
) -> int:
    """Search for the best student of a teacher.

    A teacher is trained first if it is one of ours, and cached. The plan is printed before anything else is trained; the last
    fifth of the budget retrains the winner and two controls (no distillation, default KD) with fresh seeds.
    """
    from autokd import api

    verbose = not (quiet or as_json)
    rest |= {"objectives": names_of("objectives", objectives), "students": names_of("students", students)}
    rest |= {"goals": names_of("goals", goals), "warm_start": list(warm_start) or None}
    rest |= {"tape": tape_of(rest["tape"]), "ablation": ablation_of(rest["ablation"])}
    limits = constraints_of(constraints)
    check_before_teacher(budget, limits, **rest)
    taught_by = teacher_of(teacher, data, root, verbose, smooth)
    result = api.search(taught_by, budget, constraints=limits, verbose=verbose, **rest)
    return _conclude(result, as_json)


@cli.command()
@click.argument("run_dir", type=click.Path())
@click.option("--budget", help="More budget, added to what the search had and in the same unit.")
@click.option("--teacher", help="Only needed for a module of your own that could not be saved. " + TEACHER_HELP)
@click.option("--data", help=DATA_HELP)
@click.option("--root", type=click.Path(), help="Folder of a torchvision data set.")
@click.option("--executor", help="ray or inline. Default: as before.")
@click.option("--lanes", type=int, help="Trials trained at a time. Default: one per core or GPU.")
@click.option("--tracking-uri", help="Only needed if the one before held a password or a token.")
@click.option("--ray-address", help="Attach to a running Ray cluster.")
@_output_options
def resume(
    run_dir: str,
    budget: str | None,
    teacher: str | None,
    data: str | None,
    root: str | None,
    quiet: bool,
    as_json: bool,
    **rest: Any,
) -> int:
    """Continue a search that was killed, or a finished one with more budget."""
    from autokd import api

    verbose = not (quiet or as_json)
    own = None if teacher is None else teacher_of(teacher, data, root, verbose)
    return _conclude(api.resume(run_dir, budget, teacher=own, verbose=verbose, **rest), as_json)


@cli.command()
@click.option("--teacher", required=True, help=TEACHER_HELP)
@click.option("--data", help=DATA_HELP)
@click.option("--root", type=click.Path(), help="Folder of a torchvision data set.")
@click.option("--smooth", is_flag=True, help=SMOOTH_HELP)
@click.option(
    "--recipe",
    required=True,
    type=click.Path(),
    help="A recipe.json, e.g. RUN_DIR/student/recipe.json; or a space, whose prior is trained, e.g. papers/jda_ccd.",
)
@click.option(
    "--epochs", type=int, help="Default: those of the winner the recipe belongs to, or of the space; else 60."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(), help="Folder for the student's weights.")
@_output_options
def distill(
    teacher: str,
    data: str | None,
    root: str | None,
    smooth: bool,
    recipe: str,
    epochs: int | None,
    seed: int,
    out: str | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Train one recipe, for example a past winner's, without searching."""
    from autokd import api
    from autokd.arguments import check_settings, vocabulary
    from autokd.delivery import read_recipe

    verbose = not (quiet or as_json)
    check_settings(epochs=epochs, seed=seed)
    read_recipe(recipe)[0].check(vocabulary())  # before a teacher is trained
    done = api.distill(
        teacher_of(teacher, data, root, verbose, smooth), recipe, epochs=epochs, seed=seed, folder=out, verbose=verbose
    )
    if as_json:
        click.echo(json.dumps(done.to_dict()))
    elif not quiet:
        click.echo(done.headline())
    return 0


# ---- looking at what was found


@cli.command()
@click.argument("run_dir", type=click.Path())
@click.option(
    "--top", type=click.IntRange(min=1), default=10, show_default=True, help="Trials of the leaderboard to print."
)
@click.option("--sync", is_flag=True, help="First deliver to MLflow what it has not received.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def show(run_dir: str, top: int, sync: bool, as_json: bool) -> int:
    """Print what a search has found, also while it still runs."""
    from rich.console import Console

    from autokd.progress import leaderboard_table, result_table
    from autokd.result import Result
    from autokd.summary import why

    result = Result(run_dir)
    if sync:
        from autokd.tracking import sync as deliver

        known = str(result.head["settings"]["tracking_uri"] or "")
        click.echo(str(deliver(Path(run_dir), None if "***" in known else known or None)), err=as_json)
    if as_json:
        click.echo(json.dumps(result.to_dict()))
        return 0
    console = Console()
    console.print(result_table(result))
    console.print(leaderboard_table(result, top))
    console.print(f"{result.state}: {result.headline()}", highlight=False)
    for sentence in why(result):
        console.print(sentence, highlight=False, markup=False)
    for problem in result.problems:
        console.print(f"note: {problem}", highlight=False, markup=False)
    return 0


@cli.command()
@click.argument("run_dir", type=click.Path())
@click.option("--out", type=click.Path(), help="Folder to write into. Default: RUN_DIR/report.")
def report(run_dir: str, out: str | None) -> int:
    """Write the report: one self-contained HTML page, and PNGs."""
    from autokd import api

    click.echo(str(api.SearchResult(run_dir).report(out)))
    return 0


@cli.command()
@click.argument("run_dir", type=click.Path())
@click.argument("path", type=click.Path())
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@click.option(
    "--prefer", help="Whom of a front to take: accuracy, knee, 'params<=20k'. Default: as the search was told."
)
def export(run_dir: str, path: str, overwrite: bool, prefer: str | None) -> int:
    """Write the winning student as .onnx, .pt2 or .safetensors, checked against the module."""
    from autokd import api

    click.echo(str(api.SearchResult(run_dir).export(path, overwrite=overwrite, prefer=prefer)))
    return 0


@cli.command()
@click.option("--tracking-uri", help="Default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.")
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Other hosts than loopback are served only if named."
)
def ui(tracking_uri: str | None, port: int, host: str) -> int:
    """Browse the trials in MLflow's own pages. Ctrl-C ends it."""
    from autokd.tracking import open_ui

    server = open_ui(tracking_uri, port, host)
    click.echo(f"MLflow UI: http://{host}:{port}   (Ctrl-C ends it)")
    try:
        return server.wait()
    finally:
        server.terminate()


@cli.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def spaces(name: str | None, as_json: bool) -> int:
    """List the search spaces, print one, or check a YAML file of your own."""
    from autokd.api import vocabulary
    from autokd.space import Space, shipped_spaces

    known = [Space.load(name, vocabulary())] if name else [Space.load(each, vocabulary()) for each in shipped_spaces()]
    if as_json:
        click.echo(json.dumps([space.to_dict() for space in known]))
        return 0
    for space in known:
        click.echo(
            f"{space.name:16} {len(space.fields)} fields, {len(space.first)} published recipes, {space.epochs} epochs. {space.about}"
        )
    if name:
        for field in known[0].fields:
            click.echo(f"  {field}")
        for title, _ in known[0].first:
            click.echo(f"  first: {title}")
    return 0


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def doctor(as_json: bool) -> int:
    """Say what this machine offers and what is missing."""
    from autokd.doctor import examine

    findings = examine()
    if as_json:
        click.echo(json.dumps(findings))
    else:
        for topic, finding in findings.items():
            click.echo(f"{topic:12} {finding}")
    return 1 if findings["missing"] else 0


cli.add_command(tape)


def _conclude(result: SearchResult, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps(result.to_dict()))
    return 0 if result.leading is not None else NO_STUDENT
