"""``auditspan search``: who did what, when, to what, with what outcome."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import click

from auditspan_collector.cli.reading import reads_the_store
from auditspan_collector.cli.record_formats import COLUMNS, CSV, NARROW, PRINTERS, WIDE, note
from auditspan_collector.cli.render import Screen
from auditspan_collector.errors import StoreUnavailable
from auditspan_collector.query.filter import Filter, Match
from auditspan_collector.query.times import NANOSECONDS, Window, format_time, parse_window

if TYPE_CHECKING:
    from datetime import tzinfo

    from auditspan_collector import clickhouse
    from auditspan_collector.cli.record_formats import Printer
    from auditspan_collector.clickhouse import ClickHouseClient
    from auditspan_collector.query.follow import Follower

_FIELDS: Final = (
    "actor",
    "role",
    "action",
    "outcome",
    "target",
    "service",
    "tenant",
    "origin",
    "client_address",
)

# A start time is the sender's to choose: without an end, one of the year 2262 would stand first for ever.
_AHEAD_NS: Final = 5 * 60 * NANOSECONDS  # what an honest clock may be ahead of ours

EPILOG: Final = """\b
Examples:
  auditspan search --actor alice                         what alice did in the last 24 hours
  auditspan search --outcome denied --since 7d           what was refused this week
  auditspan search --action DELETE --target 'order:*'    who deleted orders
  auditspan search --role admin --service '!gateway'     what admins did behind the gateway
  auditspan search 'card expired' --format jsonl         free text, one JSON object a line
  auditspan search --actor 'svc-*' --follow              as it happens

\b
PATTERN: a value, with * for any run of characters, ! in front for "not". Give an option again for
another alternative. Case counts, except in actions, outcomes and origins.
TIME: an age (15m, 24h, 7d), today, yesterday, 2026-11-24 or 2026-11-24T10:30:00Z.
"""


def _columns(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    chosen = tuple(name.strip() for name in value.split(","))
    for name in chosen:
        if name not in COLUMNS:
            raise click.BadParameter(f"{name!r} is no column; allowed: {', '.join(COLUMNS)}")
    return chosen


@click.command(epilog=EPILOG)
@click.argument("text", nargs=-1)
@click.option("--actor", multiple=True, metavar="PATTERN", help="Who.")
@click.option("--role", multiple=True, metavar="PATTERN", help="A role that they held.")
@click.option(
    "--action",
    multiple=True,
    metavar="PATTERN",
    help="What they did: LOGIN, READ, CREATE, UPDATE, DELETE, ...",
)
@click.option("--outcome", multiple=True, metavar="PATTERN", help="success, failure, denied or unknown.")
@click.option("--target", multiple=True, metavar="PATTERN", help="To what: an id, or type:id.")
@click.option("--service", multiple=True, metavar="PATTERN", help="In which service.")
@click.option("--tenant", multiple=True, metavar="PATTERN", help="Of which tenant.")
@click.option(
    "--origin",
    multiple=True,
    metavar="PATTERN",
    help="How the actor is known: authenticated, asserted, unverified.",
)
@click.option(
    "--client",
    "client_address",
    multiple=True,
    metavar="PATTERN",
    help="From which address or network (10.0.0.0/8).",
)
@click.option(
    "--trace-id", default="", metavar="HEX", help="In this trace, of any time; its first 6 digits or more."
)
@click.option("--since", metavar="TIME", help="Began at or after.  [default: 24h]")
@click.option(
    "--until",
    metavar="TIME",
    help="Began before; a day counts as a whole.  [default: now, and 5m for clocks]",
)
@click.option("--utc/--local", default=True, help="Zone of the times you give and see.  [default: utc]")
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most this many records."
)
@click.option("--oldest-first", is_flag=True, help="The first records of the window instead of the last.")
@click.option(
    "--follow",
    "-f",
    "following",
    is_flag=True,
    help="Show the last --limit records, then new ones as they are stored.",
)
@click.option(
    "--poll-seconds",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="How often --follow looks.",
)
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "jsonl", "csv"]), default="table", show_default=True,
    help="json: one array. jsonl: one object a line, every column. csv: for spreadsheets, a quote before formulas.",
)  # fmt: skip
@click.option(
    "--columns",
    callback=_columns,
    metavar="NAMES",
    help=f"For table and csv, with commas: {', '.join(COLUMNS)}.",
)
@reads_the_store
def command(
    connection: clickhouse.Config,
    *,
    form: str,
    following: bool,
    columns: tuple[str, ...] | None,
    **options: Any,
) -> None:
    """Find records: who did what, when, to what, with what outcome.

    TEXT must occur, in any case, in the target, reason, span name, status message or an attribute's value.
    """
    if columns and form in ("json", "jsonl"):
        raise click.UsageError(f"--columns is for table and csv; {form} always has every column")
    if following and (form == "json" or options["until"] or options["oldest_first"]):
        raise click.UsageError(
            "--follow has no end: leave out --format json (jsonl works), --until and --oldest-first"
        )
    zone = UTC if options["utc"] else None
    wanted = _filter(options, zone)
    screen = Screen.of(sys.stdout)
    chosen = columns or (CSV if form == "csv" else WIDE if screen.wide else NARROW)
    printer = PRINTERS[form](screen, chosen, zone, following)
    request = _Request(
        connection,
        wanted,
        options["limit"],
        options["oldest_first"],
        options["poll_seconds"],
        zone,
        until_now=not options["until"],
    )
    if following:
        request.follow(printer)
    else:
        request.search(printer)


def _filter(options: dict[str, Any], zone: tzinfo | None) -> Filter:
    if options["trace_id"] and not options["since"] and not options["until"]:
        window = Window()
    else:
        now_ns = time.time_ns()
        window = parse_window(options["since"], options["until"], now_ns=now_ns, zone=zone)
        if window.until_ns is None and (window.since_ns or 0) < now_ns:
            window = replace(window, until_ns=now_ns + _AHEAD_NS)
    patterns = {name: tuple(Match.parse(text) for text in options[name]) for name in _FIELDS}
    return Filter(**patterns, text=options["text"], trace_id=options["trace_id"], window=window)


def _records(number: int) -> str:
    return "no record" if not number else f"{number} record{'s' * (number > 1)}"


@dataclass(frozen=True, slots=True)
class _Request:
    connection: clickhouse.Config
    wanted: Filter
    limit: int
    oldest_first: bool
    poll_s: float
    zone: tzinfo | None
    until_now: bool

    def search(self, printer: Printer) -> None:
        from auditspan_collector.clickhouse import ClickHouseClient  # noqa: PLC0415 - keeps `--help` fast
        from auditspan_collector.query.search import search  # noqa: PLC0415 - as above

        order: Any = "oldest" if self.oldest_first else "newest"
        with closing(ClickHouseClient(self.connection)) as client:
            # One more than asked for tells whether there are more.
            rows = search(client, self.wanted, limit=self.limit + 1, order=order)
            printer.print_all(islice(rows, self.limit))
            more = next(rows, None) is not None
            later = self._count_later(client)
        first = "oldest" if self.oldest_first else "newest"
        note(
            f"{_records(printer.count)} {self._window()}"
            + (f"; the {first}, there are more: --limit" if more else "")
        )
        if later:
            note(f"{_records(later)} later than now, by the senders' clocks: `--since now` shows them")
        printer.legend()

    def _count_later(self, client: ClickHouseClient) -> int:
        from auditspan_collector.query.search import count  # noqa: PLC0415 - keeps `--help` fast

        end = self.wanted.window.until_ns
        if not self.until_now or end is None:
            return 0
        return count(client, replace(self.wanted, window=Window(since_ns=end)))

    def follow(self, printer: Printer) -> None:
        from auditspan_collector.clickhouse import ClickHouseClient  # noqa: PLC0415 - keeps `--help` fast
        from auditspan_collector.query.follow import Follower  # noqa: PLC0415 - as above
        from auditspan_collector.query.search import search  # noqa: PLC0415 - as above

        try:
            with closing(ClickHouseClient(self.connection)) as client:
                # The ends of the ledger first: what is stored while the search runs is new, or noted as shown.
                follower = Follower(client, replace(self.wanted, window=Window()))
                earlier = list(search(client, self.wanted, limit=self.limit))
                for row in earlier:
                    follower.note(row)
                printer.print_all(reversed(earlier))
                note(f"following; {printer.count} earlier {self._window()}; Ctrl-C ends")
                while True:
                    self._print_new(follower, printer)
                    time.sleep(self.poll_s)
        except KeyboardInterrupt:
            # The one way to end this; it is not an error. A line break keeps the prompt off the ^C.
            click.echo(err=True)

    def _print_new(self, follower: Follower, printer: Printer) -> None:
        """Print what is new; when the store goes away say so once, and go on where it stopped when it is back."""
        waiting = False
        while True:
            try:
                for row in follower.poll():
                    printer.print(row)
            except StoreUnavailable as error:
                if not waiting:
                    note(f"{error}; trying again until it is back")
                waiting = True
                time.sleep(self.poll_s)
            else:
                if waiting:
                    note("the store is back")
                return

    def _window(self) -> str:
        since, until = self.wanted.window.since_ns, self.wanted.window.until_ns
        if since is None:
            return "at any time"
        zone_name = "UTC" if self.zone is UTC else "local time"
        end = "now" if until is None or self.until_now else f"{format_time(until, self.zone)} {zone_name}"
        return f"from {format_time(since, self.zone)} {zone_name} until {end}"
