"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path

import click

config_option = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    envvar="AUDITSPAN_CONFIG",
    show_envvar=True,
    help="Configuration file; without one every setting has its default.",
)
data_option = click.option(
    "--data",
    metavar="DIR",
    type=click.Path(path_type=Path),
    envvar="AUDITSPAN_DATA",
    show_envvar=True,
    help="Data folder.  [default: ~/.local/share/auditspan]",
)
