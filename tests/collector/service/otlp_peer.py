"""Receivers in front of a function that a test chooses, and requests to send to them; fixtures are in conftest.py."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from auditspan_collector.receiver.grpc import SERVICE, GrpcReceiver
from auditspan_collector.receiver.http import HttpReceiver
from auditspan_collector.receiver.senders import Senders
from auditspan_collector.record import Accepted, IndexRange, Receipt
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TLS_FILES = Path(__file__).parent / "tls"
RECEIPT = Receipt("test/one/00ff", (IndexRange(7, 9), IndexRange(12, 12)), 2)
RECEIPT_JSON = {
    "stream": "test/one/00ff",
    "ranges": [{"first": "7", "last": "9"}, {"first": "12", "last": "12"}],
    "duplicates": "2",
}


def wait_until(condition, *, limit_s=10.0, what="the condition"):
    """Poll *condition* until it gives something true, and return that."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come true within {limit_s} s")


def request_bytes(*, spans=1, attributes=(("audit.action", "DELETE"),), name="delete order"):
    """A valid ExportTraceServiceRequest."""
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number in range(spans):
        span = scope.spans.add(trace_id=b"\x01" * 16, span_id=bytes([number % 255 + 1] * 8), name=name)
        for key, value in attributes:
            span.attributes.add(key=key).value.string_value = value
    return request.SerializeToString()


class Counting:
    """ReceiverMetrics that a test can read."""

    def __init__(self):
        self.outcomes = Counter()

    def answered(self, transport, outcome, *, body_bytes, duration_s):
        assert body_bytes >= 0
        assert duration_s >= 0
        self.outcomes[transport, outcome] += 1


@dataclass
class Kept:
    """A submit function: remembers its requests; raises *error* or answers *accepted*."""

    accepted: Accepted = field(default_factory=lambda: Accepted(RECEIPT))
    error: Exception | None = None
    requests: list = field(default_factory=list)

    def __call__(self, request):
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        return self.accepted


class Receivers:
    """Both receivers, running."""

    def __init__(self, config, kept, *, threads_for_all=False):
        """*threads_for_all*: each gRPC call keeps a thread, as where the installed gRPC can do no other."""
        self.kept = kept
        self.metrics = Counting()
        senders = Senders(config)
        self.grpc = GrpcReceiver(
            config, senders, self.submit, self.metrics, offer=None if threads_for_all else self.offer
        )
        self.http = HttpReceiver(config, senders, self.submit, self.metrics)
        self._channels = []

    def submit(self, request):
        return self.kept(request)

    def offer(self, request, answer, *, since_s):
        """Answers from a thread of its own, as a committer does."""
        assert since_s <= time.monotonic()

        def keep():
            try:
                answer(self.kept(request))
            except BaseException as error:  # noqa: BLE001 - whatever a test has it raise
                answer(error)

        threading.Thread(target=keep, daemon=True).start()

    def start(self):
        self.grpc.start()
        self.http.start()
        self.grpc.serving(True)

    def stop(self):
        for channel in self._channels:
            channel.close()
        self.grpc.stop(1)
        self.http.stop(1)

    def channel(self):
        channel = grpc.insecure_channel(
            f"127.0.0.1:{self.grpc.port}", options=[("grpc.max_send_message_length", -1)]
        )
        self._channels.append(channel)
        return channel

    def export(self, body, *, metadata=(), compression=None, method=f"/{SERVICE}/Export"):
        """Send *body* over gRPC: (answer, trailing metadata). Raises grpc.RpcError."""
        call = self.channel().unary_unary(method)
        answer, details = call.with_call(body, metadata=metadata, compression=compression, timeout=30)
        return answer, dict(details.trailing_metadata() or ())

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http.port}/v1/traces"

    def connect(self):
        """A bare connection to the HTTP listener."""
        return socket.create_connection(("127.0.0.1", self.http.port), timeout=10)
