"""Ask ClickHouse, and give it records, over HTTP: the one client, for inserts and for queries.

The same over the embedded store, a server and a cluster. Values travel as parameters that the server binds
(``{name:Type}``), never as text put into SQL. Errors come out as one of two: StoreUnavailable, when the same may
succeed later, or StoreRejected, when a person has to change something first. Their messages name the server and the
reason; they hold neither credentials nor the values of parameters.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, Self, cast
from urllib.parse import urlsplit

import clickhouse_connect
import msgspec
from clickhouse_connect.driver.binding import quote_identifier
from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError
from clickhouse_connect.driver.httputil import all_managers, get_pool_manager
from msgspec import Meta
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from auditspan_collector.errors import ConfigError, StoreRejected, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from clickhouse_connect.driver.client import Client

# Each failed request is raised, and reported once by whoever asked; the driver would also log it at each try.
logging.getLogger("clickhouse_connect").setLevel(logging.ERROR)

# Answers after which the same request may succeed without anybody changing it: too much at once, a node, a replica,
# a quorum or Keeper that is away, a full disk (243; in the middle of writing also 75, 76, 1001). Numbers from ClickHouse's src/Common/ErrorCodes.cpp.
TRANSIENT_CODES: Final = {
    75: "CANNOT_WRITE_TO_FILE_DESCRIPTOR",
    76: "CANNOT_OPEN_FILE",
    95: "CANNOT_READ_FROM_SOCKET",
    96: "CANNOT_WRITE_TO_SOCKET",
    159: "TIMEOUT_EXCEEDED",
    160: "TOO_SLOW",
    173: "CANNOT_ALLOCATE_MEMORY",
    198: "DNS_ERROR",
    201: "QUOTA_EXCEEDED",
    202: "TOO_MANY_SIMULTANEOUS_QUERIES",
    203: "NO_FREE_CONNECTION",
    204: "CANNOT_FSYNC",
    209: "SOCKET_TIMEOUT",
    210: "NETWORK_ERROR",
    216: "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING",  # the driver tries once more when a connection is cut
    225: "NO_ZOOKEEPER",
    236: "ABORTED",
    241: "MEMORY_LIMIT_EXCEEDED",
    242: "TABLE_IS_READ_ONLY",
    243: "NOT_ENOUGH_SPACE",
    244: "UNEXPECTED_ZOOKEEPER_ERROR",
    252: "TOO_MANY_PARTS",
    254: "NO_ACTIVE_REPLICAS",
    265: "NO_AVAILABLE_REPLICA",
    279: "ALL_CONNECTION_TRIES_FAILED",
    285: "TOO_FEW_LIVE_REPLICAS",
    286: "UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE",
    289: "REPLICA_IS_NOT_IN_QUORUM",
    297: "SHARD_HAS_NO_CONNECTIONS",
    319: "UNKNOWN_STATUS_OF_INSERT",
    364: "RECEIVED_ERROR_TOO_MANY_REQUESTS",
    369: "ALL_REPLICAS_ARE_STALE",
    394: "QUERY_WAS_CANCELLED",
    416: "REPLICA_STATUS_CHANGED",
    425: "SYSTEM_ERROR",
    439: "CANNOT_SCHEDULE_TASK",
    473: "DEADLOCK_AVOIDED",
    499: "S3_ERROR",
    500: "AZURE_BLOB_STORAGE_ERROR",
    519: "NO_REMOTE_SHARD_AVAILABLE",
    529: "NOT_A_LEADER",
    574: "DISTRIBUTED_TOO_MANY_PENDING_BYTES",
    667: "NOT_INITIALIZED",
    700: "USER_SESSION_LIMIT_EXCEEDED",
    733: "TABLE_IS_BEING_RESTARTED",
    735: "QUERY_WAS_CANCELLED_BY_CLIENT",
    745: "SERVER_OVERLOADED",
    749: "TCP_CONNECTION_LIMIT_REACHED",
    762: "HTTP_CONNECTION_LIMIT_REACHED",
    776: "RESOURCE_LIMIT_EXCEEDED",
    777: "MEMORY_RESERVATION_KILLED",
    778: "MEMORY_RESERVATION_FAILED",
    904: "TOO_MANY_UNAVAILABLE_SHARDS",
    999: "KEEPER_EXCEPTION",
    1001: "STD_EXCEPTION",
    1019: "QUERY_SLOT_ACQUISITION_TIMEOUT",
    1020: "MEMORY_RESERVATION_ACQUISITION_TIMEOUT",
}
# Of HTTP answers without a ClickHouse code, what a proxy says that the server behind it is not there now.
_TRANSIENT_STATUS: Final = frozenset({408, 425, 429, *range(500, 600)})

_STATUS = re.compile(r"HTTP driver received HTTP status (\d{3})")
_VERSION = re.compile(r"\s*\(version (?:[^()]|\([^()]*\))*\)\s*$")
_CHUNK_BYTES: Final = 1 << 16

Parameters = dict[str, Any]
Seconds = Annotated[float, Meta(gt=0, le=3600)]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``clickhouse`` section.

    Attributes:
        url: ``http://host:8123`` or ``https://host:8443``, without credentials.
        user: Who asks; needs SELECT and INSERT on *database*, and CREATE for the first start.
        password: Of *user*; ``${env:NAME}`` keeps it out of the file.
        database: Where the table ``records`` and its views are.
        cluster: Name of the cluster to create them on; "" for a single server. With a cluster an insert counts
            when a majority of replicas has it.
        connect_timeout_s: Longest wait for a connection.
        insert_timeout_s: Longest silence of the server during one insert, while it takes the records and while it
            stores them; after that it is tried again.
        query_timeout_s: Longest silence of the server during one query.
        verify: Check the server's certificate. Turn off for tests only.
        ca_file: PEM file with the authorities that certificates are checked against; "" for the system's.

    """

    url: str = "http://127.0.0.1:8123"
    user: str = "default"
    password: str = ""
    database: Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z", max_length=64)] = "audit"
    cluster: Annotated[str, Meta(max_length=64)] = ""
    connect_timeout_s: Seconds = 5.0
    insert_timeout_s: Seconds = 60.0
    query_timeout_s: Seconds = 300.0
    verify: bool = True
    ca_file: str = ""

    def __post_init__(self) -> None:
        """Raise ConfigError for an address that can't be one."""
        allowed = "allowed: http://host:8123 or https://host:8443"
        try:
            parts = urlsplit(self.url)
            host = parts.hostname
            _ = parts.port
        except ValueError as error:
            raise ConfigError(f"url: {error}; {allowed}") from None
        if parts.username is not None or parts.password is not None:
            raise ConfigError("url: holds credentials; put them into user and password")
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
            raise ConfigError(f"url: {self.url!r}; {allowed}")

    def __repr__(self) -> str:
        """Without the password: settings end up in logs."""
        return f"Config(url={self.url!r}, user={self.user!r}, database={self.database!r}, cluster={self.cluster!r})"


class Result:
    """A query's answer as it streams in: *column_names*, *column_types* (ClickHouse's names) and rows, once.

    Memory holds one block of rows. Use it in a ``with``, or read it to the end; closing it earlier still receives the
    rest, so give a query whose rows are not all wanted a LIMIT. Reading raises as queries do.
    """

    def __init__(self, client: ClickHouseClient, stream: Any) -> None:
        """For ClickHouseClient.query: takes over the driver's *stream* of rows."""
        self._client = client
        self._stream = stream
        self.column_names: tuple[str, ...] = tuple(stream.source.column_names)
        self.column_types: tuple[str, ...] = tuple(kind.name for kind in stream.source.column_types)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Rows in the server's order."""
        with self._client._errors(), self._stream as rows:  # noqa: SLF001 - the two are one piece
            for row in rows:
                yield tuple(row)

    def close(self) -> None:
        """Drop what is not read."""
        with contextlib.suppress(ClickHouseError):
            self._stream.source.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


class ClickHouseClient:
    """Thread-safe; all threads share it and its connections. Connects at the first use, and again after failures.

    Every method raises StoreUnavailable (transient) or StoreRejected (permanent, with ClickHouse's code).
    """

    def __init__(self, config: Config) -> None:
        """Touch nothing: the server may be away."""
        self.config = config
        self._lock = threading.Lock()  # guards the two below; never held while waiting for the server
        self._connecting = threading.Lock()
        self._clients: dict[float, Client] = {}
        # A pool of our own: it is closed with us, and no proxy of the environment comes between.
        self._pool = get_pool_manager(verify=config.verify, ca_cert=config.ca_file or None)
        self._pool.pool_classes_by_scheme = {
            "http": partial(_Pool, silence_limit_s=config.insert_timeout_s),
            "https": partial(_TlsPool, silence_limit_s=config.insert_timeout_s),
        }
        self._closed = False

    def execute(self, sql: str, parameters: Parameters | None = None, *, in_database: bool = False) -> None:
        """Run a statement that returns nothing.

        Without *in_database* it must name its databases: the configured one may not exist yet.
        """
        client = self._client(self.config.query_timeout_s)
        with self._errors():
            client.command(sql, parameters=_bindable(sql, parameters), use_database=in_database)

    def rows(
        self, sql: str, parameters: Parameters | None = None, settings: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """All rows of a small answer."""
        with self.query(sql, parameters, settings) as result:
            return list(result)

    def query(
        self, sql: str, parameters: Parameters | None = None, settings: Mapping[str, Any] | None = None
    ) -> Result:
        """The answer to *sql*, which must not name a format, as a stream of rows."""
        client = self._client(self.config.query_timeout_s)
        with self._errors():
            stream = client.query_rows_stream(
                sql, parameters=_bindable(sql, parameters), settings=dict(settings or {})
            )
            return Result(self, stream)

    def raw(
        self,
        sql: str,
        parameters: Parameters | None = None,
        fmt: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Iterator[bytes]:
        """The answer in ClickHouse's own format *fmt*, chunk by chunk as it arrives.

        None leaves the format to *sql*, or to the server. A failure after the first bytes raises as well, so an
        answer is whole when the iterator ends.
        """
        client = self._client(self.config.query_timeout_s)
        with self._errors():
            response = cast(
                "Any",
                client.raw_stream(
                    sql, parameters=_bindable(sql, parameters), settings=dict(settings or {}), fmt=fmt
                ),
            )
        return self._chunks(response)

    def _chunks(self, response: Any) -> Iterator[bytes]:
        # A server that fails when part of the answer is out writes the error behind it, between these marks
        # (ClickHouse docs, "HTTP interface", exceptions while streaming).
        tag = response.headers.get("X-ClickHouse-Exception-Tag")
        mark = f"__exception__\r\n{tag}".encode() if tag else None
        held = b""
        try:
            with self._errors():
                for chunk in response.stream(_CHUNK_BYTES, decode_content=True):
                    held += chunk
                    if mark is None:
                        ready, held = held, b""
                    elif mark in held:
                        break
                    else:
                        ready, held = held[: -len(mark)], held[-len(mark) :]
                    if ready:
                        yield ready
                if mark is not None and mark in held:
                    answer, _, error = held.partition(mark)
                    if answer.removesuffix(b"\r\n"):
                        yield answer.removesuffix(b"\r\n")
                    rest = b"".join(response.stream(_CHUNK_BYTES, decode_content=True))
                    raise self._from_text((error + rest).decode(errors="replace"))
            if held:
                yield held
        finally:
            response.close()

    def insert_block(
        self, table: str, columns: Sequence[str], block: bytes, token: str, fmt: str = "RowBinary"
    ) -> None:
        """Insert *block* (in ClickHouse's format *fmt*) into *table* of the configured database; see `insert`."""
        self.insert(self.insert_head(table, columns, fmt) + block, token)

    def insert_head(self, table: str, columns: Sequence[str], fmt: str) -> bytes:
        """What stands in front of a block for *table* of the configured database."""
        name = f"{quote_identifier(self.config.database)}.{quote_identifier(table)}"
        return f"INSERT INTO {name} ({', '.join(map(quote_identifier, columns))}) FORMAT {fmt}\n".encode()

    def insert(self, body: bytes, token: str) -> None:
        """Insert the block that stands in *body* behind its `insert_head`; on return it is stored.

        The server drops a block whose deduplication *token* it remembers, whatever the block holds; so a token
        must always stand for the same rows. On a cluster "stored" means by a quorum of replicas.
        """
        client = self._client(self.config.insert_timeout_s)
        settings: dict[str, Any] = {
            "async_insert": 0,
            "insert_deduplicate": 1,
            "insert_deduplication_token": token,
            # The answer comes when all is done, so an error can't hide behind a status that was already sent.
            "wait_end_of_query": 1,
        }
        if self.config.cluster:
            settings |= {"insert_quorum": "auto", "distributed_foreground_insert": 1}
        with self._errors():
            # Without a table the driver sends the body as it is; else it would copy it behind a head of its own.
            client.raw_insert("", insert_block=body, settings=settings)

    def ping(self) -> None:
        """Return when the server answers and knows us; raises like a query otherwise."""
        client = self._client(self.config.query_timeout_s)
        with self._errors():
            client.command("SELECT 1", use_database=False)

    def close(self) -> None:
        """Close the connections. A request that runs in another thread fails; later ones raise StoreUnavailable."""
        with self._lock:
            self._closed = True
            self._clients.clear()
        self._pool.clear()
        all_managers.pop(self._pool, None)

    # Connections

    def _client(self, timeout_s: float) -> Client:
        """The driver's client whose requests may be silent for *timeout_s*; one a time-out, since it has only one."""
        if (client := self._known(timeout_s)) is not None:
            return client
        with self._connecting:
            if (client := self._known(timeout_s)) is not None:
                return client
            with self._errors():
                client = self._connect(timeout_s)
            with self._lock:
                self._clients[timeout_s] = client
            return client

    def _known(self, timeout_s: float) -> Client | None:
        with self._lock:
            if self._closed:
                raise StoreUnavailable(f"ClickHouse at {self.config.url}: the connection is closed")
            return self._clients.get(timeout_s)

    def _connect(self, timeout_s: float) -> Client:
        config = self.config
        parts = urlsplit(config.url)
        client = clickhouse_connect.get_client(
            interface=parts.scheme,
            host=cast("str", parts.hostname),
            port=parts.port or (8443 if parts.scheme == "https" else 8123),
            proxy_path=parts.path.rstrip("/"),
            username=config.user,
            password=config.password,
            connect_timeout=math.ceil(config.connect_timeout_s),
            send_receive_timeout=math.ceil(timeout_s),
            client_name="auditspan",
            autogenerate_session_id=False,  # a session would forbid two requests at once
            pool_mgr=self._pool,
            verify=config.verify,
        )
        # Only now: the driver's first questions must not fail because the database is not there yet.
        client.database = config.database
        with contextlib.suppress(AttributeError):
            client.timeout = Timeout(connect=config.connect_timeout_s, read=timeout_s)  # type: ignore[attr-defined]
        return client

    # Errors

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn the driver's errors into ours; `from None`, since theirs hold the URL with all parameters."""
        try:
            yield
        except ClickHouseError as error:
            raise self._translated(error) from None
        except (HTTPError, OSError) as error:
            raise StoreUnavailable(f"ClickHouse at {self.config.url}: {_reason(error)}") from None

    def _translated(self, error: ClickHouseError) -> StoreUnavailable | StoreRejected:
        code = getattr(error, "code", None)
        text = str(error)
        cause = error.__cause__
        if code is None and isinstance(cause, HTTPError | OSError):
            return StoreUnavailable(f"ClickHouse at {self.config.url}: {_reason(cause)}")
        # The driver appends the URL; the server's own words stand between.
        answer = text.partition("server response: ")[2].rpartition(" (for url ")[0]
        if code is not None:
            # A failure in the middle of an answer comes as the server's words alone.
            answer = _VERSION.sub("", answer or text)
            return self._error(answer, code, transient=code in TRANSIENT_CODES)
        if status := _STATUS.search(text):
            words = f"HTTP status {status[1]}: {answer or 'no further word'}"
            return self._error(words, 0, transient=int(status[1]) in _TRANSIENT_STATUS)
        return self._from_text(text, transient=isinstance(error, OperationalError))

    def _from_text(self, text: str, *, transient: bool = False) -> StoreUnavailable | StoreRejected:
        """The error that stands in *text*, which came without a code beside it."""
        found = re.search(r"Code: (\d+)\. ?(.*)", text, re.DOTALL)
        if found is None:
            return self._error(text, 0, transient=transient)
        code = int(found[1])
        return self._error(
            _VERSION.sub("", found[0].partition("\n")[0]), code, transient=code in TRANSIENT_CODES
        )

    def _error(self, text: str, code: int, *, transient: bool) -> StoreUnavailable | StoreRejected:
        message = f"ClickHouse at {self.config.url}: {text.strip()}"
        return StoreUnavailable(message) if transient else StoreRejected(message, code=code)


class _Sending:
    """A connection that waits for the server to take a body as long as it waits for an answer.

    urllib3 has one time-out for connecting and for sending, and http.client's sendall holds it against the whole body: on
    a busy server or a slow line an insert of megabytes would fail for ever.
    """

    def __init__(self, *args: Any, silence_limit_s: float, **options: Any) -> None:
        """*silence_limit_s* is the longest wait for a piece of a body to be taken; the others are urllib3's."""
        super().__init__(*args, **options)
        self._silence_limit_s = silence_limit_s

    def send(self, data: Any) -> None:
        """A large body goes in as large pieces as the system takes. Raises TimeoutError when the server stops taking them."""
        send: Any = super().send  # type: ignore[misc]  # http.client's
        if not isinstance(data, bytes) or len(data) <= _CHUNK_BYTES:
            send(data)
            return
        sock = cast("Any", self).sock
        sock.settimeout(self._silence_limit_s)
        left = memoryview(data)
        while left:
            left = left[sock.send(left) :]


class _Connection(_Sending, HTTPConnection):
    """Without TLS."""


class _TlsConnection(_Sending, HTTPSConnection):
    """With TLS."""


class _Pool(HTTPConnectionPool):
    """Of such connections."""

    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    """Of such connections."""

    ConnectionCls = _TlsConnection


def _bindable(sql: str, parameters: Parameters | None) -> Parameters | None:
    """*parameters*, once it is sure that the server binds them: without ``{name:Type}`` the driver would format
    them into the text itself.
    """
    if not parameters:
        return None
    missing = [name for name in parameters if f"{{{name}:" not in sql]
    if missing:
        raise ValueError(f"the statement has no place {{{missing[0]}:Type}} for the parameter {missing[0]}")
    return parameters


def _reason(error: BaseException) -> str:
    """Why no answer came, in a few words and without the URL, which holds the values of parameters."""
    if isinstance(error, MaxRetryError) and error.reason is not None:
        error = error.reason
    if isinstance(error, NameResolutionError):
        return "its name can't be resolved; check clickhouse.url"
    if isinstance(error, ConnectTimeoutError) and not isinstance(error, NewConnectionError):
        return "no connection within clickhouse.connect_timeout_s"
    causes = tuple(_causes(error))
    # Python's own time-outs have no words; the system's (ETIMEDOUT) do.
    if any(
        isinstance(each, ReadTimeoutError) or (isinstance(each, TimeoutError) and not each.strerror)
        for each in causes
    ):
        return "no answer in time"
    if isinstance(error, SSLError):
        return f"TLS failed ({error.args[0] if error.args else 'no reason given'}); check clickhouse.ca_file"
    words = (each.strerror.lower() for each in causes if isinstance(each, OSError) and each.strerror)
    return next(words, "the connection was cut")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """*error* and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
