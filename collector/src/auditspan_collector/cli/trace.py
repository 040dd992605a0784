"""``auditspan trace``: one action across every service it touched."""

from __future__ import annotations

import sys
from contextlib import closing
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

import click
from rich.text import Text

from auditspan_collector.cli.reading import reads_the_store
from auditspan_collector.cli.record_formats import note
from auditspan_collector.cli.render import (
    Screen,
    duration,
    fold,
    origin_legend,
    target,
    to_json,
)
from auditspan_collector.query.times import format_iso, format_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from auditspan_collector import clickhouse
    from auditspan_collector.query.trace import Node, Trace

EPILOG: Final = """\b
Examples:
  auditspan trace 4bf92f3577b34da6a3ce929d0e0e4736
  auditspan trace 4bf92f35                     its beginning, as `auditspan search` shows it
  auditspan trace 4bf92f35 --format json | jq '.records[].actor_id'
"""

# Branch, last branch, what runs past a branch, and below a last one.
_LINES: Final = ("├─ ", "└─ ", "│  ", "   ")
_PLAIN_LINES: Final = ("|- ", "`- ", "|  ", "   ")
_DEEPEST: Final = 12  # levels drawn; a deeper record stands at this one and says its level
_MIN_CONTENT_WIDTH: Final = 30

_PLACES: Final = {
    "orphan": "its audited parent {parent} is not in the store: not arrived yet, or lost",
    "cycle": "its parents lead back to itself; the circle is cut here",
}


@click.command(epilog=EPILOG)
@click.argument("trace_id")
@click.option("--utc/--local", default=True, help="Zone of the times you see.  [default: utc]")
@click.option("--format", "form", type=click.Choice(["tree", "json"]), default="tree", show_default=True)
@reads_the_store
def command(connection: clickhouse.Config, *, trace_id: str, utc: bool, form: str) -> None:
    """Show every record of a trace as a tree across services: who, what, to what, with what outcome.

    TRACE_ID may be its first 6 hex digits or more, as long as only one trace begins so.
    """
    from auditspan_collector.clickhouse import ClickHouseClient  # noqa: PLC0415 - keeps `--help` fast
    from auditspan_collector.query.trace import trace  # noqa: PLC0415 - as above

    with closing(ClickHouseClient(connection)) as client:
        found = trace(client, trace_id)
    if form == "json":
        sys.stdout.write(to_json(_as_json(found), indent=2) + "\n")
    else:
        _print_tree(Screen.of(sys.stdout), found, UTC if utc else None)
    if not found.complete:
        note("there are more records than shown; ask with `auditspan sql` for the rest")


def _as_json(found: Trace) -> dict[str, Any]:
    # A flat list: a hostile trace may be deeper than a JSON writer or reader can nest.
    return {
        "trace_id": found.trace_id.hex(),
        "start_time": format_iso(found.start_ns),
        "duration_ns": found.end_ns - found.start_ns,
        "complete": found.complete,
        "records": [
            {"depth": node.depth, "place": node.place, **node.stored.as_json()} for node in found.walk()
        ],
    }


def _print_tree(screen: Screen, found: Trace, zone: Any) -> None:
    records = [node.stored.record for node in found.walk()]
    title = Text(f"trace {found.trace_id.hex()}", style="bold")
    start = format_time(found.start_ns, zone, digits=3)
    title.append(f"  {start} {'UTC' if zone is UTC else 'local time'}", style="not bold dim")
    screen.line(title)
    tenants = {record.tenant for record in records}
    for (left, further), node in _drawn(screen, found):
        for content in _content(screen, node, found.start_ns, several_tenants=len(tenants) > 1):
            room = None if screen.width is None else max(screen.width - len(left), _MIN_CONTENT_WIDTH)
            for part in [content] if room is None else fold(content, room):
                screen.line(Text(left, style="dim") + part)
                left = further  # noqa: PLW2901 - the branch stands at the node's first line only
    services = {record.service_name for record in records}
    actors = {record.actor_id for record in records}
    screen.line(
        Text(
            f"{_count(len(services), 'service')}, {_count(len(records), 'record')}, {_count(len(actors), 'actor')}, "
            f"{duration(found.end_ns - found.start_ns)} in all",
            style="dim",
        )
    )
    for meaning in origin_legend(record.actor_origin for record in records):
        screen.line(Text(meaning, style="dim"))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _drawn(screen: Screen, found: Trace) -> Iterator[tuple[tuple[str, str], Node]]:
    """Each node with what stands left of its first line and of its further lines."""
    branch, last, past, below = _LINES if screen.unicode else _PLAIN_LINES
    waiting = [(node, "", True, True) for node in reversed(found.roots)]
    while waiting:
        node, left, is_last, is_root = waiting.pop()
        inner = left if is_root else left + (below if is_last else past)
        deeper = inner if node.depth < _DEEPEST else left
        yield (
            (
                left if is_root else left + (last if is_last else branch),
                inner + (past if node.children else below),
            ),
            node,
        )
        final = len(node.children) - 1
        waiting.extend(
            (child, deeper, number == final, False)
            for number, child in reversed(list(enumerate(node.children)))
        )


def _content(screen: Screen, node: Node, start_ns: int, *, several_tenants: bool) -> Iterator[Text]:
    record = node.stored.record
    who = screen.text(record.service_name or "(no service name)", "bold cyan")
    who.append("  ")
    who.append_text(screen.outcome(record.outcome))
    what = " ".join(part for part in (record.action, target(record)) if part)
    who.append_text(screen.text(f"  {what}", "bold"))
    who.append("  by ")
    who.append_text(screen.actor(record))
    if record.actor_roles:
        who.append_text(screen.text(f" ({', '.join(record.actor_roles)})"))
    if several_tenants:
        who.append_text(screen.text(f"  [tenant {record.tenant}]", "yellow"))
    yield who
    offset = record.start_time_unix_ns - start_ns
    when = screen.text(record.span_name, "dim")
    when.append(f"  at +{duration(offset)}, took {duration(record.duration_ns)}", style="dim")
    if node.depth > _DEEPEST:
        when.append(f"  (level {node.depth})", style="dim")
    yield when
    if record.reason:
        yield screen.text(f"reason: {record.reason}", "italic")
    if (explanation := _PLACES.get(node.place)) is not None:
        yield Text(explanation.format(parent=record.audit_parent_span_id.hex()), style="yellow")
