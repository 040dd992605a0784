"""The shop by itself, without auditing: what its three services answer, in real processes on free ports."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
BIN = Path(sys.executable).parent
START_S = 20.0
STOP_S = 10.0
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
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, env=self.environment, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT
            )

    def start_billing(self) -> None:
        self.start("billing", sys.executable, "-m", "shop.billing")
        wait_for(self, "billing", self.billing)

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
        return httpx.request(method, f"http://{self.gateway}{path}", auth=auth, timeout=10, **kwargs)

    def order(self, who: str = "bob") -> int:
        response = self.ask("POST", "/orders", who, json={"item": "book", "quantity": 2})
        assert response.status_code == 201, response.text
        return response.json()["order_id"]


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
    gateway, orders, billing = free_address(), free_address(), free_address()
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(EXAMPLES),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SHOP_TOKEN_FILE": str(folder / "token"),
        "SHOP_USERS_FILE": str(folder / "users.json"),
        "SHOP_ORDERS_URL": f"http://{orders}",
        "SHOP_BILLING_TARGET": billing,
        "SHOP_BILLING_LISTEN": billing,
    }
    shop = Shop(
        folder, environment, {name: secrets.token_hex(8) for name in PEOPLE}, gateway, orders, billing
    )
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
        shop.start_billing()
        wait_for(shop, "orders", orders)
        wait_for(shop, "gateway", gateway)
        yield shop
    finally:
        for name in list(shop.processes):
            shop.stop(name)


def add_user(shop: Shop, name: str, role: str, password: str) -> None:
    command = [sys.executable, "-m", "shop.gateway.users", str(shop.folder / "users.json"), name, role]
    subprocess.run(command, input=password.encode(), env=shop.environment, check=True, capture_output=True)


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
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers={"Authorization": "Bearer guess"}).status_code == 401
    assert httpx.get(f"http://{shop.orders}/health").json() == {"status": "ok"}


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


def test_the_shop_has_no_line_of_audit_or_telemetry_code():
    services = [
        path for name in ("gateway", "orders", "billing") for path in (EXAMPLES / "shop" / name).rglob("*.py")
    ]
    assert len(services) > 10
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
