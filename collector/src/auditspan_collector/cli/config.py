"""``auditspan config``: is this file right, what is in effect, and what could be set."""

from __future__ import annotations

from pathlib import Path

import click
import yaml

from auditspan_collector import config as configuration
from auditspan_collector.cli.options import data_option
from auditspan_collector.config import reference


@click.group()
def command() -> None:
    """Check a configuration file, or list the settings."""


@command.command(
    epilog="""\b
Examples:
  auditspan config check auditspan.yaml
  AUDITSPAN_CONFIG=auditspan.yaml auditspan config check"""
)
@click.argument(
    "file",
    type=click.Path(readable=False, path_type=Path),
    envvar="AUDITSPAN_CONFIG",
    required=False,
    default=None,
)
@data_option
def check(file: Path | None, data: Path | None) -> None:
    """Say whether FILE is right here, and what is in effect.

    Prints OK and every setting, passwords and tokens hidden; or the first wrong setting in one line, and exits
    with 2. Without FILE the defaults are checked. Nothing is changed or started.
    """
    config = configuration.load(file, data=data)
    warnings = configuration.check(config)
    click.echo(f"OK: {file or 'the defaults'}")
    for warning in warnings:
        click.echo(f"warning: {warning}")
    click.echo()
    click.echo(yaml.safe_dump(configuration.effective(config), sort_keys=False, allow_unicode=True), nl=False)


@command.command("reference")
def list_settings() -> None:
    """Print every setting with what is allowed, its default and what it does, as Markdown."""
    click.echo(reference.markdown(configuration.Config), nl=False)
