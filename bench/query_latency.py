"""How long the searches that people run take: milliseconds on the wall and of the store's CPU, on generated records.

    .venv/bin/python bench/query_latency.py [--rows 1000000] [--repeat 20]

Starts `auditspan store` on a temporary folder, makes the rows in SQL (7 days, 5,000 actors, 3 records a trace),
and asks through the product's own query room, as the commands do. On a busy machine trust the CPU column.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from auditspan_collector.clickhouse import ClickHouseClient, Config
from auditspan_collector.migrations import migrate
from auditspan_collector.query.filter import Filter, Match
from auditspan_collector.query.follow import Follower
from auditspan_collector.query.search import search
from auditspan_collector.query.times import Window
from auditspan_collector.query.trace import trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DAY_NS = 24 * 3600 * 10**9
SPAN_NS = 7 * DAY_NS
CHUNK_ROWS = 100_000  # an insert's memory stays far below the store's limit

FILL = """
INSERT INTO records (ledger_stream, ledger_index, leaf_version, start_time, received_time, duration_ns, trace_id, span_id,
    span_name, span_kind, service_name, tenant, record_id, actor_id, actor_type, actor_origin, actor_roles, action, outcome,
    target_type, target_id, client_address, attributes)
SELECT 'bench/collector/00', number, 1,
    fromUnixTimestamp64Nano(toInt64({start:Int64} + number * {spacing:Int64}), 'UTC') AS began, began,
    cityHash64(number) % 90000000,
    MD5(toString(intDiv(number, 3))), substring(MD5(toString(number)), 1, 8),
    ['POST /orders', 'POST /orders/{{order_id}}/refund', 'shop.v1.Billing/Refund'][number % 3 + 1], 'Server',
    ['gateway', 'orders', 'billing'][number % 3 + 1], 'default', toUUID(UUIDNumToString(MD5(toString(number)))),
    concat('user', toString(cityHash64(intDiv(number, 3)) % 5000), '@shop.example'), 'user',
    if(number % 3 = 0, 'authenticated', 'asserted'), ['customer'],
    ['CREATE', 'UPDATE', 'DELETE', 'EXECUTE'][number % 4 + 1], if(cityHash64(number) % 50 = 0, 'denied', 'success'),
    'order', toString(cityHash64(number) % 1000000), '192.0.2.7',
    map('http.request.method', 'POST', 'http.response.status_code', '200', 'url.path', concat('/orders/', toString(number)))
FROM numbers({first:UInt64}, {count:UInt64})
""".replace("{{order_id}}", "{order_id}")


@contextlib.contextmanager
def running_store() -> Iterator[tuple[str, int]]:
    """The address and the process id of a fresh store."""
    folder = Path(tempfile.mkdtemp(prefix="auditspan-bench-"))
    command = [
        sys.executable,
        "-m",
        "auditspan_collector.cli",
        "store",
        "--path",
        str(folder),
        "--listen",
        "127.0.0.1:0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = folder / "store.address"
        while not address.exists():
            if process.poll() is not None:
                sys.exit("the store did not start")
            time.sleep(0.05)
        yield f"http://{address.read_text().strip()}", process.pid
    finally:
        process.terminate()
        process.wait(timeout=60)
        shutil.rmtree(folder)


def cpu_ms(pid: int) -> float:
    """CPU time that process *pid* has used (man 5 proc, stat: utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def fill(client: ClickHouseClient, rows: int, start_ns: int) -> None:
    """Make *rows* records that begin evenly over seven days from *start_ns*."""
    for first in range(0, rows, CHUNK_ROWS):
        parameters = {
            "start": start_ns,
            "spacing": SPAN_NS // rows,
            "first": first,
            "count": min(CHUNK_ROWS, rows - first),
        }
        client.execute(FILL, parameters, in_database=True)


def questions(client: ClickHouseClient, end_ns: int) -> dict[str, Callable[[], int]]:
    """What is asked, under the name of the command; each gives the number of records it found."""
    ((trace_id, actor, target),) = client.rows(
        "SELECT trace_id_hex, actor_id, target_id FROM records ORDER BY cityHash64(ledger_index) LIMIT 1"
    )
    day = Window(end_ns - DAY_NS)
    by_actor = (Match.exact(actor),)
    follower = Follower(client, Filter())

    def found(wanted: Filter) -> Callable[[], int]:
        return lambda: sum(1 for _ in search(client, wanted, limit=100))

    def traced(digits: str) -> Callable[[], int]:
        return lambda: sum(1 for _ in trace(client, digits).walk())

    return {
        "search, last 24 h": found(Filter(window=day)),
        "search --since 7d": found(Filter(window=Window(end_ns - SPAN_NS))),
        "search --actor, last 24 h": found(Filter(actor=by_actor, window=day)),
        "search --actor --since 7d": found(Filter(actor=by_actor, window=Window(end_ns - SPAN_NS))),
        "search --outcome denied, last 24 h": found(Filter(outcome=(Match.exact("denied"),), window=day)),
        "search --target --since 7d": found(
            Filter(target=(Match.exact(f"order:{target}"),), window=Window(end_ns - SPAN_NS))
        ),
        "search free text, last 24 h": found(Filter(text=(f"/orders/{target}",), window=day)),
        "trace, whole id": traced(trace_id),
        "trace, 8 digits": traced(trace_id[:8]),
        "one poll of --follow": lambda: sum(1 for _ in follower.poll()),
    }


def main() -> None:
    """Fill, ask, print."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--repeat", type=int, default=20)
    options = arguments.parse_args()
    end_ns = time.time_ns()
    with running_store() as (url, pid):
        client = ClickHouseClient(Config(url=url))
        migrate(client, "audit")
        began = time.monotonic()
        fill(client, options.rows, end_ns - SPAN_NS)
        print(
            f"{options.rows:,} rows made in {time.monotonic() - began:.0f} s; {options.repeat} times each, warm"
        )
        print(f"{'':36} {'found':>5} {'p50 ms':>8} {'best ms':>8} {'store CPU ms':>13}")
        for name, ask in questions(client, end_ns).items():
            count = ask()
            before = cpu_ms(pid)
            walls = []
            for _ in range(options.repeat):
                moment = time.perf_counter()
                ask()
                walls.append((time.perf_counter() - moment) * 1000)
            cpu = (cpu_ms(pid) - before) / options.repeat
            print(f"{name:36} {count:5} {statistics.median(walls):8.1f} {min(walls):8.1f} {cpu:13.1f}")
        client.close()


if __name__ == "__main__":
    main()
