"""The shop by itself, without auditing: what its five services answer, in real processes on free ports."""

from __future__ import annotations

import html
import json
import os
import re
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import loopback
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from shop.shipping import queue  # noqa: E402 - from the examples, put on the path above

BIN = Path(sys.executable).parent
START_S = 20.0
STOP_S = 10.0
SERVICES = ("gateway", "orders", "billing", "shipping", "backoffice")
CLERKS = {"alice": "clerk", "dave": "trainee"}
PEOPLE = {"alice": "support", "bob": "customer", "carol": "admin", "dave": "customer"}


@dataclass
class Shop:
    """The running services, and how to speak to them."""

    folder: Path
    environment: dict[str, str]
    passwords: dict[str, str]
    gateway: str
    orders: str
    billing: str
    backoffice: str
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, env=self.environment, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT
            )

    def start_billing(self) -> None:
        self.start("billing", sys.executable, "-m", "shop.billing")
        wait_for(self, "billing", self.billing)

    def start_shipping(self) -> None:
        command = [
            "celery",
            "--app",
            "shop.shipping.worker",
            "worker",
            "--queues",
            "shipping",
            "--concurrency",
            "2",
        ]
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "info"]
        self.start("shipping", str(BIN / command[0]), *command[1:], *quiet)

    def stop(self, name: str) -> int:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def ask(self, method: str, path: str, who: str = "", password: str = "", **kwargs) -> httpx.Response:
        auth = (who, password or self.passwords[who]) if who else None
        return loopback.request(method, f"http://{self.gateway}{path}", auth=auth, timeout=10, **kwargs)

    @contextmanager
    def back_office(self, who: str, password: str = "") -> Iterator[Browser]:
        with loopback.Client(base_url=f"http://{self.backoffice}", timeout=15) as client:
            yield Browser(client, who, password or self.passwords[who])

    def order(self, who: str = "bob") -> int:
        response = self.ask("POST", "/orders", who, json={"item": "book", "quantity": 2})
        assert response.status_code == 201, response.text
        return response.json()["order_id"]


class Browser:
    """Somebody at the back office, who has tried to sign in."""

    def __init__(self, client: httpx.Client, who: str, password: str) -> None:
        self.client = client
        client.get("/login/")
        self.answer = self.post("/login/", username=who, password=password, next="/")

    def post(self, path: str, **form: str) -> httpx.Response:
        return self.client.post(path, data={**form, "csrfmiddlewaretoken": self.client.cookies["csrftoken"]})

    def told(self) -> str:
        page = self.client.get("/shop/order/").text
        return html.unescape(" ".join(re.findall(r'<li class="(?:info|error)">(.*?)</li>', page, re.DOTALL)))

    def refund(self, order: int, reason: str = "broken") -> httpx.Response:
        return self.post("/shop/order/", action="refund", _selected_action=str(order), reason=reason)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def wait_for(shop: Shop, name: str, address: str) -> None:
    host, port = address.split(":")
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            log = (shop.folder / f"{name}.log").read_text()
            assert shop.processes[name].poll() is None, f"{name} ended: {log}"
            assert time.monotonic() < deadline, f"{name} does not listen: {log}"
            time.sleep(0.05)
        else:
            return


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    (folder / "token").write_text(secrets.token_urlsafe(32))
    (folder / "session-key").write_text(secrets.token_urlsafe(32))
    gateway, orders, billing, backoffice = (free_address() for _ in range(4))
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(EXAMPLES),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SHOP_TOKEN_FILE": str(folder / "token"),
        "SHOP_SECRET_KEY_FILE": str(folder / "session-key"),
        "SHOP_USERS_FILE": str(folder / "users.json"),
        "SHOP_ORDERS_URL": f"http://{orders}",
        "SHOP_BILLING_TARGET": billing,
        "SHOP_BILLING_LISTEN": billing,
    }
    passwords = {name: secrets.token_hex(8) for name in PEOPLE}
    shop = Shop(folder, environment, passwords, gateway, orders, billing, backoffice)
    for name, role in PEOPLE.items():
        add_user(shop, name, role, shop.passwords[name])
    host, port = gateway.split(":")
    try:
        shop.start(
            "orders",
            str(BIN / "gunicorn"),
            "--no-control-socket",
            "--bind",
            orders,
            "--threads",
            "8",
            "shop.orders.app:create_app()",
        )
        shop.start(
            "gateway",
            str(BIN / "uvicorn"),
            "--factory",
            "shop.gateway.app:create_app",
            "--host",
            host,
            "--port",
            port,
        )
        shop.start_shipping()
        add_clerks(shop)
        gunicorn = [str(BIN / "gunicorn"), "--no-control-socket", "--bind", backoffice, "--threads", "4"]
        shop.start("backoffice", *gunicorn, "shop.backoffice.wsgi")
        shop.start_billing()
        wait_for(shop, "orders", orders)
        wait_for(shop, "gateway", gateway)
        wait_for(shop, "backoffice", backoffice)
        yield shop
    finally:
        for name in list(shop.processes):
            shop.stop(name)


def add_user(shop: Shop, name: str, role: str, password: str) -> None:
    command = [sys.executable, "-m", "shop.gateway.users", str(shop.folder / "users.json"), name, role]
    subprocess.run(command, input=password.encode(), env=shop.environment, check=True, capture_output=True)


def add_clerks(shop: Shop) -> None:
    people = [f"{name}:{group}" for name, group in CLERKS.items()]
    passwords = "".join(f"{shop.passwords[name]}\n" for name in CLERKS)
    command = [sys.executable, "-W", "error", "-m", "shop.backoffice.people", *people]
    subprocess.run(command, input=passwords.encode(), env=shop.environment, cwd=shop.folder, check=True)


def rows(file: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        return db.execute(query).fetchall()


def test_an_order_is_placed_paid_and_refunded_across_all_three_services(shop):
    placed = shop.ask("POST", "/orders", "bob", json={"item": "lamp", "quantity": 2})
    assert placed.status_code == 201
    order = placed.json()
    assert order == {
        "order_id": order["order_id"],
        "customer": "bob",
        "item": "lamp",
        "quantity": 2,
        "amount_cents": 9000,
        "invoice_id": f"INV-{order['order_id']}",
        "state": "paid",
    }
    refunded = shop.ask("POST", f"/orders/{order['order_id']}/refund", "alice", json={"reason": "broken"})
    assert (refunded.status_code, refunded.json()) == (200, {**order, "state": "refunded"})
    assert shop.ask("GET", f"/orders/{order['order_id']}", "bob").json()["state"] == "refunded"


def test_a_second_refund_is_a_conflict(shop):
    order = shop.order()
    assert shop.ask("POST", f"/orders/{order}/refund", "alice", json={"reason": "broken"}).status_code == 200
    again = shop.ask("POST", f"/orders/{order}/refund", "alice", json={"reason": "broken"})
    assert (again.status_code, again.json()) == (409, {"detail": f"order {order} was refunded before"})


@pytest.mark.parametrize(
    ("who", "password", "detail"),
    [
        ("alice", "not-her-password", "wrong name or password"),
        ("mallory", "anything", "wrong name or password"),
        ("", "", "sign in first"),
    ],
    ids=["wrong password", "nobody of that name", "no credentials"],
)
def test_who_does_not_prove_who_they_are_gets_401_with_a_challenge(shop, who, password, detail):
    response = shop.ask("POST", "/orders", who, password, json={"item": "book", "quantity": 1})
    assert (response.status_code, response.json()) == (401, {"detail": detail})
    assert response.headers["WWW-Authenticate"].startswith("Basic realm=")


def test_malformed_credentials_are_wrong_credentials(shop):
    response = shop.ask("GET", "/orders/1", headers={"Authorization": "Basic !!!"})
    assert (response.status_code, response.json()) == (401, {"detail": "malformed Basic credentials"})


@pytest.mark.parametrize(
    ("who", "request_line", "body", "needed"),
    [
        ("bob", "POST /orders/1001/refund", {"reason": "please"}, "support"),
        ("carol", "POST /orders/1001/refund", {"reason": "please"}, "support"),
        ("bob", "PUT /users/bob/role", {"role": "admin"}, "admin"),
        ("alice", "PUT /users/alice/role", {"role": "admin"}, "admin"),
    ],
)
def test_what_a_role_may_not_do_is_403(shop, who, request_line, body, needed):
    response = shop.ask(*request_line.split(), who, json=body)
    assert (response.status_code, response.json()) == (403, {"detail": f"this needs the role {needed}"})


def test_an_admin_gives_a_role_that_counts_at_once_and_stays_on_disk(shop):
    order = shop.order("bob")
    assert shop.ask("GET", f"/orders/{order}", "dave").status_code == 404
    changed = shop.ask("PUT", "/users/dave/role", "carol", json={"role": "support"})
    assert (changed.status_code, changed.json()) == (200, {"user": "dave", "role": "support"})
    assert shop.ask("GET", f"/orders/{order}", "dave").status_code == 200
    users = shop.folder / "users.json"
    assert users.stat().st_mode & 0o777 == 0o600
    assert not any(password in users.read_text() for password in shop.passwords.values())


def test_a_role_for_nobody_is_404_and_a_role_that_is_none_is_422(shop):
    assert shop.ask("PUT", "/users/nobody/role", "carol", json={"role": "support"}).status_code == 404
    assert shop.ask("PUT", "/users/bob/role", "carol", json={"role": "emperor"}).status_code == 422


def test_an_order_is_shown_to_its_customer_and_to_support_only(shop):
    order = shop.order("bob")
    seen = {who: shop.ask("GET", f"/orders/{order}", who).status_code for who in ("bob", "alice", "carol")}
    assert seen == {"bob": 200, "alice": 200, "carol": 404}


def test_an_order_that_is_not_there_is_404(shop):
    assert shop.ask("GET", "/orders/7", "alice").status_code == 404
    assert shop.ask("POST", "/orders/7/refund", "alice", json={"reason": "broken"}).status_code == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [({"item": "book", "quantity": 0}, 422), ({"item": "moon", "quantity": 1}, 400), ({}, 422)],
    ids=["no quantity", "not sold here", "empty"],
)
def test_an_order_that_makes_no_sense_is_refused(shop, body, status):
    assert shop.ask("POST", "/orders", "bob", json=body).status_code == status


def test_orders_refuses_callers_that_are_not_of_the_shop(shop):
    url = f"http://{shop.orders}/orders/1001"
    assert loopback.get(url).status_code == 401
    assert loopback.get(url, headers={"Authorization": "Bearer guess"}).status_code == 401
    assert loopback.get(f"http://{shop.orders}/health").json() == {"status": "ok"}


def test_billing_refuses_callers_that_are_not_of_the_shop_and_answers_health_checks(shop):
    with grpc.insecure_channel(shop.billing) as channel:
        refund = channel.unary_unary("/shop.billing.v1.Billing/Refund")
        with pytest.raises(grpc.RpcError) as refused:
            refund(b"", timeout=5, metadata=(("authorization", "Bearer guess"),))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        health = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert health(b"", timeout=5) == b"\x08\x01"  # SERVING


def test_billing_says_in_status_codes_why_not(shop):
    metadata = (("authorization", "Bearer " + (shop.folder / "token").read_text()),)
    unknown_invoice = b"\x0a\x05INV-0"
    with grpc.insecure_channel(shop.billing) as channel:
        for method, request, code in [
            ("Charge", b"", grpc.StatusCode.INVALID_ARGUMENT),
            ("Refund", unknown_invoice, grpc.StatusCode.NOT_FOUND),
            ("GetInvoice", unknown_invoice, grpc.StatusCode.NOT_FOUND),
        ]:
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(f"/shop.billing.v1.Billing/{method}")(
                    request, timeout=5, metadata=metadata
                )
            assert refused.value.code() is code, method


def test_with_billing_down_an_order_and_a_refund_are_502_and_work_again_afterwards(shop):
    order = shop.order()
    assert shop.stop("billing") == 0
    try:
        assert shop.ask("POST", "/orders", "bob", json={"item": "book", "quantity": 1}).status_code == 502
        refund = shop.ask("POST", f"/orders/{order}/refund", "alice", json={"reason": "broken"})
        assert (refund.status_code, refund.json()) == (502, {"detail": "billing failed"})
    finally:
        shop.start_billing()
    deadline = time.monotonic() + START_S  # gRPC's channel waits before it connects again
    while True:
        refund = shop.ask("POST", f"/orders/{order}/refund", "alice", json={"reason": "broken"})
        if refund.status_code != 502 or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert refund.json()["state"] == "refunded"


def parcels(shop: Shop, order: int) -> list[tuple[object, ...]]:
    query = f"SELECT customer, content FROM parcels WHERE order_id = {order}"
    return rows(shop.folder / "shipping.db", query) if (shop.folder / "shipping.db").exists() else []


def wait_until(what: Callable[[], bool], limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_was_paid_is_shipped_once_however_often_the_queue_says_so(shop):
    order = shop.order("dave")
    wait_until(lambda: parcels(shop, order) == [("dave", "2 x book")])
    publisher = queue.celery(shop.folder / "queue")
    task = {"customer": "dave", "content": "2 x book"}
    publisher.send_task(queue.SEND, (order,), task, task_id=str(order), queue=queue.NAME)
    publisher.close()
    wait_until(lambda: f"order {order}: was sent before" in (shop.folder / "shipping.log").read_text())
    assert parcels(shop, order) == [("dave", "2 x book")]


def test_orders_are_taken_while_shipping_is_away_and_shipped_afterwards(shop):
    assert shop.stop("shipping") == 0
    order = shop.order("bob")
    assert parcels(shop, order) == []
    shop.start_shipping()
    wait_until(lambda: parcels(shop, order) == [("bob", "2 x book")])


def test_a_message_has_its_name_when_it_is_whole(tmp_path, monkeypatch):
    publisher = queue.celery(tmp_path)
    named = Path.rename

    def rename(unnamed: Path, name: Path) -> Path:
        assert list(unnamed.parent.glob("*.msg")) == []
        assert json.loads(unnamed.read_text())["headers"]["id"] == "7"
        return named(unnamed, name)

    monkeypatch.setattr(Path, "rename", rename)
    publisher.send_task(queue.SEND, (7, "bob", "a lamp"), task_id="7", queue=queue.NAME)
    publisher.close()
    (message,) = (tmp_path / "messages").iterdir()
    assert message.suffix == ".msg"


def test_a_clerk_signs_in_and_gives_money_back_and_the_admin_site_keeps_a_log(shop):
    order = shop.order("bob")
    with shop.back_office("alice") as alice:
        assert (alice.answer.status_code, alice.answer.headers["Location"]) == (302, "/")
        assert f">{order}</a>" in alice.client.get("/shop/order/").text
        assert alice.refund(order).status_code == 302
        assert f"Order {order}: the money goes back" in alice.told()
        assert "gave the money back" in alice.client.get(f"/shop/order/{order}/history/").text
        assert alice.refund(order).status_code == 302
        assert f"order {order} was refunded before" in alice.told()
    assert shop.ask("GET", f"/orders/{order}", "bob").json()["state"] == "refunded"
    (reason,) = rows(
        shop.folder / "invoices.db", f"SELECT refund_reason FROM invoices WHERE order_id = '{order}'"
    )
    assert reason == ("broken",)


def test_a_refund_without_a_reason_is_refused_by_orders_and_the_clerk_is_told(shop):
    order = shop.order("bob")
    with shop.back_office("alice") as alice:
        alice.refund(order, reason="")
        assert "reason: say why the money goes back" in alice.told()
    assert shop.ask("GET", f"/orders/{order}", "bob").json()["state"] == "paid"


def test_a_trainee_may_look_and_not_give_money_back(shop):
    order = shop.order("bob")
    with shop.back_office("dave") as dave:
        assert f">{order}</a>" in dave.client.get("/shop/order/").text
        assert dave.refund(order).status_code == 403
    assert shop.ask("GET", f"/orders/{order}", "bob").json()["state"] == "paid"


def test_nobody_changes_an_order_in_the_back_office_itself(shop):
    order = shop.order("bob")
    with shop.back_office("alice") as alice:
        for path in (f"/shop/order/{order}/change/", f"/shop/order/{order}/delete/", "/shop/order/add/"):
            assert alice.post(path, item="moon", post="yes").status_code == 403, path


def test_who_does_not_prove_who_they_are_stays_outside_the_back_office(shop):
    with shop.back_office("alice", "not-her-password") as mallory:
        assert mallory.answer.status_code == 200
        assert "Please enter the correct username and password" in mallory.answer.text
        away = mallory.client.get("/shop/order/")
        assert (away.status_code, away.headers["Location"]) == (302, "/login/?next=/shop/order/")
    with shop.back_office("bob") as customer:  # known at the gateway only
        assert customer.answer.status_code == 200


def test_the_shop_has_no_line_of_audit_or_telemetry_code():
    services = [path for name in SERVICES for path in (EXAMPLES / "shop" / name).rglob("*.py")]
    assert len(services) > 25
    for path in [*services, EXAMPLES / "shop" / "service_token.py"]:
        source = path.read_text().lower()
        assert "auditspan" not in source, path
        assert "opentelemetry" not in source, path


def test_the_generated_code_is_what_the_proto_gives(tmp_path):
    source = EXAMPLES / "shop" / "billing" / "v1"
    code = f"import sys, pathlib; sys.path.insert(0, {str(source)!r}); import generate; generate.generate(pathlib.Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    generated = sorted((tmp_path / "shop" / "billing" / "v1").iterdir())
    assert [path.name for path in generated] == ["billing_pb2.py", "billing_pb2.pyi", "billing_pb2_grpc.py"]
    for path in generated:
        assert path.read_bytes() == (source / path.name).read_bytes(), (
            f"{path.name}: run billing/v1/generate.py"
        )
