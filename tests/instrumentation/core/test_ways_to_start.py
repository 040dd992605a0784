"""However OpenTelemetry is started, and whoever else is there: records, or one line in the log that says why not."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def run(tmp_path, harness):
    running = []

    def start(command, runner="", **environment):
        running.append(harness.start(tmp_path, command, environment, runner=runner))
        return running[-1]

    yield start
    for service in running:
        service.stop()


def updated(service, trace_id, **expected):
    (record,) = service.records(trace_id)
    known = {"action": "UPDATE", "target.type": "orders", "target.id": "7", "outcome": "success"} | expected
    assert {name: record[name] for name in known} == known
    return record


# --- the application's own TracerProvider ------------------------------------------------------------------------


def test_a_provider_that_the_application_sets_after_us_is_audited(run, harness):
    """As without opentelemetry-distro: nothing has set a provider when the instrumentations start."""
    service = run(harness.uvicorn("own_provider:app"), OTEL_PYTHON_CONFIGURATOR="none")
    response, trace_id = service.call("PUT", "/orders/7")
    assert response.json() == {"order": 7, "provider": True}
    record = updated(service, trace_id, **{"actor.id": "alice"})
    assert record.resource["service.name"] == "own-shop"
    assert list(service.spool.iterdir()) == [service.spool / "own-shop"]
    assert service.log.count("there are no audit records unless the application sets one") == 1


def test_a_second_provider_is_audited_beside_the_global_one_in_one_sequence(run, harness):
    service = run(harness.uvicorn("own_provider:app"))
    response, trace_id = service.call("PUT", "/orders/7")
    assert response.json()["provider"] is False
    first = updated(service, trace_id, **{"actor.id": "alice"})
    _, trace_id = service.call("GET", "/queue")
    (second,) = service.records(trace_id)
    assert (second["action"], second["target.type"], second["actor.id"]) == ("CREATE", "jobs", "scheduler")
    assert second["sequence.stream_id"] == first["sequence.stream_id"]
    assert (first["sequence.number"], second["sequence.number"]) == (1, 2)


# --- another vendor's span processor -----------------------------------------------------------------------------


@pytest.mark.parametrize(("vendor", "order"), [("raises", "before"), ("raises", "after"), ("ends", "before")])
def test_records_are_kept_beside_another_vendors_processor(run, tmp_path, order, vendor):
    noted = tmp_path / "vendor.txt"
    service = run(
        ["vendor_shop.py"] if order == "before" else [sys.executable, "vendor_shop.py"],
        sys.executable if order == "before" else "",
        VENDOR=vendor,
        ORDER=order,
        NOTED=str(noted),
    )
    _, trace_id = service.call("PUT", "/orders/7")
    record = updated(service, trace_id)
    assert record.attributes["vendor.seen"] == "start"
    if vendor != "raises":
        assert "audit.action" in noted.read_text()
        assert noted.read_text().count("\n") == 1


# --- declarative configuration -----------------------------------------------------------------------------------

CONFIG = """
file_format: "1.0"
resource:
  attributes:
    - {name: service.name, value: declared-shop}
tracer_provider:
  processors:
    - simple: {exporter: {console: {}}}
  sampler:
    always_off: {}
propagator:
  composite:
    - tracecontext: {}
instrumentation/development:
  python:
"""


def configured(folder, *instrumentations, text=CONFIG):
    path = folder / "otel.yaml"
    path.write_text(text + "".join(f"    {name}: {{}}\n" for name in instrumentations))
    return str(path)


@pytest.mark.parametrize(
    "listed", [("requests",), ("auditspan", "fastapi")], ids=["none-of-ours", "ours-first"]
)
def test_a_declarative_configuration_works(run, harness, tmp_path, listed):
    service = run(harness.uvicorn("fastapi_shop:app"), OTEL_CONFIG_FILE=configured(tmp_path, *listed))
    _, trace_id = service.call("PUT", "/orders/7", auth=("alice", "alice-password"))
    record = updated(service, trace_id, **{"actor.id": "alice", "actor.origin": "authenticated"})
    assert record.resource["service.name"] == "declared-shop"
    assert "uditspan" not in service.log.replace("auditspan: the collector", "")


def test_flask_in_a_declarative_configuration(run, tmp_path):
    service = run(
        [sys.executable, "flask_shop.py"], OTEL_CONFIG_FILE=configured(tmp_path, "auditspan", "flask")
    )
    record = service.record("DELETE", "/orders/7")
    assert (record["action"], record["outcome"], record["target.id"]) == ("DELETE", "denied", "7")


def test_instrumentations_that_start_before_us_are_named_once(run, harness, tmp_path):
    service = run(
        harness.uvicorn("fastapi_shop:app"), OTEL_CONFIG_FILE=configured(tmp_path, "fastapi", "auditspan")
    )
    _, trace_id = service.call("PUT", "/orders/7", auth=("alice", "alice-password"))
    updated(service, trace_id, **{"actor.id": "unknown"})
    assert service.log.count("FastAPIInstrumentor had started before it") == 1
    assert service.log.count("list `auditspan: {}` first") == 1


# --- when it can't start -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        pytest.param(
            {"OTEL_CONFIG_FILE": "without-provider"},
            "Does OTEL_CONFIG_FILE have a section tracer_provider?",
            id="no-provider-configured",
        ),
        pytest.param(
            {"OTEL_CONFIG_FILE": "/nowhere/otel.yaml"},
            "Failed to auto initialize OpenTelemetry",
            id="no-file",
        ),
        pytest.param(
            {"OTEL_TRACES_EXPORTER": "nonesuch"}, "Failed to auto initialize OpenTelemetry", id="no-exporter"
        ),
    ],
)
def test_when_opentelemetry_cant_start_the_service_runs_and_the_log_says_so_once(
    run, harness, tmp_path, environment, said
):
    if environment.get("OTEL_CONFIG_FILE") == "without-provider":
        text = 'file_format: "1.0"\npropagator:\n  composite:\n    - tracecontext: {}\n'
        text += "instrumentation/development:\n  python:\n"
        environment = {"OTEL_CONFIG_FILE": configured(tmp_path, "auditspan", text=text)}
    service = run(harness.uvicorn("fastapi_shop:app"), **environment)
    for _ in range(3):
        assert service.call("PUT", "/orders/7")[0].status_code == 200
    assert service.log.count(said) == 1
    assert not service.spool.exists()
