"""Processes that end, die, fork and race: between them every record reaches the collector."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter

import pytest
from instrumentation.delivery.conftest import PRELUDE, TESTS
from instrumentation.delivery.otlp_payloads import payload, wait_until
from instrumentation.delivery.otlp_peers import AWAY, GrpcPeer, HttpPeer

RUN = """
s = Spool(folder)
ship = Shipper(s, target())
ship.start()
"""

WAIT_FOR_THE_DEAD = (
    "wait_until(lambda: not [p for p in folder.glob('*.spool') if s.stream_id not in p.name])\n"
)


def test_an_ordinary_end_delivers_first(peer, child, tmp_path):
    began = time.monotonic()
    child(
        RUN + "[s.append(payload(str(n))) for n in range(300)]", tmp_path, peer.endpoint, peer.protocol
    ).finish()
    assert peer.received == [str(number) for number in range(300)]
    assert time.monotonic() - began < 10
    assert list(tmp_path.glob("*.spool")) == []


@pytest.mark.parametrize("silent", [False, True], ids=["refuses connections", "never answers"])
def test_an_ordinary_end_does_not_wait_for_an_absent_collector(peer, child, tmp_path, silent):
    release = []
    if silent:
        peer.answer = lambda _: (wait_until(lambda: release, 60), AWAY)[1]
    else:
        peer.stop()
    run = RUN.replace("target())", "target(), exit_flush_s=0.5)")
    code = run + "s.append(payload('x')); time.sleep(0.3); began = time.time()\n"
    # Registered first, so run last.
    code = "import atexit; atexit.register(lambda: print(time.time() - began))\n" + code
    process = child(code, tmp_path, peer.endpoint, peer.protocol)
    assert float(process.finish()) < (1.0 if silent else 0.7)
    release.append(True)
    if not silent:
        peer.start()
    peer.received.clear()
    peer.answer = lambda _: None
    child(RUN + WAIT_FOR_THE_DEAD, tmp_path, peer.endpoint, peer.protocol).finish()
    assert set(peer.received) == {"x"}


def test_processes_killed_while_they_deliver_lose_nothing_and_the_next_one_delivers_the_rest(
    grpc_peer, child, tmp_path
):
    told: set[str] = set()
    for round_ in range(4):
        process = child(
            RUN
            + f"""
for n in range(10**9):
    assert s.append(payload("{round_}-%d" % n))
    os.write(1, b"{round_}-%d\\n" % n)
    time.sleep(0.0005)
""",
            tmp_path,
            grpc_peer.endpoint,
            "grpc",
        )
        told |= {process.read() for _ in range(200)}
        process.kill()
        told |= set(process.process.stdout.read().split("\n")[:-1])
    child(
        RUN + "s.append(payload('last'))\n" + WAIT_FOR_THE_DEAD, tmp_path, grpc_peer.endpoint, "grpc"
    ).finish()
    counted = Counter(grpc_peer.received)
    assert told | {"last"} <= set(counted)
    # Sent twice is only what the dead one had sent and not yet noted: one batch for each death.
    assert sum(count - 1 for count in counted.values()) <= 4 * 512
    assert list(tmp_path.glob("*.spool")) == []


def test_live_processes_that_race_for_a_dead_one_s_segments_deliver_each_record_once(peer, child, tmp_path):
    for name in "abcdefgh":
        child(
            f"s = Spool(folder)\nfor n in range(100): s.append(payload('{name}%d' % n))\nos._exit(0)",
            tmp_path,
        ).process.wait()
    racers = [
        child(RUN + "print('up', flush=True); input()", tmp_path, peer.endpoint, peer.protocol)
        for _ in range(3)
    ]
    for racer in racers:
        racer.read()
    wait_until(lambda: len(peer.received) == 800)
    assert set(Counter(peer.received).values()) == {1}
    wait_until(lambda: list(tmp_path.glob("*.spool")) == [])
    for racer in racers:
        racer.kill()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_forked_children_deliver_their_own_records_while_the_parent_goes_on(
    request, protocol, child, tmp_path
):
    peer = {"grpc": GrpcPeer, "http": HttpPeer}[protocol]()
    request.addfinalizer(peer.stop)
    process = child(
        RUN
        + """
stop, count = False, 0
def busy():
    global count
    while not stop:
        assert s.append(payload("p%d" % count)); count += 1
        time.sleep(0.001)
thread = threading.Thread(target=busy); thread.start()
longest = 0
for n in range(12):
    began = time.monotonic(); pid = os.fork()
    if pid == 0:
        s.append(payload("c%d" % n))
        os._exit(0 if ship.flush(10) else 1)
    longest = max(longest, time.monotonic() - began)
    assert os.waitpid(pid, 0)[1] == 0, n
stop = True; thread.join()
assert ship.flush(10)
print(count, longest)
""",
        tmp_path,
        peer.endpoint,
        peer.protocol,
    )
    count, longest = process.finish().split()
    assert set(peer.received) == {f"p{n}" for n in range(int(count))} | {f"c{n}" for n in range(12)}
    assert float(longest) < 0.5
    assert set(Counter(peer.received).values()) == {1}


def test_a_fork_does_not_wait_for_a_collector_that_hangs_and_the_child_still_delivers(
    grpc_peer, child, tmp_path
):
    release = []
    grpc_peer.answer = lambda names: None if names == ["child"] else wait_until(lambda: release, 60)
    process = child(
        RUN
        + """
s.append(payload("parent")); print("sent", flush=True); input()
began = time.monotonic(); pid = os.fork()
if pid == 0:
    s.append(payload("child"))
    os._exit(0 if ship.flush(10) else 1)
took = time.monotonic() - began
assert os.waitpid(pid, 0)[1] == 0
print(took, flush=True)
""",
        tmp_path,
        grpc_peer.endpoint,
        "grpc",
    )
    process.read()
    wait_until(lambda: grpc_peer.requests)
    process.process.stdin.write("\n")
    process.process.stdin.flush()
    assert float(process.read()) < 0.3
    release.append(True)
    process.finish()
    assert {"parent", "child"} <= set(grpc_peer.received)


SLOW_IMPORT = """
from importlib.machinery import PathFinder, SourceFileLoader
class Slowly(SourceFileLoader):
    def exec_module(self, module):
        print("importing", flush=True); time.sleep(float(os.environ["SLOW_S"]))
        super().exec_module(module)
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "h2.events":
            spec = super().find_spec(name, path, target)
            spec.loader = Slowly(name, spec.origin)
            return spec
sys.meta_path.insert(0, Finder)
from auditspan.shipper import otlp
otlp._FORK_WAIT_S = 0.5
"""


def test_a_fork_while_the_thread_imports_gives_a_child_that_delivers(grpc_peer, child, tmp_path):
    process = child(
        SLOW_IMPORT
        + RUN
        + """
s.append(payload("parent")); input()
pid = os.fork()
if pid == 0:
    s.append(payload("child"))
    os._exit(0 if ship.flush(10) else 1)
assert os.waitpid(pid, 0)[1] == 0
assert ship.flush(10)
""",
        tmp_path,
        grpc_peer.endpoint,
        "grpc",
        env={**os.environ, "SLOW_S": "0.2"},
    )
    assert process.read() == "importing"
    process.process.stdin.write("\n")
    process.finish()
    assert sorted(grpc_peer.received) == ["child", "parent"]


def test_a_fork_does_not_wait_for_an_import_that_hangs(grpc_peer, child, tmp_path):
    process = child(
        SLOW_IMPORT
        + RUN
        + """
s.append(payload("parent")); input()
began = time.monotonic(); pid = os.fork()
if pid == 0: os._exit(0)
print(time.monotonic() - began, os.waitpid(pid, 0)[1], flush=True); os._exit(0)
""",
        tmp_path,
        grpc_peer.endpoint,
        "grpc",
        env={**os.environ, "SLOW_S": "60"},
    )
    assert process.read() == "importing"
    process.process.stdin.write("\n")
    took_s, status = process.finish().split()
    assert 0.3 < float(took_s) < 3
    assert status == "0"


def test_multiprocessing_workers_deliver_although_they_end_without_cleaning_up(peer, child, tmp_path):
    process = child(
        RUN
        + """
import multiprocessing
def work(n):
    for k in range(20): assert s.append(payload("w%d-%d" % (n, k)))
context = multiprocessing.get_context("fork")
workers = [context.Process(target=work, args=(n,)) for n in range(4)]
s.append(payload("parent"))
assert ship.flush(10)
[w.start() for w in workers]; [w.join() for w in workers]
"""
        + WAIT_FOR_THE_DEAD,
        tmp_path,
        peer.endpoint,
        peer.protocol,
    )
    process.finish()
    expected = {f"w{n}-{k}" for n in range(4) for k in range(20)} | {"parent"}
    assert set(peer.received) == expected


def test_delivery_makes_no_spans_even_where_grpc_clients_are_instrumented(grpc_peer, child, tmp_path):
    process = child(
        """
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        spans = InMemorySpanExporter()
        provider = TracerProvider(); provider.add_span_processor(SimpleSpanProcessor(spans))
        trace.set_tracer_provider(provider)
        from opentelemetry.instrumentation.grpc import GrpcInstrumentorClient
        GrpcInstrumentorClient().instrument()
        s = Spool(folder); ship = Shipper(s, target()); ship.start()
        s.append(payload("x"))
        assert ship.flush(10)
        print(len(spans.get_finished_spans()))
        """,
        tmp_path,
        grpc_peer.endpoint,
        "grpc",
    )
    assert process.finish() == "0\n"
    assert grpc_peer.received == ["x"]
    assert "traceparent" not in grpc_peer.headers[0]


@pytest.mark.parametrize(
    "start", ["import auditspan", "import auditspan.bootstrap", "import auditspan.shipper"], ids=str
)
def test_a_start_loads_neither_grpc_nor_h2(start):
    code = f"import sys\n{start}\nprint({{'grpc', 'h2', 'hpack', 'hyperframe'}} & {{*sys.modules}} or 'none')"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "none\n"


def test_a_service_loads_neither_grpc_nor_protobuf_for_delivery_and_idling_costs_next_to_nothing(
    peer, tmp_path
):
    code = """
import json, sys, time
from pathlib import Path
from auditspan.shipper import Shipper, Target
from auditspan.spool import Spool
spool = Spool(Path(sys.argv[1]))
shipper = Shipper(spool, Target(endpoint=sys.argv[2], protocol=sys.argv[3])); shipper.start()
spool.append(bytes.fromhex(sys.argv[4]))
assert shipper.flush(10)
before = time.process_time(); time.sleep(2.1); spent = time.process_time() - before
print(json.dumps([sorted({name.split(".")[0] for name in sys.modules} & {"grpc", "google", "urllib3", "h2"}), spent]))
"""
    arguments = [str(tmp_path), peer.endpoint, peer.protocol, payload("x").hex()]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    loaded, spent_s = json.loads(done.stdout)
    assert peer.received == ["x"]
    assert loaded == (["h2"] if peer.protocol == "grpc" else [])
    assert spent_s < 0.021  # under one per cent of one core; it looks around every 2 seconds


def test_processes_that_the_application_starts_are_not_disturbed(peer, child, tmp_path):
    process = child(
        RUN
        + """
import subprocess
for n in range(100):
    s.append(payload(str(n)))
    # With this hook the child runs Python between fork and exec, and closes what it inherited.
    assert subprocess.run(["true"], preexec_fn=lambda: None).returncode == 0, n
assert ship.flush(10)
""",
        tmp_path,
        peer.endpoint,
        peer.protocol,
    )
    process.finish()
    assert peer.received == [str(number) for number in range(100)]


def in_a_container(code: str, folder, endpoint: str = "", protocol: str = "") -> list[str]:
    """A command that runs *code* as process 1 of process ids of its own, as containers have them."""
    script = folder / f"container-{len(list(folder.iterdir()))}.py"
    script.write_text(PRELUDE.format(tests=str(TESTS)) + textwrap.dedent(code))
    command = [sys.executable, str(script), str(folder / "spool"), endpoint, protocol]
    for namespaces in (
        ["unshare", "--user", "--map-root-user", "--pid", "--fork"],
        ["unshare", "--pid", "--fork"],
    ):
        with contextlib.suppress(OSError):
            if subprocess.run([*namespaces, "true"], capture_output=True, check=False).returncode == 0:
                return [*namespaces, *command]
    return command  # where that is forbidden, the locks have to decide between neighbours


def test_containers_that_share_a_volume_tell_the_dead_from_the_living_by_their_locks(grpc_peer, tmp_path):
    """Their process ids are the same, so no id could."""
    busy = """
        s = Spool(folder)
        for n in range(50): assert s.append(payload(f"{folder.name}-{os.getpid()}-%s-%d" % (s.stream_id, n)))
        print("written", flush=True)
        input()
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    living, dying = (
        subprocess.Popen(in_a_container(busy, tmp_path), start_new_session=True, **pipes) for _ in range(2)
    )
    try:
        assert [each.stdout.readline() for each in (living, dying)] == ["written\n"] * 2
        os.killpg(dying.pid, signal.SIGKILL)
        dying.wait()
        run = RUN + "wait_until(lambda: len(list(folder.glob('*.spool'))) == 1)\n"
        taker = subprocess.run(
            in_a_container(run, tmp_path, grpc_peer.endpoint, "grpc"),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert taker.returncode == 0, taker.stderr
        # What the dead one left, once; nothing of the one that lives.
        assert len(grpc_peer.received) == len(set(grpc_peer.received)) == 50
        assert len({name.split("-")[2] for name in grpc_peer.received}) == 1
        living.communicate("\n", timeout=60)
    finally:
        for each in (living, dying):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(each.pid, signal.SIGKILL)
            each.wait()
            each.stdin.close()
            each.stdout.close()
