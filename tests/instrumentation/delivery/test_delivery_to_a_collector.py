"""From the spool to a real OTLP server, over gRPC and HTTP, whatever that server answers."""

from __future__ import annotations

import logging
import time
from collections import Counter

import pytest
from auditspan.shipper import Shipper, Target, worker
from auditspan.shipper.counts import publish
from auditspan.spool import Spool
from instrumentation.delivery.otlp_payloads import payload, wait_until
from instrumentation.delivery.otlp_peers import (
    AWAY,
    CERTIFICATE,
    INVALID,
    STRANGER,
    TOO_LARGE,
    GrpcPeer,
    HttpPeer,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(worker, "_LONGEST_WAIT_S", 0.4)
    monkeypatch.setattr(worker, "_LOOK_S", 0.2)


@pytest.fixture
def ship(tmp_path):
    """Start a shipper for a peer, on the spool of this test."""
    shippers: list[Shipper] = []

    def start(peer, spool: Spool | None = None, **target: object) -> tuple[Spool, Shipper]:
        spool = spool or Spool(tmp_path / "spool")
        shipper = Shipper(spool, Target(endpoint=peer.endpoint, protocol=peer.protocol, **target))
        shipper.start()
        shippers.append(shipper)
        return spool, shipper

    yield start
    for shipper in shippers:
        shipper.stop(0.0)
        shipper._thread.join(5)


def said(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("auditspan")]


def test_a_record_is_with_the_collector_within_half_a_second(peer, ship):
    spool, shipper = ship(peer)
    spool.append(payload("warm"))
    assert shipper.flush(10)
    began = time.monotonic()
    spool.append(payload("x"))
    wait_until(lambda: peer.received == ["warm", "x"])
    assert time.monotonic() - began < 0.5
    assert shipper.flush(10)
    counts = shipper.counts()
    assert (counts.appended, counts.sent, counts.acknowledged, counts.waiting) == (2, 2, 2, 0)


def test_neighbours_travel_together_in_order_and_in_bounded_batches(peer, tmp_path, ship):
    spool = Spool(tmp_path / "spool")
    for number in range(1300):
        spool.append(payload(str(number)))
    _, shipper = ship(peer, spool)
    assert shipper.flush(20)
    assert peer.received == [str(number) for number in range(1300)]
    assert [len(request) for request in peer.requests] == [512, 512, 276]


def test_what_comes_while_a_batch_is_on_its_way_waits_for_company_too(peer, ship):
    late = iter(["late"])

    def answer(_: list[str]) -> None:
        for name in late:
            spool.append(payload(name))

    peer.answer = answer
    spool, _ = ship(peer)
    spool.append(payload("first"))
    wait_until(lambda: peer.received == ["first", "late"])
    first, second = peer.arrived
    assert second - first >= worker._LINGER_S


def test_large_records_make_smaller_batches(peer, tmp_path, ship):
    spool = Spool(tmp_path / "spool")
    for number in range(12):
        spool.append(payload(str(number), size=1_000_000))
    _, shipper = ship(peer, spool)
    assert shipper.flush(20)
    assert peer.received == [str(number) for number in range(12)]
    assert {len(request) for request in peer.requests} <= {1, 2, 3}


def test_headers_go_along(peer, ship):
    spool, shipper = ship(peer, headers=(("authorization", "Bearer secret"), ("x-tenant", "blue")))
    spool.append(payload("x"))
    assert shipper.flush(10)
    assert peer.headers[0]["authorization"] == "Bearer secret"
    assert peer.headers[0]["x-tenant"] == "blue"
    assert "secret" not in repr(shipper._target)


def test_an_absent_collector_is_said_once_and_its_return_too_and_nothing_is_lost(peer, ship, caplog):
    peer.stop()
    spool, shipper = ship(peer)
    for number in range(50):
        spool.append(payload(str(number)))
    wait_until(lambda: shipper.counts().retries >= 3)
    assert shipper.counts().waiting == 50
    assert shipper.counts().last_error
    peer.start()
    assert shipper.flush(20)
    assert peer.received == [str(number) for number in range(50)]
    away, back = said(caplog)
    assert peer.endpoint in away
    assert "OTEL_AUDITSPAN_ENDPOINT" in away
    assert str(spool.folder) in away
    assert "takes records again; 50 of this process wait" in back


def test_a_collector_that_restarts_again_and_again_gets_every_record(peer, ship):
    spool, shipper = ship(peer)
    for round_ in range(4):
        for number in range(40):
            spool.append(payload(f"{round_}-{number}"))
        wait_until(lambda: peer.received)
        peer.stop()
        for number in range(40, 60):
            spool.append(payload(f"{round_}-{number}"))
        peer.start()
    assert shipper.flush(20)
    counted = Counter(peer.received)
    assert set(counted) == {f"{round_}-{number}" for round_ in range(4) for number in range(60)}


def test_a_lost_answer_means_sending_again_never_losing(grpc_peer, tmp_path, ship):
    lost = iter([True])

    def answer(_names):
        if next(lost, False):
            grpc_peer.received.extend(_names)  # the collector has them, but dies before it says so
            return AWAY
        return None

    grpc_peer.answer = answer
    spool = Spool(tmp_path / "spool")
    for name in "abc":
        spool.append(payload(name))
    _, shipper = ship(grpc_peer, spool)
    assert shipper.flush(10)
    assert grpc_peer.received == ["a", "b", "c"] * 2


def test_a_hint_when_to_come_back_is_honoured(peer, ship):
    hint_s = 1.0
    answers = iter([AWAY._replace(retry_after_s=hint_s)])
    peer.answer = lambda _: next(answers, None)
    spool, shipper = ship(peer)
    spool.append(payload("x"))
    assert shipper.flush(10)
    assert peer.arrived[1] - peer.arrived[0] >= hint_s
    assert len(peer.requests) == 2


def test_refused_credentials_keep_everything_and_are_said_once(peer, ship, caplog):
    peer.answer = lambda _: STRANGER
    spool, shipper = ship(peer)
    for number in range(20):
        spool.append(payload(str(number)))
    wait_until(lambda: shipper.counts().retries >= 3)
    assert shipper.counts().waiting == 20
    peer.answer = lambda _: None
    assert shipper.flush(10)
    assert peer.received == [str(number) for number in range(20)]
    refused, back = said(caplog)
    assert "OTEL_AUDITSPAN_HEADERS" in refused
    assert "again" in back


def test_the_one_record_that_is_refused_is_found_and_set_aside_and_all_others_arrive(peer, tmp_path, ship):
    peer.answer = lambda names: INVALID if "poison" in names else None
    spool = Spool(tmp_path / "spool")
    for number in range(700):
        spool.append(payload("poison" if number == 333 else str(number)))
    _, shipper = ship(peer, spool)
    assert shipper.flush(20)
    assert peer.received == [str(number) for number in range(700) if number != 333]
    counts = shipper.counts()
    assert (counts.set_aside, counts.acknowledged, counts.waiting) == (1, 699, 0)
    assert len(peer.requests) < 40

    # The operator's way back: rename it, and the next look delivers it.
    aside = next(spool.folder.glob("*.bad"))
    peer.answer = lambda _: None
    aside.rename(spool.folder / "again.spool")
    wait_until(lambda: "poison" in peer.received)
    wait_until(lambda: not (spool.folder / "again.spool").exists())


def test_a_collector_that_refuses_everything_is_not_believed_about_the_records(peer, tmp_path, ship, caplog):
    peer.answer = lambda _: INVALID
    spool = Spool(tmp_path / "spool")
    for number in range(100):
        spool.append(payload(str(number)))
    _, shipper = ship(peer, spool)
    wait_until(lambda: "refuses every record" in caplog.text)
    assert shipper.counts().set_aside == 8
    assert shipper.counts().waiting == 92
    assert len(peer.requests) <= 20


def test_a_refused_record_that_can_not_be_set_aside_stays_and_is_said(peer, tmp_path, ship, caplog):
    peer.answer = lambda _: INVALID
    spool = Spool(tmp_path / "spool", max_bytes=10_000)
    spool.folder.mkdir()
    (spool.folder / "old.bad").write_bytes(bytes(10_000))
    spool.append(payload("refused"))
    _, shipper = ship(peer, spool)
    wait_until(lambda: "can't be set aside" in caplog.text)
    assert "remove or rename them" in caplog.text
    assert (shipper.counts().set_aside, shipper.counts().waiting) == (0, 1)


def test_the_counters_reach_the_service_s_own_metrics(peer, ship):
    reader = InMemoryMetricReader()
    spool, shipper = ship(peer)
    publish(shipper, MeterProvider([reader]).get_meter("auditspan"))
    spool.append(payload("one"))
    assert shipper.flush(10)
    found = {
        metric.name: metric.data.data_points[0].value
        for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    }
    assert found["auditspan.records.appended"] == found["auditspan.records.acknowledged"] == 1
    assert found["auditspan.records.waiting"] == 0
    assert "auditspan.records.last_error" not in found


def test_a_message_too_large_is_halved_until_it_passes(peer, tmp_path, ship):
    peer.answer = lambda names: TOO_LARGE if len(names) > 5 else None
    spool = Spool(tmp_path / "spool")
    for number in range(60):
        spool.append(payload(str(number)))
    _, shipper = ship(peer, spool)
    assert shipper.flush(20)
    assert peer.received == [str(number) for number in range(60)]
    assert shipper.counts().set_aside == 0


def test_a_single_record_too_large_is_set_aside_but_a_small_one_is_somebody_s_quota(peer, ship):
    peer.answer = lambda names: TOO_LARGE if "huge" in names else None
    spool, shipper = ship(peer)
    spool.append(payload("huge", size=100_000))
    spool.append(payload("next"))
    assert shipper.flush(10)
    assert (peer.received, shipper.counts().set_aside) == (["next"], 1)
    refused = iter([TOO_LARGE, TOO_LARGE])
    peer.answer = lambda _: next(refused, None)
    spool.append(payload("small"))
    assert shipper.flush(10)
    assert (peer.received, shipper.counts().set_aside) == (["next", "small"], 1)


def test_partial_success_is_read_counted_and_said(peer, ship, caplog):
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 2
    answer.partial_success.error_message = "span 00ab: trace_id is all zeroes"
    peer.answer = lambda _: answer
    spool, shipper = ship(peer)
    for name in "abc":
        spool.append(payload(name))
    assert shipper.flush(10)
    counts = shipper.counts()
    assert counts.rejected >= 2
    assert counts.acknowledged + counts.rejected >= 3
    assert "span 00ab: trace_id is all zeroes" in caplog.text


def test_a_collector_that_never_answers_holds_neither_appends_nor_the_end_up(peer, ship):
    release = []
    peer.answer = lambda _: wait_until(lambda: release, 60)
    spool, shipper = ship(peer)
    spool.append(payload("x"))
    wait_until(lambda: peer.requests)
    began = time.monotonic()
    for _ in range(1000):
        assert spool.append(payload("y"))
    assert time.monotonic() - began < 1.0
    began = time.monotonic()
    shipper.stop(0.3)
    assert time.monotonic() - began < 1.0
    assert shipper.counts().waiting == 1001
    release.append(True)


def test_an_answer_that_is_no_otlp_is_no_reason_to_send_again(ship, grpc_peer):
    grpc_peer.take = lambda *_: (grpc_peer.requests.append([]), b"\xff\xff<html>")[1]
    spool, shipper = ship(grpc_peer)
    spool.append(payload("x"))
    assert shipper.flush(10)
    assert len(grpc_peer.requests) == 1


@pytest.mark.parametrize(
    ("kind", "tls"),
    [(GrpcPeer, False), (GrpcPeer, True), (HttpPeer, False), (HttpPeer, True)],
    ids=["grpc", "grpc over tls", "http", "https"],
)
def test_a_connection_closed_for_idleness_is_no_trouble(request, kind, tls, ship, caplog):
    tmp_path = request.getfixturevalue("tmp_path")
    peer = kind(tls=tls, idle_s=0.1)
    request.addfinalizer(peer.stop)
    (tmp_path / "roots.pem").write_text(CERTIFICATE)
    spool, shipper = ship(peer, certificate_file=tmp_path / "roots.pem")
    for name in "abc":
        spool.append(payload(name))
        assert shipper.flush(10)
        time.sleep(0.3)
    assert peer.received == ["a", "b", "c"]
    assert said(caplog) == []
    assert shipper.counts().retries == 0


@pytest.mark.parametrize("kind", [GrpcPeer, HttpPeer], ids=["grpc", "http"])
def test_tls_checks_who_the_collector_is(kind, tmp_path, ship, caplog, request):
    peer = kind(tls=True)
    request.addfinalizer(peer.stop)
    (tmp_path / "roots.pem").write_text(CERTIFICATE)
    spool, stranger = ship(peer)
    spool.append(payload("x"))
    wait_until(lambda: "CERTIFICATE_VERIFY_FAILED" in caplog.text)
    stranger.stop(0.0)
    assert peer.received == []
    ship(peer, spool, certificate_file=tmp_path / "roots.pem")
    wait_until(lambda: peer.received == ["x"])


def test_a_certificate_file_that_can_t_be_read_keeps_the_records_and_is_said(tmp_path, caplog, ship):
    class Nowhere:
        endpoint, protocol = "https://127.0.0.1:1", "grpc"

    spool, shipper = ship(Nowhere, certificate_file=tmp_path / "missing.pem")
    spool.append(payload("x"))
    wait_until(lambda: "missing.pem" in caplog.text)
    assert shipper.counts().waiting == 1


def test_what_dead_processes_left_and_own_records_take_turns(peer, tmp_path, ship, child):
    for name in "ab":
        child(
            f"s = Spool(folder)\nfor n in range(1500): s.append(payload('{name}%d' % n))\nos._exit(0)",
            tmp_path / "spool",
        ).process.wait()
    peer.answer = lambda _: time.sleep(0.05)
    spool, shipper = ship(peer)
    wait_until(lambda: peer.requests)
    spool.append(payload("fresh"))
    assert shipper.flush(20)
    assert len(peer.received) < 3001  # a backlog does not hold up what happens now
    wait_until(lambda: len(peer.received) == 3001)
    assert Counter(peer.received).most_common(1)[0][1] == 1
    wait_until(lambda: len(list(spool.folder.glob("*.spool"))) <= 1)


def test_the_thread_outlives_whatever_goes_wrong_in_it(peer, ship, monkeypatch):
    spool, shipper = ship(peer)
    failing = iter([RuntimeError("a bug")])
    original = spool.next_segment

    def next_segment():
        for problem in failing:
            raise problem
        return original()

    monkeypatch.setattr(spool, "next_segment", next_segment)
    spool.append(payload("x"))
    assert shipper.flush(10)
    assert "a bug" in shipper.counts().last_error


def test_a_segment_that_the_disk_can_t_read_holds_nobody_up(peer, ship, tmp_path, monkeypatch, caplog):
    spool = Spool(tmp_path / "spool")
    spool.append(payload("lost"))
    spool._retire_live()
    broken = spool.next_segment()
    monkeypatch.setattr(broken, "read", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    spool.append(payload("fine"))
    ship(peer, spool)
    wait_until(lambda: peer.received == ["fine"])
    assert broken.path.exists()
    assert "can't be read and stays" in caplog.text


def test_a_shipper_in_the_log_says_nothing_when_all_is_well(peer, ship, caplog):
    caplog.set_level(logging.DEBUG, "auditspan")
    spool, shipper = ship(peer)
    for number in range(10):
        spool.append(payload(str(number)))
    assert shipper.flush(10)
    assert said(caplog) == []
