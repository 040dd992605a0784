"""Which ClickHouse a reading command asks, and as whom: found once, the same way for all of them.

A command takes the shared options and receives the answer::

    @click.command()
    @connection_options
    def command(connection: clickhouse.Config) -> None: ...

The first of these that is there decides:

1. ``--url`` or ``AUDITSPAN_CLICKHOUSE_URL`` (also ``http://user:password@host:8123``);
2. the ``clickhouse`` section of ``--config`` or ``AUDITSPAN_CONFIG``;
3. the file ``connection`` that a running ``auditspan up`` leaves in its data folder, with a reader's password;
4. ``http://127.0.0.1:8123`` as ``default`` without a password.

``--user`` with ``AUDITSPAN_CLICKHOUSE_PASSWORD``, and ``--database``, go before what that one says. The command line
goes before the environment: with ``--config`` or ``--data`` on it, no variable names another store, user or database.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

import click
from click.core import ParameterSource
from msgspec.structs import replace

from auditspan_collector.cli.data_folder import write_private
from auditspan_collector.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from auditspan_collector import clickhouse

FILE_NAME = "connection"
DEFAULT_DATABASE = "audit"


def connection_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a click command the options above; it is called with ``connection=clickhouse.Config(...)``."""

    @click.option(
        "--url",
        metavar="URL",
        envvar="AUDITSPAN_CLICKHOUSE_URL",
        show_envvar=True,
        help="ClickHouse's HTTP address. Default: the config file's, a running `auditspan up`, or http://127.0.0.1:8123.",
    )
    @click.option(
        "--user",
        metavar="NAME",
        envvar="AUDITSPAN_CLICKHOUSE_USER",
        show_envvar=True,
        help="User to ask as; its password is read from AUDITSPAN_CLICKHOUSE_PASSWORD.",
    )
    @click.option(
        "--database",
        metavar="NAME",
        envvar="AUDITSPAN_CLICKHOUSE_DATABASE",
        show_envvar=True,
        help="Database of the records.  [default: audit]",
    )
    @click.option(
        "--config",
        "config_file",
        metavar="FILE",
        type=click.Path(readable=False, path_type=Path),
        envvar="AUDITSPAN_CONFIG",
        show_envvar=True,
        help="Read the address from the clickhouse section of this file.",
    )
    @click.option(
        "--data",
        metavar="DIR",
        type=click.Path(readable=False, path_type=Path),
        envvar="AUDITSPAN_DATA",
        show_envvar=True,
        help="Data folder of a running `auditspan up`.  [default: ~/.local/share/auditspan]",
    )
    @functools.wraps(function)
    def with_connection(
        *args: Any,
        url: str | None,
        user: str | None,
        database: str | None,
        config_file: Path | None,
        data: Path | None,
        **kwargs: Any,
    ) -> Any:
        said = {"url": url, "user": user, "database": database, "config_file": config_file, "data": data}
        found = resolve(**_before_environment(click.get_current_context(), said))
        return function(*args, connection=found, **kwargs)

    return with_connection


def _before_environment(context: click.Context, said: dict[str, Any]) -> dict[str, Any]:
    """*said* without the variables that a store named on the command line makes void."""
    typed = {name for name in said if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if not typed & {"url", "config_file", "data"}:
        return said
    # Variables with a user and a database are for the variable's store, or for an address without them.
    kept = typed | {"user", "database"} if "url" in typed else typed
    return {name: value for name, value in said.items() if name in kept}


def resolve(
    *,
    url: str | None = None,
    user: str | None = None,
    database: str | None = None,
    config_file: Path | None = None,
    data: Path | None = None,
) -> clickhouse.Config:
    """The connection, by the order in the module's docstring. Raises ConfigError on a file that can't be read."""
    from auditspan_collector.clickhouse import Config  # noqa: PLC0415 - keeps `--help` fast

    if url:
        return _from_url(url, user=user, database=database)
    from auditspan_collector.config import default_data_folder, load  # noqa: PLC0415 - not needed before

    if config_file:
        return _as(load(config_file).clickhouse, user=user, database=database)
    folder = data or default_data_folder(os.environ)
    if written := read_connection_file(folder):
        return _as(written, user=user, database=database)
    if data:
        raise ConfigError(
            f"--data {data}: no `auditspan up` runs there; start it with `auditspan up --data {data}`, or give --url"
        )
    default = Config(url="http://127.0.0.1:8123", database=DEFAULT_DATABASE)
    return _as(default, user=user, database=database)


def _as(found: clickhouse.Config, *, user: str | None, database: str | None) -> clickhouse.Config:
    """*found*, asked as *user* in *database* where they are given. Another user never gets the first one's password."""
    if user:
        password = os.environ.get("AUDITSPAN_CLICKHOUSE_PASSWORD")
        kept = found.password if user == found.user else ""
        found = replace(found, user=user, password=kept if password is None else password)
    return replace(found, database=database) if database else found


def write_connection_file(folder: Path, *, url: str, user: str, password: str, database: str) -> Path:
    """Leave the address for readers on this machine, readable for this user only; replaced in one step."""
    target = folder / FILE_NAME
    content = {"url": url, "user": user, "password": password, "database": database}
    write_private(target, json.dumps(content))
    return target


def read_connection_file(folder: Path) -> clickhouse.Config | None:
    """What *write_connection_file* left in *folder*; None when there is nothing. Raises ConfigError when broken."""
    from auditspan_collector.clickhouse import Config  # noqa: PLC0415 - keeps `--help` fast

    path = folder / FILE_NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Config(
            url=found["url"], user=found["user"], password=found["password"], database=found["database"]
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise ConfigError(
            f"{path}: no permission to read; ask as the user who runs `auditspan up`"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise ConfigError(
            f"{path}: not written by `auditspan up`; delete it and start `auditspan up`"
        ) from error


def _from_url(url: str, *, user: str | None, database: str | None) -> clickhouse.Config:
    from auditspan_collector.clickhouse import Config  # noqa: PLC0415 - keeps `--help` fast

    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"--url: {error}; allowed: http://host:8123 or https://host:8443") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"--url: {parts.scheme or 'nothing'}: allowed: http://host:8123 or https://host:8443"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    netloc = host if port is None else f"{host}:{port}"
    return Config(
        url=urlunsplit((parts.scheme, netloc, parts.path, parts.query, "")),
        user=user or unquote(parts.username or "") or "default",
        password=os.environ.get("AUDITSPAN_CLICKHOUSE_PASSWORD") or unquote(parts.password or ""),
        database=database or DEFAULT_DATABASE,
    )
