"""Write the reference pages that are made from the code: ``python -m auditspan_collector.cli.reference docs``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from auditspan_collector import cli, metrics
from auditspan_collector.cli import worker_report
from auditspan_collector.config import Config, reference

_WIDTH = 100


def pages() -> dict[str, str]:
    """File name -> content of every page."""
    return {
        "cli.md": commands(),
        "configuration.md": reference.markdown(Config),
        "metrics.md": metrics.markdown() + worker_report.markdown(),
    }


def commands() -> str:
    """docs/cli.md: what every command says under ``--help``."""
    lines = [
        "# Commands",
        "",
        "Every page is what the command says under `--help`. Errors are one line on stderr; the exit status is 2 when a",
        "setting or an argument is wrong or a question can't be asked that way, and 1 when something else is.",
        "",
    ]
    top = _context(cli.auditspan, "auditspan")
    lines += _page(cli.auditspan, top)
    for name in cli.auditspan.list_commands(top):
        command = cli.auditspan.get_command(top, name)
        assert command is not None  # noqa: S101 - for the type checker
        context = _context(command, name, top)
        lines += _page(command, context)
        if isinstance(command, click.Group):
            for inner, inner_command in command.commands.items():
                lines += _page(inner_command, _context(inner_command, inner, context))
    return "\n".join(lines)


def _page(command: click.Command, context: click.Context) -> list[str]:
    return [f"## {context.command_path}", "", "```text", command.get_help(context), "```", ""]


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    return click.Context(
        command,
        parent,
        info_name=name,
        terminal_width=_WIDTH,
        max_content_width=_WIDTH,
        help_option_names=["-h", "--help"],
    )


if __name__ == "__main__":
    for name, content in pages().items():
        (Path(sys.argv[1]) / name).write_text(content, encoding="utf-8")
