"""What the services of this suite are called with, without a server, and the SDK that hears of it."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any, Final

from auditspan.bootstrap import install
from auditspan.settings import Settings
from auditspan.spool import Spool, frames
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.sampling import Sampler

HEADERS: Final = {
    "host": "shop:8000",
    "user-agent": "python-httpx/0.28.1",
    "accept": "*/*",
    "accept-encoding": "gzip, deflate",
    "connection": "keep-alive",
}


class Nowhere(SpanExporter):
    """Takes spans and forgets them."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Always a success."""
        del spans
        return SpanExportResult.SUCCESS


def provider(sampler: Sampler, folder: Path | None) -> TracerProvider:
    """An SDK with a batch exporter; with Auditspan when there is a *folder* for its spool."""
    found = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    found.add_span_processor(BatchSpanProcessor(Nowhere(), max_queue_size=1 << 20))
    if folder is not None:
        install(found, Settings(), Spool(folder, max_bytes=1 << 32))
    return found


def records(folder: Path) -> Iterator[bytes]:
    """The records in the spool in *folder*."""
    for path in folder.rglob("*.spool"):
        content, offset = path.read_bytes(), 0
        while isinstance(frame := frames.parse(content, offset), frames.Frame):
            yield content[offset : frame.end]
            offset = frame.end


def path_of(method: str, number: int) -> str:
    """A POST refunds the order, a GET reads it."""
    return f"/orders/{number}/refund" if method == "POST" else f"/orders/{number}"


def scope_of(method: str, number: int, headers: Sequence[tuple[bytes, bytes]]) -> dict[str, Any]:
    """A request as a server gives it to an ASGI application."""
    path = path_of(method, number)
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 51234),
        "scheme": "http",
        "method": method,
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "state": {},
    }


def environ_of(method: str, number: int) -> dict[str, Any]:
    """A request as a server gives it to a WSGI application."""
    path = path_of(method, number)
    return {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "RAW_URI": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "51234",
        **{"HTTP_" + name.upper().replace("-", "_"): value for name, value in HEADERS.items()},
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
