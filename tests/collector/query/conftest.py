"""Records, and a store with them in it."""

from __future__ import annotations

import itertools
import uuid
from contextlib import contextmanager

import pytest
from auditspan_collector.query.rows import StoredRecord
from auditspan_collector.record import AuditRecord
from collector.query import shop_day
from collector.query.commands import Commands
from collector.query.shelf import Shelf, serving

_numbers = itertools.count()

START_NS = 1_795_516_200_000_000_000  # 2026-11-24 10:30:00 UTC


def _record(**changes):
    """A record of alice's; a plain one, with *changes*."""
    plain = {
        "leaf_version": 1,
        "start_time_unix_ns": START_NS,
        "received_time_unix_ms": START_NS // 1_000_000 + 50,
        "duration_ns": 12_300_000,
        "trace_id": bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736"),
        "span_id": bytes.fromhex("00f067aa0ba902b7"),
        "parent_span_id": bytes(8),
        "audit_parent_span_id": bytes(8),
        "trace_state": "",
        "span_name": "POST /orders/{order_id}/refund",
        "span_kind": "Server",
        "status_code": "Unset",
        "status_message": "",
        "service_name": "gateway",
        "tenant": "default",
        "record_id": uuid.UUID("01936f5e-0000-7000-8000-000000000001").bytes,
        "actor_id": "alice",
        "actor_type": "user",
        "actor_origin": "authenticated",
        "actor_roles": ("support",),
        "actor_session": "",
        "actor_auth_method": "basic",
        "actor_delegate": "",
        "reason": "",
        "action": "CREATE",
        "outcome": "success",
        "target_type": "order",
        "target_id": "1234",
        "client_address": "192.0.2.7",
        "sequence_stream": "gateway-1",
        "sequence_number": 1,
        "scope_name": "opentelemetry.instrumentation.fastapi",
        "scope_version": "0.66b1",
        "flags": 257,
        "dropped_attributes_count": 0,
        "dropped_events_count": 0,
        "dropped_links_count": 0,
        "resource_dropped_attributes_count": 0,
        "scope_dropped_attributes_count": 0,
        "resource_schema_url": "",
        "scope_schema_url": "",
        "attributes": (("http.request.method", "POST"), ("http.response.status_code", "200")),
        "attribute_types": (("http.response.status_code", "int"),),
        "resource_attributes": (("service.name", "gateway"),),
        "resource_attribute_types": (),
        "resource_entity_refs": "",
        "scope_attributes": (),
        "scope_attribute_types": (),
        "events": (),
        "links": (),
    }
    return AuditRecord(**{**plain, **changes})


def _stored(index=0, *, stream="default/collector/00", **changes):
    return StoredRecord(stream, index, _record(**changes))


@pytest.fixture(scope="session")
def make_record():
    """A factory of AuditRecords."""
    return _record


@pytest.fixture(scope="session")
def make_stored():
    """A factory of StoredRecords."""
    return _stored


@pytest.fixture(scope="session")
def store_url(tmp_path_factory):
    """A running embedded store's address."""
    with serving(tmp_path_factory.mktemp("store")) as url:
        yield url


@contextmanager
def _shelf(url, database=None):
    shelf = Shelf(url, database or f"t{next(_numbers)}")
    yield shelf
    shelf.client.execute(f"DROP DATABASE {shelf.database}")
    shelf.client.close()


@pytest.fixture
def shelf(store_url):
    """An empty `Shelf`."""
    with _shelf(store_url) as shelf:
        yield shelf


@pytest.fixture(scope="session")
def shop(store_url, make_record):
    """A `Shelf` with the shop's day in it, in the database ``audit``; nothing may be added."""
    with _shelf(store_url, "audit") as shelf:
        shelf.add(*shop_day.records(make_record))
        yield shelf


@pytest.fixture(scope="module")
def module_shelf(store_url):
    """A `Shelf` that the tests of a module fill and read together."""
    with _shelf(store_url) as shelf:
        yield shelf


@pytest.fixture
def auditspan(shelf):
    """Run a command on the test's own `shelf`."""
    return Commands(shelf)


@pytest.fixture(scope="session")
def ask_shop(shop):
    """Run a command on the `shop`."""
    return Commands(shop)
