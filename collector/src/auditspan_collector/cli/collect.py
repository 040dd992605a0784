"""``auditspan collect``: the collector alone, in front of a ClickHouse server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from auditspan_collector import config as configuration
from auditspan_collector import service
from auditspan_collector.cli.foreground import StopSignal, raise_file_limit
from auditspan_collector.cli.log import log_to_stderr
from auditspan_collector.cli.options import config_option, data_option

if TYPE_CHECKING:
    from pathlib import Path


@click.command(
    epilog="""\b
Examples:
  auditspan collect                            ClickHouse on http://127.0.0.1:8123
  auditspan collect --config auditspan.yaml

\b
Services send to it with:
  OTEL_AUDITSPAN_ENDPOINT=http://localhost:4317 opentelemetry-instrument python app.py"""
)
@config_option
@data_option
def command(config_file: Path | None, data: Path | None) -> None:
    """Run the collector alone, in front of a ClickHouse server.

    It takes OTLP over gRPC and HTTP, keeps the audit-tagged spans on disk and brings them to ClickHouse, which may
    be away: records wait in the spool. Ctrl-C or SIGTERM stops it cleanly, a second one at once.
    """
    config = configuration.load(config_file, data=data)
    log_to_stderr(config.telemetry.log_level)
    raise_file_limit()
    stop = StopSignal()
    collector = service.build(config)
    collector.start()
    stop.wait()
    collector.stop()
