"""Senders that number what they send and remember what was acknowledged, as services' shippers would.

Each record's id is derived from its sender and number, so that a look at the store says whose it is. A sender goes
on only when its request is acknowledged: the same bytes again, whatever happens to the collector meanwhile, as
OTLP's exporters do. It is less patient than they are: a refusal that asks for 5 s is noted and tried again sooner.
"""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import grpc
import httpx
import loopback
from collector.service.otlp_peer import wait_until
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from integration.whole_line import EXPORT
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from types import TracebackType

NAMESPACE = uuid.UUID("2f5b7c1e-6a09-4c1e-9b1f-0d4a3f6c8e71")
DEADLINE_S = 10.0  # of one request, as OTLP's exporters have it
PAUSE_S = 0.05  # after a failure


class Unreachable(Exception):  # noqa: N818 - a state
    """No answer: nobody listens, the connection was cut, or the deadline passed."""


class Refused(Exception):  # noqa: N818 - an answer
    """UNAVAILABLE or 503 from a collector that lives; *retry_after_s* is None when it named no time."""

    def __init__(self, message: str, retry_after_s: float | None):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Transport(Protocol):
    def send(self, body: bytes) -> dict:
        """The receipt. Raises Unreachable, Refused; anything else is a fault of the collector."""

    def close(self) -> None: ...


class Grpc:
    """OTLP/gRPC to *port*."""

    def __init__(self, port: int):
        options = [
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 200),
            ("grpc.max_send_message_length", -1),
        ]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=options)
        self._export = self._channel.unary_unary(EXPORT)

    def send(self, body: bytes) -> dict:
        try:
            _, call = self._export.with_call(body, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            status = rpc_status.from_call(error)
            if error.code() is grpc.StatusCode.UNAVAILABLE and status is not None:
                raise Refused(status.message, _retry_delay_s(status)) from None
            if error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                raise Unreachable(error.code().name) from None
            # A server that stops cuts what its grace period did not see answered.
            if error.code() is grpc.StatusCode.CANCELLED:
                raise Unreachable("cut") from None
            raise
        return json.loads(dict(call.trailing_metadata())["auditspan-receipt"])

    def close(self) -> None:
        self._channel.close()


class Http:
    """OTLP/HTTP to *port*."""

    def __init__(self, port: int):
        self._client = loopback.Client(timeout=DEADLINE_S)
        self._url = f"http://127.0.0.1:{port}/v1/traces"

    def send(self, body: bytes) -> dict:
        headers = {"content-type": "application/x-protobuf"}
        try:
            answer = self._client.post(self._url, content=body, headers=headers)
        except httpx.TransportError as error:
            raise Unreachable(type(error).__name__) from None
        if answer.status_code == 503:
            retry_after = answer.headers.get("retry-after")
            message = status_pb2.Status.FromString(answer.content).message
            raise Refused(message, float(retry_after) if retry_after else None)
        answer.raise_for_status()
        return json.loads(answer.headers["auditspan-receipt"])

    def close(self) -> None:
        self._client.close()


def _retry_delay_s(status: status_pb2.Status) -> float | None:
    info = error_details_pb2.RetryInfo()
    found = any(detail.Unpack(info) for detail in status.details)
    return info.retry_delay.ToNanoseconds() / 1e9 if found else None


@dataclass(frozen=True)
class Acknowledged:
    """A request that was answered with OK."""

    record_ids: tuple[str, ...]
    receipt: dict
    elapsed_s: float

    def places(self) -> dict[str, tuple[str, int]] | None:
        """Stream and index of each record; None when some were duplicates, so that the receipt does not say."""
        if int(self.receipt["duplicates"]):
            return None
        indexes = [
            index
            for each in self.receipt["ranges"]
            for index in range(int(each["first"]), int(each["last"]) + 1)
        ]
        stream = self.receipt["stream"]
        return {record: (stream, index) for record, index in zip(self.record_ids, indexes, strict=True)}


@dataclass(frozen=True)
class Refusal:
    """A request that was answered with "not now"."""

    message: str
    retry_after_s: float | None
    elapsed_s: float


class Sender:
    """One service: sends in a thread from `start` to `stop`; the lists grow meanwhile.

    *numbered* puts ``audit.sequence.*`` on each span, as an instrumented service does; *value_bytes* makes records
    large. *up_to* requests at most are sent.
    """

    def __init__(
        self,
        name: str,
        transport: Transport,
        *,
        numbered: bool,
        records: tuple[int, int] = (1, 12),
        value_bytes: int = 0,
        pause_s: float = 0.0,
        up_to: int | None = None,
    ):
        self.name = name
        self.acknowledged: list[Acknowledged] = []
        self.refusals: list[Refusal] = []
        self.unreachable: list[float] = []  # how long each took to fail
        self.uncertain: set[str] = set()  # record ids that were sent again, since no answer came
        self.offered: set[str] = set()
        self._transport = transport
        self._numbered, self._records = numbered, records
        self._value = "x" * value_bytes
        self._pause_s, self._up_to = pause_s, up_to
        self._next = 1
        self._rng = random.Random(name)
        self._over = threading.Event()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the request that runs; it may stay without an answer. Raises what the sender met unexpectedly."""
        self._over.set()
        self.join()

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()
        self._transport.close()
        if self.failure is not None:
            raise self.failure

    @property
    def acknowledged_records(self) -> int:
        return sum(len(each.record_ids) for each in self.acknowledged)

    def _run(self) -> None:
        try:
            while not self._over.is_set() and self._up_to != 0:
                self._one_request()
                self._over.wait(self._pause_s)
        except BaseException as error:  # noqa: BLE001 - handed to whoever stops us
            self.failure = error

    def _one_request(self) -> None:
        numbers = range(self._next, self._next + self._rng.randint(*self._records))
        ids, body = self.request(numbers)
        self.offered.update(ids)
        self._next = numbers.stop
        while True:
            started = time.monotonic()
            try:
                receipt = self._transport.send(body)
            except Refused as refused:
                elapsed_s = time.monotonic() - started
                self.refusals.append(Refusal(str(refused), refused.retry_after_s, elapsed_s))
            except Unreachable:
                self.unreachable.append(time.monotonic() - started)
                self.uncertain.update(ids)
            else:
                self.acknowledged.append(Acknowledged(ids, receipt, time.monotonic() - started))
                if self._up_to is not None:
                    self._up_to -= 1
                return
            if self._over.wait(PAUSE_S):
                return

    def request(self, numbers: range) -> tuple[tuple[str, ...], bytes]:
        """Record ids, and an OTLP request, of the records with *numbers*."""
        message = ExportTraceServiceRequest()
        in_resource = message.resource_spans.add()
        in_resource.resource.attributes.add(key="service.name").value.string_value = self.name
        spans = in_resource.scope_spans.add().spans
        ids = tuple(str(uuid.uuid5(NAMESPACE, f"{self.name} {number}")) for number in numbers)
        for record_id, number in zip(ids, numbers, strict=True):
            seed = uuid.UUID(record_id).bytes
            span = spans.add(
                trace_id=seed, span_id=seed[8:], name="POST /orders", start_time_unix_nano=number
            )
            values = {
                "audit.record.id": record_id,
                "audit.actor.id": "alice",
                "audit.action": "CREATE",
                "audit.target.id": str(number),
            }
            if self._numbered:
                values["audit.sequence.stream_id"] = self.name
            if self._value:
                values["note"] = self._value
            for key, value in values.items():
                span.attributes.add(key=key).value.string_value = value
            if self._numbered:
                span.attributes.add(key="audit.sequence.number").value.int_value = number
        return ids, message.SerializeToString()


class Senders:
    """Several, over gRPC and HTTP by turns; in a ``with`` they run."""

    def __init__(self, label: str, ports: tuple[int, int], count: int = 4, **each):
        grpc_port, http_port = ports
        self.each = [
            Sender(
                f"{label}-{n}",
                Http(http_port) if n % 2 else Grpc(grpc_port),
                # All four kinds: instrumented or not, over the one or the other.
                numbered=n // 2 % 2 == 0,
                **each,
            )
            for n in range(count)
        ]

    def __enter__(self) -> Self:
        for sender in self.each:
            sender.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sender in self.each:
            sender._over.set()
        for sender in self.each:
            sender.stop()

    def progress(self, records: int, *, limit_s: float = 60) -> None:
        """Wait until so many more are acknowledged."""
        enough = self.acknowledged_records + records

        def reached() -> bool:
            failed = [sender.failure for sender in self.each if sender.failure is not None]
            assert not failed, failed
            return self.acknowledged_records >= enough

        wait_until(reached, limit_s=limit_s, what=f"{records} more acknowledged records")

    @property
    def acknowledged(self) -> list[Acknowledged]:
        return [each for sender in self.each for each in sender.acknowledged]

    @property
    def acknowledged_records(self) -> int:
        return sum(sender.acknowledged_records for sender in self.each)

    @property
    def refusals(self) -> list[Refusal]:
        return [each for sender in self.each for each in sender.refusals]

    @property
    def unreachable(self) -> list[float]:
        return [each for sender in self.each for each in sender.unreachable]

    @property
    def uncertain(self) -> set[str]:
        return set().union(*(sender.uncertain for sender in self.each))

    @property
    def offered(self) -> set[str]:
        return set().union(*(sender.offered for sender in self.each))
