"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import replace

if TYPE_CHECKING:
    from auditspan_collector.config import Config

config_option = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    type=click.Path(readable=False, path_type=Path),
    envvar="AUDITSPAN_CONFIG",
    show_envvar=True,
    help="Configuration file; without one every setting has its default.",
)
data_option = click.option(
    "--data",
    metavar="DIR",
    type=click.Path(readable=False, path_type=Path),
    envvar="AUDITSPAN_DATA",
    show_envvar=True,
    help="Data folder.  [default: ~/.local/share/auditspan]",
)
workers_option = click.option(
    "--workers",
    "worker_count",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Processes that share the ports, each with a spool of its own.  [default: collector.workers, 1]",
)


def with_workers(config: Config, count: int | None) -> Config:
    """*config* with as many workers as the command line says."""
    if count is None:
        return config
    return replace(config, collector=replace(config.collector, workers=count))
