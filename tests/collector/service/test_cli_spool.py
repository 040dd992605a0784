"""``auditspan spool``: an operator finds out why records wait, and decides; nothing is lost on any of the ways."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from auditspan_collector.cli import auditspan
from auditspan_collector.clickhouse import ClickHouseClient
from auditspan_collector.clickhouse import Config as ClickHouseConfig
from auditspan_collector.schema import encode_leaf
from auditspan_collector.spool import Config as SpoolConfig
from auditspan_collector.spool import Spool
from click.testing import CliRunner
from collector.durability.sealing import make_record, one_request
from collector.service.child_process import Auditspan
from collector.service.otlp_peer import request_bytes, wait_until

TESTS = Path(__file__).parents[2]
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
# What an administrator may do to a table, after which it takes no record, for good.
BREAK = "ALTER TABLE {database}.records RENAME COLUMN reason TO cause"
MEND = "ALTER TABLE {database}.records RENAME COLUMN cause TO reason"
_databases = itertools.count()


@pytest.fixture(scope="module")
def store_url(tmp_path_factory):
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "collector.durability.store_child",
            str(tmp_path_factory.mktemp("store")),
            "0",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    yield process.stdout.readline().strip()
    process.stdin.close()
    try:
        process.wait(30)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Site:
    """A collector's folder and configuration, its table, and the commands that an operator runs there."""

    def __init__(self, folder, url):
        self.folder, self.database = folder, f"spooled{next(_databases)}"
        self.client = ClickHouseClient(ClickHouseConfig(url=url, database=self.database))
        self.file = folder / "auditspan.yaml"
        self.children = []
        self.configure(url)

    def configure(self, url):
        self.file.write_text(f"""
receiver: {{grpc: {{listen: "127.0.0.1:0"}}, http: {{listen: "127.0.0.1:0"}}}}
telemetry: {{metrics_listen: ""}}
clickhouse: {{url: "{url}", database: {self.database}}}
drain: {{linger_s: 0, retry_min_s: 30, retry_max_s: 60}}
spool: {{max_bytes: 64MiB, dedup_window_records: 10000, allow_memory_filesystem: true}}
""")

    def start(self):
        child = Auditspan(
            self.folder / f"run{len(self.children)}",
            "collect",
            "--config",
            self.file,
            "--data",
            self.folder / "data",
        )
        self.children.append(child)
        child.ports()
        return child

    def send(self, name, spans):
        """Have *spans* records named *name* acknowledged."""
        with grpc.insecure_channel(f"127.0.0.1:{self.children[-1].ports()[0]}") as channel:
            attributes = (("audit.action", "READ"), ("audit.reason", name))
            channel.unary_unary(EXPORT)(
                request_bytes(spans=spans, attributes=attributes, name=name), timeout=30
            )

    def spool(self, *arguments):
        """(exit status, stdout, stderr) of an ``auditspan spool`` command."""
        words = ["spool", arguments[0], "--config", self.file, "--data", self.folder / "data", *arguments[1:]]
        clean = dict.fromkeys(name for name in os.environ if name.startswith("AUDITSPAN_"))
        result = CliRunner().invoke(auditspan, [str(word) for word in words], env=clean)
        return result.exit_code, result.stdout, result.stderr

    def listed(self):
        status, stdout, stderr = self.spool("list", "--format", "json")
        assert (status, stderr) == (0, "")
        (found,) = json.loads(stdout)
        return found

    def wait_until_listed(self, **expected):
        def look():
            found = self.listed()
            return found if expected.items() <= found.items() else None

        return wait_until(look, limit_s=30, what=str(expected))

    def stored(self):
        rows = self.client.rows("SELECT ledger_index FROM records ORDER BY ledger_index")
        return [index for (index,) in rows]

    def run(self, sql):
        self.client.execute(sql.format(database=self.database))


@pytest.fixture
def site(tmp_path, store_url):
    site = Site(tmp_path, store_url)
    yield site
    for child in site.children:
        child.end(signal.SIGKILL)
    site.client.close()


def test_a_range_that_is_refused_for_good_is_set_aside_and_comes_back_when_the_cause_is_gone(site):
    child = site.start()
    site.send("fine", 3)
    site.wait_until_listed(records=0, state="running")
    site.run(BREAK)
    site.send("refused", 2)
    found = site.wait_until_listed(state="stopped")
    assert (found["in_flight"]["first"], found["in_flight"]["last"]) == (3, 4)
    assert "reason" in found["error"]
    child.wait_for(r"STOPPED sending .*`auditspan spool retry`")
    site.send("behind", 4)

    status, stdout, _ = site.spool("quarantine", "3-4")
    assert status == 0
    (name,) = re.findall(r"[0-9a-f]{16}-3-4\.batch", stdout)
    child.wait_for(rf"QUARANTINED range 3-4 .* 2 records .*{name}")
    wait_until(lambda: (site.listed()["in_flight"] or {}).get("first") == 5, what="going on by itself")
    found = site.wait_until_listed(state="stopped")
    assert [(each["file"], each["first"], each["last"]) for each in found["quarantine"]] == [(name, 3, 4)]
    status, _, stderr = site.spool("restore", name)
    assert (status, "reason" in stderr) == (1, True), "still refused, and still there"

    site.run(MEND)
    assert site.spool("retry")[0] == 0
    site.wait_until_listed(records=0, state="running")
    assert site.stored() == [0, 1, 2, 5, 6, 7, 8]
    assert site.spool("restore", name)[:2] == (0, f"{name}: 2 records restored; the file is removed.\n")
    assert site.stored() == list(range(9))
    assert site.listed()["quarantine"] == []


def test_commits_behind_the_range_that_is_refused_can_be_set_aside_with_it(site):
    child = site.start()
    site.send("fine", 1)
    site.wait_until_listed(records=0, state="running")
    site.run(BREAK)
    site.send("refused", 2)
    site.wait_until_listed(state="stopped")
    for number in range(3):
        site.send(f"behind-{number}", 3)
    for wrong in ("1-4", "1-12", "3-5"):
        status, _, stderr = site.spool("quarantine", wrong)
        assert (status, f"range {wrong} does not" in stderr) == (1, True), wrong
    assert site.listed()["records"] == 11

    status, stdout, _ = site.spool("quarantine", "1-8")
    assert status == 0
    names = re.findall(r"[0-9a-f]{16}-\d+-\d+\.batch", stdout)
    assert [name.partition("-")[2] for name in names] == ["1-2.batch", "3-8.batch"]
    child.wait_for(r"QUARANTINED range 3-8 .* 6 records")
    wait_until(lambda: (site.listed()["in_flight"] or {}).get("first") == 9, what="going on by itself")
    site.wait_until_listed(state="stopped", records=3)
    site.run(MEND)
    site.spool("retry")
    site.wait_until_listed(records=0, state="running")
    assert site.spool("restore", *names)[0] == 0
    assert site.stored() == list(range(12))
    assert site.listed()["quarantine"] == []


def test_retry_goes_on_once_the_cause_is_mended(site):
    site.start()
    site.send("fine", 1)
    site.wait_until_listed(records=0)
    site.run(BREAK)
    site.send("stopped", 2)
    site.wait_until_listed(state="stopped", records=2)
    site.run(MEND)
    status, stdout, _ = site.spool("retry")
    assert (status, "sending again" in stdout) == (0, True)
    site.wait_until_listed(state="running", records=0)
    assert site.stored() == [0, 1, 2]
    assert site.spool("retry")[1] == f"{site.folder}/data/spool: it was sending already\n"


def test_retry_does_not_wait_for_the_next_try_after_an_outage(site, store_url):
    site.configure("http://127.0.0.1:9")
    site.start()
    site.send("waiting", 2)
    found = site.wait_until_listed(state="retrying")
    assert "127.0.0.1:9" in found["error"]
    logged = site.children[-1].stderr.count("next try in")
    site.spool("retry")
    assert site.wait_until_listed(state="retrying")["records"] == 2
    assert site.children[-1].stderr.count("next try in") >= logged
    status, _, stderr = site.spool("quarantine", "0-1")
    assert status == 1
    assert "the drain is retrying, not stopped" in stderr, "an outage is no reason to set anything aside"


def test_a_collector_that_does_not_run_is_looked_at_and_helped_as_well(site):
    child = site.start()
    site.send("fine", 1)
    site.wait_until_listed(records=0)
    site.run(BREAK)
    site.send("refused", 2)
    site.wait_until_listed(state="stopped")
    site.send("behind", 1)
    child.end(signal.SIGKILL)

    found = site.listed()
    assert (found["state"], found["records"], found["in_flight"]["last"]) == ("not running", 3, 2)
    assert [(each["first"], each["last"]) for each in found["waiting"]] == [(1, 2), (3, 3)]
    status, _, stderr = site.spool("retry")
    assert (status, "one that starts tries at once" in stderr) == (1, True)
    for wrong in ("1-1", "0-1"):
        status, _, stderr = site.spool("quarantine", wrong)
        assert (status, "(1-2 is)" in stderr) == (1, True), wrong
    assert site.spool("quarantine", "1-2")[0] == 0
    found = site.listed()
    assert (found["records"], found["in_flight"], len(found["quarantine"])) == (1, None, 1)

    site.run(MEND)
    site.start()
    site.wait_until_listed(records=0)
    assert site.stored() == [0, 3]
    assert site.spool("restore", found["quarantine"][0]["file"])[0] == 0
    assert site.stored() == [0, 1, 2, 3]


def test_the_list_can_be_read(site):
    site.configure("http://127.0.0.1:9")
    child = site.start()
    site.send("waiting", 3)
    site.wait_until_listed(state="retrying")
    _, stdout, _ = site.spool("list")
    assert re.search(r"^stream +default/\S+/[0-9a-f]{16}$", stdout, re.MULTILINE)
    assert re.search(r"^collector +retrying: \S", stdout, re.MULTILINE)
    assert re.search(r"^waiting +3 records, [\d.]+ KiB on disk, \d+% of its capacity$", stdout, re.MULTILINE)
    assert re.search(
        r"^in flight|^ +0-2 +3 +[\d.]+ (B|KiB) +(just now|[\d.]+ (m?s|min) ago)$", stdout, re.MULTILINE
    )
    child.end(signal.SIGKILL)
    _, stdout, _ = site.spool("list", "--limit", "0")
    assert re.search(r"^collector +not running$", stdout, re.MULTILINE)
    assert re.search(r"^ +0-2 +3 +behind these$", stdout, re.MULTILINE)


def test_the_socket_is_closed_to_others_and_gone_after_a_clean_stop(site):
    site.configure("http://127.0.0.1:9")
    child = site.start()
    socket = site.folder / "data" / "spool" / "control.sock"
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    child.end(signal.SIGKILL)
    assert socket.exists()
    child = site.start()
    assert site.listed()["state"] == "retrying", "what a killed one left is in nobody's way"
    child.end(signal.SIGTERM)
    assert not socket.exists()


def test_a_folder_without_a_spool_is_one_line_and_none_is_made(site):
    status, stdout, stderr = site.spool("list")
    assert (status, stdout) == (2, "")
    assert stderr == (
        f"auditspan: spool.path: no spool is in {site.folder}/data/spool; name the right one with --config, --data or "
        "--spool\n"
    )
    assert not (site.folder / "data" / "spool").exists()


@pytest.mark.parametrize("name", ["../data.mdb", "0123456789abcdef-0-1.batch", "x"])
def test_only_a_file_of_the_quarantine_can_be_restored(site, name):
    site.configure("http://127.0.0.1:9")
    site.start()
    status, stdout, stderr = site.spool("restore", name)
    assert (status, stdout) == (1, "")
    assert "not a file of the quarantine" in stderr or "can't be read (No such file" in stderr


def test_spools_of_several_workers_are_listed_together_and_helped_one_by_one(tmp_path):
    for number, folder in enumerate((tmp_path, tmp_path / "2", tmp_path / "10")):
        settings = SpoolConfig(
            path=str(folder), max_bytes=64 << 20, dedup_window_records=10, allow_memory_filesystem=True
        )
        spool = Spool.open(settings, "test", f"worker{number}")
        spool.commit(one_request([encode_leaf(make_record(n)) for n in range(number + 1)]))
        spool.close()
    file = tmp_path.with_suffix(".yaml")
    file.write_text("spool: {max_bytes: 64MiB, dedup_window_records: 10, allow_memory_filesystem: true}")

    def command(*words):
        return CliRunner().invoke(auditspan, ["spool", *words, "--config", str(file)])

    result = command("list", "--format", "json", "--spool", str(tmp_path))
    assert [(each["folder"], each["records"]) for each in json.loads(result.stdout)] == [
        (str(tmp_path), 1),
        (str(tmp_path / "2"), 2),
        (str(tmp_path / "10"), 3),
    ]
    assert (
        "name the range's own with --spool" in command("quarantine", "0-1", "--spool", str(tmp_path)).stderr
    )
    assert "(none is)" in command("quarantine", "0-1", "--spool", str(tmp_path / "2")).stderr
