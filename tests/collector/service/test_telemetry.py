"""What the collector says about itself: its metrics and its log."""

from __future__ import annotations

import logging
import re
import socket
import sys

import loopback
import pytest
from auditspan_collector.cli.log import LineFormatter
from auditspan_collector.metrics import _MAX_MARKS, Metrics, MetricsServer, _Ages
from auditspan_collector.record import Leaves, Selection
from prometheus_client import generate_latest


class Held:
    """As much of a spool as its age is told from."""

    def __init__(self):
        self.next_index = self.released_index = 0


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def spool():
    return Held()


@pytest.fixture
def clock():
    return Clock()


def test_the_age_is_that_of_the_oldest_record_that_is_not_released(spool, clock):
    ages = _Ages(spool, clock)
    assert ages.oldest_s() == 0
    for index in (10, 20, 30):
        clock.now += 5
        spool.next_index = index
        ages.committed()
    clock.now += 5
    assert ages.oldest_s() == 15
    spool.released_index = 9
    assert ages.oldest_s() == 15
    spool.released_index = 10
    assert ages.oldest_s() == 10
    spool.released_index = 30
    assert ages.oldest_s() == 0


def test_what_was_there_before_the_start_counts_from_the_start(spool, clock):
    spool.next_index = 100
    ages = _Ages(spool, clock)
    clock.now += 60
    assert ages.oldest_s() == 60
    spool.released_index = 100
    assert ages.oldest_s() == 0


def test_commits_of_one_second_share_the_older_time(spool, clock):
    ages = _Ages(spool, clock)
    for index in range(1, 101):
        clock.now += 0.005
        spool.next_index = index
        ages.committed()
    assert len(ages._marks) == 1
    assert ages.oldest_s() == pytest.approx(0.495)


def test_an_outage_of_days_costs_little_memory_and_never_tells_an_age_too_small(spool, clock):
    ages = _Ages(spool, clock)
    began = {}
    for index in range(1, 50_001):
        clock.now += 2
        spool.next_index = index
        began[index] = clock.now
        ages.committed()
    assert len(ages._marks) <= _MAX_MARKS
    for released in (0, 1, 777, 25_000, 49_999):
        spool.released_index = released
        true_age = clock.now - began[released + 1]
        assert true_age <= ages.oldest_s() <= true_age + 100_000 * 0.001
    spool.released_index = 50_000
    assert ages.oldest_s() == 0


def test_counters_say_what_the_rooms_reported():
    metrics = Metrics(version="1", stream="a/b/c")
    metrics.answered("grpc", "ok", body_bytes=100, duration_s=0.01)
    metrics.selected(Selection(Leaves(), spans=10, tagged=4, copies=3, invalid=1))
    metrics.committed(requests=2, records=3, duplicates=1, elapsed_s=0.002)
    metrics.refused(OSError("disk"), requests=2)
    metrics.refused(SystemExit(), requests=1)
    metrics.inserted(records=3, elapsed_s=0.1)
    text = generate_latest(metrics.registry).decode()
    for line in (
        'auditspan_collector_info{stream="a/b/c",version="1"} 1.0',
        'auditspan_receiver_requests_total{outcome="ok",transport="grpc"} 1.0',
        "auditspan_spans_received_total 10.0",
        "auditspan_spans_tagged_total 4.0",
        "auditspan_spans_copies_total 3.0",
        "auditspan_spans_invalid_total 1.0",
        "auditspan_records_kept_total 3.0",
        "auditspan_records_duplicate_total 1.0",
        'auditspan_commit_refused_requests_total{reason="internal"} 3.0',
        "auditspan_drain_inserted_records_total 3.0",
        'auditspan_drain_failures_total{kind="permanent"} 0.0',
    ):
        assert line in text.splitlines()


def test_every_name_follows_prometheus_conventions():
    for family in Metrics(version="1", stream="s").registry.collect():
        assert re.fullmatch(r"(auditspan|process)_[a-z_]+", family.name)
        assert family.documentation


def entry(message, *, error=None):
    info = None
    if error is not None:
        try:
            raise error
        except type(error):
            info = sys.exc_info()
    record = logging.LogRecord(
        "auditspan_collector.pipeline.drain", logging.WARNING, "x.py", 1, message, (), info
    )
    record.created, record.msecs = 1767323045.678, 678
    return LineFormatter().format(record)


def test_an_entry_is_time_level_place_and_message():
    assert entry("it works") == "2026-01-02T03:04:05.678Z WARNING pipeline.drain it works"


@pytest.mark.parametrize("sent", ["a\nb", "a\r\nb", "a\x1b[31mb", "a\u2028b", "a\x00b", "a\u202eb"], ids=repr)
def test_what_somebody_sends_can_not_forge_an_entry_or_act_on_a_terminal(sent):
    line = entry(f"refused {sent}")
    assert line.isprintable()
    assert line.endswith(f"refused {repr(sent)[1:-1]}")


def test_a_stack_is_in_the_same_line():
    line = entry("it failed", error=ValueError("why"))
    assert "\n" not in line
    assert line.endswith("ValueError: why")
    assert "Traceback" in line


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8888"}, 200),
        ({"host": "evil.example:8888"}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
    ],
)
@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
def test_metrics_on_loopback_are_not_for_web_pages(headers, status, path):
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = MetricsServer(Metrics(version="1", stream="s").registry, lambda: ("", ""))
    server.start(listener)
    try:
        assert loopback.get(f"http://127.0.0.1:{port}{path}", headers=headers).status_code == status
    finally:
        server.stop()
