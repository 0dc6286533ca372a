"""Writes docs/cli.md from the commands' own --help. Run it in the root of the repository:  python -m docs.make_cli"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from autokd.cli import cli

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 110


def page() -> str:
    """The whole page: the group's help, then one section for each command and each command of a command."""
    parts = [
        "# Command line",
        "Written by `python -m docs.make_cli`; a test compares it with the commands.",
        _block(_context(cli, "autokd")),
        *_sections(_context(cli, "autokd")),
    ]
    return "\n\n".join(parts) + "\n"


def _sections(parent: click.Context) -> Iterator[str]:
    """A heading and the help of every command below this one, depth first."""
    if not isinstance(parent.command, click.Group):
        return
    for name in parent.command.list_commands(parent):
        context = _context(parent.command.commands[name], name, parent)
        yield f"## `{context.command_path}`"
        yield _block(context)
        yield from _sections(context)


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    return click.Context(
        command, parent, name, terminal_width=WIDTH, **(command.context_settings if not parent else {})
    )


def _block(context: click.Context) -> str:
    lines = [line.rstrip() for line in context.command.get_help(context).splitlines()]
    return "\n".join(["```", *lines, "```"])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
