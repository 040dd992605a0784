"""A flood of denied requests that nobody answers for: the first in full, the others counted, and nothing uncounted."""

from __future__ import annotations

import dataclasses
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from auditspan import context, flood
from auditspan.bootstrap import install
from auditspan.context import Actor, Facts
from auditspan.settings import Settings
from auditspan.spool import Spool
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

FULL, INTERVAL_S = 3, 10.0


@dataclasses.dataclass
class Framework:
    """A source whose requests are all denied."""

    who: str
    facts_: Facts

    def actor(self):
        return Actor(self.who, origin="authenticated" if self.who == "bob" else "unverified")

    def facts(self, span):
        return self.facts_


class Shop:
    """Auditspan in this process with a clock that stands until it is moved."""

    def __init__(self, folder, harness, **settings):
        self.harness, self.now = harness, 1000.0
        self.sink = Spool(folder)
        self.provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
        chosen = {"flood_full": FULL, "flood_interval_s": INTERVAL_S} | settings
        self.processor = install(self.provider, Settings(**chosen), self.sink)
        self.sink.on_check(self.processor.tend)
        self.processor.flood.clock = lambda: self.now
        self.tracer = self.provider.get_tracer("test")

    def refuse(self, times=1, *, route="/orders/{id}", address="192.0.2.1", who="anonymous", **facts):
        known = {"outcome": "denied", "reason": "401 Unauthorized", "action": "READ", "target_type": "orders"}
        found = Facts(**known | {"route": route} | facts)
        attributes = {"client.address": address, "http.request.method": "GET"}
        for _ in range(times):
            with self.tracer.start_as_current_span(
                "GET", context=context.with_upstream(context.Upstream()), kind=trace.SpanKind.SERVER,
                attributes=attributes,
            ) as span:  # fmt: skip
                context.of_span(span).source = Framework(who, found)

    def next_interval(self):
        self.now += INTERVAL_S

    def finish(self):
        """As when the process ends: counting stops, and the shipper's thread looks once more."""
        self.processor.finish_counting()
        self.sink.check()

    @property
    def records(self):
        return self.harness.spooled(self.sink.folder)

    @property
    def counts(self):
        """Of each record, how many requests it stands for; None for one in full."""
        return [record["folded.count"] for record in self.records]

    @property
    def sum(self):
        return sum(count or 1 for count in self.counts)


@pytest.fixture
def shop(tmp_path, harness):
    shop = Shop(tmp_path / "spool", harness)
    yield shop
    shop.finish()
    shop.sink.close()


def test_the_first_are_recorded_in_full_and_the_others_counted_each_interval(shop):
    shop.refuse(10)
    assert shop.counts == [None] * FULL
    shop.next_interval()
    shop.sink.check()
    assert shop.counts == [None] * FULL + [7]
    record = shop.records[-1]
    expected = {"actor.id": "anonymous", "action": "READ", "outcome": "denied", "target.type": "orders"}
    assert {name: record[name] for name in expected} == expected
    assert record["reason"] == "401 Unauthorized"
    assert record.attributes["client.address"] == "192.0.2.1"
    assert [record["sequence.number"] for record in shop.records] == [1, 2, 3, 4]


def test_it_lasts_from_the_first_to_the_last_that_was_counted(shop):
    shop.refuse(FULL)
    before = time.time_ns()
    shop.refuse(2)
    after = time.time_ns()
    shop.finish()
    span = shop.records[-1].span
    assert before <= span.start_time_unix_nano < span.end_time_unix_nano <= after


def test_a_flood_that_goes_on_has_no_more_records_in_full(shop):
    shop.refuse(10)
    for _ in range(2):
        shop.next_interval()
        shop.refuse(5)
    shop.sink.check()
    assert shop.counts == [None] * FULL + [7, 5]
    shop.finish()
    assert shop.sum == 20


def test_after_a_calm_interval_it_begins_anew(shop):
    shop.refuse(10)
    for _ in range(2):
        shop.next_interval()
        shop.sink.check()
    shop.refuse(1)
    assert shop.counts == [None] * FULL + [7, None]


def test_a_trickle_is_no_flood(shop):
    for _ in range(20):
        shop.refuse(FULL)
        shop.next_interval()
    assert shop.counts == [None] * 20 * FULL


def test_routes_addresses_and_actions_are_counted_apart(shop):
    for different in ({}, {"route": "/users"}, {"address": "192.0.2.2"}, {"action": "DELETE"}):
        shop.refuse(FULL + 1, **different)
    shop.finish()
    assert shop.counts == [None] * 4 * FULL + [1] * 4


def test_paths_that_no_route_matches_are_counted_together(shop):
    for number in range(50):
        shop.refuse(route=f"/wp-{number}", unrouted=True)
    shop.finish()
    assert shop.counts == [None] * FULL + [50 - FULL]


def test_it_names_no_target_of_one_of_them(shop):
    for number in range(10):
        shop.refuse(target_id=f"o{number}")
    shop.finish()
    record = shop.records[-1]
    assert (record["folded.count"], record["target.type"], record["target.id"]) == (7, "orders", None)


def test_a_request_of_somebody_is_always_recorded_in_full(shop):
    shop.refuse(50, who="bob")
    assert shop.counts == [None] * 50


def test_a_request_that_the_application_described_is_always_recorded_in_full(shop):
    for _ in range(20):
        with shop.tracer.start_as_current_span("GET", kind=trace.SpanKind.SERVER) as span:
            state = context.of_span(span)
            state.source = Framework("anonymous", Facts(outcome="denied"))
            state.wanted = True
    assert shop.counts == [None] * 20


def test_failures_and_successes_are_never_counted_together(shop):
    shop.refuse(20, outcome="failure", changes=True)
    shop.refuse(20, outcome="success", changes=True)
    assert shop.counts == [None] * 40


def test_an_interval_of_0_folds_nothing(tmp_path, harness):
    shop = Shop(tmp_path / "spool", harness, flood_interval_s=0.0)
    shop.refuse(50)
    assert shop.counts == [None] * 50
    shop.sink.close()


def test_a_sink_that_can_not_count_gets_everything_in_full(running):
    for _ in range(50):
        with running.serve("GET", "/orders/{id}") as span:
            span.set_attribute("http.response.status_code", 401)
    assert len(running.sink.records) == 50


def test_threads_lose_no_count(shop):
    def refuse(number):
        for _ in range(200):
            shop.refuse(address=f"192.0.2.{number % 3}")
            shop.now += 0.01

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(refuse, range(8)))
    shop.finish()
    assert shop.sum == 1600
    assert len(shop.counts) < 200
    numbers = sorted(record["sequence.number"] for record in shop.records)
    assert numbers == list(range(1, len(numbers) + 1))


def test_many_addresses_are_counted_by_route_and_many_routes_together(shop, monkeypatch):
    monkeypatch.setattr(flood, "_MAX_OPEN", 2)
    for number in range(5):
        shop.refuse(10, address=f"192.0.2.{number}")
    for number in range(5):
        shop.refuse(10, route=f"/r{number}", target_type=f"r{number}")
    shop.finish()
    counted = [record for record in shop.records if record["folded.count"]]
    assert shop.sum == 100
    assert len(shop.counts) == 10 * FULL + len(counted)
    seen = [(record.attributes.get("client.address"), record["target.type"]) for record in counted]
    assert seen == [
        ("192.0.2.0", "orders"),
        ("192.0.2.1", "orders"),
        (None, "orders"),
        (None, "r0"),
        (None, None),
    ]


def test_more_keys_than_are_kept_apart_are_counted_together(shop, monkeypatch):
    monkeypatch.setattr(flood, "_MAX_KEYS", 5)
    for number in range(100):
        shop.refuse(address=f"192.0.2.{number}")
    shop.finish()
    assert shop.sum == 100
    assert len(shop.counts) == 5 + FULL + 1
    assert "client.address" not in shop.records[-1].attributes


def test_a_count_that_has_no_room_is_told_later(shop):
    shop.refuse(10)
    shop.sink.max_bytes = 0
    shop.finish()
    assert shop.counts == [None] * FULL
    shop.sink.max_bytes = 1 << 28
    shop.sink.check()
    assert shop.counts == [None] * FULL + [7]


def test_what_can_not_be_counted_is_recorded_in_full_and_leaves_no_gap(shop, monkeypatch):
    def refuse(*_):
        raise OSError(28, "no room")

    monkeypatch.setattr(shop.processor, "_open_tally", refuse)
    shop.refuse(10)
    assert shop.counts == [None] * 10
    assert sorted(record["sequence.number"] for record in shop.records) == list(range(1, 11))


def test_a_count_that_hangs_in_the_disk_holds_nobody_up(shop):
    shop.refuse(FULL)
    shop.processor.flood._lock.acquire()
    began = time.monotonic()
    shop.refuse(1)
    shop.processor.flood.tend(everything=True)
    assert time.monotonic() - began < 10
    shop.processor.flood._lock.release()
    assert shop.counts == [None] * (FULL + 1)


def test_a_count_is_read_only_when_it_is_over(shop):
    shop.refuse(10)
    shop.sink.check()
    assert shop.counts == [None] * FULL


def test_a_forked_child_tells_nothing_of_its_parent(shop):
    shop.refuse(10)
    shop.processor.flood.after_fork()  # as os.register_at_fork calls it
    shop.processor.finish_counting()
    assert shop.processor.flood._running == {}


def test_a_damaged_count_is_set_aside(shop):
    shop.refuse(10)
    (path,) = shop.sink.folder.glob("*.count")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    shop.finish()
    assert shop.counts == [None] * FULL
    assert [path.suffix for path in shop.sink.folder.iterdir()].count(".bad") == 1


def test_what_was_counted_is_written_when_the_provider_is_shut_down(shop):
    shop.refuse(10)
    shop.provider.shutdown()
    shop.sink.check()
    assert shop.sum == 10


def test_records_that_were_lost_are_told_in_a_record(shop):
    shop.refuse(1)
    began = time.time_ns()
    assert shop.processor.tend(12, "12 not kept: the spool was full or the disk hung", began)
    record = shop.records[-1]
    expected = {
        "action": "LOSE",
        "outcome": "failure",
        "actor.id": "auditspan",
        "actor.type": "system",
        "target.type": "audit-records",
        "target.id": shop.sink.stream_id,
        "lost.count": 12,
        "reason": "12 not kept: the spool was full or the disk hung",
        "sequence.number": 2,
    }
    assert {name: record[name] for name in expected} == expected
    assert record.span.start_time_unix_nano == began
    assert record.resource == dict(shop.provider.resource.attributes)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_every_request_of_a_flood_is_counted_however_the_service_ends(tmp_path, harness, end):
    settings = {"OTEL_AUDITSPAN_FLOOD_FULL": "5", "OTEL_AUDITSPAN_FLOOD_INTERVAL_S": "3600"}
    service = harness.start(tmp_path, harness.uvicorn("fastapi_shop:app"), settings)
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda _: service.call("GET", "/secrets/plan", auth=("alice", "guess")), range(80))
        assert {response.status_code for response, _ in answers} == {400}
    service.process.send_signal(end)
    service.process.wait(harness.DEADLINE_S)
    Spool(service.spool / "shop").check()  # as any process of the service does
    records = harness.spooled(service.spool)
    assert sum(record["folded.count"] or 1 for record in records) == 80
    assert len(records) == 6
    numbers = [record["sequence.number"] for record in records]
    assert sorted(numbers) == list(range(1, len(records) + 1))
    service.stop()
