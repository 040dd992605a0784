"""A service whose audit is disturbed runs as if nothing were there, and says so once."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest


@pytest.fixture
def run(tmp_path, harness):
    running = []

    def start(command=None, runner="", **environment):
        command = command or harness.uvicorn("fastapi_shop:app")
        running.append(harness.start(tmp_path, command, environment, runner=runner))
        return running[-1]

    yield start
    for service in running:
        service.stop()


def test_records_reach_the_collector(run, harness, collector):
    service = run(OTEL_AUDITSPAN_ENDPOINT=collector.endpoint)
    response, trace_id = service.call("PUT", "/orders/7")
    assert response.status_code == 200
    (record,) = harness.wait_for(lambda: collector.of(trace_id), "the record at the collector")
    assert record["action"] == "UPDATE"


def test_the_ordinary_exporters_endpoint_is_used_when_there_is_no_own(run, harness, collector):
    service = run(OTEL_AUDITSPAN_ENDPOINT="", OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
    _, trace_id = service.call("PUT", "/orders/7")
    (record,) = harness.wait_for(lambda: collector.of(trace_id), "the record at the collector")
    assert record["delivery"] is None


def test_a_record_survives_kill_9_right_after_the_response(run, harness, collector):
    service = run(harness.uvicorn("killed_shop:app"))
    response, trace_id = service.call("PUT", "/orders/7")
    assert response.status_code == 200
    assert service.process.wait(harness.DEADLINE_S) == -signal.SIGKILL
    again = run(OTEL_AUDITSPAN_ENDPOINT=collector.endpoint)
    again.call("GET", "/orders/7")
    (record,) = harness.wait_for(lambda: collector.of(trace_id), "the dead process's record")
    assert record["target.id"] == "7"


def test_without_a_usable_spool_folder_the_service_runs_and_says_so_once(run, tmp_path):
    (tmp_path / "file").write_text("no folder")
    service = run(OTEL_AUDITSPAN_SPOOL_DIR=str(tmp_path / "file" / "spool"))
    for _ in range(20):
        assert service.call("PUT", "/orders/7")[0].status_code == 200
    assert service.log.count("can't keep audit records") == 1


def test_a_collector_that_is_away_is_said_once_and_costs_no_request(run, harness):
    service = run()
    for _ in range(20):
        response, trace_id = service.call("PUT", "/orders/7")
        assert response.status_code == 200
        assert response.elapsed.total_seconds() < 5
    service.records(trace_id)
    harness.wait_for(lambda: "takes no records" in service.log, "the message")
    assert service.log.count("takes no records") == 1


@pytest.mark.parametrize("variable", ["OTEL_AUDITSPAN_DISABLED", "OTEL_SDK_DISABLED"])
def test_switched_off_means_off(run, harness, variable):
    service = run(**{variable: "true"})
    assert service.call("POST", "/steps")[0].status_code == 200
    assert not service.spool.exists()
    assert "uditspan" not in service.log


def test_wrong_values_are_named_and_the_service_starts(run):
    service = run(OTEL_AUDITSPAN_SPOOL_MAX_BYTES="lots", OTEL_AUDITSPAN_ENDPIONT="http://typo:4317")
    record = service.record("PUT", "/orders/7")
    assert record["action"] == "UPDATE"
    assert service.log.count("OTEL_AUDITSPAN_SPOOL_MAX_BYTES='lots' is not usable; allowed is bytes") == 1
    assert service.log.count("OTEL_AUDITSPAN_ENDPIONT is not a variable of ours") == 1


def test_excluded_urls_are_named_at_start(run):
    service = run(OTEL_PYTHON_FASTAPI_EXCLUDED_URLS="/orders")
    service.call("PUT", "/orders/7")
    assert "requests that OTEL_PYTHON_FASTAPI_EXCLUDED_URLS leaves out get no audit record" in service.log


def test_the_ordinary_span_stays_plain_when_attributes_are_switched_off(run, collector):
    service = run(
        OTEL_AUDITSPAN_SPAN_ATTRIBUTES="off",
        OTEL_TRACES_EXPORTER="otlp_proto_grpc",
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=collector.endpoint,
        OTEL_BSP_SCHEDULE_DELAY="100",
    )
    _, trace_id = service.call("PUT", "/orders/7")
    (record,) = service.records(trace_id)
    assert record["action"] == "UPDATE"

    ordinary = collector.ordinary(record)
    assert [name for name in ordinary.attributes if name.startswith("audit.")] == []


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("hook", ["works", "raises"])
def test_own_hooks_are_called_and_copied_baggage_is_no_evidence(run, order, hook):
    service = run(["manual_shop.py"], sys.executable, BAGGAGE=order, HOOK=hook)
    forged = {
        "baggage": "audit.actor.id=root,audit.action=LOGIN,audit.reason=because,audit.note=x,audit.actor.origin=authenticated"
    }
    response, trace_id = service.call("PUT", "/orders/7", headers=forged)
    assert "request" in response.json()
    second, _ = service.call("PUT", "/orders/7")
    assert "response" in second.json()
    (record,) = service.records(trace_id)
    expected = {
        "actor.id": "unknown",
        "actor.origin": "unverified",
        "action": "UPDATE",
        "reason": None,
        "note": None,
    }
    assert {name: record[name] for name in expected} == expected


PLUGIN = """
INSTRUMENTORS = ("opentelemetry.instrumentation.fastapi:FastAPIInstrumentor",)

def instrument(instrumentor, arguments):
    {body}
"""


def plugin(folder, body: str) -> str:
    (folder / "retail_extractor.py").write_text(PLUGIN.format(body=body))
    information = folder / "retail-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: retail\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[auditspan_extractor]\nzzz_retail = retail_extractor\n")
    return str(folder)


def test_an_extractor_from_another_distribution_takes_part(run, tmp_path):
    body = """
    from auditspan.extractors import begin, chain, respond
    from auditspan.context import Actor, Facts
    class Source:
        def actor(self): return Actor("zoe", roles=("keeper",))
        def facts(self, span): return Facts(action="FEED", target_type="lion", changes=True)
    return {**arguments, "server_request_hook": chain(None, lambda span, scope: begin(span, Source()))}"""
    service = run(PYTHONPATH=plugin(tmp_path, body))
    record = service.record("PUT", "/orders/7")
    expected = {"actor.id": "zoe", "actor.roles": ["keeper"], "action": "FEED", "target.type": "lion"}
    assert {name: record[name] for name in expected} == expected


def test_an_extractor_that_fails_is_left_out(run, tmp_path):
    service = run(PYTHONPATH=plugin(tmp_path, "raise RuntimeError('broken plugin')"))
    record = service.record("PUT", "/orders/7", auth=("alice", "alice-password"))
    assert (record["actor.id"], record["action"], record["target.id"]) == ("alice", "UPDATE", "7")
    assert (
        service.log.count("an extractor for opentelemetry.instrumentation.fastapi:FastAPIInstrumentor failed")
        == 1
    )


def test_without_the_sdk_it_says_what_is_missing_and_nothing_is_raised():
    script = """
        import logging
        logging.basicConfig()
        from auditspan.bootstrap import pre_instrument
        pre_instrument()
        import auditspan
        auditspan.set_actor("alice")
        auditspan.describe(action="X")
        with auditspan.record("X") as action:
            action.target("a", "b"); action.outcome("success"); action.reason("r"); action.actor("x")
        @auditspan.audited("X", target_id="n")
        def f(n): return n
        assert f(3) == 3
        print("fine")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "fine\n"
    assert done.stderr.count("needs the OpenTelemetry SDK") == 1
