"""Several workers as one collector: they share the ports, and what any of them acknowledged is stored."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import uuid
from collections import defaultdict
from pathlib import Path

import grpc
import loopback
import pytest
from collector.service.child_process import Auditspan, run
from collector.service.otlp_peer import wait_until
from integration.whole_line import EXPORT, Client, WholeLine, request
from prometheus_client.parser import text_string_to_metric_families


class Workers(WholeLine):
    """A line whose collector has several workers."""

    def start_workers(self, count: int) -> None:
        self.start_collector("--workers", str(count))

    @property
    def pids(self) -> list[int]:
        """Of the workers that run, from the kernel."""
        parent = self.collector.process.pid
        return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]

    def metric(self, name: str) -> dict[str, float]:
        """Worker -> value, for the samples of that name."""
        text = loopback.get(f"http://127.0.0.1:{self.metrics}/metrics").text
        return {
            sample.labels.get("worker", ""): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        }

    def health(self) -> tuple[int, str]:
        answer = loopback.get(f"http://127.0.0.1:{self.metrics}/healthz")
        return answer.status_code, answer.text

    def send(self, ids: list[str]) -> str:
        """Over a connection of its own, to whichever worker the kernel chooses; the stream in the receipt."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc}", options=options) as channel:
            _, call = channel.unary_unary(EXPORT).with_call(request(ids), timeout=30)
        return json.loads(dict(call.trailing_metadata())["auditspan-receipt"])["stream"]

    def send_to_all(self, count: int) -> dict[str, list[str]]:
        """Send until *count* workers got something: stream -> record ids."""
        sent: dict[str, list[str]] = defaultdict(list)

        def one_more() -> bool:
            ids = new_ids(3)
            sent[self.send(ids)] += ids
            return len(sent) == count

        wait_until(one_more, limit_s=30, what=f"{count} workers that get requests")
        return dict(sent)

    def stored(self) -> dict[str, list[str]]:
        """Stream -> record ids in the order of their indexes, which have no gap."""
        found: dict[str, list[str]] = defaultdict(list)
        rows = self.rows(
            "SELECT ledger_stream, ledger_index, toString(record_id) FROM audit.records ORDER BY 1, 2"
        )
        for stream, index, record in rows:
            assert int(index) == len(found[stream]), f"a gap before index {index} of {stream}"
            found[stream].append(record)
        return dict(found)


def new_ids(count: int) -> list[str]:
    return [str(uuid.uuid4()) for _ in range(count)]


def every(sent: dict[str, list[str]]) -> list[str]:
    return [record for ids in sent.values() for record in ids]


def alive(pid: int) -> bool:
    try:
        return "\tZ" not in Path(f"/proc/{pid}/status").read_text().partition("State:")[2][:10]
    except FileNotFoundError:
        return False


def assert_free(*ports: int) -> None:
    for port in ports:
        with socket.create_server(("127.0.0.1", port)):
            pass


@pytest.fixture
def line(tmp_path):
    line = Workers(tmp_path)
    yield line
    line.stop()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """A collector that stays up, without a store, for tests that leave it as it was."""
    line = Workers(tmp_path_factory.mktemp("two"))
    line.start_workers(2)
    yield line
    line.stop()


def test_requests_spread_over_the_workers_and_each_record_is_stored_once_in_one_stream(line):
    line.start_store()
    line.start_workers(2)
    assert len(line.pids) == 2
    sent = line.send_to_all(2)
    over_http = new_ids(4)
    for record in over_http:
        answer = loopback.post(
            f"http://127.0.0.1:{line.http}/v1/traces",
            content=request([record]),
            headers={"content-type": "application/x-protobuf"},
        )
        sent[json.loads(answer.headers["auditspan-receipt"])["stream"]].append(record)
    line.wait_for_records(every(sent))
    assert line.stored() == sent
    kept = line.metric("auditspan_records_kept_total")
    assert sorted(kept) == ["1", "2"]
    assert sorted(kept.values()) == sorted(float(len(ids)) for ids in sent.values())
    assert line.metric("auditspan_workers_up") == {"": 2.0}
    assert line.health() == (200, "ok\n")

    workers = line.pids
    assert line.collector.end(signal.SIGTERM) == 0
    assert not any(alive(pid) for pid in workers)
    assert_free(line.grpc, line.http, line.metrics)
    assert line.collector.stderr.count("stopped\n") == 3
    assert "Traceback" not in line.collector.stderr


def test_a_worker_that_is_killed_under_load_takes_no_acknowledged_record_with_it_and_comes_back(line):
    line.start_store()
    line.start_workers(2)
    clients = [Client(line.grpc, pause_s=0.02) for _ in range(6)]
    for client in clients:
        client.__enter__()
    try:
        wait_until(
            lambda: sum(len(client.acknowledged) for client in clients) >= 200,
            limit_s=30,
            what="acknowledged records",
        )
        os.kill(line.pids[0], signal.SIGKILL)
        line.collector.wait_for(r"(?s)worker \d DIED \(killed by SIGKILL\).*takes requests again")
    finally:
        for client in clients:
            client.__exit__()
    acknowledged = [record for client in clients for record in client.acknowledged]
    line.wait_for_records(acknowledged)
    assert sum(line.metric("auditspan_worker_deaths_total").values()) == 1
    assert len(line.pids) == 2
    stored = line.stored()
    assert set(acknowledged) <= set(every(stored))
    # Within a stream nothing is there twice; a retry that met another worker is a copy, which readers don't see.
    assert all(len(ids) == len(set(ids)) for ids in stored.values())
    status, shown, stderr = run(
        line.folder / "search", "search", "--config", line.config, "--limit", "100000", "--format", "jsonl", "--since", "1970-01-01"
    )  # fmt: skip
    assert status == 0, stderr
    found = [json.loads(row)["record_id"] for row in shown.splitlines()]
    assert sorted(found) == sorted(set(every(stored)))


def test_after_kill_9_of_them_all_fewer_workers_empty_the_spools_and_more_go_on_with_their_streams(line):
    line.start_workers(3)  # there is no store yet, so everything waits in the spools
    before = line.send_to_all(3)
    workers = line.pids
    line.kill_collector()
    wait_until(lambda: not any(alive(pid) for pid in workers), limit_s=5, what="the end of the workers")
    line.start_store()
    line.start_collector()  # one process
    line.wait_for_records(every(before))
    only = line.send(alone := new_ids(2))
    line.wait_for_records(alone)
    line.collector.end()
    line.start_workers(3)
    after = line.send_to_all(3)
    line.wait_for_records(every(after))
    assert set(after) == set(before)
    assert line.stored() == {
        stream: before[stream] + (alone if stream == only else []) + after[stream] for stream in before
    }


def test_the_ports_of_several_workers_are_nobody_elses(two_workers, tmp_path):
    (tmp_path / "other").mkdir()
    other = WholeLine(tmp_path / "other")
    other.config.write_text(other.config.read_text().replace(f":{other.grpc}", f":{two_workers.grpc}"))
    for options in ((), ("--workers", "2")):
        status, _, stderr = run(tmp_path / "second", "collect", "--config", other.config, *options)
        assert status == 2
        assert stderr.splitlines()[-1] == (
            f"auditspan: receiver.grpc.listen: 127.0.0.1:{two_workers.grpc} is in use by another process; stop it or choose "
            "another port"
        )
    assert two_workers.health() == (200, "ok\n")


def test_a_second_collector_on_the_folder_of_several_workers_is_one_line(two_workers, tmp_path):
    for options, owner in (
        (("--workers", "2"), two_workers.collector.process.pid),
        ((), two_workers.pids[0]),
    ):
        second = tmp_path / "second.yaml"
        second.write_text(re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:0", two_workers.config.read_text()))
        status, _, stderr = run(tmp_path / "second", "collect", "--config", second, *options)
        assert status == 1
        last = stderr.splitlines()[-1]
        assert last.startswith("auditspan: spool.path: ")
        assert f"process {owner};" in last


def test_a_second_signal_ends_all_of_them_at_once(line):
    line.start_workers(2)
    workers = line.pids
    # Requests whose bodies never come keep a first stop waiting.
    slow = [socket.create_connection(("127.0.0.1", line.http)) for _ in range(8)]
    for each in slow:
        each.sendall(
            b"POST /v1/traces HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\n"
            b"content-type: application/json\r\ncontent-length: 10\r\n\r\n"
        )
        assert each.recv(100).startswith(b"HTTP/1.1 100")
    line.collector.process.send_signal(signal.SIGINT)
    line.collector.wait_for("collector stopping")
    line.collector.process.send_signal(signal.SIGINT)
    assert line.collector.process.wait(3) == 128 + signal.SIGINT
    wait_until(lambda: not any(alive(pid) for pid in workers), limit_s=3, what="the end of all workers")
    for each in slow:
        each.close()


def test_a_worker_that_hangs_is_told_of_and_the_others_go_on(two_workers):
    hanging = two_workers.pids[0]
    os.kill(hanging, signal.SIGSTOP)
    try:
        status, text = wait_until(
            lambda: found if "does not answer" in (found := two_workers.health())[1] else None,
            what="a word of the worker that hangs",
        )
        assert status == 200
        assert re.fullmatch(r"ok, but worker [12]: it does not answer\n", text)
        assert two_workers.metric("auditspan_workers_up") == {"": 1.0}
    finally:
        os.kill(hanging, signal.SIGCONT)
    wait_until(lambda: two_workers.health() == (200, "ok\n"), what="health")


def test_too_little_disk_for_so_many_workers_is_one_line(tmp_path):
    file = tmp_path / "auditspan.yaml"
    file.write_text(
        "collector: {workers: 3}\nspool: {max_bytes: 128MiB, dedup_window_records: 1000, allow_memory_filesystem: true}"
    )
    for command in (("collect", "--config", file), ("config", "check", file)):
        status, _, stderr = run(tmp_path / command[0], *command, AUDITSPAN_DATA=str(tmp_path / "data"))
        assert status == 2
        assert stderr.splitlines()[-1] == (
            "auditspan: spool.max_bytes: 134217728 is too small for 3 workers; at least 201326592 (64 MiB each), "
            "or fewer workers"
        )


def test_up_takes_workers_too(tmp_path):
    file = tmp_path / "auditspan.yaml"
    file.write_text("spool: {max_bytes: 256MiB, allow_memory_filesystem: true}\ntelemetry: {log_level: info}")
    ports = [word for name in ("grpc", "http", "store", "metrics") for word in (f"--{name}-port", "0")]
    up = Auditspan(
        tmp_path / "up", "up", "--data", tmp_path / "data", "--config", file, "--workers", "2", *ports
    )
    try:
        up.wait_for("Ctrl-C stops it(.|\n)*GROUP BY", where="stdout", limit_s=60)
        port = up.ports()[0]
        ids = new_ids(3)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            channel.unary_unary(EXPORT)(request(ids), timeout=30)

        def shown() -> bool:
            _, stdout, _ = run(
                tmp_path / "search", "search", "--data", tmp_path / "data", "--since", "1970-01-01", "--format", "jsonl"
            )  # fmt: skip
            return len(set(stdout.splitlines())) >= len(ids)

        wait_until(shown, limit_s=30, what="the records")
        assert up.end(signal.SIGINT) == 0
    finally:
        up.end(signal.SIGKILL)


def test_an_operator_reaches_the_spools_of_all_workers_also_when_one_of_them_is_no_more(line):
    line.start_workers(2)
    sent = line.send_to_all(2)
    options = ("--config", line.config)
    status, shown, stderr = run(line.folder / "list", "spool", "list", *options, "--format", "json")
    assert status == 0, stderr
    assert {spool["stream"]: spool["records"] for spool in json.loads(shown)} == {
        stream: len(ids) for stream, ids in sent.items()
    }
    line.collector.end()
    line.start_store()
    line.start_collector()
    line.wait_for_records(every(sent))
    wait_until(
        lambda: line.metric("auditspan_spool_left_records") == {"": 0.0}, what="the end of the takeover"
    )
    wait_until(
        lambda: not (line.folder / "spool" / "2" / "control.sock").exists(), what="its folder given free"
    )
    status, shown, stderr = run(line.folder / "retry", "spool", "retry", *options)
    assert (status, shown) == (0, f"{line.folder}/spool: it was sending already\n"), stderr
