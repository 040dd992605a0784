"""What Falcon's requests become, through everything that production runs but the disk and the network."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from auditspan.testing import capture, instrumented
from falcon.testing import TestClient
from opentelemetry.instrumentation.falcon import FalconInstrumentor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from auditspan.testing import Records

ALICE = {"actor": "alice", "actor_origin": "authenticated", "roles": ("sales", "support")}
BOB = {"actor": "bob", "actor_origin": "authenticated", "roles": ("sales",)}
REFUND = {"action": "REFUND", "target_type": "orders", "target_id": "7"}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with instrumented(FalconInstrumentor()):
        from falcon_shop import make_app  # noqa: PLC0415 - while the instrumentation runs

        yield TestClient(make_app())


@pytest.fixture
def records() -> Iterator[Records]:
    with capture() as records:
        yield records


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}-token"} if name else {}


@pytest.mark.parametrize(
    ("who", "path", "expected"),
    [
        ("", "/orders", {"actor": "anonymous", "action": "CREATE", "outcome": "success"}),
        ("alice", "/orders/7/refund", {**ALICE, **REFUND, "outcome": "success", "auth_method": "bearer"}),
        ("", "/orders/7/refund", {"actor": "anonymous", "outcome": "denied", "reason": "401 Unauthorized"}),
        ("bob", "/orders/7/refund", {**BOB, **REFUND, "outcome": "denied", "reason": "403 Forbidden"}),
        ("eve", "/orders/7/refund", {"actor": "unknown", "outcome": "denied", "reason": "401 Unauthorized"}),
        ("bob", "/orders/7/crash", {**BOB, "action": "CRASH", "outcome": "failure"}),
        ("bob", "/nowhere", {**BOB, "outcome": "failure", "target_type": ""}),
        ("bob", "/away", {**BOB, "outcome": "denied", "reason": "redirected to the login page"}),
        ("bob", "/streams/whole/export", {**BOB, "action": "EXPORT", "outcome": "success"}),
        (
            "bob",
            "/streams/part/export",
            {**BOB, "outcome": "failure", "reason": "the response was cut short"},
        ),
    ],
    ids=[
        "anonymous",
        "several-roles",
        "401",
        "403",
        "refused-by-middleware",
        "exception",
        "not-found",
        "sent-to-the-login-page",
        "stream",
        "stream-that-breaks-off",
    ],
)
def test_a_request_becomes_one_record(
    client: Any, records: Records, who: str, path: str, expected: dict[str, Any]
) -> None:
    with contextlib.suppress(OSError):
        client.simulate_post(path, headers=bearer(who))
    assert len(records) == 1
    records.expect(**expected)


def test_a_read_is_no_record(client: Any, records: Records) -> None:
    client.simulate_get("/orders", headers=bearer("alice"))
    records.expect_none()
