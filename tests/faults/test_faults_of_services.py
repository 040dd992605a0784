"""Services end in every way while the collector is up, down and restarting: what a client saw is recorded, once."""

from __future__ import annotations

import re
from pathlib import Path

import loopback
import pytest
from collector.service.otlp_peer import wait_until
from faults import report
from faults.service_line import RECYCLE_AFTER, SERVERS, RestartingCollector, Service
from faults.verdict import Verdict

pytestmark = pytest.mark.timeout(600)

GUIDE = (Path(__file__).parents[2] / "docs" / "querying.md").read_text()
GAPS = next(query for query in re.findall(r"```sql\n(.*?)```", GUIDE, re.DOTALL) if "first_missing" in query)
FAULTS = {"SIGTERM": Service.terminate, "SIGKILL": Service.kill, "os._exit": Service.exit, "recycling": None}
COLLECTOR = ("up", "down", "restarting")

# Each fault once, on servers that differ most; the rest takes minutes.
SHORT = [
    ("uvicorn, FastAPI", "SIGKILL", "down"),
    ("gunicorn --preload, Flask", "os._exit", "restarting"),
    ("Celery prefork", "SIGTERM", "up"),
]


def inflict(service: Service, fault: str, times: int) -> None:
    """Do it *times* times under load."""
    before = service.starts
    for turn in range(times):
        if fault == "recycling":
            service.progress(3 * RECYCLE_AFTER)
        else:
            service.progress(10)
            FAULTS[fault](service, turn)
    service.progress(10)
    if not service.server.workers:
        assert service.starts > before, "nothing ended"


def run(line, service: Service, fault: str, collector: str, times: int) -> str:
    """One phase; what was seen on the way."""
    service.phase = collector
    if collector == "down":
        line.end_collector()
        inflict(service, fault, times)
        line.start_collector()
        line.keep_collector_alive()
    elif collector == "restarting":
        with RestartingCollector(line) as restarts:
            inflict(service, fault, times)
        return f"restarting ({restarts.times} times)"
    else:
        inflict(service, fault, times)
    return collector


def sequence_gaps(line) -> int:
    """Numbers that no row has, by the query of docs/querying.md."""
    query = GAPS.replace("audit.records", f"{line.database}.{line.table}")
    return sum(int(last) - int(first) + 1 for _, first, last in line.rows(query))


def judge(line, service: Service) -> Verdict:
    """Once all that is on disk has been delivered: what the store has."""
    celery = service.server.client == "celery"
    key = "target_id" if celery else "trace_id_hex"
    # That the worker's main process tells of a lost run does not make the run's own record a copy.
    once = "(target_id, reason)" if celery else key
    table = f"{line.database}.{line.table}"
    seen = set().union(*service.seen.values())

    def stored() -> set[str]:
        return {row[0] for row in line.rows(f"SELECT DISTINCT {key} FROM {table}")}

    wait_until(lambda: not service.waiting_files(), limit_s=60, what="the delivery of what is on disk")
    line.wait_until_drained()
    (rows, distinct) = line.rows(f"SELECT count(), uniqExact({once}) FROM {table}")[0]
    return Verdict(
        acknowledged=len(seen),
        stored=int(rows),
        missing=frozenset(seen - stored()),
        twice=int(rows) - int(distinct),
        gaps=sequence_gaps(line),
    )


def put_to_the_test(line, record_property, case: tuple[str, str], states: tuple[str, ...], times: int):
    server, fault = case
    line.start_collector()
    line.keep_collector_alive()
    endpoint = f"http://127.0.0.1:{line.grpc}"
    with Service(line.folder / "service", SERVERS[server], endpoint, recycle=fault == "recycling") as service:
        service.progress(1)
        ways = [run(line, service, fault, state, times) for state in states]
        service.stop_clients()
        verdict = judge(line, service)
    note = f"collector {', '.join(ways)}; started {service.starts} times"
    record_property(report.SERVICES, report.row(f"{server}: {fault}", verdict, note))
    assert not verdict.missing, f"{len(verdict.missing)} responses without a record: {verdict.missing}"
    assert verdict.twice == 0
    if fault in {"SIGTERM", "recycling"}:  # a process that is killed may have given a number to nothing
        assert verdict.gaps == 0
    assert verdict.acknowledged >= 20


@pytest.mark.parametrize(("server", "fault", "state"), SHORT, ids=[": ".join(case[:2]) for case in SHORT])
def test_what_a_client_saw_is_recorded_once(line, record_property, server, fault, state):
    put_to_the_test(line, record_property, (server, fault), (state,), times=1)


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("server", SERVERS)
def test_what_a_client_saw_is_recorded_once_whatever_happens(line, record_property, server, fault):
    put_to_the_test(line, record_property, (server, fault), COLLECTOR, times=2)


def test_what_a_full_spool_did_not_keep_is_told_and_its_numbers_are_missing(line):
    """The collector is away for longer than the spool holds."""
    limit = {"OTEL_AUDITSPAN_SPOOL_MAX_BYTES": str(1 << 20)}
    endpoint = f"http://127.0.0.1:{line.grpc}"
    with Service(line.folder / "service", SERVERS["uvicorn, FastAPI"], endpoint, **limit) as service:
        wait_until(lambda: "is full" in service.log, limit_s=60, what="a full spool")
        service.progress(20)
        service.stop_clients()
        line.start_collector()
        table = f"{line.database}.{line.table}"
        told = f"SELECT attributes['audit.lost.count'], reason FROM {table} WHERE action = 'LOSE'"
        wait_until(
            lambda: line.metric("auditspan_drain_inserted_records_total"), limit_s=30, what="the table"
        )
        wait_until(lambda: line.rows(told), limit_s=30, what="the record of the loss")
        wait_until(lambda: not service.waiting_files(), limit_s=30, what="the delivery of the rest")
        line.wait_until_drained()
        ((lost, reason),) = line.rows(told)
        ((kept,),) = line.rows(f"SELECT count() FROM {table} WHERE action != 'LOSE'")
    assert reason == f"{lost} not kept: the spool was full or the disk hung"
    assert int(lost) >= 20
    assert int(kept) + int(lost) == service.count()
    assert sequence_gaps(line) == int(lost)


def test_each_request_of_a_flood_is_in_the_sum_that_the_guide_asks_for(line):
    line.start_collector()
    (query,) = [
        query for query in re.findall(r"```sql\n(.*?)```", GUIDE, re.DOTALL) if "audit.folded.count" in query
    ]
    query = query.replace("audit.records", f"{line.database}.{line.table}")
    endpoint = f"http://127.0.0.1:{line.grpc}"
    settings = {"OTEL_AUDITSPAN_FLOOD_FULL": "1", "OTEL_AUDITSPAN_FLOOD_INTERVAL_S": "3"}
    with Service(line.folder / "service", SERVERS["uvicorn, FastAPI"], endpoint, **settings) as service:
        service.progress(1)
        service.stop_clients()
        with loopback.Client(base_url=f"http://127.0.0.1:{service.port}") as client:
            for number in range(100):
                assert client.get(f"/secrets/{number}").status_code == 401
        wait_until(
            lambda: not list(service.spool.rglob("*.count")), limit_s=30, what="the end of the interval"
        )
        wait_until(lambda: not service.waiting_files(), limit_s=30, what="the delivery")
        line.wait_until_drained()
    ((route, address, requests, records),) = line.rows(query)
    assert (route, address, int(requests)) == ("/secrets/{name}", "127.0.0.1", 100)
    assert int(records) < 100
