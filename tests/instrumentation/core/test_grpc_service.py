"""gRPC servers, sync and asyncio, with an authenticating interceptor of their own."""

from __future__ import annotations

import sys

import grpc
import pytest

SERVICE = "/shop.v1.BillingService"
UNKNOWN = {"actor.id": "unknown", "actor.origin": "unverified"}
ALICE = {
    "actor.id": "alice",
    "actor.type": "user",
    "actor.roles": ["admin", "sales"],
    "actor.origin": "authenticated",
    "actor.auth_method": "token",
}


class Caller:
    def __init__(self, service, tls_port: int, harness) -> None:
        self.service = service
        self.harness = harness
        certs = harness.HERE / "certs"
        self.plain = grpc.insecure_channel(f"127.0.0.1:{service.port}")
        self.gateway = grpc.secure_channel(
            f"127.0.0.1:{tls_port}",
            grpc.ssl_channel_credentials(
                (certs / "ca.pem").read_bytes(),
                (certs / "gateway.key").read_bytes(),
                (certs / "gateway.pem").read_bytes(),
            ),
        )

    def call(self, kind: str, method: str, request, *, channel=None, token: str = "") -> tuple[str, object]:
        trace_id = self.harness.new_trace()
        metadata = list(self.harness.traceparent(trace_id).items())
        if token:
            metadata.append(("authorization", token))
        callee = getattr(channel or self.plain, kind)(f"{SERVICE}/{method}")
        try:
            answer = callee(request, metadata=metadata, timeout=20)
            return trace_id, list(answer) if kind.endswith("stream") else answer
        except grpc.RpcError as error:
            return trace_id, error.code()

    def record(self, kind: str, method: str, request, **kwargs):
        trace_id, _ = self.call(kind, method, request, **kwargs)
        (record,) = self.service.records(trace_id)
        return record


@pytest.fixture(scope="module", params=["sync", "aio"])
def caller(request, tmp_path_factory, harness):
    tls_port = harness.free_port()
    service = harness.start(
        tmp_path_factory.mktemp(request.param),
        [sys.executable, "grpc_shop.py", request.param],
        {"TLS_PORT": str(tls_port), "OTEL_TRACES_SAMPLER": "always_off"},
    )
    caller = Caller(service, tls_port, harness)
    yield caller
    caller.plain.close()
    caller.gateway.close()
    service.stop()


@pytest.mark.parametrize(
    ("call", "token", "expected"),
    [
        (
            ("stream_unary", "UploadReceipts", iter([b"a", b"b"])),
            "token-of-alice",
            ALICE | {"action": "IMPORT", "outcome": "success"},
        ),
        (
            ("stream_stream", "Negotiate", iter([b"a", b"b"])),
            "token-of-alice",
            ALICE | {"action": "NEGOTIATE", "outcome": "success"},
        ),
    ],
    ids=[
        "request-stream",
        "both-streams",
    ],
)
def test_a_call_becomes_a_record(caller, call, token, expected):
    kind, method, request = call
    sent = list(request) if kind.startswith("stream") else request
    record = caller.record(kind, method, iter(sent) if isinstance(sent, list) else sent, token=token)
    assert {name: record[name] for name in expected} == expected
    assert record["target.type"] == "Billing"
    assert record.attributes["rpc.method"] == method


def test_a_service_with_a_certificate_is_the_actor(caller):
    record = caller.record("unary_unary", "ChargeCard", b"x", channel=caller.gateway)
    expected = {
        "actor.id": "spiffe://shop.test/gateway",
        "actor.type": "service",
        "actor.origin": "authenticated",
        "actor.auth_method": "mtls",
    }
    assert {name: record[name] for name in expected} == expected


def test_who_was_refused_is_known_by_the_certificate(caller):
    record = caller.record("unary_unary", "ChargeCard", b"x", channel=caller.gateway, token="made-up")
    assert (record["actor.id"], record["outcome"]) == ("spiffe://shop.test/gateway", "denied")


def test_one_calls_actor_is_never_the_next_ones(caller):
    for _ in range(30):
        caller.record("unary_unary", "ChargeCard", b"x", token="token-of-alice")
        assert caller.record("unary_unary", "ChargeCard", b"x")["actor.id"] == "unknown"


def test_the_service_says_nothing_unusual(caller):
    caller.record("unary_unary", "ChargeCard", b"x")
    assert "Auditspan" not in caller.service.log
