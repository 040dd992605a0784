"""Services in other languages, with their stock OpenTelemetry SDK: what the collector makes of what they say."""

from __future__ import annotations

import re
import secrets
import uuid
from pathlib import Path

import loopback
import pytest
from collector.service.otlp_peer import wait_until
from integration.whole_line import WholeLine, request
from languages.services_of_others import EXAMPLES, TOKENS, Service, built, to_run
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

GUIDE = (Path(__file__).parents[2] / "docs/other-languages.md").read_text()
SENDERS = f"""
  senders:
    - {{name: stock, token: {TOKENS["stock"]}, services: ["orders*"]}}
    - {{name: trusted, token: {TOKENS["trusted"]}, services: ["orders*"], instrumented: true}}
{re.search(r"^tagging:.*?(?=^```)", GUIDE, re.MULTILINE | re.DOTALL)[0]}
telemetry:"""
COLUMNS = (
    "service_name", "actor_id", "actor_type", "arraySort(actor_roles)", "actor_auth_method", "actor_origin",
    "action", "outcome", "target_type", "target_id", "client_address", "span_kind",
)  # fmt: skip
REFUND = {"action": "REFUND", "target_type": "orders", "target_id": "7", "client_address": "127.0.0.1"}


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    line = WholeLine(tmp_path_factory.mktemp("line"))
    line.config.write_text(line.config.read_text().replace("\ntelemetry:", SENDERS, 1))
    try:
        line.start_store()
        line.start_collector()
        wait_until(line.has_table, limit_s=60, what="the table")
        yield line
    finally:
        line.stop()


@pytest.fixture(scope="module", params=to_run(), ids=lambda language: language.name)
def program(request, tmp_path_factory):
    return request.param, built(request.param, tmp_path_factory.mktemp(request.param.name))


@pytest.fixture(scope="module")
def service(program, line):
    service = Service(*program, line, "stock")
    yield service
    service.stop()


def records(line, trace_id: str) -> list[dict[str, object]]:
    condition = f"trace_id = unhex('{trace_id}')"
    rows = line.rows(f"SELECT {', '.join(COLUMNS)} FROM audit.records WHERE {condition}")
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def record(line, trace_id: str) -> dict[str, object]:
    (found,) = wait_until(lambda: records(line, trace_id), limit_s=60, what="the record")
    return found


ALICE = {"actor_id": "alice", "actor_type": "user", "arraySort(actor_roles)": ["sales", "support"]}
BOB = {"actor_id": "bob", "arraySort(actor_roles)": ["sales"], "actor_auth_method": "bearer"}


@pytest.mark.timeout(900)  # the first build downloads and compiles the SDK
@pytest.mark.parametrize(
    ("who", "status", "expected"),
    [
        ("alice", 200, ALICE | {"outcome": "success"}),
        ("bob", 403, BOB | {"outcome": "denied"}),
        ("", 401, {"actor_id": "anonymous", "outcome": "denied"}),
    ],
    ids=["done", "forbidden", "nobody"],
)
def test_what_a_service_says_is_a_record_and_its_actor_is_unverified(line, service, who, status, expected):
    trace_id = secrets.token_hex(16)
    assert service.call("POST", "/orders/7/refund", trace_id, who) == status
    expected = expected | REFUND | {"actor_origin": "unverified", "service_name": service.name}
    found = record(line, trace_id)
    assert {name: found[name] for name in expected} == expected
    assert found["span_kind"] == "Server"


@pytest.mark.timeout(900)
def test_a_request_that_says_nothing_is_no_record(line, service):
    silent, said = secrets.token_hex(16), secrets.token_hex(16)
    service.call("GET", "/orders/7", silent, "alice")
    service.call("POST", "/orders/8/refund", said, "alice")
    record(line, said)
    assert records(line, silent) == []


@pytest.mark.timeout(900)
def test_a_sender_that_may_speak_of_actors_is_believed(line, program):
    service = Service(*program, line, "trusted")
    try:
        trace_id = secrets.token_hex(16)
        service.call("POST", "/orders/9/refund", trace_id, "alice")
        found = record(line, trace_id)
        assert (found["actor_id"], found["actor_origin"]) == ("alice", "authenticated")
    finally:
        service.stop()


@pytest.mark.timeout(900)
def test_what_a_stopped_service_had_not_sent_yet_arrives(line, program):
    language, folder = program
    service = Service(language, folder, line, "stock")
    trace_id = secrets.token_hex(16)
    service.call("POST", "/orders/10/refund", trace_id, "alice")
    service.stop()
    assert record(line, trace_id)["target_id"] == "10"


@pytest.mark.timeout(900)
def test_a_rule_makes_a_record_of_what_says_nothing(line, service):
    trace_id = secrets.token_hex(16)
    assert service.call("DELETE", "/orders/7", trace_id, "alice") in {404, 405}
    found = record(line, trace_id)
    expected = {"action": "DELETE", "outcome": "failure", "actor_id": "unknown", "actor_origin": "unverified"}
    assert {name: found[name] for name in expected} == expected


# -- what the collector does, whoever sends


def send(line, token: str, **attributes: str) -> str:
    record_id = str(uuid.uuid4())
    post(line, token, request([record_id], **attributes))
    return uuid.UUID(record_id).hex


def post(line, token: str, body: bytes) -> None:
    answer = loopback.post(
        f"http://127.0.0.1:{line.http}/v1/traces",
        content=body,
        headers={"content-type": "application/x-protobuf", "authorization": f"Bearer {token}"},
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("token", "said", "origin"),
    [
        (TOKENS["stock"], "authenticated", "unverified"),
        (TOKENS["stock"], "", "unverified"),
        (TOKENS["trusted"], "authenticated", "authenticated"),
        (TOKENS["trusted"], "asserted", "asserted"),
        (TOKENS["trusted"], "", "unverified"),
    ],
)
def test_how_far_an_actor_is_believed(line, token, said, origin):
    trace_id = send(line, token, **{"audit.actor.origin": said} if said else {})
    assert record(line, trace_id)["actor_origin"] == origin


ALIASES = re.findall(r"^\| `(\w+)` \| `(audit\.[\w.]+)` \| (`.*`) \|$", GUIDE, re.MULTILINE)


@pytest.mark.parametrize(
    ("column", "alias"),
    [(column, alias) for column, _, aliases in ALIASES for alias in re.findall(r"`([^`]+)`", aliases)],
)
def test_a_name_of_another_convention_fills_the_column(line, column, alias):
    told = {"audit.actor.id": "", "audit.action": "", alias: "told"}
    trace_id = send(line, TOKENS["stock"], **told)
    found = line_value(line, column, trace_id)
    assert found in ("told", "TOLD", ["told"])


def line_value(line, column: str, trace_id: str) -> object:
    query = f"SELECT {column} FROM audit.records WHERE trace_id = unhex('{trace_id}')"
    ((found,),) = wait_until(lambda: line.rows(query), limit_s=60, what="the record")
    return found


def test_an_alias_alone_makes_no_record(line):
    body = request([record_id := str(uuid.uuid4())]).replace(b"audit.", b"other.")
    post(line, TOKENS["stock"], body)
    record(line, send(line, TOKENS["stock"]))
    assert records(line, uuid.UUID(record_id).hex) == []


def test_a_service_that_nobody_can_change_is_read_by_the_rules_of_the_page(line):
    message = ExportTraceServiceRequest.FromString(request([str(uuid.uuid4())]))
    (group,) = message.resource_spans
    group.resource.attributes[0].value.string_value = "orders-legacy-2"
    (span,) = group.scope_spans[0].spans
    span.name, span.kind = "POST /invoices", Span.SPAN_KIND_SERVER
    del span.attributes[:]
    told = {"http.request.method": "POST", "invoice.number": "88", "app.login": "carol"}
    for key, value in told.items():
        span.attributes.add(key=key).value.string_value = value
    span.attributes.add(key="http.response.status_code").value.int_value = 201
    post(line, TOKENS["trusted"], message.SerializeToString())
    found = record(line, span.trace_id.hex())
    expected = {
        "service_name": "orders-legacy-2",
        "actor_id": "carol",
        "actor_origin": "unverified",
        "action": "CREATE",
        "outcome": "success",
        "target_type": "invoices",
        "target_id": "88",
    }
    assert {name: found[name] for name in expected} == expected
    assert line_value(line, "attributes['auditspan.tagged']", span.trace_id.hex()) == "invoices"


# -- the page


def test_there_are_as_many_aliases_on_the_page_as_in_the_schema():
    from auditspan_collector.schema import FILLED_FROM

    documented = {
        (column, name) for column, first, rest in ALIASES for name in (first, *re.findall(r"`([^`]+)`", rest))
    }
    aliased = {column: named for column, named in FILLED_FROM.items() if named[0].startswith("audit.")}
    assert documented == {
        (column, name) for column, named in aliased.items() if len(named) > 1 for name in named
    }


@pytest.mark.parametrize(
    ("file", "block"),
    re.findall(r"^<!-- (\S+) -->\n```\w+\n(.*?)```$", GUIDE, re.MULTILINE | re.DOTALL),
    ids=lambda value: value if "/" in value and "\n" not in value else "",
)
def test_what_the_page_shows_is_in_the_example(file, block):
    assert block in (EXAMPLES / file).read_text()


def test_the_page_shows_each_language():
    assert set(re.findall(r"^<!-- (\w+)/", GUIDE, re.MULTILINE)) == {"node", "go", "java", "dotnet"}
    assert {folder.name for folder in EXAMPLES.iterdir() if folder.is_dir()} == {
        "node",
        "go",
        "java",
        "dotnet",
    }
