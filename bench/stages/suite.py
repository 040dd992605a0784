"""The collector's own steps, one after the other in one thread, each with the CPU time that it takes per span.

No network and no other thread, so this is what is left of the suite "collector" without gRPC and without threads
that wait for each other; the insert goes to the counting sink. Groups are of sixteen requests, what a busy collector
commits at once. CPU time is the thread's: waiting for the disk is not in it, writing to it is.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
from collections import defaultdict
from contextlib import ExitStack, closing, contextmanager
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Final

from auditspan_collector.cli.foreground import keep_freed_memory
from auditspan_collector.clickhouse import ClickHouseClient
from auditspan_collector.clickhouse import Config as ClickHouseConfig
from auditspan_collector.columnar import Columns
from auditspan_collector.ledger.log import LedgerState, append
from auditspan_collector.pipeline import readable
from auditspan_collector.pipeline.insert import insert
from auditspan_collector.processor.enrich import Limits
from auditspan_collector.record import OtlpRequest, Sender
from auditspan_collector.schema import NATIVE_COLUMNS
from auditspan_collector.spool import Config as SpoolConfig
from auditspan_collector.spool import Spool

from bench.collector.interpreted import differs
from bench.collector.spans import SPANS, messages
from bench.process import Process, free_port, listens, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from auditspan_collector.record import Selection

    from bench.results import Case
    from bench.settings import Settings

GROUP: Final = 16
STAGES: Final = ("encode", "seal", "commit", "read", "begin", "insert", "release")
_SENDER: Final = Sender("bench", "default", None, instrumented=True)


def run(settings: Settings) -> list[Case]:
    """A case for each share of tagged spans: CPU us/span of each of STAGES, and of all together."""
    cases = []
    for tagged_pct in settings.tagged:
        spent = _spent(settings.folder / f"stages-{tagged_pct}", tagged_pct, 3 if settings.quick else 12)
        together = round(sum(spent.values()), 3)
        path = "compiled" if differs() else "interpreted"
        cases.append(
            {
                "system": "auditspan",
                "path": path,
                "tagged_pct": tagged_pct,
                **spent,
                "cpu_us_per_span": together,
            }
        )
        settings.say(f"  {tagged_pct:3d}% tagged: {together:.2f} us/span in all steps together")
    return cases


def _spent(folder: Path, tagged_pct: int, groups: int) -> dict[str, float]:
    """Microseconds per span of each stage; *seal* is taken out of *commit*, whose part it is."""
    keep_freed_memory()  # as the collector does when it starts
    clock = _Clock()
    folder.mkdir(parents=True)
    encode = _encoder()
    with ExitStack() as running:
        port = free_port()
        sink = running.enter_context(
            Process(
                [sys.executable, "-m", "bench.collector.sink", str(port)],
                log=folder / "sink.log",
                cores=frozenset(os.sched_getaffinity(0)),
            )
        )
        wait_until("the sink", partial(listens, port), limit_s=30, process=sink)
        client = running.enter_context(
            closing(ClickHouseClient(ClickHouseConfig(url=f"http://127.0.0.1:{port}")))
        )
        spool = running.enter_context(
            closing(Spool.open(SpoolConfig(path=str(folder / "spool")), "bench", "stages"))
        )
        native = Columns(NATIVE_COLUMNS)
        for turn in range(groups + 1):
            if turn == 1:
                clock.clear()  # the first one warms everything up
            _one_group(clock, _requests(tagged_pct, turn), encode, spool, client, native=native)
    shutil.rmtree(folder)
    spans = groups * GROUP * SPANS
    spent = {stage: clock.spent_s[stage] * 1e6 / spans for stage in STAGES}
    spent["commit"] -= spent["seal"]
    return {stage: round(us, 3) for stage, us in spent.items()}


def _one_group(
    clock: _Clock,
    requests: list[OtlpRequest],
    encode: Callable[[OtlpRequest], Selection],
    spool: Spool,
    client: ClickHouseClient,
    *,
    native: Columns,
) -> None:
    with clock.stage("encode"):
        blocks = [encode(request).leaves for request in requests]
    if not any(map(len, blocks)):
        return
    with clock.stage("seal"):
        append(LedgerState(spool.stream), blocks)
    with clock.stage("commit"):
        spool.commit(blocks)
    while True:
        with clock.stage("read"):
            batch = spool.read(10_000, 16 << 20)
        if batch is None:
            return
        with clock.stage("begin"):
            spool.begin_insert(batch)
        with clock.stage("insert"):
            insert(client, batch, native)
        with clock.stage("release"):
            spool.release(batch.last_index)


def _requests(tagged_pct: int, turn: int) -> list[OtlpRequest]:
    bodies = _messages(tagged_pct)
    return [
        OtlpRequest(
            bodies[at % len(bodies)].numbered((turn * GROUP + at + 1).to_bytes(8, "big")),
            "protobuf",
            _SENDER,
            "127.0.0.1",
            time.time_ns(),
        )
        for at in range(GROUP)
    ]


_messages = cache(messages)


def _encoder() -> Callable[[OtlpRequest], Selection]:
    """The way that the collector takes here: the compiled one where there is one."""
    if importlib.util.find_spec("auditspan_collector.pipeline.encode") is None:
        return partial(readable.encode, limits=Limits())
    encoder: Callable[[OtlpRequest], Selection] = import_module(
        "auditspan_collector.pipeline.encode"
    ).encoder(Limits())
    return encoder


class _Clock:
    """Adds up the thread's CPU time by stage."""

    def __init__(self) -> None:
        self.spent_s: defaultdict[str, float] = defaultdict(float)

    def clear(self) -> None:
        """Begin anew."""
        self.spent_s.clear()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what runs inside."""
        started = time.thread_time()
        yield
        self.spent_s[name] += time.thread_time() - started
