"""The settings: one file and the environment, read once at start into frozen structs.

Each room owns its section's struct; this module puts them together, reads the file, and holds the rules that
concern more than one room. A wrong setting is one ConfigError: path, value, what is allowed, line.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import urlsplit, urlunsplit

import msgspec
from msgspec import Meta, Struct

from auditspan_collector import clickhouse, receiver, spool, store
from auditspan_collector.config import convert, document
from auditspan_collector.errors import ConfigError
from auditspan_collector.pipeline.drain import Config as DrainConfig
from auditspan_collector.pipeline.intake import Config as IntakeConfig
from auditspan_collector.processor.enrich import Limits
from auditspan_collector.processor.tagging import Config as TaggingConfig
from auditspan_collector.receiver.config import Address
from auditspan_collector.receiver.listening import tls_context

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_WORKERS: Final = 64
NAME_PATTERN: Final = r"^[A-Za-z0-9._-]+\Z"


def host_name() -> str:
    """The name of this machine, fit to be part of a stream's name."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "collector"


class CollectorConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``collector`` section: who this collector is. Its ledger stream is ``<deployment>/<name>/<epoch>``.

    Attributes:
        deployment: Name of the installation, the same for all its collectors.
        name: Name of this collector in it; by default the host's name. A spool keeps the names it was made with.
        stop_limit_s: How long a stop takes at most. Requests that run are answered, new ones are turned away, and what
            waits is sent to ClickHouse for as long as there is time; the rest stays in the spool. Keep it below
            what your supervisor grants before it kills (Kubernetes 30 s, docker stop 10 s).
        workers: Processes that share the two ports, each with a spool and a ledger stream of its own; as many as there are
            cores to spare. The receivers' limits and the section ``intake`` hold for each of them, the spool's sizes
            for all together. Fewer than before empty the spools of those that are gone.

    """

    deployment: Annotated[str, Meta(pattern=NAME_PATTERN, max_length=64)] = "default"
    name: Annotated[str, Meta(pattern=NAME_PATTERN, max_length=64)] = msgspec.field(default_factory=host_name)
    stop_limit_s: Annotated[float, Meta(ge=1, le=3600)] = 9.0
    workers: Annotated[int, Meta(ge=1, le=MAX_WORKERS)] = 1


class TelemetryConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``telemetry`` section: what the collector says about itself.

    Attributes:
        metrics_listen: Where ``/metrics`` (Prometheus) and ``/healthz`` are served; empty for nowhere. There is no
            authentication: leave it on loopback, or on a network of your own.
        log_level: Least important entry of the log, which goes to stderr.

    """

    metrics_listen: str = "127.0.0.1:8888"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def __post_init__(self) -> None:
        """Refuse an address that can't be one."""
        if self.metrics_listen:
            try:
                Address.parse(self.metrics_listen)
            except ValueError as error:
                raise ConfigError(f"metrics_listen: {error}") from None


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything; each section has defaults for one machine."""

    collector: CollectorConfig = msgspec.field(default_factory=CollectorConfig)
    receiver: receiver.Config = msgspec.field(default_factory=receiver.Config)
    limits: Limits = msgspec.field(default_factory=Limits)
    tagging: TaggingConfig = msgspec.field(default_factory=TaggingConfig)
    intake: IntakeConfig = msgspec.field(default_factory=IntakeConfig)
    spool: spool.Config = msgspec.field(default_factory=spool.Config)
    drain: DrainConfig = msgspec.field(default_factory=DrainConfig)
    clickhouse: clickhouse.Config = msgspec.field(default_factory=clickhouse.Config)
    store: store.Config = msgspec.field(default_factory=store.Config)
    telemetry: TelemetryConfig = msgspec.field(default_factory=TelemetryConfig)


def default_data_folder(environ: Mapping[str, str]) -> Path:
    """``$AUDITSPAN_DATA``, else ``$XDG_DATA_HOME/auditspan``, else ``~/.local/share/auditspan``; not created.

    A relative XDG_DATA_HOME is ignored, as the XDG Base Directory Specification asks.
    """
    if named := environ.get("AUDITSPAN_DATA"):
        return Path(named).absolute()
    xdg = environ.get("XDG_DATA_HOME", "")
    base = Path(xdg) if xdg.startswith("/") else Path(environ.get("HOME") or "/") / ".local" / "share"
    return base / "auditspan"


def load(file: Path | None, *, data: Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """The settings of *file*, or the defaults when it is None.

    *data* is the folder that ``spool.path`` and ``store.path`` lie in when the file does not name them; it defaults
    to *default_data_folder*. Raises ConfigError; looks at no disk but the file's.
    """
    environ = os.environ if environ is None else environ
    folder = data.absolute() if data else default_data_folder(environ)
    if file is None:
        return parse("", data=folder, environ=environ)
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{file}: can't be read ({error.strerror}); give a configuration file") from error
    try:
        return parse(text, data=folder, environ=environ)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def parse(text: str, *, data: Path, environ: Mapping[str, str]) -> Config:
    """The settings in *text*; as *load*, which reads it from a file."""
    section = document.read(text, environ)
    for name in ("spool", "store"):
        _default(section, name, "path", str(data / name))
    config: Config = convert.convert(section, Config)
    _check_together(config)
    return config


def check(config: Config) -> tuple[str, ...]:
    """Whether the collector could start with *config* here, without changing anything.

    Returns warnings, one line each. Raises ConfigError for what can't work.
    """
    if config.receiver.tls.cert_file:
        tls_context(config.receiver.tls)
    spool.check_shares(config.spool, config.collector.workers)
    return spool.check(config.spool)


def effective(config: Config) -> dict[str, Any]:
    """All settings as plain values, to be shown: passwords and tokens hidden."""
    return {name: _shown(name, value) for name, value in msgspec.to_builtins(config).items()}


def _default(section: document.Section, name: str, key: str, value: str) -> None:
    inner = section.entries.get(name)
    if inner is None or (isinstance(inner, document.Scalar) and inner.kind == "null"):
        inner = section.entries[name] = document.Section({}, section.line)
    if isinstance(inner, document.Section) and key not in inner.entries:
        inner.entries[key] = document.Scalar(value, quoted=True, from_environment=False, line=inner.line)


def _check_together(config: Config) -> None:
    """What no room can see alone."""
    listeners = {
        "receiver.grpc.listen": config.receiver.grpc.listen,
        "receiver.http.listen": config.receiver.http.listen,
        "telemetry.metrics_listen": config.telemetry.metrics_listen,
    }
    taken: dict[Address, str] = {}
    for name, text in listeners.items():
        address = Address.parse(text) if text else None
        if address is None or not address.port:
            continue
        if address in taken:
            raise ConfigError(f"{name}: {text} is {taken[address]} already; each needs a port of its own")
        taken[address] = name
    spool_path, store_path = Path(config.spool.path), Path(config.store.path)
    if spool_path == store_path or spool_path in store_path.parents or store_path in spool_path.parents:
        raise ConfigError(
            f"spool.path: {spool_path} and store.path: {store_path} overlap; give each its own folder"
        )


def _shown(name: str, value: Any) -> Any:
    if convert.is_secret(name):
        return convert.HIDDEN if value else ""
    if isinstance(value, dict):
        return {key: _shown(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(name, inner) for inner in value]
    if isinstance(value, str) and "@" in value and "://" in value:
        parts = urlsplit(value)
        return urlunsplit(parts._replace(netloc=f"{convert.HIDDEN}@{parts.netloc.rpartition('@')[2]}"))
    return value
