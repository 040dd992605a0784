"""`make demo`: it shows what it checks, it can fail, and it leaves no process behind."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import loopback
import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "shop" / "demo.py"
LIMIT_S = 150.0


def load_demo():
    spec = importlib.util.spec_from_file_location("shop_demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder():
    """A place on a disk: the collector refuses memory, which the system's temporary folder may be."""
    cache = ROOT / ".pytest_cache"
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="demo-", dir=cache) as place:
        yield Path(place) / "demo"


def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    log = (folder.parent / "output").open("w")
    with log:
        return subprocess.Popen(
            [sys.executable, str(DEMO), str(folder)],
            env={**os.environ, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )


def output(folder: Path) -> str:
    return (folder.parent / "output").read_text()


def wait_for_output(process: subprocess.Popen[str], folder: Path, text: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while text not in output(folder):
        assert process.poll() is None, output(folder)
        assert time.monotonic() < deadline, output(folder)
        time.sleep(0.05)


def processes_of(folder: Path) -> list[str]:
    """Command lines of living processes that have something to do with *folder*."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                environment = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:  # ended meanwhile, or not ours
                continue
            if str(folder) in command or f"{folder}/" in environment:
                found.append(command)
    return found


def left_elsewhere(folder: Path) -> set[str]:
    """Messages of the queue, which kombu may put there, and what a process wrote where it was started."""
    return {path.name for place in (Path(tempfile.gettempdir()), ROOT) for path in place.glob("*.msg")} | {
        path.name for path in folder.parent.iterdir() if path.name not in {"demo", "output"}
    }


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()


def a_clerk_can_go_on_in_a_browser(shown: str, password: str) -> None:
    address = re.search(r"The back office is at (http://[\d.:]+)/", shown)[1]
    with loopback.Client(base_url=address, timeout=30) as browser:
        assert "Back office" in browser.get("/login/").text
        form = {"username": "alice", "password": password, "next": "/shop/order/"}
        sent = {**form, "csrfmiddlewaretoken": browser.cookies["csrftoken"]}
        page = browser.post("/login/", data=sent, follow_redirects=True).text
        assert "refunded" in page
        for style_sheet in re.findall(r'href="(/static/[^"]+\.css)"', page):
            assert browser.get(style_sheet).status_code == 200


@pytest.mark.timeout(240)
def test_the_demo_shows_the_trail_stays_until_ctrl_c_and_then_leaves_nothing_running(folder):
    before = left_elsewhere(folder)
    process = start(folder, KEEP="1")
    try:
        wait_for_output(process, folder, "It runs until Ctrl-C")
        shown = output(folder)
        assert "Missing" not in shown
        assert "all 19 records are there and nothing else" in shown
        assert "the order is one connected tree over gateway, orders, billing and shipping" in shown
        assert "the refund is one connected tree over backoffice, orders and billing" in shown
        for who, request, status in [
            ("bob", "POST /orders", 201),
            ("alice", "POST /orders/1001/refund", 401),
            ("bob", "PUT /users/bob/role", 403),
            ("alice", "POST /login/", 302),
            ("alice", "POST /shop/order/", 302),
            ("dave", "POST /login/", 302),
            ("dave", "POST /shop/order/", 403),
        ]:
            told = rf"^ +{who} .+ {request} +{status} +\d records? after \d+\.\d\d s$"
            assert re.search(told, shown, re.MULTILINE), told
        for command in ("$ auditspan search", "$ auditspan trace", "$ auditspan sql"):
            assert command in shown
        story, _, _ = shown.partition("It runs until Ctrl-C")
        assert max(map(len, story.splitlines())) <= 100
        curl = next(line for line in shown.splitlines() if "curl --user alice" in line).split()
        alice = tuple(curl[2].split(":"))
        assert loopback.get(curl[3], auth=alice).json()["state"] == "refunded"
        a_clerk_can_go_on_in_a_browser(shown, alice[1])
        assert processes_of(folder)

        second = subprocess.run(
            [sys.executable, str(DEMO), str(folder)], capture_output=True, text=True, check=False
        )
        assert second.returncode == 1
        assert "a demo that still runs" in second.stdout

        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert processes_of(folder) == []
        assert left_elsewhere(folder) == before
    finally:
        end(process)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("moment", "sign"),
    [
        pytest.param("1  Start", signal.SIGINT, id="while it starts"),
        pytest.param("orders two lamps", signal.SIGTERM, id="in the middle", marks=pytest.mark.long),
    ],
)
def test_stopped_early_it_leaves_nothing_running(folder, moment, sign):
    process = start(folder)
    try:
        wait_for_output(process, folder, moment)
        process.send_signal(sign)
        assert process.wait(60) == 130
        assert processes_of(folder) == []
    finally:
        end(process)


def test_ctrl_c_at_the_very_start_of_a_process_leaves_it_not_behind(shop_demo, tmp_path, monkeypatch):
    started = []

    class Interrupted(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)
            signal.raise_signal(signal.SIGINT)  # when it runs, and nobody knows of it yet

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt), shop_demo.Processes(tmp_path) as processes:
        processes.start("sleeper", ["sleep", "60"], {"PATH": os.environ["PATH"]}, tmp_path)
    (sleeper,) = started
    assert sleeper.returncode == -signal.SIGTERM


def test_when_something_does_not_start_it_says_why_with_the_end_of_its_log():
    with tempfile.TemporaryDirectory(prefix="demo-", dir="/dev/shm") as memory:
        failed = subprocess.run(
            [sys.executable, str(DEMO), f"{memory}/demo"], capture_output=True, text=True, check=False
        )
        assert failed.returncode == 1
        assert "auditspan ended with status 2" in failed.stdout
        assert "is memory (tmpfs)" in failed.stdout
        assert processes_of(Path(memory)) == []


def test_it_does_not_empty_a_folder_that_is_not_its_own(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    refused = subprocess.run(
        [sys.executable, str(DEMO), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "thesis.txt" in refused.stdout
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.fixture(scope="module")
def shop_demo():
    return load_demo()


@pytest.fixture(scope="module")
def story(shop_demo):
    return importlib.import_module("shop.story")


@pytest.fixture
def demo(shop_demo, tmp_path):
    return shop_demo.Demo(tmp_path, shop_demo.Processes(tmp_path))


def row_of(record) -> dict[str, object]:
    return {
        "service_name": record.service,
        "actor_id": record.actor,
        "actor_origin": record.origin,
        "actor_roles": list(record.roles),
        "action": record.action,
        "target_type": record.target.partition(":")[0],
        "target_id": record.target.partition(":")[2],
        "outcome": record.outcome,
        "actor_delegate": record.delegate,
    }


def rows_of(story) -> list[dict[str, object]]:
    """The rows of a trail that is as it should be."""
    return [row_of(record) for act in story.STORY for record in act.records]


def test_the_story_has_a_record_of_each_kind_in_each_service(story):
    records = {record for act in story.STORY for record in act.records}
    told = {(r.service, r.actor, r.origin, r.action, r.target, r.outcome) for r in records}
    for expected in [
        ("gateway", "bob", "authenticated", "CREATE", "orders", "success"),  # FastAPI
        ("orders", "bob", "asserted", "CREATE", "orders", "success"),  # Flask
        ("orders", "bob", "asserted", "CREATE", "orders:1001", "success"),  # SQLAlchemy's mapper
        ("billing", "bob", "asserted", "CHARGE", "Billing", "success"),  # gRPC
        ("billing", "bob", "asserted", "CREATE", "invoices:INV-1001", "success"),  # SQLAlchemy's core
        ("shipping", "bob", "asserted", "EXECUTE", "shipping.send:1001", "success"),  # Celery
        ("shipping", "bob", "asserted", "CREATE", "parcels:1001", "success"),
        ("backoffice", "alice", "authenticated", "LOGIN", "", "success"),  # Django
        ("backoffice", "alice", "authenticated", "UPDATE", "shop.order:1001", "success"),  # its admin log
        ("orders", "alice", "asserted", "UPDATE", "orders:1001", "success"),
        ("backoffice", "dave", "authenticated", "EXECUTE", "order", "denied"),
    ]:
        assert expected in told


def test_a_trail_that_is_as_it_should_be_passes(shop_demo, story, demo):
    assert story.differences(rows_of(story)) == []
    assert shop_demo.report(demo) == 0


@pytest.mark.parametrize(
    "column", ["actor_id", "actor_origin", "actor_roles", "action", "target_id", "outcome"]
)
def test_a_record_with_a_wrong_value_is_named_and_fails(shop_demo, story, demo, column, capsys):
    rows = rows_of(story)
    rows[8][column] = ["wrong"] if column == "actor_roles" else "wrong"
    demo.missing += story.differences(rows)
    assert len(demo.missing) == 2  # the right one is not there, and the wrong one should not be
    assert shop_demo.report(demo) == 1
    assert "record  gateway: anonymous" in capsys.readouterr().out


def test_a_record_that_is_lost_or_stored_twice_fails(story):
    rows, first = rows_of(story), story.STORY[0].records[0]
    assert story.differences(rows[1:]) == [f"record  {first}"]
    assert story.differences([*rows, rows[0]]) == [f"nothing else; there is  {first}"]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, 0),
        ({"depth": 0, "place": "orphan"}, 1),
        ({"actor_delegate": ""}, 1),
        ({"trace_id": "b"}, 1),
    ],
    ids=["connected", "torn", "nobody vouches", "two traces"],
)
@pytest.mark.parametrize("name", ["ORDERED", "REFUNDED"])
def test_a_request_that_is_not_one_tree_fails(story, name, change, found):
    expected = getattr(story, name)
    tree = [
        {**row_of(record), "depth": depth, "place": "child" if depth else "root", "trace_id": "a"}
        for depth, record in expected
    ]
    tree[3] |= change
    assert len(story.torn({"records": tree}, expected)) == found
