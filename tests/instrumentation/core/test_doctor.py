"""auditspan-doctor says what is audited and what is in the way; it serves, sends and shows nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from auditspan.doctor import collector, spool
from auditspan.doctor.application import load
from auditspan.doctor.command import main
from auditspan.doctor.grpc_methods import registered
from auditspan.doctor.report import Report, WrongUse
from auditspan.settings import Settings
from auditspan.shipper import DeliveryCounts, notes
from auditspan.spool import Spool
from auditspan.wire import Pieces
from instrumentation.delivery import otlp_peers
from instrumentation.delivery.otlp_payloads import payload

PAGE = (Path(__file__).parents[3] / "docs/doctor.md").read_text()
SECRET = "secret-token-of-the-shop"


@pytest.fixture
def doctor(tmp_path, harness):
    def run(*arguments, status=None, **changes):
        done = subprocess.run(
            [harness.BIN / "auditspan-doctor", *arguments],
            cwd=harness.HERE / "apps",
            env=harness.environment_of(tmp_path / "spool", changes),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert status is None or done.returncode == status, done.stdout + done.stderr
        return done

    def report(*arguments, **changes):
        done = run("--json", "--offline", *arguments, **changes)
        assert done.returncode in (0, 1), done.stderr
        found = json.loads(done.stdout)
        assert found["healthy"] == (done.returncode == 0)
        return found

    run.report = report
    return run


def rows(report):
    return {(row["method"], row["route"]): row for row in report["application"]["routes"]}


def problems(report):
    return [finding["text"] for finding in report["findings"] if finding["level"] == "problem"]


def audited(report):
    return {key for key, row in rows(report).items() if row["audited"]}


# --- the application's routes ------------------------------------------------------------------------------------


def test_routers_mounted_applications_and_websockets_of_fastapi(doctor):
    report = doctor.report(
        "doctor_shop:app",
        OTEL_AUDITSPAN_READS="/reports/*",
        OTEL_PYTHON_FASTAPI_EXCLUDED_URLS="jobs,orders/1/refund",
    )
    assert {key: (row["audited"], row["reason"]) for key, row in rows(report).items()} == {
        ("PUT", "/v1/orders/{order_id}"): (True, "PUT may change something"),
        ("GET", "/v1/orders/{order_id}"): (False, "GET reads"),
        ("POST", "/v1/orders/{order_id}/refund"): (
            False,
            "excluded by OTEL_PYTHON_FASTAPI_EXCLUDED_URLS for values as in /v1/orders/1/refund",
        ),
        ("POST", "/jobs"): (False, "excluded by OTEL_PYTHON_FASTAPI_EXCLUDED_URLS"),
        ("GET", "/reports/{name}"): (True, "OTEL_AUDITSPAN_READS: /reports/*"),
        ("WEBSOCKET", "/live"): (True, "any message of a session may change something"),
        ("PUT", "/admin/users/{name}/role"): (True, "PUT may change something"),
        ("ANY", "/other/{path}"): (
            True,
            "a mounted application; methods that may change something are audited",
        ),
    }
    (problem,) = problems(report)
    assert problem.startswith(
        "2 routes that may change something are not audited: POST /v1/orders/{order_id}/refund"
    )
    assert rows(report)["PUT", "/admin/users/{name}/role"]["target_type"] == "users"


def test_starlette_inside_middleware_that_wraps_it(doctor):
    report = doctor.report("doctor_shop:wrapped")
    assert audited(report) == {
        ("POST", "/orders"),
        ("DELETE", "/{region}/orders/{id}"),
        ("WEBSOCKET", "/{region}/w"),
    }
    assert [each["text"] for each in report["findings"] if each["part"] != "instrumentation"] == [
        "CORSMiddleware stands around the instrumentation: what it refuses makes no record"
    ]


def test_flask_with_blueprints_from_a_factory_that_mounts_several(doctor):
    report = doctor.report("doctor_shop:make_several", "--factory")
    assert audited(report) == {("PUT", "/orders/{order_id}"), ("PUT", "/old/orders/{order_id}")}
    assert report["application"]["hooked"] is True


def test_an_application_that_instruments_itself_has_nobody_who_says_who_acts(doctor):
    report = doctor.report(
        "doctor_shop:make_by_hand", "--factory", OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="fastapi"
    )
    assert (report["application"]["instrumented"], report["application"]["hooked"]) == (True, False)
    assert audited(report) == {("PUT", "/v1/orders/{order_id}")}
    unhooked, gap = problems(report)
    assert "nobody but set_actor() tells us who acts" in unhooked
    assert gap.endswith("POST /v1/orders/{order_id}/refund (excluded by excluded_urls of the application)")


def test_a_framework_that_is_not_instrumented_is_the_problem_and_says_why(doctor):
    report = doctor.report("doctor_shop:make", "--factory", OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="flask")
    assert rows(report)["PUT", "/orders/{order_id}"]["reason"] == "Flask is not instrumented here"
    assert len(problems(report)) == 1
    (row,) = [row for row in report["instrumentation"] if row["framework"] == "flask"]
    assert (row["active"], row["why_not"]) == (False, "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS names it")
    (row,) = [row for row in report["instrumentation"] if row["framework"] == "fastapi"]
    assert (row["active"], row["extractors"]) == (True, ["auditspan.extractors.asgi"])


def test_a_grpc_server_that_the_module_makes_and_starts_is_looked_at_and_not_started(doctor, harness):
    report = doctor.report(
        "doctor_rpc:server",
        OTEL_PYTHON_GRPC_EXCLUDED_SERVICES="shop.v1.Audit,opentelemetry.proto.collector.logs.v1.LogsService",
    )
    assert {key[1]: (row["audited"], row["reason"]) for key, row in rows(report).items()} == {
        "/shop.v1.Billing/ChargeCard": (True, "the method is on no read-only list"),
        "/shop.v1.Billing/GetInvoice": (False, "read-only by Get*"),
        "/shop.v1.Billing/GetOrCreateAccount": (True, "the method is on no read-only list"),
        "/opentelemetry.proto.collector.logs.v1.LogsService/Export": (
            False,
            "excluded by OTEL_PYTHON_GRPC_EXCLUDED_SERVICES",
        ),
    }


def test_grpc_methods_come_from_registrations_handlers_and_descriptors():
    from instrumentation.core.apps import doctor_rpc_names as names

    export = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    for thing in names.SAME:
        assert registered(thing).methods == [export], thing
    assert registered(object()) is None
    assert registered(len) is None


def test_what_it_says_of_a_route_is_what_a_request_does(doctor, monkeypatch):
    from auditspan.testing import capture
    from fastapi.testclient import TestClient
    from instrumentation.core.apps import fastapi_shop

    monkeypatch.setenv("OTEL_AUDITSPAN_READS", "/reports/*")
    report = doctor.report("fastapi_shop:app", OTEL_AUDITSPAN_READS="/reports/*")
    skipped = {"/calls-itself/{depth}", "/orders/{order_id}/crash"}
    asked = [row for row in report["application"]["routes"] if row["route"] not in skipped]
    assert len(asked) > 20
    with capture(fastapi_shop.app) as records:
        client = TestClient(fastapi_shop.app, raise_server_exceptions=False)
        for row in asked:
            records.clear()
            client.request(row["method"], re.sub(r"\{[^}]*\}", "1", row["route"]))
            entries = [
                record
                for record in records
                if record.outcome != "denied" and record.attributes.get("http.method")
            ]
            assert bool(entries) <= row["audited"], row
            assert len(records) >= row["audited"], row


def test_the_example_of_the_page_is_true(doctor, tmp_path, harness):
    name, text = re.search(r"```python\n# (\S+)\n(.*?)```", PAGE, re.DOTALL).groups()
    (tmp_path / name).write_text(text)
    variable, value, application = re.search(r"```sh\n(\S+)=(\S+) auditspan-doctor (\S+)\n", PAGE).groups()
    away = f"http://localhost:{harness.free_port()}"
    changes = {variable: value, "OTEL_AUDITSPAN_ENDPOINT": away}
    done = doctor("--app-dir", str(tmp_path), application, status=1, **changes)
    shown = re.search(r"\n```\n(Problems\n.*?)```", PAGE, re.DOTALL)[1]
    # What else is installed here is no matter of the page.
    said = re.sub(
        r"\nLook at\n(  - instrumentation: .* is installed and not instrumented: .*\n)+", "", done.stdout
    )
    assert said.startswith(shown.replace("http://localhost:4317", away))


# --- what it must not do -----------------------------------------------------------------------------------------


def test_it_sends_one_empty_request_writes_nothing_and_shows_no_secret(doctor, tmp_path):
    peer = otlp_peers.GrpcPeer()
    try:
        found = {
            way: doctor(
                *way,
                "doctor_shop:app",
                status=0,
                OTEL_TRACES_EXPORTER="otlp",
                OTEL_METRICS_EXPORTER="otlp",
                OTEL_LOGS_EXPORTER="otlp",
                OTEL_EXPORTER_OTLP_ENDPOINT=peer.endpoint,
                OTEL_AUDITSPAN_ENDPOINT=peer.endpoint,
                OTEL_AUDITSPAN_HEADERS=f"authorization=Bearer%20{SECRET}",
            )
            for way in ((), ("--json",))
        }
        assert peer.requests == [[], []]
        assert [headers["authorization"] for headers in peer.headers] == [f"Bearer {SECRET}"] * 2
    finally:
        peer.stop()
    assert not (tmp_path / "spool").exists()
    for done in found.values():
        assert SECRET not in done.stdout + done.stderr
        assert done.stderr == "a line of the application's own\n"
    assert "No problems." in found[()].stdout
    assert "OTEL_AUDITSPAN_HEADERS=***" in found[()].stdout
    assert_documented(json.loads(found[("--json",)].stdout))


def assert_documented(report):
    """Each key of the report is in the page's table, and no other."""
    table = dict(re.findall(r"^\| `([a-z_.]+)` \| (.*) \|$", PAGE.partition("## JSON")[2], re.MULTILINE))
    assert {*table} == {*report, "application.routes", "spool.left_over"}
    for part, value in (
        ("application", report["application"]),
        ("application.routes", report["application"]["routes"][0]),
        ("instrumentation", report["instrumentation"][0]),
        ("opentelemetry", report["opentelemetry"]),
        ("settings", report["settings"]),
        ("collector", report["collector"]),
        ("spool", report["spool"]),
    ):
        assert set(value) <= set(re.findall(r"`(\w+)`", table[part])), part


def test_a_module_that_serves_when_it_is_imported_is_named_and_not_served(doctor):
    (problem,) = problems(doctor.report("doctor_serves:app"))
    assert "it starts a server when it is imported" in problem


def test_an_application_that_can_t_be_imported_says_where(doctor):
    (problem,) = problems(doctor.report("doctor_shop:broken", "--factory"))
    assert "KeyError: 'DATABASE_URL'" in problem
    assert re.search(r"doctor_shop.py, line \d+", problem)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nosuch:app",), "there is no module 'nosuch'"),
        (("json:dumps", "--offline"), "the doctor knows FastAPI, Starlette, Flask"),
    ],
    ids=["module", "type"],
)
def test_wrong_use_is_status_2(doctor, arguments, said):
    assert said in doctor(*arguments, status=2).stderr


@pytest.mark.parametrize(
    ("name", "factory", "said"),
    [
        (":app", False, "an application is written module:attribute"),
        ("json:nosuch", False, "json has no 'nosuch'; name it module:attribute"),
        ("json.nosuch:app", False, "there is no module 'json.nosuch' in /nowhere or on the path"),
        ("json:__version__.x", False, "json has no"),
        ("json:__name__", True, "'json' can't be called"),
    ],
)
def test_a_name_that_leads_nowhere_says_where_it_ends(monkeypatch, name, factory, said):
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(WrongUse, match=re.escape(said)):
        load(name, factory=factory, folder="/nowhere")


@pytest.mark.parametrize("arguments", [["a:b", "--app", "a:b"], ["--factory"]], ids=["twice", "nothing"])
def test_contradictions_are_wrong_use(arguments):
    assert main(arguments) == 2


def test_a_configuration_without_spans_is_a_problem(doctor, tmp_path):
    path = tmp_path / "otel.yaml"
    path.write_text('file_format: "1.0"\nresource:\n  attributes: [{name: service.name, value: declared}]\n')
    report = doctor.report("doctor_shop:app", OTEL_CONFIG_FILE=str(path), OTEL_AUDITSPAN_SPOOL_SYNC="perhaps")
    assert audited(report) == set()
    assert report["opentelemetry"]["service"] == "declared"
    assert report["spool"]["folder"].endswith("/declared")
    first, second = problems(report)
    assert "has no section tracer_provider" in first
    assert "OTEL_AUDITSPAN_SPOOL_SYNC='perhaps' is not usable" in second


# --- the collector -----------------------------------------------------------------------------------------------


def asked(timeout_s=10.0, **settings):
    report = Report()
    collector.ask(Settings(**settings), timeout_s, report)
    return report.parts["collector"], problems(report.as_json())


@pytest.mark.parametrize("kind", [otlp_peers.GrpcPeer, otlp_peers.HttpPeer], ids=["grpc", "http"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_collector_that_answers_is_healthy(tmp_path, kind, tls):
    (tmp_path / "ca.pem").write_text(otlp_peers.CERTIFICATE)
    peer = kind(tls=tls)
    try:
        part, found = asked(
            endpoint=peer.endpoint,
            protocol=peer.protocol,
            certificate_file=tmp_path / "ca.pem" if tls else None,
        )
        assert (part["accepted"], part["tls"], found) == (True, tls, [])
        if tls:
            part, found = asked(endpoint=peer.endpoint, protocol=peer.protocol)
            assert "OTEL_AUDITSPAN_CERTIFICATE" in found[0]
    finally:
        peer.stop()


@pytest.mark.parametrize("kind", [otlp_peers.GrpcPeer, otlp_peers.HttpPeer], ids=["grpc", "http"])
def test_refusals_say_what_to_do(kind):
    peer = kind()
    chosen = {"endpoint": peer.endpoint, "protocol": peer.protocol}
    try:
        peer.answer = lambda _: otlp_peers.STRANGER
        assert "It wants credentials: set OTEL_AUDITSPAN_HEADERS" in asked(**chosen)[1][0]
        headers = (("authorization", f"Bearer {SECRET}"),)
        assert "It refuses the credentials" in asked(**chosen, headers=headers)[1][0]
        peer.answer = lambda _: otlp_peers.AWAY
        assert "records wait in the spool" in asked(**chosen)[1][0]
    finally:
        peer.stop()
    assert "Nothing listens there" in asked(**chosen)[1][0]


@pytest.mark.parametrize(
    ("kind", "protocol"),
    [(otlp_peers.GrpcPeer, "http/protobuf"), (otlp_peers.HttpPeer, "grpc")],
    ids=["http-to-grpc", "grpc-to-http"],
)
def test_the_other_protocol_s_port_is_recognised(kind, protocol):
    peer = kind()
    try:
        assert (
            f"set OTEL_AUDITSPAN_PROTOCOL={peer.protocol}"
            in asked(3.0, endpoint=peer.endpoint, protocol=protocol)[1][0]
        )
    finally:
        peer.stop()


def test_an_answer_that_repeats_the_token_is_masked():
    chosen = Settings(headers=(("authorization", f"Bearer {SECRET}"),))
    assert collector.masked(f"who is {SECRET}?", chosen) == "who is ***?"


# --- the spool and the counters ----------------------------------------------------------------------------------


def looked(folder, **settings):
    report = Report()
    spool.look(Settings(spool_dir=folder, **settings), report)
    return report.as_json()


def test_what_waits_is_counted_while_its_process_writes_it(tmp_path):
    mine = Spool(tmp_path / "spool")
    for number in range(3):
        mine.append(payload(str(number), size=100))
    part = looked(mine.folder)["spool"]
    assert (part["records"], part["exists"], part["writable"], part["left_over"]) == (3, True, True, [])
    assert part["bytes"] == sum(path.stat().st_size for path in mine.folder.glob("*.spool"))
    segment = mine.next_segment()
    mine.acknowledge(segment, segment.read(2, 1 << 20).end, 2)
    assert looked(mine.folder)["spool"]["records"] == 1
    mine.close()
    (left,) = looked(mine.folder)["spool"]["left_over"]
    assert left["records"] == 1


def test_a_record_that_still_counts_is_told_apart_from_what_waits(tmp_path):
    mine = Spool(tmp_path / "spool")
    assert looked(mine.folder)["spool"]["tallies"] == 0
    count = mine.open_tally(Pieces(b"resource", b"scope", b"span", b"", b""))
    for end_ns in (5, 6, 7):
        count.add(end_ns)
    part = looked(mine.folder)["spool"]
    assert (part["tallies"], part["counted"], part["records"]) == (1, 3, 0)
    assert part["bytes"] >= count.path.stat().st_size
    count.path.write_bytes(b"torn")
    part = looked(mine.folder)["spool"]
    assert (part["tallies"], part["counted"]) == (1, 0)
    mine.close()


def test_torn_bytes_and_half_a_record_are_not_counted(tmp_path):
    mine = Spool(tmp_path)
    mine.append(payload("whole"))
    mine.close()
    (path,) = tmp_path.glob("*.spool")
    content = path.read_bytes()
    path.write_bytes(b"torn" + content + content[:-1])
    assert looked(tmp_path)["spool"]["records"] == 1


def test_what_is_in_the_way_of_the_spool_is_a_problem(tmp_path):
    (tmp_path / "file").write_text("no folder")
    (problem,) = problems(looked(tmp_path / "file" / "spool"))
    assert "can't be made" in problem
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o755)
    (problem,) = problems(looked(open_to_all))
    assert problem.endswith(f"chmod 700 {open_to_all}")
    (tmp_path / "link").symlink_to(open_to_all)
    assert any("is a link" in problem for problem in problems(looked(tmp_path / "link")))


def test_a_nearly_full_spool_and_what_was_set_aside_are_said(tmp_path):
    mine = Spool(tmp_path / "spool", max_bytes=1 << 20)
    while mine.append(payload("x", size=50_000)):
        pass
    segment = mine.next_segment()
    mine.set_aside(segment, payload("bad"))
    report = looked(mine.folder, spool_max_bytes=1 << 20)
    mine.close()
    assert any("when it is full, new records are dropped" in problem for problem in problems(report))
    assert report["spool"]["set_aside_files"] == 1


def test_losses_that_a_process_counted_are_problems(tmp_path):
    notes.write(tmp_path, "abc", DeliveryCounts(appended=3, oversize=1, last_error="x" * 1000))
    tmp_path.chmod(0o700)
    report = looked(tmp_path)
    assert problems(report) == [
        "1 records were lost, counted as oversize; docs/delivery.md says what that means"
    ]
    (process,) = report["counters"]["processes"]
    assert (process["stream"], process["pid"], process["running"]) == ("abc", os.getpid(), True)
    assert process["counts"]["appended"] == 3
