"""`autokd tape`: what is recorded of teachers on this machine, whether it is sound, and how to be rid of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autokd.errors import BudgetError, InputError

if TYPE_CHECKING:
    from rich.table import Table

    from autokd.core.tape_store import Summary

WHAT = (
    "A tape holds what a teacher said about every training image of an epoch, and augmented images. A search records each epoch "
    "once; all its trials replay it instead of running the teacher."
)
SHOWN = 12  # digits of a source: enough to name it to clear --source

_folder_option = click.option(
    "--dir", "folder", type=click.Path(), help="The tape's folder. Default: in the user's cache."
)


@click.group(invoke_without_command=True)
@_folder_option
@click.pass_context
def tape(context: click.Context, folder: str | None) -> None:
    """List what is recorded of teachers, check it, or remove it.

    \b
    autokd tape                                list what is there
    autokd tape verify                         compare all checksums, remove what is damaged
    autokd tape clear                          remove everything
    autokd tape clear --older-than 7d          remove what was not used for a week
    autokd tape clear --source 1f2e3d4c        remove what belongs to one teacher, its data and seed

    Nothing is lost that a search does not record again.
    """
    context.obj = folder
    if context.invoked_subcommand is None:
        _show(_folder(folder))


@tape.command()
@_folder_option
@click.pass_context
def verify(context: click.Context, folder: str | None) -> int:
    """Compare the checksum of every segment; remove those that fail. Ends with 1 if there were any."""
    from autokd.core.tape_store import verify as verified

    good, bad = verified(_folder(folder or context.obj))
    for path in bad:
        click.echo(f"removed {path}")
    click.echo(f"{good} segments are sound, {len(bad)} were not and have been removed")
    return 1 if bad else 0


@tape.command()
@_folder_option
@click.option("--source", help="Only the segments of one source, named by the beginning of its digits.")
@click.option("--older-than", "age", help="Only segments not used for this time: 7d, 12h, 30m.")
@click.pass_context
def clear(context: click.Context, folder: str | None, source: str | None, age: str | None) -> None:
    """Remove segments, and what killed processes have left. Searches that are running record again what they need."""
    from autokd.core.tape_store import clear as cleared
    from autokd.core.tape_store import size_words

    older_than = None if age is None else _seconds(age)
    click.echo(f"{size_words(cleared(_folder(folder or context.obj), source, older_than))} freed")


def _folder(name: str | None) -> Path:
    from autokd.core.tape_store import default_folder

    folder = default_folder() if name is None else Path(name)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--dir must be a folder, got the file {folder}; name the folder of a tape")
    return folder


def _seconds(age: str) -> float:
    """A time, written as budgets are."""
    from autokd.budget import Budget

    try:
        budget = Budget.parse(age)
    except BudgetError:
        budget = None
    if budget is None or budget.kind != "seconds":
        raise InputError(f"--older-than must be a time with its unit, got {age!r}; write for example 7d, 12h or 30m")
    return budget.amount


def _show(folder: Path) -> None:
    from rich.console import Console

    from autokd.core.tape_store import default_limit, listing, size_words

    sources = listing(folder)
    if not sources:
        click.echo(f"Nothing is recorded in {folder}. {WHAT}")
        return
    console = Console()
    console.print(_table(sources))
    total, limit = sum(source.bytes for source in sources), default_limit(folder)
    said = f"{size_words(total)} in {folder}; a search lets it grow to {size_words(limit)} unless it is told otherwise"
    console.print(said, highlight=False, markup=False, soft_wrap=True)
    if not all(source.current for source in sources):
        console.print(
            "* another version of autokd recorded this: it is the first to go when room is needed", markup=False
        )


def _table(sources: Iterable[Summary]) -> Table:
    from rich.table import Table

    from autokd.core.tape_store import size_words
    from autokd.words import duration

    columns: dict[str, Callable[[Summary], str]] = {
        "source": lambda source: source.source[:SHOWN] + ("" if source.current else " *"),
        "teacher": lambda source: _said(source.about.get("teacher")),
        "data": lambda source: _said(source.about.get("data")),
        "seed": lambda source: _said(source.about.get("seed")),
        "policies": lambda source: ", ".join(source.policies),
        "epochs": lambda source: str(source.epochs),
        "segments": lambda source: str(source.segments),
        "size": lambda source: size_words(source.bytes),
        "last used": lambda source: f"{duration(max(0.0, time.time() - source.used))} ago",
    }
    numbers = ("seed", "epochs", "segments", "size", "last used")
    table = Table(title="Tape", title_justify="left")
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left")
    for source in sources:
        table.add_row(*(_plain(cell(source)) for cell in columns.values()))
    return table


def _said(value: Any) -> str:
    """One part of a description; it may hold anything."""
    from autokd.words import MISSING

    return MISSING if value is None else str(value)


def _plain(text: str) -> Any:
    """Names are shown as they are, brackets included."""
    from rich.text import Text

    return Text(text)
