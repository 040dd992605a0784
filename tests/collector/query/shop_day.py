"""A day in a small shop, as its audit trail: what docs/querying.md and the tests of the commands ask about."""

from __future__ import annotations

import hashlib
import uuid
from datetime import UTC, datetime

MS = 1_000_000
_SUPPORT = ("support", "refunds")


def _ns(clock: str) -> int:
    moment = datetime.fromisoformat(f"2026-11-24T{clock}").replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000) * MS


def _trace(name: str) -> bytes:
    return hashlib.md5(name.encode(), usedforsecurity=False).digest()


def records(make_record):
    """Twelve records: two people and a job act, one mistypes a password, one asks for too much; one got lost."""
    alice = {"actor_id": "alice@shop.example", "actor_roles": _SUPPORT, "client_address": "192.0.2.17"}
    bob = {"actor_id": "bob@shop.example", "actor_roles": ("customer",), "client_address": "198.51.100.4"}
    asserted = {"actor_origin": "asserted", "client_address": "10.0.3.2"}
    login = {"span_name": "POST /login", "action": "LOGIN", "target_type": "", "target_id": ""}
    order = {"span_name": "POST /orders", "action": "CREATE", "target_type": "order", "target_id": "1234"}
    refund = {
        "span_name": "POST /orders/{order_id}/refund",
        "action": "CREATE",
        "target_type": "order",
        "target_id": "1234",
    }
    happened = [
        ("08:59:12.101", "login-alice", 0x11, 0, 41, {**alice, **login}),
        ("09:02:44.310", "login-wrong", 0x12, 0, 212, {
            **bob, **login, "actor_id": "anonymous", "actor_roles": (), "actor_origin": "unverified", "outcome": "denied",
            "reason": "wrong password"}),
        ("09:02:58.774", "login-bob", 0x13, 0, 44, {**bob, **login}),
        ("09:05:30.050", "order", 0x21, 0, 63, {**bob, **order}),
        ("09:05:30.061", "order", 0x22, 0x21, 48, {**bob, **order, **asserted, "service_name": "orders"}),
        ("09:41:07.512", "refund", 0x31, 0, 96, {**alice, **refund}),
        ("09:41:07.520", "refund", 0x32, 0x31, 81, {**alice, **refund, **asserted, "service_name": "orders"}),
        ("09:41:07.544", "refund", 0x33, 0x32, 37, {
            **alice, **asserted, "service_name": "billing", "span_name": "shop.v1.Billing/Refund", "action": "EXECUTE",
            "target_type": "payment", "target_id": "pay_8842",
            "attributes": (("payment.amount", "49.90"), ("payment.currency", "EUR"))}),
        ("10:15:22.004", "role", 0x41, 0, 9, {
            **bob, "span_name": "PUT /users/{user_id}/roles", "action": "GRANT", "outcome": "denied",
            "target_type": "user", "target_id": "bob@shop.example", "reason": "needs the role admin"}),
        ("11:30:00.902", "charge", 0x51, 0, 1480, {
            **bob, **order, "target_id": "1235", "outcome": "failure", "reason": "card expired"}),
        ("12:00:00.000", "export", 0x61, 0, 5230, {
            "actor_id": "svc-reports", "actor_type": "service", "actor_roles": (), "service_name": "reports",
            "span_name": "export orders", "action": "EXPORT", "target_type": "report", "target_id": "orders-2026-11",
            "client_address": ""}),
        ("16:20:51.340", "purge", 0x71, 0, 18, {
            **alice, "span_name": "DELETE /orders/{order_id}", "action": "DELETE", "target_type": "order",
            "target_id": "1199", "reason": "customer asked"}),
    ]  # fmt: skip
    emitted: dict[str, int] = {}
    built = []
    for clock, trace, span, parent, took_ms, changes in happened:
        service = changes.get("service_name", "gateway")
        # The gateway's fourth record was lost on the way.
        emitted[service] = emitted.get(service, 0) + 1 + (service == "gateway" and emitted.get(service) == 3)
        built.append(
            make_record(
                **{
                    "start_time_unix_ns": _ns(clock),
                    "received_time_unix_ms": _ns(clock) // MS + took_ms + 30,
                    "duration_ns": took_ms * MS,
                    "trace_id": _trace(trace),
                    "span_id": span.to_bytes(8, "big"),
                    "audit_parent_span_id": parent.to_bytes(8, "big"),
                    "record_id": uuid.UUID(int=span).bytes,
                    "sequence_stream": f"{service}-7f3a",
                    "sequence_number": emitted[service],
                    **changes,
                }
            )
        )
    return built
