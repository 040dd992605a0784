"""``auditspan store``: the embedded store alone, ClickHouse's engine behind ClickHouse's HTTP interface."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import click
import msgspec

from auditspan_collector import config as configuration
from auditspan_collector.cli.foreground import StopSignal, raise_file_limit
from auditspan_collector.cli.log import log_to_stderr
from auditspan_collector.cli.options import config_option, data_option
from auditspan_collector.cli.store_process import CLOSE_LIMIT_S, SUPERVISED
from auditspan_collector.store import Config, EmbeddedStore


@click.command(
    epilog="""\b
Examples:
  auditspan store
  auditspan store --path /srv/audit --listen 127.0.0.1:9123
  curl 'http://127.0.0.1:8123/?query=SELECT+version()'"""
)
@click.option("--path", metavar="DIR", help="Folder of the data.  [default: store in the data folder]")
@click.option("--listen", metavar="HOST:PORT", help="Address to serve.  [default: 127.0.0.1:8123]")
@config_option
@data_option
@click.option(SUPERVISED, is_flag=True, hidden=True, help="Read settings from stdin; stop when it closes.")
def command(
    path: str | None,
    listen: str | None,
    config_file: Path | None,
    data: Path | None,
    supervised: bool,  # noqa: FBT001 - click passes options by name
) -> None:
    """Run the embedded ClickHouse store alone.

    It serves ClickHouse's HTTP interface from one folder, for one machine: clickhouse-connect, Grafana and curl work
    on it as on a server. Ctrl-C or SIGTERM stops it cleanly.
    """
    stop = StopSignal()
    if supervised:
        log_to_stderr("warning")
        config = msgspec.json.decode(sys.stdin.buffer.readline(), type=Config)
        threading.Thread(target=_stop_with_the_parent, args=(stop,), daemon=True).start()
    else:
        loaded = configuration.load(config_file, data=data)
        log_to_stderr(loaded.telemetry.log_level)
        config = _chosen(loaded.store, path, listen)
    raise_file_limit()
    store = EmbeddedStore(config)
    store.start()
    try:
        if supervised:
            click.echo(json.dumps({"port": store.port}))
        else:
            click.echo(f"The store answers on {store.url}; its data is in {config.path}. Ctrl-C stops it.")
        stop.wait()
    finally:
        store.stop()


def _chosen(config: Config, path: str | None, listen: str | None) -> Config:
    if path is not None:
        config = msgspec.structs.replace(config, path=str(Path(path).absolute()))
    if listen is not None:
        config = msgspec.structs.replace(config, listen=listen)
    return config


def _stop_with_the_parent(stop: StopSignal) -> None:
    """Wait for stdin's end: the parent stopped us, or is no more."""
    sys.stdin.buffer.read()
    stop.ask()
    # Nobody is left to kill a store that hangs; what it acknowledged is on disk.
    time.sleep(CLOSE_LIMIT_S)
    os._exit(1)
