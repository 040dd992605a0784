"""What the signed audit-context costs a hop, in CPU time of the thread.

    python -m bench.instrumentation.hops

A line of JSON for each case: signing a new token, verifying one for the first time, verifying it again, and a whole
hop through OpenTelemetry's propagators (inject into an outgoing request, extract from the incoming one), against the
same hop with the ordinary propagators alone.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from auditspan import context as audit_context
from auditspan.context import Actor, AuditedSpan
from auditspan.propagation import install
from auditspan.propagation.keys import KeyRing
from auditspan.propagation.tokens import Claims, Tokens
from auditspan.settings import Settings
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagate import get_global_textmap
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind

if TYPE_CHECKING:
    from collections.abc import Callable

TIMES: Final = 200
ROUNDS: Final = 30
ALICE: Final = Actor("alice@example.com", roles=("admin", "sales"), auth_method="bearer")
KEY: Final = f"k1 {'0123456789abcdef' * 3}\n"


def _us(once: Callable[[int], object]) -> float:
    """CPU us of *once*, the lower quartile of ROUNDS; it gets another number each time."""
    spent = []
    for turn in range(ROUNDS + 1):
        started = time.thread_time()
        for number in range(turn * TIMES, (turn + 1) * TIMES):
            once(number)
        spent.append((time.thread_time() - started) / TIMES * 1e6)
    return sorted(spent[1:])[ROUNDS // 4]


def _tokens() -> dict[str, float]:
    ring = KeyRing.from_text(KEY)
    ours, theirs = Tokens(ring), Tokens(ring)
    traces = [secrets.token_hex(16) for _ in range((ROUNDS + 1) * TIMES)]
    claims = [Claims(one, ALICE, "00f067aa0ba902b7", "gateway") for one in traces]
    sign = _us(lambda number: ours.sign(claims[number]))
    tokens = [ours.sign(one) for one in claims]
    verify = _us(lambda number: theirs.verify(tokens[number], traces[number]))
    return {
        "propagation_sign": sign,
        "propagation_verify": verify,
        "propagation_verify_cached": _us(lambda _: theirs.verify(tokens[-1], traces[-1])),
    }


def _hops() -> tuple[float, float]:
    """A hop of the ordinary propagators, and one with ours."""
    provider = TracerProvider(shutdown_on_exit=False)
    tracer = provider.get_tracer("opentelemetry.instrumentation.httpx")
    contexts = []
    for _ in range((ROUNDS + 1) * TIMES):
        span = tracer.start_span(
            "POST", Context(), SpanKind.CLIENT, attributes={"url.full": "http://orders:8080/orders"}
        )
        ids = span.get_span_context()
        state = AuditedSpan(
            trace.format_span_id(ids.span_id), ids.trace_id, entry=True, certain=True, actor=ALICE
        )
        contexts.append(audit_context.with_state(state, trace.set_span_in_context(span, Context())))

    def hop(number: int) -> None:
        carrier: dict[str, str] = {}
        propagator.inject(carrier, contexts[number])
        propagator.extract(carrier, Context())

    propagator = get_global_textmap()
    ordinary = _us(hop)
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys"
        keys.touch(mode=0o600)
        keys.write_text(KEY)
        install(Settings(context_keys_file=keys, context_destinations=("orders",)), service="gateway")
        propagator = get_global_textmap()
        ours = _us(hop)
        carrier: dict[str, str] = {}
        propagator.inject(carrier, contexts[0])
        found = audit_context.upstream(propagator.extract(carrier, Context())).actor
        if found is None or found.id != ALICE.id:
            raise RuntimeError(f"the hop carried {found}")
    return ordinary, ours


def main() -> None:
    """Print the cases."""
    base, ours = _hops()
    found = [{"case": case, "on": "tokens", "added_us": round(spent, 2)} for case, spent in _tokens().items()]
    found.append(
        {
            "case": "propagation_hop",
            "on": "propagators",
            "base_us": round(base, 1),
            "us": round(ours, 1),
            "added_us": round(ours - base, 1),
            "ratio": round(ours / base, 3),
        }
    )
    print("\n".join(map(json.dumps, found)))


if __name__ == "__main__":
    os.environ.pop("OTEL_PROPAGATORS", None)
    main()
