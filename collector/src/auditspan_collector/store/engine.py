"""Run statements on ClickHouse's engine inside this process: chDB, one connection a request.

Theory. A process hosts one engine on one folder; any number of connections to it run at the same time, each with
settings of its own, and the engine lives as long as one is open. A connection costs 0.3 ms. The GIL is released
while the engine works.

This is the only module that touches chDB. It uses the extension module beneath `chdb.connect`, because the wrapper
has no `classify_query` and drops result blocks without rows (headers, totals), and it loads that module alone:
``import chdb`` starts and stops an engine in memory first, with whatever configuration lies in the user's home or
the working directory, which takes half a second and is not confined.

An INSERT gets its data from an open file, by FROM INFILE. That is the one way that takes data of any length in bounded
memory and raises whatever goes wrong until the rows are stored. chDB's streaming insert (`send_insert`) reports
success when the table does not take its last block (disk full, CONSTRAINT, too many partitions). Data behind the
statement has to be in memory, and some formats end it at a blank line and run what follows as a statement. Each start
checks that the engine tells (`_check_that_inserts_tell`).

Order matters on a connection: database, settings, then ``readonly`` as the last one; from there on the engine
refuses to change any setting. Client settings are sent as quoted SET statements, never in the connection string.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import re
import sys
import tempfile
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, cast

from auditspan_collector.errors import StoreRejected
from auditspan_collector.store import statement
from auditspan_collector.store.confinement import ENGINES, PROBES
from auditspan_collector.store.failures import (
    ACCESS_DENIED,
    BAD_ARGUMENTS,
    INTO_OUTFILE_NOT_ALLOWED,
    NOT_IMPLEMENTED,
    READONLY,
    SYNTAX_ERROR,
    UNKNOWN_SETTING,
    VIOLATED_CONSTRAINT,
    QueryFailed,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from auditspan_collector.store.statement import InsertWithData


def _load_extension() -> Any:
    """The extension module of chDB. Raises ModuleNotFoundError when chDB is not installed."""
    name = "chdb._chdb"
    if name in sys.modules:
        return sys.modules[name]
    package = importlib.util.find_spec("chdb")
    places = package.submodule_search_locations if package is not None else None
    spec = importlib.machinery.PathFinder.find_spec(name, places) if places else None
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError("No module named 'chdb'", name="chdb")
    flags = sys.getdlopenflags()
    # As chDB loads itself: its symbols must not be replaced by those of other libraries in the process.
    sys.setdlopenflags(flags | getattr(os, "RTLD_DEEPBIND", 0))
    try:
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    finally:
        sys.setdlopenflags(flags)
    return module


_chdb: Any = _load_extension()

_SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_IN_SCOPE = re.compile(r": In scope SELECT formatQuery\(.*\)\. \(", re.DOTALL)
_TAG: Final = (
    "query_cache_tag"  # the one text setting that changes nothing; it names a request in system.processes
)
_MAX_TAGS: Final = 1000
_MAY_CONTROL: Final = frozenset({"ATTACH", "DETACH", "INSERT", "KILL", "SET", "SYSTEM", "USE"})


class Chunk(NamedTuple):
    """A piece of a result in its format; with a header of its own where the format has one."""

    data: bytes | memoryview
    rows: int
    read_rows: int
    read_bytes: int
    written_rows: int = 0
    written_bytes: int = 0


def quoted(value: str) -> bytes:
    """*value* as a SQL string."""
    raw = value.encode("utf-8", "surrogateescape")
    return b"'" + raw.replace(b"\\", b"\\\\").replace(b"'", b"\\'").replace(b"\0", b"\\0") + b"'"


def identifier(name: str) -> bytes:
    """*name* as a SQL identifier."""
    raw = name.encode("utf-8", "surrogateescape")
    return b"`" + raw.replace(b"\\", b"\\\\").replace(b"`", b"\\`").replace(b"\0", b"\\0") + b"`"


def _path(file: IO[bytes]) -> str:
    """Where this process finds *file*, also when it has no name (any more)."""
    return f"/dev/fd/{file.fileno()}"


def _infile(file: IO[bytes]) -> bytes:
    return f"FROM INFILE '{_path(file)}' COMPRESSION 'none'".encode()


@contextlib.contextmanager
def _engine_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # chDB raises nothing else for what the engine says
        raise QueryFailed.from_engine(str(error)) from None


def _judge_definition(canonical: bytes) -> None:
    """Refuse engines that are not in the list, and disks of databases. Raises QueryFailed."""
    words = list(statement.outside_strings(canonical))
    if words[:1] not in ([b"ATTACH"], [b"CREATE"], [b"REPLACE"]):
        return
    for equals in range(1, len(words) - 1):
        name = words[equals + 1].strip(b"`").decode("utf-8", "replace")
        if words[equals] == b"=" and words[equals - 1] == b"ENGINE" and name not in ENGINES:
            raise QueryFailed.because(
                ACCESS_DENIED, f"The engine {name} is not served; allowed: {', '.join(ENGINES)}."
            )
    if words[1:2] == [b"DATABASE"] and b"SETTINGS" in words:
        raise QueryFailed.because(ACCESS_DENIED, "SETTINGS of a database are not served.")


class Connection:
    """One request's session."""

    def __init__(self, raw: Any) -> None:
        """Wrap chDB's connection."""
        self._raw = raw

    def use(self, database: str) -> None:
        """Make *database* the current one. Raises QueryFailed (81) when it is not there."""
        self._run(b"USE " + identifier(database))

    def configure(self, settings: Mapping[str, str], *, tag: str, readonly: bool) -> None:
        """Set what the client asks for, then *tag*, then read-only mode. Raises QueryFailed (115 and others)."""
        changes = []
        last = "1" if readonly else settings.get("readonly", "0")
        for name, value in settings.items():
            if not _SETTING_NAME.fullmatch(name):
                raise QueryFailed.because(UNKNOWN_SETTING, f"Unknown setting {name!r}.")
            if name != "readonly":
                changes.append(name.encode() + b" = " + quoted(value))
        self._run(b"SET " + b", ".join([*changes, _TAG.encode() + b" = " + quoted(tag)]))
        if last not in ("0", ""):
            # Last: from here on the engine lets no setting change.
            self._run(b"SET readonly = " + quoted(last))

    def bind(self, parameters: Mapping[str, str]) -> None:
        """Give query parameters to statements that do not take them with the call."""
        for name, value in parameters.items():
            if not _SETTING_NAME.fullmatch(name):
                raise QueryFailed.because(BAD_ARGUMENTS, f"Parameter name {name!r} is no identifier.")
            self._run(b"SET param_" + name.encode() + b" = " + quoted(value))

    def judge(self, text: bytes, keyword: str, *, readonly: bool) -> None:
        """Refuse what no grant of the engine covers, by its own parser's word. Raises QueryFailed."""
        self._refuse_slow_to_parse(text)
        verdict = self._raw.classify_query(text)
        kind = verdict["query_class"]
        if kind == _chdb.query_class.UNKNOWN:
            self.canonical(text)  # raises with the parser's own words when it can't read it
            raise QueryFailed.because(NOT_IMPLEMENTED, f"Statements of the kind {keyword!r} are not served.")
        if verdict["statement_count"] != 1:
            raise QueryFailed.because(
                SYNTAX_ERROR, "Syntax error (Multi-statements are not allowed): send one statement a request."
            )
        reading = kind == _chdb.query_class.READ_ONLY
        if readonly and not reading and not self.canonical(text).startswith((b"SET ", b"USE ")):
            # The engine enforces it too, but for KILL QUERY, with which a reader could stop the writers.
            raise QueryFailed.because(READONLY, "Cannot execute query in readonly mode.")
        lower = text.lower()
        if kind == _chdb.query_class.CONTROL:
            # The parser counts a result that goes to a file as control, and so it does some settings of INSERT.
            if b"outfile" in lower:
                raise QueryFailed.because(INTO_OUTFILE_NOT_ALLOWED, "INTO OUTFILE is not allowed.")
            if keyword not in _MAY_CONTROL:
                raise QueryFailed.because(
                    NOT_IMPLEMENTED, f"Statements of the kind {keyword!r} are not served."
                )
        self.refuse_infile(text)
        if not reading and (b"engine" in lower or b"settings" in lower):
            _judge_definition(self.canonical(text))

    def _refuse_slow_to_parse(self, text: bytes) -> None:
        """Refuse what the engine reads in quadratic time; no time limit applies to it while it parses."""
        if b";" in text.rstrip(b"; \t\r\n"):
            # Raises at the second statement; classify_query would count them all.
            self.canonical(text)
        # The engine looks for the end of each tag ($tag$) up to the end of the text.
        if text.count(b"$") > _MAX_TAGS and statement.dollar_words(text) > _MAX_TAGS:
            raise QueryFailed.because(
                SYNTAX_ERROR, f"Syntax error: more than {_MAX_TAGS} names that start with a dollar sign."
            )

    def refuse_infile(self, text: bytes) -> None:
        """Refuse FROM INFILE, which would read a file of this machine. Raises QueryFailed."""
        if b"infile" not in text.lower():
            return
        # In canonical form a quote inside a string is escaped, so this can only be the clause (or a string's end).
        if b"INFILE '" in self.canonical(text):
            raise QueryFailed.because(
                NOT_IMPLEMENTED, "FROM INFILE is not allowed; send the data with the request."
            )

    def canonical(self, text: bytes) -> bytes:
        """*text* as the parser writes it. Raises QueryFailed with the parser's words when it can't be read."""
        try:
            # A literal, not a parameter: parameters must be UTF-8, statements need not be.
            literal = quoted(text.decode("utf-8", "surrogateescape"))
            return bytes(
                self._raw.query(b"SELECT formatQuery(" + literal + b") FORMAT RawBLOB", b"RawBLOB").bytes()
            )
        except RuntimeError as error:
            raise QueryFailed.from_engine(_IN_SCOPE.sub(". (", str(error))) from None

    def stream(self, text: bytes, form: str, parameters: Mapping[str, str]) -> Iterator[Chunk]:
        """The result of a SELECT, block by block; each chunk is complete in *form*. Raises QueryFailed."""
        with _engine_errors():
            handle = self._raw.send_query(text, form, params=dict(parameters))
        while True:
            with _engine_errors():
                piece = self._raw.streaming_fetch_result(handle)
            if not piece.size():
                return
            yield Chunk(
                piece.bytes(), piece.rows_read(), piece.storage_rows_read(), piece.storage_bytes_read()
            )

    def run(self, text: bytes, form: str, parameters: Mapping[str, str]) -> Chunk:
        """Run any statement; its whole result at once, within the statement's memory limit. Raises QueryFailed."""
        with _engine_errors():
            done = self._raw.query(text, form, params=dict(parameters))
        data = done.get_memview().view() if done.size() else b""
        return Chunk(
            data,
            done.rows_read(),
            done.storage_rows_read(),
            done.storage_bytes_read(),
            done.rows_written(),
            done.bytes_written(),
        )

    def judge_insert(self, found: InsertWithData, source: IO[bytes]) -> None:
        """Refuse *found* unless it takes its data from *source* and nothing else. Raises QueryFailed."""
        text = found.taking_data(_infile(source))
        canonical = self.canonical(text)
        # In canonical form a quote inside a string is escaped, so this can only be the clause (or a string's end).
        ours = canonical.count(b"INFILE '") == 1 and _infile(source) in canonical
        if not ours or not canonical.startswith(b"INSERT INTO "):
            raise QueryFailed.because(
                NOT_IMPLEMENTED, "FROM INFILE is not allowed; send the data with the request."
            )

    def insert(self, found: InsertWithData, source: IO[bytes]) -> Chunk:
        """Store the rows in *source*, from its first byte; `judge_insert` comes before.

        On return they are stored as the table's settings promise. Raises QueryFailed; then blocks that were full
        before the failing one may be stored, as on a server, and nothing else.
        """
        source.seek(0)
        try:
            return self.run(found.taking_data(_infile(source)), "Null", {})
        except QueryFailed as failure:
            # The client knows of no file.
            text = failure.text.replace(f"(in file/uri {_path(source)}): ", "")
            raise QueryFailed(failure.code, text, status=failure.status) from None

    def close(self) -> None:
        """End the session; a statement that still runs in it is cancelled."""
        self._raw.close()

    def _run(self, text: bytes) -> Any:
        with _engine_errors():
            return self._raw.query(text, b"TabSeparated")


@contextlib.contextmanager
def _standard_error() -> Iterator[list[str]]:
    """What native code writes to standard error meanwhile: the engine says there, and only there, why it can't start."""
    said: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said.append(file.read(1 << 20).decode("utf-8", "replace").strip())
            if said[0]:
                sys.stderr.write(said[0] + "\n")


class Engine:
    """The engine on a folder, from construction to `close`."""

    def __init__(self, data: Path, configuration: Path) -> None:
        """Start it; takes about half a second. Raises StoreRejected with the engine's words when it can't."""
        _chdb.set_signal_handlers_enabled(0)  # signals belong to the program around
        self._address = f"{data}?config-file={configuration}"
        problem = ""
        with _standard_error() as said:
            try:
                self._anchor: Any = _chdb.connect(self._address)
            except RuntimeError as error:
                problem = str(error)
        if problem:
            raise StoreRejected(f"store.path: the engine can't open {data}: {said[0] or problem}")
        try:
            self._check_confinement()
            self._check_that_inserts_tell()
            self.version, self.timezone, self.host = self._identify()
        except BaseException:
            self.close()
            raise

    def connect(self) -> Connection:
        """A session with the default settings."""
        with _engine_errors():
            return Connection(_chdb.connect(self._address))

    def stop_statement(self, tag: str) -> None:
        """Cancel what runs under *tag*; it ends with code 394 soon after."""
        connection = self.connect()
        try:
            connection.run(
                b"KILL QUERY WHERE Settings['" + _TAG.encode() + b"'] = " + quoted(tag) + b" ASYNC",
                "Null",
                {},
            )
        finally:
            connection.close()

    def close(self) -> None:
        """Stop it; everything that was answered is on disk before already."""
        self._anchor.close()

    def _check_confinement(self) -> None:
        connection = self.connect()
        try:
            for probe, expected in PROBES.items():
                code = 0
                try:
                    connection.run(probe.encode(), "Null", {})
                except QueryFailed as failure:
                    code = failure.code
                if code != expected:
                    raise StoreRejected(
                        f"the engine does not stay inside its folder: {probe} ended with code {code}, not {expected}; "
                        "this version of chdb can't be used"
                    )
        finally:
            connection.close()

    def _check_that_inserts_tell(self) -> None:
        """Insert a row that its table must refuse. Raises StoreRejected when the engine says that all went well."""
        refusing = statement.read(b"INSERT INTO probe FORMAT RowBinary\n")
        connection = self.connect()
        code = 0
        try:
            connection.run(b"CREATE TEMPORARY TABLE probe (a UInt8, CONSTRAINT never CHECK 0)", "Null", {})
            with tempfile.TemporaryFile() as row:
                row.write(b"\x01")
                row.flush()
                connection.insert(cast("InsertWithData", refusing), row)
        except QueryFailed as failure:
            code = failure.code
        finally:
            connection.close()
        if code != VIOLATED_CONSTRAINT:
            raise StoreRejected(
                "the engine does not tell when a table refuses rows: an insert that must fail ended with code "
                f"{code}, not {VIOLATED_CONSTRAINT}; this version of chdb can't be used"
            )

    def _identify(self) -> tuple[str, str, str]:
        with _engine_errors():
            row = self._anchor.query("SELECT version(), timezone(), hostName()", "TabSeparatedRaw").bytes()
        version, timezone, host = row.decode().rstrip("\n").split("\t")
        return version, timezone, host
