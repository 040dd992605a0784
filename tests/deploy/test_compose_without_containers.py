"""What compose.yaml starts works: the same commands with the same environments and the same collector.yaml.

Only names and places differ: containers become processes, service names loopback addresses, volumes folders, and the
ClickHouse server the embedded store with the two accounts of users.sql.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import loopback
import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "compose"
BIN = Path(sys.executable).parent
START_S = 40.0
STORED_WITHIN_S = 20.0
sys.path.insert(0, str(ROOT / "examples"))

from shop.running import Processes, accepts_connections, free_address  # noqa: E402 - from the examples, put on the path above

LISTENERS = (
    "clickhouse:8123",
    "collector:4317",
    "billing:8002",
    "orders:8001",
    "gateway:8000",
    "backoffice:8003",
)


class Compose:
    """compose.yaml, with a drawn .env and addresses of this machine in place of names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
        self.address = {name: free_address() for name in LISTENERS}
        target = folder / ".env"
        subprocess.run(
            [sys.executable, str(FOLDER / "new_env.py"), str(target)], check=True, capture_output=True
        )
        self.secrets = dict(re.findall(r'^(\w+)="(.*)"$', target.read_text(), re.MULTILINE))
        for name in ("shop_token", "shop_session_key", "audit_context_keys"):
            (folder / name).write_text(self.secrets[name.upper()])
            (folder / name).chmod(0o400)

    def here(self, text: str, service: str = "") -> str:
        """*text* with secrets filled in, and with places of this machine."""
        text = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda match: self.secrets[match[1]], text)
        for name, address in self.address.items():
            host, port = name.split(":")
            text = text.replace(name, address)
            if host == service:
                text = text.replace(f"0.0.0.0:{port}", address).replace(
                    f"--port={port}", f"--port={address[10:]}"
                )
                text = text.replace("--host=0.0.0.0", "--host=127.0.0.1")
        for place, folder in (
            ("/run/secrets", self.folder),
            ("/var/lib/auditspan", self.data(service)),
            ("/var/lib/shop", self.data("gateway")),
            ("/var/lib/queue", self.folder / "queue"),
            ("/var/lib/orders", self.data("orders")),
            ("/opt/shop/services", ROOT / "examples"),
        ):
            text = text.replace(place, str(folder))
        return text

    def environment(self, service: str) -> dict[str, str]:
        given = self.services[service].get("environment", {})
        return {
            "PATH": f"{BIN}:/usr/bin:/bin",
            "HOME": "/nonexistent",
            "PYTHONPATH": str(ROOT / "examples"),  # ENV of shop.Dockerfile
            **{name: self.here(value, service) for name, value in given.items()},
        }

    def data(self, service: str) -> Path:
        folder = self.folder / f"data-{service}"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def start(self, processes: Processes, service: str) -> None:
        command = [self.here(word, service) for word in self.services[service]["command"]]
        processes.start(
            service, [str(BIN / command[0]), *command[1:]], self.environment(service), self.data(service)
        )

    def checked_at(self, service: str) -> str:
        """The target of its health check."""
        target = self.services[service]["healthcheck"]["test"][-1]
        return re.sub(r"127\.0\.0\.1:(\d+)", lambda port: self.address[f"{service}:{port[1]}"], target)

    def auditspan(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`docker compose run --rm auditspan ...`"""
        environment = self.environment("auditspan")
        return subprocess.run(
            [str(BIN / "auditspan"), *arguments], env=environment, capture_output=True, text=True, check=False
        )


def healthy(target: str) -> bool:
    command = [sys.executable, str(ROOT / "deploy" / "docker" / "health.py"), target]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def run_once(compose: Compose, service: str, data_of: str) -> None:
    script = [word.replace("$$", "$") for word in compose.services[service]["command"]]
    subprocess.run(
        script,
        env=compose.environment(service),
        cwd=compose.data(data_of),
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def compose(tmp_path_factory):
    compose = Compose(tmp_path_factory.mktemp("compose"))
    accounts = [
        {"name": "auditspan_writer", "password": compose.secrets["AUDITSPAN_WRITER_PASSWORD"]},
        {
            "name": "auditspan_reader",
            "password": compose.secrets["AUDITSPAN_READER_PASSWORD"],
            "readonly": True,
        },
    ]
    store = {
        "path": str(compose.folder / "store"),
        "listen": compose.address["clickhouse:8123"],
        "users": accounts,
    }
    (compose.folder / "store.yaml").write_text(yaml.safe_dump({"store": store}))
    collector = compose.here((FOLDER / "collector.yaml").read_text(), "collector")
    for port in ("4318", "8888"):
        collector = collector.replace(f"0.0.0.0:{port}", free_address())
    collector = collector.replace("\nspool:\n", "\nspool:\n  allow_memory_filesystem: true\n")
    (compose.folder / "collector.yaml").write_text(collector)
    auditspan = str(BIN / "auditspan")
    own = {"PATH": "/usr/bin:/bin", "HOME": str(compose.folder)}
    with Processes(compose.folder) as processes:
        processes.start("store", [auditspan, "store", "--config", "store.yaml"], own, compose.folder)
        processes.wait_until(
            "store", lambda: accepts_connections(compose.address["clickhouse:8123"]), START_S
        )
        # The command of collector.Dockerfile, with this folder's file.
        command = [auditspan, "collect", "--config", "collector.yaml"]
        processes.start("collector", command, compose.environment("collector"), compose.folder)
        processes.wait_until("collector", lambda: healthy(compose.address["collector:4317"]), START_S)
        run_once(compose, "shop-people", "gateway")
        run_once(compose, "backoffice-people", "backoffice")
        compose.start(processes, "shipping")
        for service in ("billing", "orders", "gateway", "backoffice"):
            compose.start(processes, service)
            target = compose.checked_at(service)
            processes.wait_until(service, lambda target=target: healthy(target), START_S)
        yield compose


def found(compose: Compose, trace_of: str, count: int) -> list[dict[str, object]]:
    """The records of the trace in which somebody did *trace_of*, when there are *count*."""
    deadline = time.monotonic() + STORED_WITHIN_S
    while True:
        found = compose.auditspan("search", "--format", "json")
        assert found.returncode == 0, found.stderr
        rows = json.loads(found.stdout)
        traces = {row["trace_id"] for row in rows if row["action"] == trace_of}
        rows = [row for row in rows if row["trace_id"] in traces]
        if len(rows) >= count or time.monotonic() > deadline:
            return rows
        time.sleep(0.1)


def said(rows: list[dict[str, object]]) -> set[tuple[object, ...]]:
    return {(row["service_name"], row["action"], row["actor_id"], row["actor_delegate"]) for row in rows}


def test_an_order_and_its_refund_in_the_back_office_are_recorded_in_all_services(compose):
    url = f"http://{compose.address['gateway:8000']}/orders"
    bob = ("bob", compose.secrets["SHOP_BOB_PASSWORD"])
    order = loopback.post(url, auth=bob, json={"item": "lamp", "quantity": 2}, timeout=20).json()["order_id"]
    with loopback.Client(base_url=f"http://{compose.address['backoffice:8003']}", timeout=20) as alice:
        alice.get("/login/")
        token = {"csrfmiddlewaretoken": alice.cookies["csrftoken"]}
        alice.post(
            "/login/", data={"username": "alice", "password": compose.secrets["SHOP_ALICE_PASSWORD"], **token}
        )
        token = {"csrfmiddlewaretoken": alice.cookies["csrftoken"]}
        form = {"action": "refund", "_selected_action": str(order), "reason": "broken", **token}
        assert alice.post("/shop/order/", data=form).status_code == 302
    ordered, refunded = found(compose, "CHARGE", 8), found(compose, "REFUND", 6)
    assert said(ordered) == {
        ("gateway", "CREATE", "bob", ""),
        ("orders", "CREATE", "bob", "gateway"),
        ("orders", "UPDATE", "bob", "gateway"),
        ("billing", "CHARGE", "bob", "gateway"),
        ("billing", "CREATE", "bob", "gateway"),
        ("shipping", "EXECUTE", "bob", "gateway"),
        ("shipping", "CREATE", "bob", "gateway"),
    }
    assert said(refunded) == {
        ("backoffice", "EXECUTE", "alice", ""),
        ("backoffice", "UPDATE", "alice", ""),
        ("orders", "REFUND", "alice", "backoffice"),
        ("orders", "UPDATE", "alice", "backoffice"),
        ("billing", "REFUND", "alice", "backoffice"),
        ("billing", "UPDATE", "alice", "backoffice"),
    }
    for rows in (ordered, refunded):
        assert len({row["trace_id"] for row in rows}) == 1


def test_the_reader_of_compose_can_not_remove_anything(compose):
    refused = compose.auditspan("sql", "DROP TABLE records")
    assert refused.returncode == 1
    assert "READONLY" in refused.stderr
