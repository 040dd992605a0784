"""``auditspan sql``: ask the store in SQL; it only reads."""

from __future__ import annotations

import codecs
import re
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import click

from auditspan_collector.cli.reading import reads_the_store
from auditspan_collector.cli.render import Screen, visible
from auditspan_collector.errors import StoreRejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from auditspan_collector import clickhouse
    from auditspan_collector.clickhouse import ClickHouseClient

# Short names for what is asked for most; every other name is ClickHouse's own
# (https://clickhouse.com/docs/interfaces/formats).
_FORMATS: Final = {
    "pretty": "PrettyCompactMonoBlock",
    "tsv": "TabSeparatedWithNames",
    "csv": "CSVWithNames",
    "json": "JSON",
    "jsonl": "JSONEachRow",
}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)

_SYNTAX_ERROR: Final = 62  # ClickHouse's src/Common/ErrorCodes.cpp

EPILOG: Final = """\b
Examples:
  auditspan sql "SELECT actor_id, count() FROM records GROUP BY actor_id"
  auditspan sql "SELECT * FROM records WHERE actor_id = {who:String}" --param who=alice --format jsonl
  auditspan sql < report.sql > report.tsv
  auditspan sql "SHOW CREATE TABLE records"

\b
The tables are in the database of the connection, so `records` is enough. --format knows pretty, tsv, csv, json,
jsonl and every format of ClickHouse; one in the query itself wins.
"""


def _pairs(_: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise click.BadParameter(f"{text!r}: allowed: name=value", param=parameter)
        if not value.isascii() and value != value.encode(errors="ignore").decode():
            raise click.BadParameter(f"{text!r}: not text in UTF-8", param=parameter)
        pairs[name] = value
    return pairs


@click.command(epilog=EPILOG)
@click.argument("query", required=False)
@click.option("--param", "parameters", multiple=True, callback=_pairs, metavar="NAME=VALUE",
              help="Value of {NAME:Type} in the query; always data, never SQL.")  # fmt: skip
@click.option("--set", "settings", multiple=True, callback=_pairs, metavar="NAME=VALUE",
              help="A setting of ClickHouse for this query, such as max_execution_time=5.")  # fmt: skip
@click.option(
    "--format", "-F", "form", metavar="NAME", help="How to print.  [default: pretty on a terminal, else tsv]"
)
@reads_the_store
def command(
    connection: clickhouse.Config,
    *,
    query: str | None,
    parameters: dict[str, str],
    settings: dict[str, str],
    form: str | None,
) -> None:
    """Ask the store in SQL. It only reads: the query runs with ClickHouse's setting readonly=1.

    Without QUERY, or with -, the query is read from standard input.
    """
    from auditspan_collector.clickhouse import ClickHouseClient  # noqa: PLC0415 - keeps `--help` fast

    sql = _text(query)
    bound = {name: _bound(sql, name, text) for name, text in parameters.items()}
    screen = Screen.of(sys.stdout)
    chosen = form or ("pretty" if screen.width is not None else "tsv")
    with closing(ClickHouseClient(connection)) as client:
        chunks = _ask(client, sql, bound, _read_only(client, settings), _FORMATS.get(chosen.lower(), chosen))
        _write(screen, chunks)


def _text(query: str | None) -> str:
    if query is None and sys.stdin.isatty():
        raise click.UsageError("no query: give it as an argument or on standard input")
    try:
        text = sys.stdin.read() if query is None or query == "-" else query
        text.encode()
    except UnicodeError as error:
        raise click.UsageError(f"the query is not text in UTF-8 ({error})") from error
    if not text.strip():
        raise click.UsageError("the query is empty")
    return text.strip().rstrip(";")


class _Literal:
    """An array, tuple or map as ClickHouse writes it; the driver sends what str() gives, quotes as they are."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


def _bound(sql: str, name: str, text: str) -> str | _Literal:
    placeholder = re.search(rf"\{{{name}:\s*(\w+)", sql)
    if placeholder is None:
        raise click.UsageError(f"--param {name}: the query has no {{{name}:Type}}")
    return _Literal(text) if placeholder[1] in ("Array", "Tuple", "Map") else text


def _read_only(client: ClickHouseClient, settings: dict[str, str]) -> dict[str, Any]:
    """The settings, with readonly among them; a user who is read-only already may not even say so again."""
    ((already,),) = client.rows("SELECT toUInt8(getSetting('readonly'))")
    return dict(settings) if already else {**settings, "readonly": 1}


def _ask(
    client: ClickHouseClient, sql: str, parameters: dict[str, Any], settings: dict[str, Any], form: str
) -> Iterator[bytes]:
    if not _NAME.fullmatch(form):
        raise click.UsageError(
            f"--format {form!r}: allowed: {', '.join(_FORMATS)}, or a format of ClickHouse"
        )
    try:
        return client.raw(sql, parameters, form, settings)
    except StoreRejected as error:
        # Two FORMAT clauses are a syntax error; then the query's own is the one that counts.
        if error.code != _SYNTAX_ERROR or "format" not in sql.lower():
            raise
        return client.raw(sql, parameters, None, settings)


def _write(screen: Screen, chunks: Iterable[bytes]) -> None:
    if screen.width is None:
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        return
    # ClickHouse's formats print control characters as they are; a terminal would obey them.
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    ends_line = True
    for chunk in chunks:
        _write_visible(decoder.decode(chunk), screen.encoding)
        ends_line = chunk.endswith(b"\n")
    _write_visible(decoder.decode(b"", final=True) + ("" if ends_line else "\n"), screen.encoding)


def _write_visible(text: str, encoding: str) -> None:
    parts = re.split(r"([\n\t])", text)
    sys.stdout.write("".join(part if part in ("\n", "\t", "") else visible(part, encoding) for part in parts))
