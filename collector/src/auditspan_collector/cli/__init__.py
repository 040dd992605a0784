"""The ``auditspan`` command: one module per subcommand, imported only when it is asked for.

Errors that we raise on purpose become one line on stderr: exit 2 when a setting or the command line is wrong, a
question that can't be asked that way among them; 1 when the answer is an error. ``--debug`` shows the traceback as well.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import traceback
from typing import Any

import click

from auditspan_collector.errors import AuditspanError, ConfigError, QueryError

# Name -> (module that has `command`, one line for --help). The line stands here so that --help imports nothing.
COMMANDS = {
    "up": ("up", "Run the store and the collector together on this machine."),
    "collect": ("collect", "Run the collector alone, in front of a ClickHouse server."),
    "store": ("store", "Run the embedded ClickHouse store alone."),
    "search": ("search", "Find records: who did what, when, to what, with what outcome."),
    "trace": ("trace", "Show one trace as a tree across services."),
    "sql": ("sql", "Ask the store in SQL."),
    "spool": ("spool", "See what waits in a collector's spool, and help when ClickHouse refuses it."),
    "config": ("config", "Check a configuration file."),
}

EXAMPLES = """\b
Examples:
  auditspan up                             everything on this machine
  auditspan search --actor alice           what alice did
  auditspan trace 4bf92f3577b34da6a3ce929d0e0e4736
  auditspan config check auditspan.yaml    is this file right?
"""


class LazyGroup(click.Group):
    """A group that imports a subcommand's module when the subcommand runs, so that search never loads gRPC."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names in the order of a user's first day."""
        return list(COMMANDS)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; an error of ours becomes one line and an exit status."""
        try:
            return super().invoke(ctx)
        except AuditspanError as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            click.echo(f"auditspan: {error}", err=True)
            ctx.exit(2 if isinstance(error, ConfigError | QueryError) else 1)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import the module of *cmd_name*; None for a name that is no command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(importlib.metadata.version("auditspan-collector"), prog_name="auditspan")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def auditspan(debug: bool) -> None:  # noqa: FBT001 - LazyGroup.invoke reads it; click passes it by name
    """Keep audit-tagged spans, seal them, and find out who did what."""


def main() -> None:
    """Entry point of the ``auditspan`` script; ends the process with its exit status."""
    auditspan(prog_name="auditspan")
