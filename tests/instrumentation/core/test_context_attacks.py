"""What strangers can do with the audit-context of a request: nothing, and the record says what they tried."""

from __future__ import annotations

import subprocess
import sys
import time

import grpc
import pytest
from auditspan.context import Actor
from auditspan.propagation import KeyRing, Tokens, new_key
from auditspan.propagation.tokens import Claims

SECRET = "k1 thirty-two-characters-at-the-very-least"
PRIVATE, PUBLIC = new_key.lines("gateway-1", ed25519=True)
TRACE, OTHER_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736", "0af7651916cd43dd8448eb211c80319c"
SPAN = "00f067aa0ba902b7"
TRACEPARENT = ("traceparent", f"00-{TRACE}-{SPAN}-00")
CHARGE = "/shop.v1.BillingService/ChargeCard"


def token(keys: str = SECRET, trace_id: str = TRACE, *, queue: bool = False, age_s: float = 0.0) -> str:
    signer = Tokens(KeyRing.from_text(keys), clock=lambda: time.time() - age_s)
    return signer.sign(Claims(trace_id, Actor("mallory"), SPAN, "gateway"), queue=queue)


class Asked:
    """A service, and how to make it do something that is audited."""

    def __init__(self, kind: str, service, harness) -> None:
        self.kind = kind
        self.wait_for, self.spooled = harness.wait_for, harness.spooled
        self.service = service
        self.channel = grpc.insecure_channel(f"127.0.0.1:{service.port}") if kind == "grpc" else None
        self.seen = 0

    def record(self, *headers: tuple[str, str], on_trace: bool = True):
        if self.channel is not None:
            assert self.channel.unary_unary(CHARGE)(b"x", metadata=headers, timeout=20) == b"x"
        else:
            method, path = ("PUT", "/orders/7") if self.kind == "fastapi" else ("POST", "/orders")
            url = f"http://127.0.0.1:{self.service.port}{path}"
            assert self.service.client.request(method, url, headers=list(headers)).status_code in (200, 201)
        self.seen += 1
        last = self.wait_for(
            lambda: [r for r in self.spooled(self.service.spool) if r["sequence.number"] == self.seen],
            f"record {self.seen}",
        )[0]
        assert (last.trace_id == TRACE) is on_trace
        return last


@pytest.fixture(scope="module", params=["fastapi", "flask", "grpc"])
def asked(request, tmp_path_factory, harness):
    folder = tmp_path_factory.mktemp(request.param)
    keys = folder / "keys"
    keys.write_text(f"{SECRET}\n{PUBLIC}\n")
    keys.chmod(0o600)
    command = {
        "fastapi": harness.uvicorn("fastapi_shop:app"),
        "flask": [sys.executable, "flask_shop.py"],
        "grpc": [sys.executable, "grpc_shop.py", "sync"],
    }[request.param]
    service = harness.start(
        folder,
        command,
        {"OTEL_AUDITSPAN_CONTEXT_KEYS_FILE": str(keys), "TLS_PORT": str(harness.free_port())},
    )
    asked = Asked(request.param, service, harness)
    yield asked
    if asked.channel is not None:
        asked.channel.close()
    service.stop()


@pytest.mark.parametrize("keys", [SECRET, PRIVATE], ids=["a secret", "Ed25519"])
def test_a_good_token_says_who_acts_and_who_relays(asked, keys):
    record = asked.record(TRACEPARENT, ("audit-context", token(keys)))
    assert (record["actor.id"], record["actor.origin"], record["actor.delegate"]) == (
        "mallory",
        "asserted",
        "gateway",
    )
    assert record["parent.span_id"] == SPAN
    assert record["context.rejected"] is None


def context(value: str) -> list[tuple[str, str]]:
    return [TRACEPARENT, ("audit-context", value)]


def attacks() -> dict[str, tuple[list[tuple[str, str]], str | None]]:
    """Headers and the reason to reject them; made when they are used, since a token lives for a minute."""
    return {
        "forged": (context(token()[:-4] + "AAAA"), "bad_signature"),
        "forged with zeroes": (context(token(PRIVATE)[:-86] + "A" * 86), "bad_signature"),
        "replayed on another trace": (context(token(trace_id=OTHER_TRACE)), "wrong_trace"),
        "expired": (context(token(age_s=61)), "expired"),
        "expired long ago": (context(token(age_s=1e9)), "expired"),
        "from the future": (context(token(age_s=-60)), "expired"),
        "another secret": (context(token("k1 another-another-another-another-secret")), "bad_signature"),
        "another private key": (context(token(new_key.lines("gateway-1", ed25519=True)[0])), "bad_signature"),
        "a key that nobody has": (context(token(SECRET.replace("k1", "k2"))), "unknown_key"),
        "HMAC with the public key": (
            context(token(f"gateway-1 {PUBLIC.split()[2]}")),
            "wrong_algorithm",
        ),
        "Ed25519 under the id of the secret": (
            context(token(PRIVATE.replace("gateway-1", "k1"))),
            "wrong_algorithm",
        ),
        "a JWT that says alg none": (context("eyJhbGciOiJub25lIn0.eyJzdWIiOiJtYWxsb3J5In0."), "malformed"),
        "one for a queue": (context(token(queue=True)), "wrong_purpose"),
        "doubled in one header": (context(f"{token()}, {token()}"), "malformed"),
        "over-long": (context(token()[:-44] + "A" * 4000 + token()[-44:]), "malformed"),
        "a name": (context("mallory"), "malformed"),
        "empty": (context(""), "malformed"),
        "baggage of ours": ([TRACEPARENT, ("baggage", "audit.actor.id=mallory")], "unsigned"),
        "baggage with a user": ([TRACEPARENT, ("baggage", "user.id=mallory,user.roles=admin")], "unsigned"),
        "baggage with an end user": ([TRACEPARENT, ("baggage", "enduser.id=mallory")], "unsigned"),
        "headers": (
            [TRACEPARENT, *((n, "mallory") for n in ("audit.actor.id", "user.id", "enduser.id"))],
            None,
        ),
    }


def assert_nobody(record, reason: str | None) -> None:
    assert record["actor.id"] in ("unknown", "anonymous")
    assert record["actor.origin"] == "unverified"
    assert record["context.rejected"] == reason
    assert (record["parent.span_id"], record["actor.delegate"]) == (None, None)
    ours = {name: text for name, text in record.attributes.items() if name.startswith("audit.")}
    assert "mallory" not in str(ours)


def test_an_attack_makes_no_actor_and_is_recorded_with_its_reason(asked):
    for headers, reason in attacks().values():
        assert_nobody(asked.record(*headers), reason)


def test_a_token_without_a_trace_counts_for_nothing(asked):
    record = asked.record(("audit-context", token()), on_trace=False)
    assert_nobody(record, "wrong_trace")


def test_a_doubled_header_is_rejected_whichever_of_the_two_is_good(asked):
    if asked.kind == "grpc":  # the instrumentation keeps the last of equal names
        assert_nobody(asked.record(*context(token()), ("audit-context", "forged")), "malformed")
        return
    for pair in ((token(), token()), (token(), "forged"), ("forged", token())):
        record = asked.record(TRACEPARENT, *(("audit-context", value) for value in pair))
        assert_nobody(record, "malformed")


def test_rejections_are_counted_in_the_service_s_metrics(tmp_path):
    code = f"""
from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
trace.set_tracer_provider(TracerProvider())
from auditspan.bootstrap import pre_instrument
pre_instrument()
good, queued = {token()!r}, {token(queue=True)!r}
tracer = trace.get_tracer("t")
for value in (good, queued, good[:-3] + "AAA", good[:-3] + "BBB", "mallory"):
    sent = propagate.extract({{"traceparent": {TRACEPARENT[1]!r}, "audit-context": value}}, Context())
    tracer.start_span("entry", sent, trace.SpanKind.SERVER).end()
propagate.extract({{"baggage": "user.id=mallory"}}, Context())
found = {{}}
for scope in reader.get_metrics_data().resource_metrics[0].scope_metrics:
    for metric in scope.metrics:
        if metric.name.startswith("auditspan.context."):
            for point in metric.data.data_points:
                found[metric.name, point.attributes.get("reason")] = point.value
assert found == {{
    ("auditspan.context.verified", None): 2,
    ("auditspan.context.rejected", "wrong_purpose"): 1,
    ("auditspan.context.rejected", "bad_signature"): 2,
    ("auditspan.context.rejected", "malformed"): 1,
    ("auditspan.context.rejected", "unsigned"): 1,
}}, found
import os
os._exit(0)  # nobody listens whom a record could be sent to
"""
    (tmp_path / "keys").write_text(SECRET)
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={
            "OTEL_AUDITSPAN_CONTEXT_KEYS_FILE": str(tmp_path / "keys"),
            "OTEL_AUDITSPAN_SPOOL_DIR": str(tmp_path / "spool"),
            "OTEL_AUDITSPAN_ENDPOINT": "http://127.0.0.1:9",
        },
    )
    assert done.returncode == 0, done.stderr
