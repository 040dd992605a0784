"""One request: what it asks for, running it, and answering it.

Parameters: ClickHouse's documentation, "HTTP interface", and src/Server/HTTPHandler.cpp. What is in no list here is a
setting of the engine's, which knows its settings best.
"""

from __future__ import annotations

import contextlib
import errno
import re
import tempfile
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from auditspan_collector.store import formats, native, statement
from auditspan_collector.store.failures import (
    BAD_ARGUMENTS,
    NOT_ENOUGH_SPACE,
    READONLY,
    SESSION_NOT_FOUND,
    SYNTAX_ERROR,
    UNKNOWN_ROLE,
    QueryFailed,
)
from auditspan_collector.store.reply import Shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from auditspan_collector.store.body import Body, Headers
    from auditspan_collector.store.config import Config, User
    from auditspan_collector.store.engine import Chunk, Connection
    from auditspan_collector.store.reply import Reply
    from auditspan_collector.store.running import Turn

# Parameters of the interface itself; everything else in the URL is a query parameter (param_...) or a setting.
_RESERVED: Final = frozenset(
    {
        "",
        "buffer_size",
        "client_protocol_version",
        "close_session",
        "compress",
        "database",
        "decompress",
        "default_format",
        "password",
        "query",
        "query_id",
        "quota_key",
        "role",
        "session_check",
        "session_id",
        "session_timeout",
        "stacktrace",
        "user",
        "wait_end_of_query",
    }
)
_PARAMETER: Final = "param_"
# Statements that answer with a result, even an empty one.
_ANSWERING: Final = frozenset(
    {"SELECT", "WITH", "FROM", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS", "CHECK"}
)

_ODD_SETTINGS: Final = frozenset(
    {"format", "output_format", "framing_output_format", "output_format_json_array_of_rows"}
)
_ODD_CLAUSE: Final = re.compile(rb"(?i)\b(?:(?:framing_)?output_)?format\s*=|array_of_rows")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for, besides its body."""

    query: str
    query_id: str
    database: str
    default_format: str
    settings: dict[str, str]
    parameters: dict[str, str]
    revision: int
    framed_body: bool
    shape: Shape


def _is_on(text: str) -> bool:
    return text.lower() in ("1", "true", "yes", "on")


def _number(name: str, text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 19:
        return int(text)
    raise QueryFailed.because(BAD_ARGUMENTS, f"{name} = {text!r} is no number.")


def _settings(given: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in given.items()
        if name not in _RESERVED and not name.startswith(_PARAMETER)
    }


def _parameters(given: Mapping[str, str]) -> dict[str, str]:
    parameters = {
        name.removeprefix(_PARAMETER): value for name, value in given.items() if name.startswith(_PARAMETER)
    }
    for name, value in parameters.items():
        if any("\ud800" <= character <= "\udfff" for character in name + value):
            raise QueryFailed.because(BAD_ARGUMENTS, "A query parameter is not UTF-8.")
    return parameters


def wanted(given: Mapping[str, str], headers: Headers, encoding: str) -> Wanted:
    """Read the parameters of a request (*given*: URL and form). *encoding* is what the client can decompress."""
    if _is_on(given.get("session_check", "")):
        raise QueryFailed.because(SESSION_NOT_FOUND, "Session not found: the embedded store keeps none.")
    if given.get("role"):
        raise QueryFailed.because(
            UNKNOWN_ROLE, f"There is no role {given['role']!r}: the embedded store has none."
        )
    settings = _settings(given)
    compressing = _is_on(settings.get("enable_http_compression", "1"))
    held = given.get("wait_end_of_query") or settings.get("http_wait_end_of_query", "")
    return Wanted(
        query=given.get("query", ""),
        query_id=given.get("query_id") or str(uuid.uuid4()),
        database=headers.get("X-ClickHouse-Database") or given.get("database", ""),
        default_format=headers.get("X-ClickHouse-Format") or given.get("default_format") or "TabSeparated",
        settings=settings,
        parameters=_parameters(given),
        revision=_number("client_protocol_version", given.get("client_protocol_version") or "0"),
        framed_body=_is_on(given.get("decompress", "")),
        shape=Shape(encoding if compressing else "", _is_on(given.get("compress", "")), _is_on(held)),
    )


def _limited(settings: dict[str, str], user: User, limit_s: float) -> dict[str, str]:
    """*settings*, in which a read-only user can't have more time than everybody gets."""
    asked = settings.get("max_execution_time")
    if not user.readonly or asked is None:
        return settings
    try:
        fits = 0 < float(asked) <= limit_s
    except ValueError:
        fits = True  # the engine says what is wrong with it
    return settings if fits else {**settings, "max_execution_time": str(max(1, round(limit_s)))}


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise QueryFailed.because(
            NOT_ENOUGH_SPACE,
            "No space left on the store's disk for the data of this INSERT; nothing of it counts.",
        ) from None


class Exchange:
    """Runs one request's statement on *connection* and writes to *reply*."""

    def __init__(
        self, asked: Wanted, body: Body, connection: Connection, reply: Reply, *, config: Config, folder: Path
    ) -> None:
        """Everything that the request needs; nothing has run yet. *folder* holds the data of an INSERT meanwhile."""
        self._asked = asked
        self._body = body
        self._connection = connection
        self._reply = reply
        self._config = config
        self._folder = folder

    def run(self, user: User, turn: Turn, *, readonly: bool) -> None:
        """Run it to its end. Raises QueryFailed; what has been written by then is the reply's to tell."""
        connection, asked = self._connection, self._asked
        if asked.database:
            connection.use(asked.database)
        settings = _limited(asked.settings, user, self._config.max_execution_time_s)
        readonly = readonly or user.readonly
        connection.configure(settings, tag=turn.tag, readonly=readonly)
        readonly = readonly or settings.get("readonly", "0") != "0"
        if asked.framed_body:
            self._body.expect_blocks()
        found, rest = self._statement()
        if isinstance(found, statement.InsertWithData):
            self._insert(found, rest, readonly=readonly)
        else:
            connection.judge(found.text, found.keyword, readonly=readonly)
            turn.abandonable = found.keyword in _ANSWERING
            self._answer(found)
        self._reply.end()

    def _statement(self) -> tuple[statement.InsertWithData | statement.Statement, Iterable[bytes]]:
        """The statement and, for an INSERT, the data that follows. The query of the URL comes before the body."""
        limit = self._config.max_query_bytes
        text = self._asked.query.encode("utf-8", "surrogateescape")
        if text:
            text += b"\n"
            found = statement.read(text)
            if isinstance(found, statement.InsertWithData):
                return found, self._data(text[found.data_start :])
        text += self._body.at_most(limit + 1)
        found = statement.read(text)
        if isinstance(found, statement.InsertWithData):
            return found, self._data(text[found.data_start :])
        if len(text) > limit:
            raise QueryFailed.because(
                SYNTAX_ERROR, f"Max query size exceeded: {limit} bytes (store.max_query_bytes).", status=413
            )
        if not text.strip():
            raise QueryFailed.because(SYNTAX_ERROR, "Empty query.")
        return found, ()

    def _data(self, first: bytes) -> Iterator[bytes]:
        if first:
            yield first
        yield from self._body

    def _insert(self, found: statement.InsertWithData, data: Iterable[bytes], *, readonly: bool) -> None:
        """Take the data in first: a body that ends early must store nothing, and its memory stays bounded."""
        if readonly:
            raise QueryFailed.because(READONLY, "Cannot execute query in readonly mode.")
        connection = self._connection
        with _disk_errors(), tempfile.TemporaryFile(dir=self._folder) as whole:
            connection.judge_insert(found, whole)
            connection.bind(self._asked.parameters)
            for piece in data:
                whole.write(piece)
            whole.flush()
            done = connection.insert(found, whole)
        self._reply.summary.add(done)

    def _answer(self, found: statement.Statement) -> None:
        asked, reply = self._asked, self._reply
        form = found.format or asked.settings.get("output_format") or asked.settings.get("format")
        form = form or asked.default_format
        for number, chunk in enumerate(self._chunks(found, form)):
            if not number and (len(chunk.data) or found.keyword in _ANSWERING):
                reply.result(form)
            reply.summary.add(chunk)
            reply.write(chunk.data)
        if found.keyword in _ANSWERING:
            reply.result(form)

    def _chunks(self, found: statement.Statement, form: str) -> Iterator[Chunk]:
        asked, connection = self._asked, self._connection
        # Settings can make another format of it, or one JSON array of all rows; blocks do not join then.
        odd = _ODD_SETTINGS & asked.settings.keys() or _ODD_CLAUSE.search(found.text)
        chunks: Iterator[Chunk]
        if found.streamable and formats.joins(form) and not odd:
            chunks = formats.joined(connection.stream(found.text, form, asked.parameters), form)
        else:
            chunks = iter((connection.run(found.text, form, asked.parameters),))
        if form.lower() == "native" and asked.revision >= native.REFRAMED_FROM:
            return (chunk._replace(data=native.reframed(bytes(chunk.data))) for chunk in chunks)
        return chunks
