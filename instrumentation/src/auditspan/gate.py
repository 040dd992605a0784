"""What the SDK calls for each span, in C, where this package was compiled (``_gate.c``).

Most spans of a service leave no record: those inside of others' and the requests that change nothing. For them the SDK's
calls are nearly all that we cost, so they are made without a line of Python. What is not plain goes to
``AuditSpanProcessor``, which is the definition; the tests compare both ways.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel_context
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
from opentelemetry.trace import SpanKind

from auditspan import context
from auditspan.facts import SAFE_METHODS

_native: Any = None
with contextlib.suppress(ImportError):  # installed where there was no compiler
    from auditspan import _gate as _native

if TYPE_CHECKING:
    from collections.abc import Callable

    from auditspan.processor import AuditSpanProcessor

COMPILED: Final = _native is not None

# In the order in which _gate.c has them.
_NAMES: Final = (
    *("_kind", "_attributes", "_dict", "_context", "_parent", "get"),
    *(
        "span_context",
        "emitter",
        "origin",
        "entry",
        "certain",
        "wanted",
        "held",
        "judged",
        "written",
        "ended",
    ),
    *("source", "let_go"),
    *("http.request.method", "http.method", "http.response.status_code", "http.status_code"),
)


def doors(
    processor: AuditSpanProcessor, known: set[str], *, plain_reads: bool, failed: Callable[[Exception], None]
) -> tuple[Callable[..., None], Callable[..., None], Callable[..., bool]] | None:
    """``on_start``, ``on_end`` and ``passes`` of *processor*, None where there is no shorter way than its own.

    *known* are keys of attributes that are none of ours; *plain_reads* says that no rule can make a record of a read.
    """
    # The variable itself, as a call for it in each span costs more than what is then done with it.
    runtime = getattr(otel_context, "_RUNTIME_CONTEXT", None)
    if _native is None or not context.SPAN_KEY or type(runtime) is not ContextVarsRuntimeContext:
        return None
    current = runtime._current_context  # noqa: SLF001 - see above
    live, most = context.live.all_open()
    made: tuple[Callable[..., None], Callable[..., None], Callable[..., bool]] = _native.gate(
        (
            *(
                processor.on_start,
                processor.on_end,
                processor.passes,
                SpanKind.SERVER,
                SpanKind.CONSUMER,
                live,
                most,
                known,
            ),
            *(
                context.OpenedSpan,
                processor,
                context.SPAN_KEY,
                context.UPSTREAM,
                current,
                SAFE_METHODS,
                plain_reads,
            ),
            *(failed, context.SLOT, *_NAMES),
        )
    )
    return made
