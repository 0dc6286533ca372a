"""Writes docs/cli.md from the commands' own --help. Run it in the root of the repository:  python -m docs.make_cli"""

from __future__ import annotations

from pathlib import Path

import click

from autokd.cli import cli

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 110


def page() -> str:
    """The whole page: the group's help, then one section for each command."""
    names = cli.list_commands(click.Context(cli))
    parts = [
        "# Command line",
        "Written by `python -m docs.make_cli`; a test compares it with the commands.",
        _block(cli),
    ]
    for name in names:
        parts += [f"## `autokd {name}`", _block(cli.commands[name], name)]
    return "\n\n".join(parts) + "\n"


def _block(command: click.Command, name: str = "") -> str:
    group = click.Context(cli, info_name="autokd", **cli.context_settings)
    context = click.Context(command, info_name=name, parent=group) if name else group
    context.terminal_width = WIDTH
    lines = [line.rstrip() for line in command.get_help(context).splitlines()]
    return "\n".join(["```", *lines, "```"])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
