"""Questions that people ask after an incident, on a month of records in the embedded store.

The rows are made by the store itself, in the order that time would bring them, and merged as far as the store merges
them on its own. Then it is started again, so that "first" is a question to a process that has read nothing yet (the
system may still hold its files in memory).
"""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from auditspan_collector.clickhouse import ClickHouseClient
from auditspan_collector.clickhouse import Config as ClickHouseConfig
from auditspan_collector.migrations import migrate

from bench.collector.suite import start_store

if TYPE_CHECKING:
    from bench.results import Case
    from bench.settings import Settings

DAYS: Final = 28
REPETITIONS: Final = 7
MERGE_LIMIT_S: Final = 120.0
SLICE_ROWS: Final = 100_000  # of one statement; more would need more memory than the store gives one

# A row for each number n: some 20,000 actors, 12 services, four records a trace, and 12 attributes.
_GENERATE: Final = """
INSERT INTO audit.records (ledger_stream, ledger_index, leaf_version, start_time, received_time, duration_ns, trace_id,
    span_id, span_name, span_kind, status_code, service_name, tenant, record_id, actor_id, actor_type, actor_origin,
    actor_roles, actor_auth_method, action, outcome, target_type, target_id, client_address, scope_name, attributes,
    resource_attributes)
WITH
    number AS n,
    sipHash64(n) AS random,
    intDiv(n, 4) AS trace,
    fromUnixTimestamp64Nano(toInt64({first_ns:Int64} + (n - {first:UInt64}) * {step_ns:Int64})) AS time,
    transform(random % 100, [0, 1, 2, 3, 4], ['LOGIN', 'LOGIN', 'LOGIN', 'LOGIN', 'LOGIN'],
        ['READ', 'UPDATE', 'CREATE', 'DELETE', 'APPROVE', 'EXPORT', 'EXECUTE', 'GRANT'][1 + intDiv(random, 100) % 8])
        AS verb,
    concat('user-', toString(sipHash64(trace) % 20000)) AS actor,
    concat('/orders/', toString(intDiv(random, 1000) % 2000000), '/lines') AS target
SELECT 'bench/query/0123456789abcdef', n, 1, time, toDateTime64(time, 3) + 0.2, random % 50000000,
    toFixedString(unhex(lpad(hex(sipHash64(trace)), 32, 'a')), 16), toFixedString(reinterpretAsString(random), 8),
    concat('POST ', target), 'Server', 'Unset', concat('service-', toString(random % 12)), 'default',
    reinterpretAsUUID(sipHash128(n)), actor, 'user', 'authenticated', ['clerk', 'refunds'], 'session', verb,
    if(intDiv(random, 7) % 20 = 0, 'failure', 'success'), 'order', target,
    concat('10.4.', toString(random % 8), '.', toString(random % 250)), 'opentelemetry.instrumentation.fastapi',
    map('http.request.method', 'POST', 'url.path', target, 'http.route', '/orders/{{order_id}}/lines',
        'http.response.status_code', '200', 'app.request.key', hex(random), 'audit.actor.id', actor,
        'audit.action', verb, 'audit.target.id', target, 'server.address', 'orders.shop.svc.cluster.local',
        'user_agent.original', 'python-httpx/0.28.1', 'network.protocol.version', '1.1', 'url.scheme', 'https'),
    map('service.name', 'orders', 'service.namespace', 'shop', 'service.version', '3.14.1',
        'deployment.environment.name', 'production', 'telemetry.sdk.language', 'python')
FROM numbers({first:UInt64}, {count:UInt64})
"""

_LAST_DAY: Final = "start_time > {now:DateTime64(9, 'UTC')} - INTERVAL 24 HOUR"
QUESTIONS: Final = {
    "one trace": "SELECT * FROM records WHERE trace_id = unhex({trace:String})",
    "an actor, last 24 h": "SELECT start_time, service_name, action, outcome, target_id FROM records "
    f"WHERE actor_id = {{actor:String}} AND {_LAST_DAY} ORDER BY start_time",
    "service and action, 6 h": "SELECT start_time, actor_id, target_id FROM records WHERE service_name = 'service-3' "
    "AND action = 'DELETE' AND start_time > {now:DateTime64(9, 'UTC')} - INTERVAL 6 HOUR "
    "ORDER BY start_time DESC LIMIT 1000",
    "failed logins per 5 min": "SELECT toStartOfFiveMinutes(start_time) AS time, count() FROM records "
    f"WHERE action = 'LOGIN' AND outcome = 'failure' AND {_LAST_DAY} GROUP BY time ORDER BY time",
    "traces in which an actor did an action": "SELECT trace_id, start_time, service_name, action, actor_id "
    "FROM records WHERE trace_id IN (SELECT trace_id FROM records WHERE actor_id = {actor:String} "
    "AND action = 'EXPORT') ORDER BY trace_id, start_time",
    "part of a target's name": "SELECT start_time, actor_id, action, target_id FROM records "
    "WHERE target_id LIKE concat('%/', {order:String}, '/%') ORDER BY start_time",
}


def run(settings: Settings) -> list[Case]:
    """Each question: the first time, and the median of further times."""
    every = frozenset(os.sched_getaffinity(0))
    now = datetime.now(UTC)
    process, port = start_store(settings.folder, every)
    with process, closing(_client(port)) as client:
        started = time.monotonic()
        _generate(client, settings.rows, now)
        settings.say(f"  {settings.rows:,} rows made in {time.monotonic() - started:.0f} s")
        _wait_for_merges(client)
        ((disk_bytes, parts),) = client.rows(
            "SELECT sum(bytes_on_disk), count() FROM system.parts WHERE active AND table = 'records'"
        )
        parameters = _parameters(client, now)
    process, port = start_store(settings.folder, every)
    with process, closing(_client(port)) as client:
        _wait_for_merges(client)
        cases = [_asked(client, name, sql, parameters) for name, sql in QUESTIONS.items()]
    for case in cases:
        case["rows"], case["parts"] = settings.rows, parts
        case["disk_bytes_per_row"] = round(disk_bytes / settings.rows)
        settings.say(
            f"  {case['question']:40s} {case['warm_ms']:7.1f} ms ({case['first_ms']:.0f} the first time),"
            f" {case['answer_rows']} rows"
        )
    return cases


def _client(port: int) -> ClickHouseClient:
    return ClickHouseClient(ClickHouseConfig(url=f"http://127.0.0.1:{port}"))


def _generate(client: ClickHouseClient, rows: int, now: datetime) -> None:
    migrate(client, "audit")
    whole_ns = DAYS * 24 * 3600 * 10**9
    step_ns = whole_ns // rows
    begin_ns = int((now - timedelta(days=DAYS)).timestamp() * 1e9)

    def make(first: int) -> None:
        client.execute(
            _GENERATE,
            {
                "first": first,
                "count": min(SLICE_ROWS, rows - first),
                "first_ns": begin_ns + first * step_ns,
                "step_ns": step_ns,
            },
        )

    # The store gives a statement one thread.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as several:
        for _ in several.map(make, range(0, rows, SLICE_ROWS)):
            pass


def _wait_for_merges(client: ClickHouseClient) -> None:
    """Until the store has nothing to merge; questions asked meanwhile would share its cores."""
    deadline = time.monotonic() + MERGE_LIMIT_S
    quiet = 0
    while quiet < 3 and time.monotonic() < deadline:
        ((running,),) = client.rows("SELECT count() FROM system.merges")
        quiet = 0 if running else quiet + 1
        time.sleep(1)


def _parameters(client: ClickHouseClient, now: datetime) -> dict[str, Any]:
    """An actor that has exported something, a trace of theirs, and the order in it."""
    ((actor, trace, order),) = client.rows(
        "SELECT actor_id, hex(trace_id), splitByChar('/', target_id)[3] FROM records WHERE action = 'EXPORT' AND start_time > now() - INTERVAL 1 DAY "
        "ORDER BY actor_id LIMIT 1"
    )
    return {"actor": actor, "trace": trace, "order": order, "now": now.strftime("%Y-%m-%d %H:%M:%S")}


def _asked(client: ClickHouseClient, name: str, sql: str, parameters: dict[str, Any]) -> Case:
    own = {key: value for key, value in parameters.items() if f"{{{key}:" in sql}
    times_ms = []
    rows = 0
    for _ in range(1 + REPETITIONS):
        started = time.perf_counter()
        rows = len(client.rows(sql, own))
        times_ms.append((time.perf_counter() - started) * 1e3)
    if not rows:
        raise RuntimeError(f"{name}: the answer is empty, so its time says nothing")
    return {
        "system": "embedded",
        "question": name,
        "first_ms": round(times_ms[0], 1),
        "warm_ms": round(statistics.median(times_ms[1:]), 1),
        "answer_rows": rows,
    }
