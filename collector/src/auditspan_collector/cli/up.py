"""``auditspan up``: store and collector together on one machine, in one data folder."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click
from msgspec.structs import replace
from rich.console import Console
from rich.markup import escape

from auditspan_collector import config as configuration
from auditspan_collector.cli import connection, workers
from auditspan_collector.cli.data_folder import locked, make_private_folder, write_private
from auditspan_collector.cli.foreground import StopSignal, keep_freed_memory, raise_file_limit
from auditspan_collector.cli.log import log_to_stderr
from auditspan_collector.cli.options import config_option, data_option, with_workers, workers_option
from auditspan_collector.cli.store_process import StoreProcess
from auditspan_collector.errors import ConfigError
from auditspan_collector.receiver.config import Address
from auditspan_collector.receiver.listening import claim
from auditspan_collector.store.config import User

if TYPE_CHECKING:
    from pathlib import Path

    from auditspan_collector.cli.workers import Workers
    from auditspan_collector.config import Config
    from auditspan_collector.service import Service
    from auditspan_collector.store.config import Config as StoreConfig

WRITER: Final = "auditspan_writer"
READER: Final = "auditspan_reader"
CREDENTIALS_FILE: Final = "credentials"
IN_USE: Final = (
    "`auditspan up` with process id {process}; stop that one, or give this one another folder (--data)"
)
STORE_LEFT: Final = "the store of an earlier run, started by process {process}, does not end; end it by hand"
# The store of a run that was killed needs this long at most to notice and to end.
PREVIOUS_RUN_LIMIT_S: Final = 15.0
# Whoever reads the welcome may ask at once; a store so slow is said in the log.
TABLE_LIMIT_S: Final = 10.0
WATCH_EVERY_S: Final = 0.2

_port = click.IntRange(0, 65535)


@click.command(
    epilog="""\b
Examples:
  auditspan up
  auditspan up --data ./audit --grpc-port 5317 --http-port 5318 --store-port 9123 --metrics-port 9888"""
)
@data_option
@config_option
@click.option("--grpc-port", type=_port, metavar="PORT", help="Port for OTLP/gRPC.  [default: 4317]")
@click.option("--http-port", type=_port, metavar="PORT", help="Port for OTLP/HTTP.  [default: 4318]")
@click.option(
    "--store-port",
    type=_port,
    metavar="PORT",
    help="Port of the store (ClickHouse's HTTP interface).  [default: 8123]",
)
@click.option(
    "--metrics-port", type=_port, metavar="PORT", help="Port for Prometheus metrics.  [default: 8888]"
)
@workers_option
def command(  # noqa: PLR0917 - click passes options by name
    data: Path | None,
    config_file: Path | None,
    grpc_port: int | None,
    http_port: int | None,
    store_port: int | None,
    metrics_port: int | None,
    worker_count: int | None,
) -> None:
    """Run the store and the collector together on this machine.

    Everything is kept in one data folder. On the first run passwords for the store are drawn; `auditspan search`,
    `trace` and `sql` find the store by themselves. A port of 0 lets the system choose. Ctrl-C or SIGTERM stops the
    collector, then the store; a second one ends at once.
    """
    folder = make_private_folder((data or configuration.default_data_folder(os.environ)).absolute())
    config = with_workers(configuration.load(config_file, data=folder), worker_count)
    config = with_ports(
        config, {"grpc": grpc_port, "http": http_port, "store": store_port, "metrics": metrics_port}
    )
    log_to_stderr(config.telemetry.log_level if config_file else "warning")
    raise_file_limit()
    keep_freed_memory()
    stop = StopSignal()
    with ExitStack() as running:
        running.enter_context(locked(folder / "up.lock", wait_s=0, taken=f"{folder} is in use by {IN_USE}"))
        lock = running.enter_context(
            locked(folder / "store.lock", wait_s=PREVIOUS_RUN_LIMIT_S, taken=f"{folder}: {STORE_LEFT}")
        )
        run(config, folder, running, stop, lock)


def run(config: Config, folder: Path, running: ExitStack, stop: StopSignal, lock: int) -> None:
    """Start everything, and keep it running until *stop*; *running* undoes it in reverse."""
    credentials = load_credentials(folder)
    claim("store.listen", Address.parse(config.store.listen)).close()
    store = StoreProcess(store_settings(config, credentials), keep_open=(lock,))
    running.callback(store.stop)
    store.start()
    settings = collector_settings(config, credentials, store.port)
    collector = workers.build(settings)
    collector.start()
    running.callback(collector.stop)
    collector.wait_for_table(TABLE_LIMIT_S)
    written = connection.write_connection_file(
        folder,
        url=settings.clickhouse.url,
        user=READER,
        password=credentials.reader,
        database=settings.clickhouse.database,
    )
    running.callback(written.unlink, missing_ok=True)
    welcome(config, collector, store.port, folder)
    while not stop.wait(WATCH_EVERY_S):
        collector.watch()
        store.revive()
    click.echo("Stopping; a second Ctrl-C ends at once.", err=True)


@dataclass(frozen=True, slots=True)
class Credentials:
    """The store's passwords: the collector's, and the one for reading."""

    writer: str
    reader: str

    def __repr__(self) -> str:
        """Without the passwords."""
        return "Credentials()"


def load_credentials(folder: Path) -> Credentials:
    """The passwords that the first run drew, 256 bits each, in a file for this user only. Raises ConfigError."""
    path = folder / CREDENTIALS_FILE
    if not path.exists():
        write_private(path, json.dumps({"writer": secrets.token_hex(32), "reader": secrets.token_hex(32)}))
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(
                f"{path}: other users may read the store's passwords; delete it and start again"
            )
        found = json.loads(path.read_text(encoding="utf-8"))
        return Credentials(str(found["writer"]), str(found["reader"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not written by `auditspan up`; delete it and start again") from error


def with_ports(config: Config, ports: dict[str, int | None]) -> Config:
    """*config* with the ports of the command line, on the addresses that it names."""
    receiver = replace(
        config.receiver,
        grpc=replace(config.receiver.grpc, listen=_on_port(config.receiver.grpc.listen, ports["grpc"])),
        http=replace(config.receiver.http, listen=_on_port(config.receiver.http.listen, ports["http"])),
    )
    listen = config.telemetry.metrics_listen or "127.0.0.1:8888"
    if config.telemetry.metrics_listen or ports["metrics"] is not None:
        listen = _on_port(listen, ports["metrics"])
    return replace(
        config,
        receiver=receiver,
        store=replace(config.store, listen=_on_port(config.store.listen, ports["store"])),
        telemetry=replace(config.telemetry, metrics_listen=listen),
    )


def _on_port(listen: str, port: int | None) -> str:
    return listen if port is None else str(Address(Address.parse(listen).host, port))


def store_settings(config: Config, credentials: Credentials) -> StoreConfig:
    """The store's settings: those of *config*, and the two users that this command needs."""
    own = (
        User(name=WRITER, password=credentials.writer),
        User(name=READER, password=credentials.reader, readonly=True),
    )
    return replace(config.store, users=(*config.store.users, *own))


def collector_settings(config: Config, credentials: Credentials, port: int) -> Config:
    """*config* with the store on *port* as its ClickHouse."""
    own = replace(
        config.clickhouse,
        url=f"http://{_reachable(config.store.listen, port)}",
        user=WRITER,
        password=credentials.writer,
        cluster="",
    )
    return replace(config, clickhouse=own)


def _reachable(listen: str, port: int) -> str:
    """Where this machine finds what listens there; "any address" is no address to connect to."""
    host = Address.parse(listen).host
    return str(Address({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port))  # noqa: S104 - compared, not bound


def welcome(config: Config, collector: Service | Workers, store_port: int, folder: Path) -> None:
    """Say where everything is, and what to try next."""
    ours = (
        ""
        if folder == configuration.default_data_folder({**os.environ, "AUDITSPAN_DATA": ""})
        else f" --data {folder}"
    )
    receiver = config.receiver
    scheme = "https" if receiver.tls.cert_file else "http"
    otlp = f"{scheme}://{_reachable(receiver.grpc.listen, collector.grpc_port)}"
    rows = [
        ("OTLP/gRPC", otlp),
        ("OTLP/HTTP", f"{scheme}://{_reachable(receiver.http.listen, collector.http_port)}/v1/traces"),
        (
            "ClickHouse",
            f"http://{_reachable(config.store.listen, store_port)}  (user {READER}, see {folder / connection.FILE_NAME})",
        ),
    ]
    if collector.metrics_port:
        rows.append(
            (
                "metrics",
                f"http://{_reachable(config.telemetry.metrics_listen, collector.metrics_port)}/metrics",
            )
        )
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"[bold green]Auditspan is running.[/] Its data is in {escape(str(folder))}. Ctrl-C stops it.\n"
    )
    for name, where in rows:
        console.print(f"  [bold]{name:<11}[/]{escape(where)}")
    console.print("\nSend it a service's records, then ask who did what:\n")
    for line in (
        f"OTEL_AUDITSPAN_ENDPOINT={otlp} opentelemetry-instrument python app.py",
        f"auditspan search{ours} --follow",
        f'auditspan sql{ours} "SELECT actor_id, action, count() FROM records GROUP BY ALL"',  # noqa: S608 - shown
    ):
        console.print(f"  [cyan]{escape(line)}[/]")
    console.print()
