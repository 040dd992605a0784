"""The report for a terminal: problems first, then each part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from auditspan.doctor.report import Report


_KNOWS: Final = {
    "client": "carries the actor on",
    "changes": "changes inside a request are records",
    "actor": "the tokens that it verifies name the actor",
}


def render(report: Report) -> str:
    """The report as lines."""
    parts = report.parts
    lines: list[str] = []
    for level, title in (("problem", "Problems"), ("note", "Look at")):
        found = [finding for finding in report.findings if finding.level == level]
        if found:
            lines += [title, *(f"  - {finding.part}: {finding.text}" for finding in found), ""]
    if report.healthy:
        lines += ["No problems.", ""]
    for title, part, show in (
        ("Application", "application", _application),
        ("Instrumentation", "instrumentation", _instrumentation),
        ("OpenTelemetry", "opentelemetry", _opentelemetry),
        ("Settings", "settings", _settings),
        ("Collector", "collector", _collector),
        ("Spool", "spool", _spool),
        ("Counters", "counters", _counters),
    ):
        if part in parts:
            lines += [title, *(f"  {line}" for line in show(parts[part])), ""]
    return "\n".join(lines).rstrip() + "\n"


def _application(part: dict[str, Any]) -> Iterator[str]:
    routes = part["routes"]
    audited = sum(row["audited"] for row in routes)
    yield f"{part['name']} ({part['framework']}): {audited} of {len(routes)} routes audited"
    yield "A denied request is a record whatever its route, where the instrumentation sees it."
    for title, rows in (
        ("audited", [row for row in routes if row["audited"]]),
        (
            "NOT AUDITED, may change something",
            [row for row in routes if not row["audited"] and row["changes"]],
        ),
        (
            "not audited, changes nothing",
            [row for row in routes if not row["audited"] and not row["changes"]],
        ),
    ):
        if rows:
            yield f"{title}:"
            yield from (f"  {line}" for line in _table(_route(row) for row in rows))


def _route(row: dict[str, Any]) -> tuple[str, ...]:
    what = f"{row['action']} {row['target_type']}".strip() if row["audited"] else ""
    return (row["method"], row["route"], what, row["reason"])


def _instrumentation(part: list[dict[str, Any]]) -> Iterator[str]:
    rows = []
    for row in part:
        state = "active" if row["active"] else f"not active: {row['why_not'] or 'it did not start'}"
        knows = _KNOWS.get(row["role"], ", ".join(row["extractors"]))
        if row["role"] == "entry" and not row["extractors"]:
            knows = "no extractor: action and target from the span, actor by set_actor()"
        rows.append(
            (
                f"{row['framework']} {row['version']}",
                row["instrumentation"].rpartition("instrumentation-")[2],
                state,
                knows,
            )
        )
    yield from _table(rows)


def _opentelemetry(part: dict[str, Any]) -> Iterator[str]:
    yield f"service {part['service']}" + (", switched off" if part["disabled"] else "")
    yield ", ".join(f"{name} {version or 'missing'}" for name, version in part["packages"].items())
    if part["config_file"]:
        yield f"configured by {part['config_file']}"


def _settings(part: dict[str, Any]) -> Iterator[str]:
    if not part["variables"]:
        yield "all as by default"
    yield from (f"{name}={value}" for name, value in part["variables"].items())


def _collector(part: dict[str, Any]) -> Iterator[str]:
    how = f"{part['protocol']}{' with TLS' if part['tls'] else ''}"
    sent = f", sends {', '.join(part['headers'])}" if part["headers"] else ", sends no credentials"
    yield f"{part['endpoint']} ({how}{sent})"
    if part["asked"]:
        yield f"{'accepts an empty request' if part['accepted'] else part['answer']} ({part['took_ms']} ms)"
    else:
        yield "not asked"


def _spool(part: dict[str, Any]) -> Iterator[str]:
    yield part["folder"] + ("" if part["exists"] else " (not made yet)")
    waiting = f"{part['records']} records wait, {part['bytes']} of {part['max_bytes']} bytes"
    yield waiting + (f", the oldest for {part['oldest_s']:.0f} s" if part["records"] else "")
    if part["tallies"]:
        yield f"{part['tallies']} records still count, {part['counted']} denied requests by now"
    if part["free_bytes"] >= 0:
        yield f"{part['free_bytes']} bytes free on the disk"
    for one in part["left_over"]:
        yield f"left by a process that ended: {one['segment']}, {one['records']} records, {one['bytes']} bytes"
    if part["set_aside_files"]:
        yield f"{part['set_aside_files']} .bad files, {part['set_aside_bytes']} bytes"


def _counters(part: dict[str, Any]) -> Iterator[str]:
    if not part["processes"]:
        yield "no process of this service has left any"
    for one in part["processes"]:
        counts = ", ".join(f"{name} {value}" for name, value in one["counts"].items() if value)
        state = "running" if one["running"] else "ended"
        yield f"{one['stream']}, process {one['pid']} ({state}), {one['written_s_ago']:.0f} s ago: {counts or 'nothing'}"


def _table(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    lines = list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True) if width).rstrip()
