"""``auditspan collect``: the collector alone, in front of a ClickHouse server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from auditspan_collector import config as configuration
from auditspan_collector.cli import workers
from auditspan_collector.cli.foreground import StopSignal, keep_freed_memory, raise_file_limit
from auditspan_collector.cli.log import log_to_stderr
from auditspan_collector.cli.options import config_option, data_option, with_workers, workers_option

if TYPE_CHECKING:
    from pathlib import Path


@click.command(
    epilog="""\b
Examples:
  auditspan collect                            ClickHouse on http://127.0.0.1:8123
  auditspan collect --config auditspan.yaml
  auditspan collect --workers 4                four processes on the same two ports

\b
Services send to it with:
  OTEL_AUDITSPAN_ENDPOINT=http://localhost:4317 opentelemetry-instrument python app.py"""
)
@config_option
@data_option
@workers_option
def command(config_file: Path | None, data: Path | None, worker_count: int | None) -> None:
    """Run the collector alone, in front of a ClickHouse server.

    It takes OTLP over gRPC and HTTP, keeps the audit-tagged spans on disk and brings them to ClickHouse, which may
    be away: records wait in the spool. Ctrl-C or SIGTERM stops it cleanly, a second one at once.
    """
    config = with_workers(configuration.load(config_file, data=data), worker_count)
    log_to_stderr(config.telemetry.log_level)
    raise_file_limit()
    keep_freed_memory()
    stop = StopSignal()
    collector = workers.build(config)
    collector.start()
    while not stop.wait(workers.WATCH_EVERY_S):
        collector.watch()
    collector.stop()
