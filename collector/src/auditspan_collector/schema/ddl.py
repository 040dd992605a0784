"""The statements that create the table and its views, on one server or on a cluster.

Why the table lies as it does (measured on 20 million records):

- Partitions follow the time of receipt. A forged start time can't open a hundred partitions and make inserts fail.
- Rows are sorted by hour, service, action and time. The primary key leaves the time itself out: with it in,
  ClickHouse compares a time range with that last column alone and reads every granule; without, it derives
  the hours from the range (489 of 489 granules against 19 of 489, for one day of 28).
- One trace and one actor are found through projections that hold only row numbers. Text ids are found through a
  bloom filter on the very expression that trace_id_hex and the views use; a filter on another spelling reads all.
- The text index makes a search for a part of a target id read the granules that have its words.
- A batch that is sent again under its token is dropped by the server: it remembers the last 10,000 tokens.
- A part is on disk before an insert is answered, since the collector then forgets its own copy.
- Maps keep the order and the repeated keys of what was sent ("basic"): the leaf hash covers them.

On a cluster each shard has a replicated `records_local`; `records` is the Distributed table over them, for
inserts and questions alike, and whole traces stay on one shard.
"""

from __future__ import annotations

import re

from auditspan_collector.schema import COLUMNS, LEAF_COLUMNS, TABLE

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_CLUSTER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")

_ZERO_SPAN_ID = "toFixedString('', 8)"

# Computed when asked for, stored nowhere.
ALIAS_COLUMNS = {
    "trace_id_hex": "lower(hex(trace_id))",
    "span_id_hex": "lower(hex(span_id))",
    "parent_span_id_hex": f"if(parent_span_id = {_ZERO_SPAN_ID}, '', lower(hex(parent_span_id)))",
    "audit_parent_span_id_hex": f"if(audit_parent_span_id = {_ZERO_SPAN_ID}, '', lower(hex(audit_parent_span_id)))",
}

INDEXES = (
    "INDEX ledger_index_minmax ledger_index TYPE minmax GRANULARITY 1",
    "INDEX trace_id_hex_bloom lower(hex(trace_id)) TYPE bloom_filter(0.001) GRANULARITY 1",
    "INDEX target_id_words target_id TYPE text(tokenizer = 'splitByNonAlpha')",
    "PROJECTION by_trace (SELECT _part_offset ORDER BY trace_id)",
    "PROJECTION by_actor (SELECT _part_offset ORDER BY actor_id, start_time)",
)

_LAYOUT = """PARTITION BY toYYYYMM(received_time)
PRIMARY KEY (toStartOfHour(start_time), service_name, action)
ORDER BY (toStartOfHour(start_time), service_name, action, start_time)"""

_SETTINGS = "map_serialization_version = 'basic', fsync_after_insert = 1, fsync_part_directory = 1"
_ONE_SERVER_TOKENS = "non_replicated_deduplication_window = 10000"
# A replicated table forgets a token after an hour by default; an outage may last longer.
_CLUSTER_TOKENS = "replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800"

# The columns of the OpenTelemetry Collector's ClickHouse exporter (contrib, exporter/clickhouseexporter), and the
# helper table that Grafana's data source asks for a trace's time range.
OTEL_TRACES = {
    "Timestamp": "start_time",
    "TraceId": "lower(hex(trace_id))",
    "SpanId": "lower(hex(span_id))",
    "ParentSpanId": ALIAS_COLUMNS["parent_span_id_hex"],
    "TraceState": "trace_state",
    "SpanName": "span_name",
    "SpanKind": "span_kind",
    "ServiceName": "service_name",
    "ResourceAttributes": "resource_attributes",
    "ScopeName": "scope_name",
    "ScopeVersion": "scope_version",
    "SpanAttributes": "attributes",
    "Duration": "duration_ns",
    "StatusCode": "status_code",
    "StatusMessage": "status_message",
    "Events.Timestamp": "events.time",
    "Events.Name": "events.name",
    "Events.Attributes": "events.attributes",
    "Links.TraceId": "arrayMap(id -> lower(hex(id)), links.trace_id)",
    "Links.SpanId": "arrayMap(id -> lower(hex(id)), links.span_id)",
    "Links.TraceState": "links.trace_state",
    "Links.Attributes": "links.attributes",
}
# What makes a record itself: a sequence's number where it has one, and its id.
_KEYS = {
    "sequence number": (
        "tenant, service_name, sequence_stream, sequence_number",
        "sequence_stream != '' AND sequence_number != 0",
    ),
    "record id": ("tenant, record_id", "1"),
}
CONFLICTS = (
    "ledger_stream",
    "ledger_index",
    "received_time",
    "tenant",
    "service_name",
    "sequence_stream",
    "sequence_number",
    "record_id",
    "actor_id",
    "action",
    "outcome",
    "target_type",
    "target_id",
    "trace_id_hex",
)
OTEL_TRACES_TRACE_ID_TS = {
    "TraceId": "lower(hex(trace_id))",
    "Start": "toDateTime(min(start_time))",
    "End": "toDateTime(max(start_time))",
}


def quoted(name: str) -> str:
    """*name* as a quoted identifier. Raises ValueError unless it is letters, digits and underscores."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a database or table: letters, digits and underscores only")
    return f"`{name}`"


def on_cluster(cluster: str) -> str:
    """The ON CLUSTER clause, empty without a cluster. Raises ValueError for what can't be a cluster's name."""
    if not cluster:
        return ""
    if not _CLUSTER_NAME.fullmatch(cluster):
        raise ValueError(f"{cluster!r} is no name of a cluster: letters, digits, '_', '.' and '-' only")
    return f" ON CLUSTER `{cluster}`"


def merge_tree(cluster: str) -> str:
    """The engine of a stored table; on a cluster the server's configuration says where its replicas meet."""
    return "ReplicatedMergeTree" if cluster else "MergeTree"


def create_table(database: str, cluster: str = "") -> tuple[str, ...]:
    """The statements that create the table: one, or on a cluster the shards' table and the one over them."""
    stored = f"{TABLE}_local" if cluster else TABLE
    stored_statement = (
        f"CREATE TABLE IF NOT EXISTS {quoted(database)}.{quoted(stored)}{on_cluster(cluster)}\n"
        f"({_definitions(INDEXES)})\n"
        f"ENGINE = {merge_tree(cluster)}\n{_LAYOUT}\n"
        f"SETTINGS {_CLUSTER_TOKENS if cluster else _ONE_SERVER_TOKENS}, {_SETTINGS}"
    )
    if not cluster:
        return (stored_statement,)
    distributed_statement = (
        f"CREATE TABLE IF NOT EXISTS {quoted(database)}.{quoted(TABLE)}{on_cluster(cluster)}\n"
        f"({_definitions(())})\n"
        f"ENGINE = Distributed('{cluster}', '{database}', '{stored}', sipHash64(trace_id))"
    )
    return stored_statement, distributed_statement


def create_views(database: str, cluster: str = "") -> tuple[str, ...]:
    """The statements that create the views; each reads as the user who asks."""
    group_by = "\nGROUP BY trace_id"
    return (
        _view(database, cluster, "otel_traces", OTEL_TRACES, ""),
        _view(database, cluster, "otel_traces_trace_id_ts", OTEL_TRACES_TRACE_ID_TS, group_by),
    )


def create_conflicts(database: str, cluster: str = "") -> tuple[str, ...]:
    """The statement that creates the view of records that share a key and differ in more than their received time.

    Copies of one record in two collectors are no conflict. Contents are compared only where a key repeats, so the
    view reads the key columns of the whole table and little else; a condition on service_name or the like narrows it.
    """
    content = ", ".join(f"`{column.name}`" for column in LEAF_COLUMNS if column.name != "received_time")
    shown = ", ".join(CONFLICTS)
    table = f"{quoted(database)}.{quoted(TABLE)}"
    parts = []
    for same, (key, present) in _KEYS.items():
        repeated = f"SELECT {key} FROM {table} WHERE {present} GROUP BY {key} HAVING count() > 1"  # noqa: S608 - constants
        # GLOBAL, since both tables are Distributed on a cluster.
        differing = (
            f"SELECT {key} FROM {table} WHERE {present} AND ({key}) GLOBAL IN ({repeated})\n    GROUP BY {key} "  # noqa: S608 - constants
            f"HAVING uniqExact(sipHash128(formatRow('RowBinary', {content}))) > 1"
        )
        parts.append(
            f"SELECT {_literal(same)} AS same, {shown}\nFROM {table}\n"
            f"WHERE {present} AND ({key}) GLOBAL IN (\n    {differing}\n)"
        )
    union = "\nUNION ALL\n".join(parts)
    return (
        f"CREATE VIEW IF NOT EXISTS {quoted(database)}.{quoted('conflicts')}{on_cluster(cluster)}\nAS {union}",
    )


def _definitions(indexes: tuple[str, ...]) -> str:
    lines = [f"`{column.name}` {column.type.sql} COMMENT {_literal(column.comment)}" for column in COLUMNS]
    lines += [f"`{name}` String ALIAS {expression}" for name, expression in ALIAS_COLUMNS.items()]
    lines += indexes
    return "\n    " + ",\n    ".join(lines) + "\n"


def _view(database: str, cluster: str, name: str, columns: dict[str, str], tail: str) -> str:
    selected = ",\n    ".join(f"{expression} AS `{column}`" for column, expression in columns.items())
    return (
        f"CREATE VIEW IF NOT EXISTS {quoted(database)}.{quoted(name)}{on_cluster(cluster)}\nAS SELECT\n"
        f"    {selected}\nFROM {quoted(database)}.{quoted(TABLE)}{tail}"
    )


def _literal(text: str) -> str:
    """A constant of this package as an SQL string; what comes from outside travels as a parameter."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
