"""Print records as a table, JSON or CSV, each as it comes."""

from __future__ import annotations

import csv
import sys
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import UTC
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

import click
from rich.text import Text

from auditspan_collector.cli.render import (
    SAMPLE_ROWS,
    Heading,
    Table,
    duration,
    origin_legend,
    target,
    to_json,
    visible,
)
from auditspan_collector.query.times import format_iso, format_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import tzinfo

    from auditspan_collector.cli.render import Screen
    from auditspan_collector.query.rows import StoredRecord
    from auditspan_collector.record import AuditRecord

TRACE_DIGITS: Final = 8  # a beginning that `auditspan trace` accepts; one in 4 billion


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table and of CSV; *cell* is for people, *value* for programs."""

    heading: Heading
    value: Callable[[StoredRecord], str]
    cell: Callable[[Screen, StoredRecord], Text] | None = None

    def shown(self, screen: Screen, row: StoredRecord) -> Text:
        """What the table shows of *row*."""
        return self.cell(screen, row) if self.cell else screen.text(self.value(row))


def _column(name: str, usual: int, value: Callable[[StoredRecord], str], *, flexible: bool = True) -> Column:
    return Column(Heading(name, flexible, usual), value)


def _target_cell(screen: Screen, record: AuditRecord) -> Text:
    if record.action or record.target_type or record.target_id:
        return screen.text(target(record))
    # A foreign span may say neither; its name is then all there is of "did what, to what".
    return screen.text(f"({record.span_name})", "dim")


COLUMNS: Final[dict[str, Column]] = {
    # `time` is printed by Times, which knows the zone and the room there is.
    "time": Column(Heading("TIME", usual=12), lambda row: format_iso(row.record.start_time_unix_ns)),
    "received": _column("RECEIVED", 30, lambda row: format_iso(row.record.received_time_unix_ms * 1_000_000)),
    "duration": Column(
        Heading("DURATION", usual=8),
        lambda row: str(row.record.duration_ns),
        lambda _, row: Text(duration(row.record.duration_ns)),
    ),
    "actor": Column(
        Heading("ACTOR", flexible=True, usual=14),
        lambda row: row.record.actor_id,
        lambda screen, row: screen.actor(row.record),
    ),
    "type": _column("TYPE", 7, lambda row: row.record.actor_type),
    "origin": _column("ORIGIN", 13, lambda row: row.record.actor_origin),
    "roles": _column("ROLES", 12, lambda row: ",".join(row.record.actor_roles)),
    "session": _column("SESSION", 12, lambda row: row.record.actor_session),
    "auth": _column("AUTH", 8, lambda row: row.record.actor_auth_method),
    "delegate": _column("DELEGATE", 12, lambda row: row.record.actor_delegate),
    "action": _column("ACTION", 8, lambda row: row.record.action),
    "target": Column(
        Heading("TARGET", flexible=True, usual=18),
        lambda row: target(row.record),
        lambda screen, row: _target_cell(screen, row.record),
    ),
    "outcome": Column(
        Heading("OUTCOME", usual=9),
        lambda row: row.record.outcome,
        lambda screen, row: screen.outcome(row.record.outcome),
    ),
    "reason": _column("REASON", 20, lambda row: row.record.reason),
    "service": _column("SERVICE", 10, lambda row: row.record.service_name),
    "span": _column("SPAN", 20, lambda row: row.record.span_name),
    "kind": _column("KIND", 8, lambda row: row.record.span_kind),
    "tenant": _column("TENANT", 8, lambda row: row.record.tenant),
    "client": _column("CLIENT", 15, lambda row: row.record.client_address),
    "trace": Column(
        Heading("TRACE", usual=TRACE_DIGITS),
        lambda row: row.record.trace_id.hex(),
        lambda _, row: Text(row.record.trace_id.hex()[:TRACE_DIGITS], style="cyan"),
    ),
    "span_id": _column("SPAN_ID", 16, lambda row: row.record.span_id.hex()),
    "record_id": _column("RECORD_ID", 36, lambda row: str(uuid.UUID(bytes=row.record.record_id))),
    "stream": _column("STREAM", 20, lambda row: row.ledger_stream),
    "index": _column("INDEX", 8, lambda row: str(row.ledger_index), flexible=False),
}
NARROW: Final = ("time", "actor", "action", "target", "outcome", "service", "trace")
WIDE: Final = ("time", "actor", "roles", "action", "target", "outcome", "service", "trace")
CSV: Final = (
    *("time", "actor", "type", "origin", "roles", "delegate", "action", "target", "outcome", "reason"),
    *("service", "span", "tenant", "client", "trace", "span_id", "record_id", "stream", "index"),
)


def note(text: str) -> None:
    """Tell the person, not the program that reads stdout."""
    sys.stdout.flush()
    click.echo(text, err=True)


class Printer(ABC):
    """Print records in one format; *count* says how many it was given."""

    def __init__(self, screen: Screen, columns: Sequence[str], zone: tzinfo | None, live: bool) -> None:  # noqa: FBT001 - one call, above
        self.screen = screen
        self.names = columns
        self.columns = [COLUMNS[name] for name in columns]
        self.zone = zone
        self.live = live
        self.count = 0

    def print_all(self, rows: Iterable[StoredRecord]) -> None:
        """Print *rows* as they come, with what belongs before and after them."""
        for row in rows:
            self.print(row)

    def print(self, row: StoredRecord) -> None:
        """Print one more, after `print_all`."""
        self.count += 1
        self.write(row)
        if self.live:
            sys.stdout.flush()

    @abstractmethod
    def write(self, row: StoredRecord) -> None:
        """Print *row*, the `count`-th."""

    def legend(self) -> None:  # noqa: B027 - only a table has marks to explain
        """Explain the marks that were used."""


class _TablePrinter(Printer):
    def print_all(self, rows: Iterable[StoredRecord]) -> None:
        waiting = iter(rows)
        sample = list(islice(waiting, SAMPLE_ROWS))
        headings = [column.heading for column in self.columns]
        self._day = ""
        self._origins: set[str] = set()
        cells = [self._cells(row) for row in sample]
        self._table = Table(self.screen, headings, cells, more_to_come=self.live)
        if sample or self.live:
            self._table.header()
        for row in chain(sample, waiting):
            self.print(row)

    def write(self, row: StoredRecord) -> None:
        if "actor" in self.names:
            self._origins.add(row.record.actor_origin)
        day = format_time(row.record.start_time_unix_ns, self.zone)[:10]
        if self.screen.width is not None and "time" in self.names and day != self._day:
            # A terminal has no room for the day in each line.
            self.screen.line(Text(f"{day} {'UTC' if self.zone is UTC else 'local time'}", style="dim"))
            self._day = day
        self._table.row(self._cells(row))

    def _cells(self, row: StoredRecord) -> list[Text]:
        return [
            self._time(row) if name == "time" else column.shown(self.screen, row)
            for name, column in zip(self.names, self.columns, strict=True)
        ]

    def _time(self, row: StoredRecord) -> Text:
        if self.screen.width is None and self.zone is UTC:
            return Text(format_time(row.record.start_time_unix_ns, UTC, digits=3).replace(" ", "T") + "Z")
        if self.screen.width is None:
            return Text(format_time(row.record.start_time_unix_ns, None, digits=3).replace(" ", "T"))
        digits = 3 if self.screen.wide else 0
        return Text(format_time(row.record.start_time_unix_ns, self.zone, digits=digits)[11:])

    def legend(self) -> None:
        for meaning in origin_legend(self._origins):
            note(meaning)


class _JsonPrinter(Printer):
    def print_all(self, rows: Iterable[StoredRecord]) -> None:
        sys.stdout.write("[")
        super().print_all(rows)
        sys.stdout.write("\n]\n" if self.count else "]\n")

    def write(self, row: StoredRecord) -> None:
        sys.stdout.write(("," if self.count > 1 else "") + "\n" + to_json(row.as_json()))


class _JsonLinesPrinter(Printer):
    def write(self, row: StoredRecord) -> None:
        sys.stdout.write(to_json(row.as_json()) + "\n")


class _CsvPrinter(Printer):
    """Quoted as in RFC 4180, except that a cell which a spreadsheet would run as a formula gets an apostrophe in front.

    Actors and targets are chosen by strangers, and CSV is what people open in a spreadsheet. Programs that need
    the exact text read jsonl.
    """

    def print_all(self, rows: Iterable[StoredRecord]) -> None:
        self._writer = csv.writer(sys.stdout, lineterminator="\n")
        self._writer.writerow(self.names)
        super().print_all(rows)

    def write(self, row: StoredRecord) -> None:
        cells = [_disarmed(column.value(row)) for column in self.columns]
        if self.screen.width is not None:
            cells = [visible(cell, self.screen.encoding) for cell in cells]
        self._writer.writerow(cells)


def _disarmed(cell: str) -> str:
    return "'" + cell if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else cell


PRINTERS: Final[dict[str, type[Printer]]] = {
    "table": _TablePrinter,
    "json": _JsonPrinter,
    "jsonl": _JsonLinesPrinter,
    "csv": _CsvPrinter,
}
