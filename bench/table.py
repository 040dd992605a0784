"""What a reader is shown of a suite's cases, and the table of them on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.results import Case

COLUMNS: Final[dict[str, tuple[tuple[str, Callable[[Case], str]], ...]]] = {
    "collector": (
        ("tagged", lambda case: f"{case['tagged_pct']}%"),
        ("workers", lambda case: str(case["workers"])),
        ("sink", lambda case: case["sink"]),
        ("system", lambda case: case["system"]),
        ("CPU us/span", lambda case: f"{case['cpu_us_per_span']:.2f}"),
        ("from - to", lambda case: f"{case['cpu_us_per_span_min']:.2f} - {case['cpu_us_per_span_max']:.2f}"),
        ("x floor", lambda case: f"{case['ratio_to_floor']:.2f}"),
        ("spans/s", lambda case: f"{case['spans_per_s']:,}"),
        ("p99 ms", lambda case: f"{case['latency_p99_ms']:.0f}"),
        ("RssAnon MB", lambda case: f"{case['rss_anon_mb']:.0f}"),
        ("acked tagged", lambda case: f"{case['acked_tagged']:,}"),
        ("stored", lambda case: f"{case['stored']:,}"),
    ),
    "backlog": (
        ("records waiting", lambda case: f"{case['backlog_records']:,.0f}"),
        ("MB on disk", lambda case: f"{case['backlog_mb']:,.0f}"),
        ("accepting us/span", lambda case: f"{case['cpu_us_per_span']:.2f}"),
        ("from - to", lambda case: f"{case['cpu_us_per_span_min']:.2f} - {case['cpu_us_per_span_max']:.2f}"),
        ("x floor", lambda case: f"{case['ratio_to_floor']:.2f}"),
        ("spans/s", lambda case: f"{case['spans_per_s']:,.0f}"),
        ("p99 ms", lambda case: f"{case['latency_p99_ms']:.0f}"),
        ("sending us/record", lambda case: f"{case['send_cpu_us_per_record']:.2f}"),
        ("RssAnon MB", lambda case: f"{case['rss_anon_mb']:.0f}"),
    ),
    "stages": (
        ("tagged", lambda case: f"{case['tagged_pct']}%"),
        ("path", lambda case: case["path"]),
        ("encode", lambda case: f"{case['encode']:.2f}"),
        ("seal", lambda case: f"{case['seal']:.2f}"),
        ("commit", lambda case: f"{case['commit']:.2f}"),
        ("read", lambda case: f"{case['read']:.2f}"),
        ("begin", lambda case: f"{case['begin']:.2f}"),
        ("insert", lambda case: f"{case['insert']:.2f}"),
        ("release", lambda case: f"{case['release']:.2f}"),
        ("CPU us/span", lambda case: f"{case['cpu_us_per_span']:.2f}"),
    ),
    "store": (
        ("rows a block", lambda case: f"{case['block_rows']:,}"),
        ("format", lambda case: case["format"]),
        ("rows/s", lambda case: f"{case['rows_per_s']:,}"),
        ("store CPU us/row", lambda case: f"{case['store_cpu_us_per_row']:.1f}"),
        ("client CPU us/row", lambda case: f"{case['client_cpu_us_per_row']:.2f}"),
    ),
    "query": (
        ("question", lambda case: case["question"]),
        ("warm ms", lambda case: f"{case['warm_ms']:.0f}"),
        ("first ms", lambda case: f"{case['first_ms']:.0f}"),
        ("rows found", lambda case: f"{case['answer_rows']:,}"),
        ("of rows", lambda case: f"{case['rows']:,}"),
    ),
    "instrumentation": (
        ("case", lambda case: case["case"]),
        ("on", lambda case: case["on"]),
        ("without us", lambda case: f"{case['base_us']:,.0f}" if "base_us" in case else ""),
        ("added us", lambda case: f"{case['added_us']:,.1f}"),
        ("ratio", lambda case: f"{case['ratio']:.2f}" if "ratio" in case else ""),
        ("requests/s", lambda case: f"{case['requests_per_s']:,}" if "requests_per_s" in case else ""),
        ("added MB", lambda case: f"{case['added_memory_mb']:.1f}" if "added_memory_mb" in case else ""),
    ),
}
# What a reader of the page is shown of some cases of a suite in a table of their own: which cases those are.
APART: Final[dict[str, tuple[str, Callable[[Case], bool]]]] = {
    "extractors": ("instrumentation", lambda case: "extractor" in case),
}
COLUMNS_APART: Final[dict[str, tuple[tuple[str, Callable[[Case], str]], ...]]] = {
    "extractors": (
        ("on", lambda case: case["on"]),
        ("extractor", lambda case: case["extractor"]),
        ("its record", lambda case: "with it" if case["case"] == "extractor_with_record" else ""),
        ("without us", lambda case: f"{case['base_us']:,.0f}"),
        ("added us", lambda case: f"{case['added_us']:,.1f}"),
        ("added calls", lambda case: f"{case['added_calls']:,.0f}" if "added_calls" in case else ""),
    ),
}
_TEXT: Final = frozenset({"sink", "system", "question", "path", "case", "on"})


def of(suite: str, cases: Sequence[Case]) -> Table:
    """*cases*, all of *suite*, a line each."""
    table = Table(title=suite)
    columns = COLUMNS[suite]
    for name, _ in columns:
        table.add_column(name, justify="left" if name in _TEXT else "right", no_wrap=True)
    several = len({case.get("sink") for case in cases}) > 1
    previous = None
    for case in cases:
        group = (case.get("tagged_pct"), case.get("workers"), case.get("sink"))
        if several and previous not in (None, group):
            table.add_section()
        previous = group
        table.add_row(*(show(case) for _, show in columns))
    return table
