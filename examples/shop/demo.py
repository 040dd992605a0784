"""Run the whole line on this machine: a small shop, its audit trail, and questions to it.

    make demo             starts everything on free ports, plays a short story, shows and checks the trail, stops
    make demo KEEP=1      leaves it running until Ctrl-C, and says how to reach it

Everything lies in .demo/ in the repository, or in the folder that is named as argument, made anew at each start. Exits 0 when every record that the story
should leave is there, with the right person, roles, action, target, outcome and service, and the refund is one
connected tree over three services; else 1, naming what is missing.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from shop.gateway.users import User, write
from shop.running import Failed, Processes, accepts_connections, free_address

if TYPE_CHECKING:
    from types import FrameType

    from shop.gateway.users import Role

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PEOPLE: dict[str, Role] = {"alice": "support", "bob": "customer", "carol": "admin"}
START_S = 30.0  # a process may take this long until it answers
QUERYABLE_WITHIN_S = (
    2.0  # the promise; measured from the response to the last record's being found by a query
)
GIVE_UP_S = 10.0
ORDER = 1001  # the shop's first
OWN_FILES = {
    "lock", "logs", "data", "records", "token", "context-keys", "users.json", "orders.db", "billing.db",
}  # fmt: skip


class Record(NamedTuple):
    """What a record must say; *delegate* is the service that knew the actor and vouched for them."""

    service: str
    actor: str
    origin: str
    roles: tuple[str, ...]
    action: str
    target: str
    outcome: str
    delegate: str = ""

    def __str__(self) -> str:
        via = f" via {self.delegate}" if self.delegate else ""
        roles = ",".join(self.roles) or "no role"
        return f"{self.service}: {self.actor} ({self.origin}{via}, {roles}) {self.action} {self.target} {self.outcome}"


class Service(NamedTuple):
    """A service of the shop, and how it is started."""

    name: str
    framework: str
    address: str
    command: list[str]


@dataclass(frozen=True)
class Act:
    """Somebody's request to the gateway, the status it must get, and the records it must leave."""

    who: str
    does: str
    request: str
    body: dict[str, object]
    status: int
    records: list[Record]
    password: str = ""  # instead of theirs


def across_all_three(who: str, role: str, action: str, in_billing: str, target: str) -> list[Record]:
    """The records of one request that passes all services: known at the gateway, vouched for behind it."""
    return [
        Record("gateway", who, "authenticated", (role,), action, target, "success"),
        Record("orders", who, "asserted", (role,), action, target, "success", "gateway"),
        Record("billing", who, "asserted", (role,), in_billing, "Billing", "success", "gateway"),
    ]


STORY = [
    Act(
        "bob", "orders two lamps", "POST /orders", {"item": "lamp", "quantity": 2}, 201,
        across_all_three("bob", "customer", "CREATE", "CHARGE", "orders"),
    ),
    Act(
        "alice", "mistypes her password", f"POST /orders/{ORDER}/refund", {"reason": "broken"}, 401,
        [Record("gateway", "anonymous", "unverified", (), "REFUND", f"orders:{ORDER}", "denied")],
        password="not-hers",
    ),
    Act(
        "alice", "refunds bob's order", f"POST /orders/{ORDER}/refund", {"reason": "broken"}, 200,
        across_all_three("alice", "support", "REFUND", "REFUND", f"orders:{ORDER}"),
    ),
    Act(
        "bob", "tries to become admin", "PUT /users/bob/role", {"role": "admin"}, 403,
        [Record("gateway", "bob", "authenticated", ("customer",), "UPDATE", "users:bob", "denied")],
    ),
]  # fmt: skip

DENIED_BY_ACTOR = """\
SELECT actor_id, count() AS denied, groupUniqArray(action), any(reason)
        FROM records WHERE outcome = 'denied' GROUP BY actor_id ORDER BY actor_id"""


@dataclass
class Demo:
    """The running demo: what was started, and what was found missing."""

    folder: Path
    processes: Processes
    passwords: dict[str, str] = field(default_factory=lambda: {name: secrets.token_hex(8) for name in PEOPLE})
    otlp: str = field(default_factory=free_address)
    gateway: str = field(default_factory=free_address)
    orders: str = field(default_factory=free_address)
    billing: str = field(default_factory=free_address)
    missing: list[str] = field(default_factory=list)
    slowest_s: float = 0.0  # from a response until its records could be queried

    # -- starting

    def start_auditspan(self) -> None:
        command = [
            str(BIN / "auditspan"), "up", "--data", str(self.folder / "data"),
            "--grpc-port", port_of(self.otlp), "--http-port", "0", "--store-port", "0", "--metrics-port", "0",
        ]  # fmt: skip
        self.processes.start("auditspan", command, clean_environment(), self.folder)
        seconds = self.processes.wait_until("auditspan", self._store_answers, START_S)
        done(f"auditspan up    store and collector, ready after {seconds:.1f} s; OTLP on {self.otlp}")

    def start_shop(self) -> None:
        private_file(self.folder / "token", secrets.token_hex(32))
        private_file(self.folder / "context-keys", f"demo {secrets.token_hex(32)}\n")
        write(
            self.folder / "users.json",
            {name: User.create(name, role, self.passwords[name]) for name, role in PEOPLE.items()},
        )
        services = self._services()
        for service in services:
            command = [str(BIN / "opentelemetry-instrument"), *service.command]
            self.processes.start(service.name, command, self._environment(service.name), self.folder)
        for service in services:
            self.processes.wait_until(service.name, partial(accepts_connections, service.address), START_S)
            command_line = f"opentelemetry-instrument {' '.join(service.command)}"
            done(f"{service.name:<8} {service.framework:<8} {shorten(command_line, 77, placeholder=' ...')}")

    def _services(self) -> list[Service]:
        gateway = ["uvicorn", "--factory", "shop.gateway.app:create_app", "--port", port_of(self.gateway)]
        orders = [
            "gunicorn",
            "--no-control-socket",
            "--bind",
            self.orders,
            "--threads",
            "8",
            "shop.orders.app:create_app()",
        ]
        return [
            Service("billing", "gRPC", self.billing, ["python", "-m", "shop.billing"]),
            Service("orders", "Flask", self.orders, orders),
            Service("gateway", "FastAPI", self.gateway, gateway),
        ]

    def _environment(self, service: str) -> dict[str, str]:
        return {
            **clean_environment(),
            "PYTHONPATH": str(ROOT / "examples"),
            "SHOP_TOKEN_FILE": str(self.folder / "token"),
            "SHOP_USERS_FILE": str(self.folder / "users.json"),
            "SHOP_ORDERS_URL": f"http://{self.orders}",
            "SHOP_ORDERS_DB": str(self.folder / "orders.db"),
            "SHOP_BILLING_LISTEN": self.billing,
            "SHOP_BILLING_TARGET": self.billing,
            "SHOP_BILLING_DB": str(self.folder / "billing.db"),
            # Where sqlite3's instrumentation is installed, each change of a table would be a record of its own, too.
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "sqlite3",
            # From here on, all that makes a service audited.
            "OTEL_SERVICE_NAME": service,
            "OTEL_AUDITSPAN_ENDPOINT": f"http://{self.otlp}",
            "OTEL_AUDITSPAN_SPOOL_DIR": str(self.folder / "records"),
            "OTEL_AUDITSPAN_CONTEXT_KEYS_FILE": str(self.folder / "context-keys"),
            "OTEL_AUDITSPAN_CONTEXT_DESTINATIONS": f"{self.orders},{self.billing}",
            # Ordinary traces would go to the collector too, if any were sampled.
            "OTEL_TRACES_SAMPLER": "always_off",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{self.otlp}",
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
        }

    # -- the story

    def play(self, act: Act, stored_before: int) -> None:
        """Do what *act* says; check the answer, and how soon its records can be queried."""
        method, path = act.request.split()
        auth = (act.who, act.password or self.passwords[act.who])
        response = httpx.request(method, f"http://{self.gateway}{path}", json=act.body, auth=auth, timeout=15)
        answered = time.monotonic()
        if response.status_code != act.status:
            self.missing.append(
                f"{act.who} {act.request}: status {act.status}; it was {response.status_code} {response.text}"
            )
        wanted = stored_before + len(act.records)
        while (stored := self._stored()) < wanted and time.monotonic() - answered < GIVE_UP_S:
            self.processes.check()
            time.sleep(0.02)
        seconds = time.monotonic() - answered
        self.slowest_s = max(self.slowest_s, seconds)
        count = f"{len(act.records)} record{'s' * (len(act.records) > 1)}"
        say(
            f"   {act.who:<6} {act.does:<22} {act.request:<25} {response.status_code}   {count} after {seconds:.2f} s"
        )
        if stored < wanted:
            self.missing.append(
                f"{act.who} {act.request}: {wanted - stored} of {count} after {GIVE_UP_S:.0f} s"
            )
        elif seconds > QUERYABLE_WITHIN_S:
            self.missing.append(
                f"{act.who} {act.request}: records within {QUERYABLE_WITHIN_S:.0f} s; they took {seconds:.2f} s"
            )

    def _stored(self) -> int:
        return int(self._query("SELECT count() FROM records"))

    def _store_answers(self) -> bool:
        try:
            self._stored()
        except (httpx.HTTPError, OSError, ValueError):
            return False
        return accepts_connections(self.otlp)

    def _query(self, sql: str) -> str:
        """What any ClickHouse client would do, with the reader's account that `auditspan up` leaves in its folder."""
        account = json.loads((self.folder / "data" / "connection").read_text(encoding="utf-8"))
        headers = {"X-ClickHouse-User": account["user"], "X-ClickHouse-Key": account["password"]}
        parameters = {"query": sql, "database": account["database"]}
        return (
            httpx.get(account["url"], params=parameters, headers=headers, timeout=5).raise_for_status().text
        )

    # -- the questions

    def show(self, *arguments: str) -> None:
        """Run an auditspan command for the reader, with its command line above."""
        shown = " ".join(f'"{argument}"' if " " in argument else argument for argument in arguments)
        say(f"   $ auditspan {shown}\n")
        self._auditspan(arguments, stdout=None, stderr=subprocess.STDOUT)
        say()

    def ask(self, *arguments: str) -> Any:
        """The JSON that an auditspan command prints."""
        return json.loads(self._auditspan(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE).stdout)

    def _auditspan(
        self, arguments: tuple[str, ...], stdout: int | None, stderr: int
    ) -> subprocess.CompletedProcess[str]:
        run = subprocess.run(
            [str(BIN / "auditspan"), *arguments],
            env={**clean_environment(), "AUDITSPAN_DATA": str(self.folder / "data")},
            stdout=stdout,
            stderr=stderr,
            text=True,
            timeout=START_S,
            check=False,
        )
        if run.returncode:
            raise Failed(f"auditspan {arguments[0]} ended with status {run.returncode}\n{run.stderr or ''}")
        return run

    def check_records(self, rows: list[dict[str, Any]]) -> None:
        """Compare what is stored with what the story must have left, both ways."""
        expected = Counter(record for act in STORY for record in act.records)
        stored = Counter(map(as_record, rows))
        self.missing += [f"record  {record}" for record in (expected - stored).elements()]
        self.missing += [f"nothing else; there is  {record}" for record in (stored - expected).elements()]

    def check_tree(self, tree: dict[str, Any]) -> None:
        """The refund must be one chain: gateway, orders, billing, each below the one that called it."""
        records = tree["records"]
        found = [(record["service_name"], record["depth"], record["place"]) for record in records]
        wanted = [("gateway", 0, "root"), ("orders", 1, "child"), ("billing", 2, "child")]
        if found != wanted:
            self.missing.append(f"one tree {wanted}; it is {found}")
        if len({record["trace_id"] for record in records}) != 1:
            self.missing.append("one trace id for the refund")


def as_record(row: dict[str, Any]) -> Record:
    """A row of `auditspan search --format json`."""
    target = ":".join(filter(None, (row["target_type"], row["target_id"])))
    return Record(
        row["service_name"], row["actor_id"], row["actor_origin"], tuple(row["actor_roles"]),
        row["action"], target, row["outcome"], row["actor_delegate"],
    )  # fmt: skip


def clean_environment() -> dict[str, str]:
    """This process's environment without what could change how the demo's processes behave."""
    foreign = ("OTEL_", "AUDITSPAN_", "SHOP_", "PYTHON", "KEEP")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def port_of(address: str) -> str:
    """The port of ``host:port``."""
    return address.rpartition(":")[2]


def private_file(path: Path, content: str) -> None:
    """Write *content* to *path*, readable by this user only from the first moment."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)


def say(text: str = "") -> None:
    """Tell the reader."""
    print(text, flush=True)


def done(text: str) -> None:
    """Tell the reader what worked."""
    say(f"   \N{CHECK MARK} {text}")


def take_folder(folder: Path) -> int:
    """Make *folder* empty and this process's own; the lock ends with the returned descriptor."""
    folder.mkdir(mode=0o700, exist_ok=True)
    foreign = sorted({entry.name for entry in folder.iterdir()} - OWN_FILES)
    if foreign:
        raise Failed(
            f"{folder} holds other things ({foreign[0]}), which the demo would delete; name another folder"
        )
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Failed(
            f"{folder} belongs to a demo that still runs; stop that one first (Ctrl-C there)"
        ) from None
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != "lock":
            entry.unlink()
    (folder / "logs").mkdir()
    return lock


def run(demo: Demo) -> None:
    """Start everything, play the story, show and check what is left of it."""
    say("Auditspan: a small shop, its audit trail, and questions to it\n\n1  Start")
    demo.start_auditspan()
    demo.start_shop()
    say("   No service has a line of audit code. Ordinary sampling is 0 %: audit records are complete")
    say("   all the same.")

    say("\n2  What happens in the shop, and how soon it can be queried")
    stored = 0
    for act in STORY:
        demo.play(act, stored)
        stored += len(act.records)

    say("\n3  Who did what")
    columns = "actor,roles,action,target,outcome,service,trace"
    demo.show("search", "--oldest-first", "--columns", columns)
    rows = demo.ask("search", "--format", "json")
    demo.check_records(rows)

    say("4  The refund across three services")
    refunds = [row["trace_id"] for row in rows if row["action"] == "REFUND" and row["outcome"] == "success"]
    if refunds:
        demo.show("trace", refunds[0])
        demo.check_tree(demo.ask("trace", refunds[0], "--format", "json"))
    else:
        demo.missing.append("the refund")

    say("5  A question in SQL: what was denied, and to whom")
    demo.show("sql", DENIED_BY_ACTOR)


def report(demo: Demo) -> int:
    """Say what is missing; the exit status."""
    if demo.missing:
        say("\n".join(["Missing:", *(f"   \N{BALLOT X} {what}" for what in demo.missing)]))
        say(f"   The processes' logs are in {demo.folder / 'logs'}.")
        return 1
    count = sum(len(act.records) for act in STORY)
    done(f"all {count} records are there and nothing else: person, roles, action, target, outcome, service")
    done(
        f"the slowest could be queried {demo.slowest_s:.2f} s after its response; {QUERYABLE_WITHIN_S:.0f} s are allowed"
    )
    done("the refund is one connected tree over gateway, orders and billing, under one trace id")
    return 0


def keep(demo: Demo) -> None:
    """Leave everything running until Ctrl-C, and say how to reach it."""
    url = f"http://{demo.gateway}/orders"
    a_book = '{"item": "book", "quantity": 1}'
    say("\nIt runs until Ctrl-C. In another terminal:\n")
    say(f"  export AUDITSPAN_DATA={demo.folder / 'data'} PATH={BIN}:$PATH")
    say(f"  curl --user alice:{demo.passwords['alice']} {url}/{ORDER}")
    say(f"  curl --user bob:{demo.passwords['bob']} {url} --json '{a_book}'")
    say("  auditspan search --follow")
    say(f"\n  carol's password (admin) is {demo.passwords['carol']}; logs are in {demo.folder / 'logs'}")
    try:
        while True:
            demo.processes.check()
            time.sleep(0.5)
    except KeyboardInterrupt:
        say("\nStopping.")


def stop_on_sigterm(_: int, __: FrameType | None) -> NoReturn:
    """End as Ctrl-C would: the processes are stopped on the way out."""
    raise KeyboardInterrupt


def main(folder: Path) -> int:
    """The exit status."""
    os.umask(0o077)  # what the processes write is for this user only
    signal.signal(signal.SIGTERM, stop_on_sigterm)
    try:
        lock = take_folder(folder)
        with Processes(folder / "logs") as processes:
            demo = Demo(folder, processes)
            run(demo)
            status = report(demo)
            if os.environ.get("KEEP") == "1":
                keep(demo)
        os.close(lock)
        return status
    except (Failed, httpx.HTTPError, subprocess.TimeoutExpired) as problem:
        say(f"\n\N{BALLOT X} {problem}")
        return 1
    except KeyboardInterrupt:
        say("\nStopped.")
        return 130


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else ROOT / ".demo"))
