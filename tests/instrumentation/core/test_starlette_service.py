"""A Starlette service whose authentication is added after construction."""

from __future__ import annotations

import pytest

ALICE = ("alice", "alice-password")


@pytest.fixture(scope="module")
def service(tmp_path_factory, harness):
    service = harness.start(tmp_path_factory.mktemp("starlette"), harness.uvicorn("starlette_shop:app"))
    yield service
    service.stop()


@pytest.mark.parametrize(
    ("request_line", "auth", "expected"),
    [
        (
            ("POST", "/orders/7/approve"),
            ALICE,
            {"actor.id": "alice", "action": "CREATE", "target.type": "orders", "target.id": "7/approve"},
        ),
        (
            ("POST", "/orders/7/approve"),
            ("alice", "guess"),
            {
                "actor.id": "anonymous",
                "outcome": "denied",
                "reason": "wrong password",
                "target.id": "7/approve",
            },
        ),
        (("GET", "/private"), None, {"outcome": "denied", "reason": "401 Unauthorized", "action": "READ"}),
        (
            ("DELETE", "/inner/files/a/b/c.txt"),
            ALICE,
            {"actor.id": "alice", "action": "DELETE", "target.type": "files", "target.id": "a/b/c.txt"},
        ),
    ],
    ids=["authenticated", "refused-by-late-middleware", "denied-read", "mounted-path"],
)
def test_a_request_becomes_a_record(service, request_line, auth, expected):
    record = service.record(*request_line, auth=auth)
    assert {name: record[name] for name in expected} == expected
