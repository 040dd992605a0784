"""Run the whole line on this machine: a small shop, its audit trail, and questions to it.

    make demo             starts everything on free ports, plays a short story, shows and checks the trail, stops
    make demo KEEP=1      leaves it running until Ctrl-C, and says how to reach it

Everything lies in .demo/ in the repository, or in the folder that is named as argument, made anew at each start. Exits 0
when every record that the story (`story.py`) should leave is there, with the right person, roles, action, target, outcome
and service, and what belongs together is one connected tree; else 1, naming what is missing.
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from shop.gateway.users import User, write
from shop.running import Failed, Processes, accepts_connections, answers, free_address
from shop.story import CLERKS, ORDER, ORDERED, PEOPLE, REFUNDED, STORY, differences, torn

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from shop.story import Act, Record

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
START_S = 60.0  # a process may take this long until it answers
QUERYABLE_WITHIN_S = (
    2.0  # the promise; measured from the response to the last record's being found by a query
)
GIVE_UP_S = 10.0
OWN_FILES = {
    "lock", "logs", "data", "records", "queue", "token", "context-keys", "session-key", "users.json",
    "orders.db", "billing.db", "shipping.db", "backoffice.db",
}  # fmt: skip


class Service(NamedTuple):
    """A service of the shop, how it is started, and how it shows that it is ready."""

    name: str
    framework: str
    command: list[str]
    ready: Callable[[], bool]


DENIED_BY_ACTOR = """\
SELECT actor_id, count() AS denied, groupUniqArray(action), any(reason)
        FROM records WHERE outcome = 'denied' GROUP BY actor_id ORDER BY actor_id"""


CHANGES_OF_STATE = """\
SELECT actor_id, target_type, target_id,
        attributes['auditspan.change.before.state'] AS before,
        attributes['auditspan.change.after.state'] AS after
        FROM records WHERE after != '' ORDER BY start_time"""


@dataclass
class Demo:
    """The running demo: what was started, and what was found missing."""

    folder: Path
    processes: Processes
    passwords: dict[str, str] = field(
        default_factory=lambda: {name: secrets.token_hex(8) for name in (*PEOPLE, *CLERKS)}
    )
    sessions: dict[str, httpx.Cookies] = field(default_factory=dict)  # of the back office, by name
    otlp: str = field(default_factory=free_address)
    gateway: str = field(default_factory=free_address)
    orders: str = field(default_factory=free_address)
    billing: str = field(default_factory=free_address)
    backoffice: str = field(default_factory=free_address)
    missing: list[str] = field(default_factory=list)
    slowest_s: float = 0.0  # from a response until its records could be queried

    # -- starting

    def start(self) -> None:
        """Everything at once, and wait for it."""
        began = time.monotonic()
        command = [
            str(BIN / "auditspan"), "up", "--data", str(self.folder / "data"),
            "--grpc-port", port_of(self.otlp), "--http-port", "0", "--store-port", "0", "--metrics-port", "0",
        ]  # fmt: skip
        self.processes.start("auditspan", command, clean_environment(), self.folder)
        self._move_in()
        services = self._services()
        for service in services:
            command = [str(BIN / "opentelemetry-instrument"), *service.command]
            self.processes.start(service.name, command, self._environment(service.name), self.folder)
        self.processes.wait_until("auditspan", self._store_answers, START_S)
        done(f"{'auditspan up':<18} store and collector; OTLP on {self.otlp}")
        for service in services:
            self.processes.wait_until(service.name, service.ready, START_S)
            command_line = f"opentelemetry-instrument {' '.join(service.command)}"
            done(f"{service.name:<10} {service.framework:<7} {shorten(command_line, 76, placeholder=' ...')}")
        say(f"   Ready after {time.monotonic() - began:.1f} s.")

    def _move_in(self) -> None:
        """Secrets, and the people of the gateway and of the back office."""
        private_file(self.folder / "token", secrets.token_hex(32))
        private_file(self.folder / "session-key", secrets.token_hex(32))
        private_file(self.folder / "context-keys", f"demo {secrets.token_hex(32)}\n")
        write(
            self.folder / "users.json",
            {name: User.create(name, role, self.passwords[name]) for name, role in PEOPLE.items()},
        )
        clerks = [f"{name}:{group}" for name, group in CLERKS.items()]
        passwords = "".join(f"{self.passwords[name]}\n" for name in CLERKS)
        command = [sys.executable, "-m", "shop.backoffice.people", *clerks]
        self.processes.run("people", command, self._settings(), self.folder, given=passwords, limit_s=START_S)

    def _services(self) -> list[Service]:
        gunicorn = ["gunicorn", "--no-control-socket"]
        orders = [*gunicorn, "--bind", self.orders, "--threads", "8", "shop.orders.app:create_app()"]
        backoffice = [*gunicorn, "--bind", self.backoffice, "--threads", "4", "shop.backoffice.wsgi"]
        gateway = ["uvicorn", "--factory", "shop.gateway.app:create_app", "--port", port_of(self.gateway)]
        shipping = [
            "celery", "--app", "shop.shipping.worker", "worker", "--queues", "shipping", "--concurrency", "1",
            "--loglevel", "info", "--without-gossip", "--without-mingle", "--without-heartbeat",
        ]  # fmt: skip
        return [
            Service("shipping", "Celery", shipping, partial(self.processes.said, "shipping", " ready.")),
            Service("backoffice", "Django", backoffice, partial(answers, f"http://{self.backoffice}/health")),
            Service(
                "billing",
                "gRPC",
                ["python", "-m", "shop.billing"],
                partial(accepts_connections, self.billing),
            ),
            Service("orders", "Flask", orders, partial(answers, f"http://{self.orders}/health")),
            Service("gateway", "FastAPI", gateway, partial(answers, f"http://{self.gateway}/health")),
        ]

    def _settings(self) -> dict[str, str]:
        """The shop's own."""
        return {
            **clean_environment(),
            "PYTHONPATH": str(ROOT / "examples"),
            "SHOP_TOKEN_FILE": str(self.folder / "token"),
            "SHOP_SECRET_KEY_FILE": str(self.folder / "session-key"),
            "SHOP_USERS_FILE": str(self.folder / "users.json"),
            "SHOP_ORDERS_URL": f"http://{self.orders}",
            "SHOP_ORDERS_DB": str(self.folder / "orders.db"),
            "SHOP_BILLING_LISTEN": self.billing,
            "SHOP_BILLING_TARGET": self.billing,
            "SHOP_BILLING_DB": str(self.folder / "billing.db"),
            "SHOP_QUEUE_DIR": str(self.folder / "queue"),
            "SHOP_SHIPPING_DB": str(self.folder / "shipping.db"),
            "SHOP_BACKOFFICE_DB": str(self.folder / "backoffice.db"),
        }

    def _environment(self, service: str) -> dict[str, str]:
        """All that makes a service audited, beside its own settings."""
        return {
            **self._settings(),
            "OTEL_SERVICE_NAME": service,
            "OTEL_AUDITSPAN_ENDPOINT": f"http://{self.otlp}",
            "OTEL_AUDITSPAN_SPOOL_DIR": str(self.folder / "records"),
            "OTEL_AUDITSPAN_RULES": str(ROOT / "examples" / "shop" / "audit-rules.yaml"),
            "OTEL_AUDITSPAN_CONTEXT_KEYS_FILE": str(self.folder / "context-keys"),
            "OTEL_AUDITSPAN_CONTEXT_DESTINATIONS": f"{self.orders},{self.billing},queue:shipping",
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
        response = self._at_the_gateway(act) if act.where == "gateway" else self._in_the_back_office(act)
        answered = time.monotonic()
        told = f"{act.who} {act.request}"
        if response.status_code != act.status:
            self.missing.append(
                f"{told}: status {act.status}; it was {response.status_code} {response.text[:500]}"
            )
        wanted = stored_before + len(act.records)
        while (stored := self._stored()) < wanted and time.monotonic() - answered < GIVE_UP_S:
            self.processes.check()
            time.sleep(0.02)
        seconds = time.monotonic() - answered
        self.slowest_s = max(self.slowest_s, seconds)
        count = f"{len(act.records)} record{'s' * (len(act.records) > 1)}"
        say(
            f"   {act.who:<6} {act.does:<22} {act.where:<10} {act.request:<24} {response.status_code}"
            f"   {count} after {seconds:.2f} s"
        )
        if stored < wanted:
            self.missing.append(f"{told}: {wanted - stored} of {count} after {GIVE_UP_S:.0f} s")
        elif seconds > QUERYABLE_WITHIN_S:
            self.missing.append(
                f"{told}: records within {QUERYABLE_WITHIN_S:.0f} s; they took {seconds:.2f} s"
            )

    def _at_the_gateway(self, act: Act) -> httpx.Response:
        method, path = act.request.split()
        auth = (act.who, act.password or self.passwords[act.who])
        return httpx.request(method, f"http://{self.gateway}{path}", json=act.body, auth=auth, timeout=15)

    def _in_the_back_office(self, act: Act) -> httpx.Response:
        """As a browser does: what comes with the form, and the cookies of the session."""
        method, path = act.request.split()
        form = (
            {**act.body, "next": "/", "password": self.passwords[act.who]} if path == "/login/" else act.body
        )
        with httpx.Client(
            base_url=f"http://{self.backoffice}", cookies=self.sessions.get(act.who), timeout=15
        ) as browser:
            browser.get(path)
            form = {**form, "csrfmiddlewaretoken": browser.cookies["csrftoken"]}
            response = browser.request(method, path, data=form)
            self.sessions[act.who] = browser.cookies
        return response

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

    def check_tree(self, name: str, trace_id: str, expected: list[tuple[int, Record]]) -> None:
        """Show the records of one request, and check that they are one tree."""
        with ThreadPoolExecutor(1) as meanwhile:
            tree = meanwhile.submit(self.ask, "trace", trace_id, "--format", "json")
            self.show("trace", trace_id)
        self.missing += [f"{name}: {what}" for what in torn(tree.result(), expected)]


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
    foreign = sorted({entry.name.removesuffix("-journal") for entry in folder.iterdir()} - OWN_FILES)
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
    demo.start()
    say("   No service has a line of audit code. Ordinary sampling is 0 %: audit records are complete")
    say("   all the same.")

    say("\n2  What happens in the shop, and how soon it can be queried")
    stored = 0
    for act in STORY:
        demo.play(act, stored)
        stored += len(act.records)

    say("\n3  Who did what")
    columns = "actor,roles,action,target,outcome,service,trace"
    with ThreadPoolExecutor(1) as meanwhile:
        asked = meanwhile.submit(demo.ask, "search", "--oldest-first", "--format", "json")
        demo.show("search", "--oldest-first", "--columns", columns)
    rows = asked.result()
    demo.missing += differences(rows)

    say("4  Bob's order: four services, a task and the rows of three databases")
    show_tree(demo, "the order", rows, "CREATE", ORDERED)

    say("5  Alice's refund: from Django's admin site through two services into their databases")
    show_tree(demo, "the refund", rows, "REFUND", REFUNDED)

    say("6  Questions in SQL: what was denied, and to whom; which orders changed, in whose name")
    demo.show("sql", DENIED_BY_ACTOR)
    demo.show("sql", CHANGES_OF_STATE)


def show_tree(
    demo: Demo, name: str, rows: list[dict[str, Any]], action: str, expected: list[tuple[int, Record]]
) -> None:
    """Show and check the trace of the first record with *action* that succeeded."""
    traces = [row["trace_id"] for row in rows if row["action"] == action and row["outcome"] == "success"]
    if traces:
        demo.check_tree(name, traces[0], expected)
    else:
        demo.missing.append(name)


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
    done("the order is one connected tree over gateway, orders, billing and shipping, under one trace id")
    done("the refund is one connected tree over backoffice, orders and billing, under one trace id")
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
    say(f"\n  The back office is at http://{demo.backoffice}/; sign in as alice with the password above,")
    say(f"  or as dave with {demo.passwords['dave']}. Carol's password at the gateway (admin) is")
    say(f"  {demo.passwords['carol']}; logs are in {demo.folder / 'logs'}")
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
