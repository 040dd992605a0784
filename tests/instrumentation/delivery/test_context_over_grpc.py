"""Real gRPC channels of every kind, with and without OpenTelemetry's instrumentation, against a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from auditspan.propagation import KeyRing, Tokens
from instrumentation.delivery.test_context_over_http import KEYS, SERVICE


class Recorder:
    """A server with the four kinds of methods that notes each call's metadata."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, list[str]]]] = []
        self.server = grpc.server(ThreadPoolExecutor(8))
        methods = {
            "UU": grpc.unary_unary_rpc_method_handler(lambda body, context: self.note(context) or body),
            "US": grpc.unary_stream_rpc_method_handler(
                lambda body, context: self.note(context) or iter([body] * 2)
            ),
            "SU": grpc.stream_unary_rpc_method_handler(
                lambda bodies, context: self.note(context) or b"".join(bodies)
            ),
            "SS": grpc.stream_stream_rpc_method_handler(
                lambda bodies, context: self.note(context) or iter(list(bodies))
            ),
        }
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x.Y", methods),))
        self.port = self.server.add_insecure_port("0.0.0.0:0")
        self.server.start()

    def note(self, context: grpc.ServicerContext) -> None:
        metadata: dict[str, list[str]] = {}
        for key, value in context.invocation_metadata():
            metadata.setdefault(key, []).append(value)
        self.seen.append(metadata)


@pytest.fixture
def server():
    made = Recorder()
    yield made
    made.server.stop(None).wait()


SYNC = """
import grpc
channel = grpc.insecure_channel(target)
meta = tuple(headers.items()) or None
uu, us, su, ss = channel.unary_unary("/x.Y/UU"), channel.unary_stream("/x.Y/US"), channel.stream_unary("/x.Y/SU"), channel.stream_stream("/x.Y/SS")
assert uu(b"a", metadata=meta, timeout=10) == b"a"
assert uu.with_call(b"a", 10, meta)[0] == b"a"
assert uu.future(b"a", timeout=10, metadata=meta).result() == b"a"
assert list(us(b"a", metadata=meta, timeout=10)) == [b"a", b"a"]
assert su(iter([b"a", b"b"]), metadata=meta, timeout=10) == b"ab"
assert list(ss(iter([b"a", b"b"]), metadata=meta, timeout=10)) == [b"a", b"b"]
channel.close()
"""
AIO = """
import grpc.aio
meta = tuple(headers.items()) or None
async def main():
    async with grpc.aio.insecure_channel(target) as channel:
        uu, us, su, ss = channel.unary_unary("/x.Y/UU"), channel.unary_stream("/x.Y/US"), channel.stream_unary("/x.Y/SU"), channel.stream_stream("/x.Y/SS")
        async def requests():
            yield b"a"
            yield b"b"
        assert await uu(b"a", metadata=meta, timeout=10) == b"a"
        assert [found async for found in us(b"a", metadata=meta, timeout=10)] == [b"a", b"a"]
        assert await su(requests(), metadata=meta, timeout=10) == b"ab"
        assert [found async for found in ss(requests(), metadata=meta, timeout=10)] == [b"a", b"b"]
asyncio.run(main())
"""
INSTRUMENTED = """
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcInstrumentorClient
GrpcInstrumentorClient().instrument()
GrpcAioInstrumentorClient().instrument()
"""


@pytest.fixture
def run(tmp_path, server):
    """Run a client in a process of its own, where only 127.0.0.1 is on the list."""
    keys = tmp_path / "keys"
    keys.write_text(KEYS)
    keys.chmod(0o600)

    def start(client: str, host: str, headers: dict[str, str] | None = None) -> None:
        code = f"{SERVICE}\ntarget = {f'{host}:{server.port}'!r}\n{client}"
        arguments = [str(keys), f"127.0.0.1:{server.port}", "", json.dumps(headers or {})]
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr

    return start


def test_our_channel_is_wrapped_beneath_the_instrumentation_s(run):
    run(
        INSTRUMENTED
        + """
import grpc
channel = grpc.insecure_channel(target)
layers = []
while channel is not None:
    layers.append(type(channel).__module__)
    channel = vars(channel).get("_channel") or vars(channel).get("_base")
    if type(channel).__module__.startswith("grpc._cython"): break
assert layers == ["opentelemetry.instrumentation.grpc.grpcext._interceptor", "auditspan.propagation.grpc_channels", "grpc._channel"], layers
""",
        "127.0.0.1",
    )


CALLS = 10  # six synchronous, four asynchronous


@pytest.mark.parametrize("instrumented", [True, False], ids=["instrumented", "plain"])
def test_a_listed_target_learns_the_actor_in_every_kind_of_call(run, server, instrumented):
    run(INSTRUMENTED * instrumented + SYNC + AIO, "127.0.0.1", {"x-own": "kept"})
    assert len(server.seen) == CALLS
    judge = Tokens(KeyRing.from_text(KEYS))
    for metadata in server.seen:
        (token,) = metadata["audit-context"]
        assert metadata["x-own"] == ["kept"]
        if (
            instrumented
        ):  # without it the application carries traceparent itself, or the token counts for nothing
            upstream = judge.verify(token, metadata["traceparent"][0].split("-")[1])
            assert (upstream.actor.id, upstream.service) == ("alice", "gateway")
            assert len(upstream.parent_span_id) == 16


@pytest.mark.parametrize("instrumented", [True, False], ids=["instrumented", "plain"])
def test_a_target_that_is_not_listed_gets_nothing_not_even_a_copied_token(run, server, instrumented):
    run(INSTRUMENTED * instrumented + SYNC + AIO, "127.0.0.2", {"audit-context": "TOKEN", "x-own": "kept"})
    assert len(server.seen) == CALLS
    assert all("audit-context" not in metadata and metadata["x-own"] == ["kept"] for metadata in server.seen)


def test_a_copied_token_does_not_stand_beside_ours(run, server):
    run(SYNC + AIO, "127.0.0.1", {"audit-context": "TOKEN"})
    assert [len(metadata["audit-context"]) for metadata in server.seen] == [1] * CALLS


def test_metadata_of_that_name_which_is_no_token_is_the_application_s_own(run, server):
    run(SYNC + AIO, "127.0.0.2", {"audit-context": "season 3"})
    assert [metadata["audit-context"] for metadata in server.seen] == [["season 3"]] * CALLS


def test_calls_without_metadata_work_without_audited_work_too(run, server):
    run("otel.attach(otel.Context())\n" + SYNC + AIO, "127.0.0.1")
    assert ["audit-context" in metadata for metadata in server.seen] == [False] * CALLS


def test_the_application_s_own_interceptors_still_run(run, server):
    run(
        """
import grpc, grpc.aio
class Sync(grpc.UnaryUnaryClientInterceptor):
    def intercept_unary_unary(self, go_on, details, request):
        assert dict(details.metadata or ()) == {}
        return go_on(details, request + b"!")
channel = grpc.intercept_channel(grpc.insecure_channel(target=target, options=[("grpc.enable_retries", 0)]), Sync())
assert channel.unary_unary("/x.Y/UU")(b"a", timeout=10) == b"a!"
class Aio(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, go_on, details, request):
        return await go_on(details, request + b"?")
async def main():
    async with grpc.aio.insecure_channel(target, None, None, [Aio()]) as channel:
        assert await channel.unary_unary("/x.Y/UU")(b"a", timeout=10) == b"a?"
asyncio.run(main())
""",
        "127.0.0.1",
    )
    assert [len(metadata["audit-context"]) for metadata in server.seen] == [1, 1]


def test_errors_and_connectivity_come_through_unchanged(run):
    run(
        """
import grpc
with grpc.insecure_channel(target) as channel:
    states = []
    channel.subscribe(states.append, try_to_connect=True)
    grpc.channel_ready_future(channel).result(10)
    assert grpc.ChannelConnectivity.READY in states
    channel.unsubscribe(states.append)
    try:
        channel.unary_unary("/x.Y/Missing")(b"", timeout=10)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    else:
        raise AssertionError
    assert isinstance(channel, grpc.Channel)
try:
    grpc.insecure_channel()
except TypeError as error:
    assert "target" in str(error)
""",
        "127.0.0.1",
    )
