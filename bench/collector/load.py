"""A load generator: a process with real gRPC clients that send without a pause, for a time that it is told.

    python -m bench.collector.load PORT TAGGED_PCT NUMBER

It encodes its messages, says "ready" on stdout, and then answers each line "seconds" on stdin with one line of JSON:
what was acknowledged while the clock ran, requests that were on their way at the end included.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import grpc

from bench.collector.spans import SPANS, messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

EXPORT: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
CONNECTIONS: Final = 4
THREADS_A_CONNECTION: Final = 4
ANSWER_LIMIT_S: Final = 60.0


class Load:
    """Clients of one collector; each thread has one request on its way."""

    def __init__(self, port: int, tagged_pct: int, number: int) -> None:
        """*number* tells load generators apart: their messages differ."""
        self._port = port
        self._messages = messages(tagged_pct)
        self._numbers = (number.to_bytes(2, "big") + count.to_bytes(6, "big") for count in itertools.count(1))
        self._lock = threading.Lock()

    def run(self, seconds: float, exports: Sequence[Callable[..., bytes]]) -> dict[str, Any]:
        """Send for *seconds*; what came of it."""
        outcomes: list[_Outcome] = []
        started = time.monotonic()
        threads = []
        for index in range(CONNECTIONS * THREADS_A_CONNECTION):
            outcomes.append(outcome := _Outcome())
            export = exports[index % len(exports)]
            threads.append(threading.Thread(target=self._send, args=(export, started + seconds, outcome)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return _summary(outcomes, time.monotonic() - started)

    def _send(self, export: Callable[..., bytes], until: float, outcome: _Outcome) -> None:
        for message in itertools.cycle(self._messages):
            with self._lock:
                number = next(self._numbers)
            body = message.numbered(number)
            started = time.monotonic()
            if started >= until:
                return
            try:
                export(body, timeout=ANSWER_LIMIT_S)
            except grpc.RpcError as error:
                outcome.refused[error.code().name] = outcome.refused.get(error.code().name, 0) + 1
                time.sleep(0.05)
                continue
            outcome.latencies.append(time.monotonic() - started)
            outcome.tagged += message.tagged
            outcome.bytes += len(body)


class _Outcome:
    """What one thread has seen."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.tagged = 0
        self.bytes = 0
        self.refused: dict[str, int] = {}


def _summary(outcomes: list[_Outcome], elapsed_s: float) -> dict[str, Any]:
    latencies = [each for outcome in outcomes for each in outcome.latencies]
    refused: dict[str, int] = {}
    for outcome in outcomes:
        for code, count in outcome.refused.items():
            refused[code] = refused.get(code, 0) + count
    return {
        "spans": len(latencies) * SPANS,
        "tagged": sum(outcome.tagged for outcome in outcomes),
        "bytes": sum(outcome.bytes for outcome in outcomes),
        "elapsed_s": elapsed_s,
        "latencies": latencies,
        "refused": refused,
    }


def _connections(port: int) -> Iterator[grpc.Channel]:
    for _ in range(CONNECTIONS):
        # Channels to one address share a connection unless they are told not to.
        yield grpc.insecure_channel(
            f"127.0.0.1:{port}",
            options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)],
        )


def main(port: int, tagged_pct: int, number: int) -> None:
    """Serve stdin until it ends."""
    load = Load(port, tagged_pct, number)
    channels = list(_connections(port))
    for channel in channels:
        grpc.channel_ready_future(channel).result(timeout=30)
    exports = [
        channel.unary_unary(EXPORT, request_serializer=None, response_deserializer=None)
        for channel in channels
    ]
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(load.run(float(line), exports)), flush=True)
    for channel in channels:
        channel.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
