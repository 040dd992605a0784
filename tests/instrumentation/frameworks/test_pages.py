"""The examples of the frameworks' pages run as written, in real server processes, and do what the page says of them."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

import grpc
import pytest

from instrumentation import services

PAGES = Path(__file__).parents[3] / "docs/frameworks"
TESTS = Path(__file__).parents[2]
SHOP = TESTS / "instrumentation/core/apps/celery_shop.py"  # whose broker is files
WORKER = """
import celery_shop
from app import app

shop = celery_shop.make({broker!r})
app.conf.update(
    broker_transport_options=shop.conf.broker_transport_options, broker_connection_retry_on_startup=True
)
"""

ALICE = {"actor.id": "alice", "actor.origin": "authenticated", "actor.roles": ["sales", "support"]}
BOB = {"actor.id": "bob", "actor.origin": "authenticated", "actor.roles": ["sales"], "outcome": "denied"}
REFUND = {"action": "REFUND", "target.type": "orders", "target.id": "7"}


def example(page: str, folder: Path) -> Path:
    """The page's one program, as a file."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (PAGES / page).read_text(), re.MULTILINE | re.DOTALL)
    (folder / "app.py").write_text(code)
    return folder / "app.py"


def of(record, expected):
    return {name: record[name] for name in expected}


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}-token"} if name else {}


@pytest.fixture(scope="module", params=["fastapi", "flask"])
def web(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    example(f"{request.param}.md", folder)
    server = {
        "fastapi": services.uvicorn("app:app"),
        "flask": [str(services.BIN / "gunicorn"), "--bind", "127.0.0.1:{port}", "app:app"],
    }[request.param]
    service = services.start(folder, server, apps=folder)
    yield request.param, service
    service.stop()


@pytest.mark.parametrize(
    ("who", "expected"),
    [
        ("alice", ALICE | REFUND | {"outcome": "success", "actor.auth_method": "bearer"}),
        ("bob", BOB | REFUND),
        ("eve", REFUND | {"actor.id": "unknown", "outcome": "denied", "reason": "401 Unauthorized"}),
    ],
)
def test_a_web_framework_s_example_does_what_its_page_says(web, who, expected):
    _, service = web
    assert of(service.record("POST", "/orders/7/refund", headers=bearer(who)), expected) == expected


def test_flask_s_nobody_is_anonymous(web):
    name, service = web
    expected = {"actor.id": {"flask": "anonymous", "fastapi": "unknown"}[name], "outcome": "denied"}
    assert of(service.record("POST", "/orders/7/refund"), expected) == expected


@pytest.mark.parametrize(
    ("token", "status", "expected"),
    [
        ("alice-token", "OK", ALICE | {"action": "REFUND", "target.type": "Billing", "outcome": "success"}),
        (
            "eve-token",
            "UNAUTHENTICATED",
            {"actor.id": "unknown", "outcome": "denied", "reason": "UNAUTHENTICATED: who are you?"},
        ),
    ],
    ids=["alice", "eve"],
)
def test_grpc_s_example_does_what_its_page_says(billing, token, status, expected):
    trace_id = services.new_trace()
    metadata = [("authorization", token), *services.traceparent(trace_id).items()]
    with grpc.insecure_channel(f"127.0.0.1:{billing.port}") as channel:
        call = channel.unary_unary("/shop.v1.BillingService/Refund")
        try:
            call(b"7", metadata=metadata, timeout=20)
            answered = "OK"
        except grpc.RpcError as error:
            answered = error.code().name
    assert answered == status
    (record,) = billing.records(trace_id)
    assert of(record, expected) == expected


@pytest.fixture(scope="module")
def billing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpc")
    service = services.start(folder, [sys.executable, str(example("grpc.md", folder))], apps=folder)
    yield service
    service.stop()


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """A worker with the page's tasks, on a broker of files; and the application that publishes to it."""
    folder = tmp_path_factory.mktemp("celery")
    example("celery.md", folder)
    (folder / "worker.py").write_text(WORKER.format(broker=str(folder / "broker")))
    command = [str(services.BIN / "celery"), "--app", "worker:app", "worker", "--pool", "solo"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "warning"]
    settings = {"BROKER": "filesystem://", "PYTHONPATH": f"{SHOP.parent}{os.pathsep}{TESTS}"}
    service = services.start(folder, command, settings, apps=folder)
    spec = importlib.util.spec_from_file_location("celery_shop", SHOP)
    shop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shop)
    publisher = shop.make(folder / "broker")
    yield service, publisher
    publisher.close()
    service.stop()


def run(worker, task: str, *arguments: str) -> services.Written:
    service, publisher = worker
    task_id = publisher.send_task(task, arguments).id

    def found() -> list[services.Written]:
        return [record for record in services.spooled(service.spool) if record["target.id"] == task_id]

    (record,) = services.wait_for(found, "the run's record")
    return record


def test_celery_s_example_does_what_its_page_says(worker):
    service, _ = worker
    shipped = run(worker, "shipping.ship", "7", "alice")
    expected = {
        "action": "EXECUTE",
        "target.type": "shipping.ship",
        "actor.id": "alice",
        "outcome": "success",
    }
    assert of(shipped, expected) == expected
    (label,) = [record for record in service.records(shipped.trace_id, 2) if record["action"] == "LABEL"]
    expected = {"target.type": "orders", "target.id": "7", "actor.id": "alice"}
    assert of(label, expected) == expected
    assert label["parent.span_id"] == shipped.span.span_id.hex()


def test_celery_s_permission_error_is_denied(worker):
    refused = run(worker, "shipping.refund", "7")
    expected = {"actor.id": "unknown", "outcome": "denied", "reason": "managers only"}
    assert of(refused, expected) == expected


@pytest.mark.parametrize("page", sorted(path.name for path in PAGES.glob("*.md")))
def test_each_link_of_a_page_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (PAGES / page).read_text()):
        assert (PAGES / link).exists(), link


@pytest.mark.parametrize(
    ("page", "link", "heading"),
    [
        (path.name, link, heading)
        for path in sorted(PAGES.glob("*.md"))
        for link, heading in re.findall(r"\]\(([^)#:]+\.md)#([^)]+)\)", path.read_text())
    ],
)
def test_each_heading_that_a_page_links_to_is_there(page, link, heading):
    headings = re.findall(r"^#+ (.*)$", (PAGES / link).read_text(), re.MULTILINE)
    assert heading in {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings}
