"""What users' own tests see: what production would send, one test's records apart from another's, and clear messages."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import auditspan
import flask
import pytest
from auditspan.testing import Record, capture, instrumented
from auditspan.testing.records import FIELDS
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

PAGE = (Path(__file__).parents[3] / "docs/testing.md").read_text()


@pytest.fixture(autouse=True)
def no_provider(monkeypatch):
    """As in a test run of an application that sets none."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)


def fastapi_app():
    app = FastAPI()

    @app.put("/orders/{order_id}")
    def update(order_id: int):
        auditspan.set_actor("alice", roles=["support", "admin"])
        return order_id

    @app.get("/reports/{name}")
    def report(name: str):
        return name

    @app.delete("/orders/{order_id}")
    def delete(order_id: int):
        raise HTTPException(403)

    return app


def flask_app():
    app = flask.Flask("shop")

    @app.before_request
    def only_alice():
        flask.g.user = {"username": flask.request.headers.get("X-Name", "")}
        if flask.g.user["username"] != "alice":
            flask.abort(403)

    @app.put("/orders/<int:order_id>")
    def update(order_id):
        return str(order_id)

    return app


# --- the frameworks ----------------------------------------------------------------------------------------------


def test_fastapi_is_audited_while_the_capture_is_open_and_never_else():
    app = fastapi_app()
    client = TestClient(app)
    client.put("/orders/6")
    with capture(app) as records:
        client.put("/orders/7")
        client.get("/reports/q3")
        client.delete("/orders/8")
    client.put("/orders/9")
    assert len(records) == 2
    records.expect(
        action="UPDATE", actor="alice", target_type="orders", target_id="7", roles=["admin", "support"]
    )
    records.expect(action="DELETE", outcome="denied", target_id="8", reason="403 Forbidden")


def test_starlettes_own_authentication_is_heard_of():
    class Backend(AuthenticationBackend):
        async def authenticate(self, connection):
            return AuthCredentials(["sales"]), SimpleUser(connection.headers["x-name"])

    app = Starlette(
        routes=[Route("/orders/{id}", lambda _: PlainTextResponse(""), methods=["PUT"])],
        middleware=[Middleware(AuthenticationMiddleware, backend=Backend())],
    )
    with capture(app) as records:
        TestClient(app).put("/orders/7", headers={"X-Name": "alice"})
    records.expect(actor="alice", actor_origin="authenticated", roles={"sales"}, outcome="success")


def test_flask_is_audited_also_when_its_own_function_refuses_and_after_it_has_served():
    app = flask_app()
    client = app.test_client()
    client.put("/orders/6")
    for _ in range(2):
        with capture(app) as records:
            client.put("/orders/7", headers={"X-Name": "alice"})
            client.put("/orders/8", headers={"X-Name": "mallory"})
        records.expect(actor="alice", action="UPDATE", target_id="7", outcome="success")
        records.expect(actor="mallory", target_id="8", outcome="denied")
    assert len(app.before_request_funcs[None]) == 1


def test_another_applications_type_is_refused_with_what_to_do():
    with pytest.raises(TypeError, match="no FastAPI, Starlette or Flask application"), capture(object()):
        pass
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


# --- plain functions, threads, tasks -----------------------------------------------------------------------------


@auditspan.audited("EXPORT", target_type="report", target_id="name")
def export(name):
    return name


def test_functions_are_audited_without_an_application():
    with capture() as records:
        export("q3")
        with auditspan.record("PURGE", target_type="cache") as purge:
            purge.actor("job", type="system")
    assert [record.number for record in records] == [1, 2]
    records.expect(action="EXPORT", target_id="q3", actor="unknown", actor_origin="unverified")
    records.expect(action="PURGE", actor="job", actor_type="system")
    assert records[0].audit()["audit.action"] == "EXPORT"
    assert records[0].service.startswith("unknown_service")


def test_threads_and_tasks_are_captured_all():
    async def tasks():
        await asyncio.gather(*(asyncio.to_thread(export, f"task-{number}") for number in range(20)))

    with capture() as records:
        threads = [threading.Thread(target=export, args=(f"thread-{number}",)) for number in range(20)]
        for thread in threads:
            thread.start()
        asyncio.run(tasks())
        for thread in threads:
            thread.join()
    assert sorted(record.number for record in records) == list(range(1, 41))
    records.expect(count=40, action="EXPORT")


def test_what_comes_after_the_response_can_be_waited_for():
    go = threading.Event()
    later = threading.Thread(target=lambda: (go.wait(), export("late")))
    with capture() as records:
        later.start()
        records.expect_none()
        go.set()
        records.expect(target_id="late", within_s=10)
        later.join()


def test_what_one_test_left_open_is_no_record_of_the_next():
    with capture() as first:
        open_still = auditspan.record("IMPORT")
        open_still.__enter__()
    with capture() as second:
        open_still.__exit__(None, None, None)
        export("q3")
    assert len(first) == 0
    second.expect(action="EXPORT", parent_span_id="")
    second.expect_none(action="IMPORT")


def test_captures_may_be_nested_and_each_gets_all():
    with capture() as outer:
        export("a")
        with capture() as inner:
            export("b")
        export("c")
    assert [record.target_id for record in outer] == ["a", "b", "c"]
    assert [record.target_id for record in inner] == ["b"]


def test_settings_are_those_of_the_environment(monkeypatch):
    monkeypatch.setenv("OTEL_AUDITSPAN_READS", "/reports/*")
    app = fastapi_app()
    with capture(app) as records:
        TestClient(app).get("/reports/q3")
    records.expect(action="READ", target_type="reports", target_id="q3")


# --- tracer providers --------------------------------------------------------------------------------------------


def test_afterwards_there_is_no_provider():
    with capture():
        assert isinstance(trace.get_tracer_provider(), TracerProvider)
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def test_the_applications_own_provider_is_used(monkeypatch):
    own = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", own)
    for _ in range(2):
        with capture() as records:
            export("q3")
        records.expect(action="EXPORT")
    assert trace.get_tracer_provider() is own
    assert len(own._active_span_processor._span_processors) == 1


def test_a_provider_that_is_set_in_the_middle_is_taken_up():
    script = """
        import auditspan
        from auditspan.testing import capture
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        with capture() as records:
            trace.set_tracer_provider(own := TracerProvider())
            with auditspan.record("EXPORT"):
                assert trace.get_current_span().get_span_context().is_valid
        records.expect(action="EXPORT")
        assert trace.get_tracer_provider() is own
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)


def test_where_tests_switch_opentelemetry_s_sdk_off_records_are_captured_all_the_same(harness, tmp_path):
    script = """
        import auditspan
        from auditspan.testing import capture
        with capture() as records, auditspan.record("EXPORT"):
            pass
        records.expect(action="EXPORT")
    """
    environment = harness.environment_of(tmp_path, {"OTEL_SDK_DISABLED": "true"})
    command = [sys.executable, "-c", textwrap.dedent(script)]
    subprocess.run(command, env=environment, check=True, timeout=60)


def test_under_opentelemetry_instrument_nothing_reaches_the_spool(tmp_path, harness):
    script = """
        import auditspan
        from auditspan.testing import capture
        with capture() as records, auditspan.record("EXPORT"):
            pass
        records.expect(action="EXPORT")
        with auditspan.record("IMPORT"):
            pass
    """
    done = subprocess.run(
        [harness.BIN / "opentelemetry-instrument", sys.executable, "-c", textwrap.dedent(script)],
        env=harness.environment_of(tmp_path / "spool"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [record["action"] for record in harness.spooled(tmp_path / "spool")] == ["IMPORT"]


# --- the messages ------------------------------------------------------------------------------------------------


def two_records():
    with capture() as records:
        export("q3")
        with auditspan.record("PURGE"):
            pass
    return records


def test_an_expectation_says_what_was_there_instead():
    with pytest.raises(AssertionError) as failure:
        two_records().expect(action="EXPORT", target_id="q4")
    assert str(failure.value).splitlines() == [
        "expected a record with action='EXPORT', target_id='q4'; there are 2, the closest first:",
        "  action='EXPORT' actor='unknown' outcome='success' target_type='report' target_id='q3' (EXPORT report)",
        "    differs in target_id: 'q3'",
        "  action='PURGE' actor='unknown' outcome='success' (PURGE)",
        "    differs in action: 'PURGE', target_id: ''",
    ]


def test_more_records_than_expected_are_shown_too():
    with pytest.raises(
        AssertionError, match="and there are 2; say count=2 if that is right, or name more fields:"
    ):
        two_records().expect(outcome="success")


def test_nothing_at_all_says_what_may_be_missing():
    with capture() as records:
        pass
    with pytest.raises(AssertionError, match="there are no records at all"):
        records.expect(action="EXPORT")


def test_an_unwanted_record_is_shown():
    with capture() as records:
        export("q3")
    with pytest.raises(
        AssertionError, match=r"expected no record with actor='unknown', and there is one:\n  action="
    ):
        records.expect_none(actor="unknown")


def test_a_field_that_there_is_not_is_an_error():
    with (
        capture() as records,
        pytest.raises(TypeError, match="a record has no field user; it has action, actor"),
    ):
        records.expect_none(user="alice")


# --- whole frameworks ---------------------------------------------------------------------------------------------


def test_an_instrumentor_has_our_hooks_and_the_application_s_own_while_the_block_runs():
    before, heard = flask.Flask, []
    with (
        instrumented(FlaskInstrumentor(), response_hook=lambda *_: heard.append("theirs")),
        capture() as records,
    ):
        app = flask.Flask("shop")
        app.before_request(lambda: setattr(flask.g, "user", "alice"))
        app.add_url_rule("/orders", view_func=lambda: "made", methods=["POST"])
        app.test_client().post("/orders")
        with instrumented(FlaskInstrumentor()):  # which runs already
            app.test_client().post("/orders")
        app.test_client().post("/orders")
    records.expect(action="CREATE", actor="alice", count=3)
    assert heard == ["theirs"] * 3
    assert flask.Flask is before


class Lonely(BaseInstrumentor):
    def instrumentation_dependencies(self):
        return ["a-framework-that-is-not-here >= 1"]

    def _instrument(self, **kwargs):
        raise AssertionError

    def _uninstrument(self, **kwargs):
        raise AssertionError


def test_an_instrumentor_that_does_not_start_is_an_error():
    with pytest.raises(RuntimeError, match="Lonely did not start"), instrumented(Lonely()):
        raise AssertionError


# --- the page ----------------------------------------------------------------------------------------------------


def blocks():
    found = re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, re.DOTALL)
    assert len(found) == 5
    return found


@pytest.mark.parametrize("first", [0, 3], ids=["application", "fixture"])
def test_the_examples_of_the_page_pass(tmp_path, first):
    for name, text in blocks()[first : first + 3]:
        (tmp_path / name).write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^[14] passed", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", [*Record.__dataclass_fields__, *FIELDS.values()])
def test_every_field_and_its_attribute_is_on_the_page(name):
    assert f"`{name}`" in PAGE or f"`.{name.rpartition('.')[2]}`" in PAGE or name == "audit.parent.span_id"
