"""Real HTTP clients, instrumented, against real servers on two addresses of which one is on the list."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from auditspan.propagation import KeyRing, Tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from auditspan.context import Upstream

KEYS = "k1 thirty-two-characters-at-the-very-least"


class Recorder:
    """A server that notes what it gets; /to?URL redirects there."""

    def __init__(self, address: str) -> None:
        self.seen: list[dict[str, list[str]]] = []
        recorder = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                headers: dict[str, list[str]] = {}
                for key, value in self.headers.items():
                    headers.setdefault(key.lower(), []).append(value)
                recorder.seen.append(headers)
                to = self.path.partition("/to?")[2]
                self.send_response(302 if to else 200)
                if to:
                    self.send_header("location", to)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer((address, 0), Handler)
        self.url = f"http://{address}:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def clients(self, header: str = "x-client") -> list[str]:
        """Which clients sent *header*, in order, each once."""
        return list(dict.fromkeys(headers["x-client"][0] for headers in self.seen if header in headers))


@pytest.fixture
def listed() -> Iterator[Recorder]:
    made = Recorder("127.0.0.1")
    yield made
    made.stop()


@pytest.fixture
def foreign() -> Iterator[Recorder]:
    made = Recorder("127.0.0.2")
    yield made
    made.stop()


SERVICE = """
import asyncio, json, sys
from pathlib import Path
from opentelemetry import context as otel, trace
from opentelemetry.sdk.trace import TracerProvider
from auditspan import context
from auditspan.propagation import install
from auditspan.settings import Settings

trace.set_tracer_provider(TracerProvider())
keys, destinations, url, headers = Path(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
propagator = install(Settings(context_keys_file=keys, context_destinations=(destinations,)), service="gateway")
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor
for instrumentor in (AioHttpClientInstrumentor, HTTPXClientInstrumentor, RequestsInstrumentor, URLLib3Instrumentor):
    instrumentor().instrument()

span = trace.get_tracer("t").start_span("entry", kind=trace.SpanKind.SERVER)
ids = span.get_span_context()
state = context.AuditedSpan(trace.format_span_id(ids.span_id), ids.trace_id, entry=True, certain=True,
                            actor=context.Actor("alice", roles=("admin",)))
context.bind(span, state)
otel.attach(context.with_state(state, trace.set_span_in_context(span)))
for key, value in headers.items():
    if value == "TOKEN":  # as it came in
        headers[key] = propagator.token()
"""

CLIENTS = {
    "requests": "import requests; requests.get(url, headers=headers)",
    "requests session": "import requests; s = requests.Session(); s.headers.update(headers); s.get(url); s.get(url)",
    "urllib3": "import urllib3; urllib3.PoolManager().request('GET', url, headers=headers)",
    "httpx": "import httpx; httpx.get(url, headers=headers, follow_redirects=True)",
    "httpx async": """
import httpx
async def main():
    async with httpx.AsyncClient(follow_redirects=True) as client:
        await client.get(url, headers=headers)
asyncio.run(main())
""",
    "aiohttp": """
import aiohttp
async def main():
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        await response.read()
asyncio.run(main())
""",
}
UNINSTRUMENTED = {
    "urllib": "import urllib.request as u; u.urlopen(u.Request(url, headers=headers))",
    "http.client": """
import http.client, urllib.parse
c = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc); c.request("GET", "/", headers=headers)
c.getresponse()
""",
    "aiohttp untraced": """
import aiohttp
async def main():
    untraced = aiohttp.ClientSession(headers=headers)
    untraced._trace_configs.clear()
    async with untraced, untraced.get(url) as response:
        await response.read()
asyncio.run(main())
""",
}
PROXIED = {
    "requests": "import requests; requests.get(url, headers=headers, proxies={'http': destination_url})",
    "httpx": "import httpx; httpx.get(url, headers=headers, proxy=destination_url)",
    "aiohttp": """
import aiohttp
async def main():
    async with aiohttp.ClientSession() as session:
        async with session.get(url, headers=headers, proxy=destination_url) as response:
            await response.read()
asyncio.run(main())
""",
}


@pytest.fixture
def run(tmp_path, listed):
    """Run a client in a process of its own, where only *listed* is on the list."""
    keys = tmp_path / "keys"
    keys.write_text(KEYS)
    keys.chmod(0o600)

    def start(
        clients: dict[str, str], url: str, headers: dict[str, str] | None = None, **environ: str
    ) -> str:
        code = f"{SERVICE}\ndestination_url = {listed.url!r}\n"
        for name, client in clients.items():
            code += f"headers = {{**headers, 'x-client': {name!r}}}\n{client}\n"
        arguments = [str(keys), listed.url.removeprefix("http://"), url, json.dumps(headers or {})]
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env={"PATH": "/usr/bin:/bin", **environ},
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    return start


def believed(headers: dict[str, list[str]]) -> Upstream:
    """What a service with the same keys makes of a request's header."""
    trace_id = headers["traceparent"][0].split("-")[1]
    (token,) = headers["audit-context"]
    return Tokens(KeyRing.from_text(KEYS)).verify(token, trace_id)


def test_the_clients_are_all_there(run, listed):
    run(CLIENTS | UNINSTRUMENTED, listed.url)
    assert listed.clients() == [*CLIENTS, *UNINSTRUMENTED]


@pytest.mark.parametrize("conventions", ["", "http"], ids=["old conventions", "new conventions"])
def test_a_listed_service_learns_the_actor(run, listed, conventions):
    assert run(CLIENTS, listed.url, OTEL_SEMCONV_STABILITY_OPT_IN=conventions) == ""
    assert listed.clients() == [*CLIENTS]
    for headers in listed.seen:
        upstream = believed(headers)
        assert (upstream.actor.id, upstream.actor.roles, upstream.service) == ("alice", ("admin",), "gateway")
        assert len(upstream.parent_span_id) == 16


def test_a_service_that_is_not_listed_gets_nothing_of_ours(run, foreign):
    run(CLIENTS, foreign.url)
    assert foreign.clients("traceparent") == [*CLIENTS]
    assert foreign.clients("audit-context") == []


def test_a_redirect_does_not_take_the_token_along_to_a_stranger(run, listed, foreign):
    run(CLIENTS, f"{listed.url}/to?{foreign.url}/x")
    assert listed.clients("audit-context") == [*CLIENTS]
    assert foreign.clients() == [*CLIENTS]
    assert foreign.clients("audit-context") == []


@pytest.mark.parametrize("name", ["audit-context", "Audit-Context"])
def test_an_incoming_token_that_the_application_copies_does_not_reach_a_stranger(run, foreign, name):
    run(CLIENTS | UNINSTRUMENTED, foreign.url, {name: "TOKEN", "x-own": "kept"})
    assert foreign.clients("x-own") == [*CLIENTS, *UNINSTRUMENTED]
    assert foreign.clients("audit-context") == []


def test_a_client_without_instrumentation_may_forward_to_a_listed_service(run, listed):
    run(UNINSTRUMENTED, listed.url, {"audit-context": "TOKEN"})
    assert listed.clients("audit-context") == [*UNINSTRUMENTED]


def test_a_copied_token_does_not_stand_beside_ours(run, listed):
    run(CLIENTS, listed.url, {"Audit-Context": "TOKEN"})
    assert listed.clients() == [*CLIENTS]
    assert {believed(headers).actor.id for headers in listed.seen} == {"alice"}


def test_a_header_of_that_name_which_is_no_token_is_the_application_s_own(run, foreign):
    run(CLIENTS | UNINSTRUMENTED, foreign.url, {"audit-context": "season 3"})
    assert foreign.clients() == [*CLIENTS, *UNINSTRUMENTED]
    assert {value for headers in foreign.seen for value in headers["audit-context"]} == {"season 3"}


def test_a_listed_proxy_does_not_make_what_is_behind_it_listed(run, listed):
    run(PROXIED, "http://somewhere.example/", {"audit-context": "TOKEN"})
    assert listed.clients() == [*PROXIED]
    assert listed.clients("audit-context") == []


def test_nothing_is_sent_for_work_that_is_not_audited(run, listed):
    run({"requests": "otel.attach(otel.Context())\n" + CLIENTS["requests"]}, listed.url)
    assert listed.clients("traceparent") == ["requests"]
    assert listed.clients("audit-context") == []
