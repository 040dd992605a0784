"""What the SDK calls for each span, in C, where this package was compiled (``_gate.c``).

Most spans of a service leave no record: those inside of others' and the requests that change nothing. For them the SDK's
calls are nearly all that we cost, so they are made without a line of Python. What is not plain goes to
``AuditSpanProcessor``, which is the definition; the tests compare both ways.

``tell_briefly`` does the same to the calls themselves. The SDK calls three methods of each processor for each span, and
most of these are empty: its own batch processor has something to do in one of them, as ours has in two.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import opentelemetry.trace.propagation
from opentelemetry import context as otel_context
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
from opentelemetry.sdk.trace import SynchronousMultiSpanProcessor
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

_SPAN: Final = getattr(opentelemetry.trace.propagation, "_SPAN_KEY", None)
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
    if _native is None or _SPAN is None or type(runtime) is not ContextVarsRuntimeContext:
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
            *(context.OpenedSpan, processor, _SPAN, context.UPSTREAM, current, SAFE_METHODS, plain_reads),
            *(failed, context.SLOT, *_NAMES),
        )
    )
    return made


def tell_briefly(several: Any) -> None:
    """Let the SDK's *several* span processors be called in turn as before, but for those that have nothing to do."""
    if _native is None or type(several) is not SynchronousMultiSpanProcessor or "on_end" in vars(several):
        return
    theirs: Any = several
    try:
        theirs.on_start = _native.telling(_what(several, "on_start"))[0]
        theirs.on_end = _native.telling(_what(several, "on_end"))[1]
        theirs._on_ending = _native.telling(_what(several, "_on_ending"))[1]  # noqa: SLF001 - the SDK's own name for it
    except (AttributeError, TypeError):
        for name in ("on_start", "on_end", "_on_ending"):
            vars(several).pop(name, None)


def _what(several: Any, name: str) -> list[Any]:
    # In the order in which _gate.c has it: whom, whom we know, what is to be done with each, and how to learn that.
    return [several, None, (), _learn, name, "_span_processors"]


def _learn(what: list[Any], processors: tuple[Any, ...]) -> None:
    name = what[4]
    what[2] = tuple((one, _empty(one, name)) for one in processors)
    what[1] = processors  # last: another thread may look


def _empty(processor: Any, name: str) -> object:
    """The function of *processor*'s class by that *name*, where it does nothing; otherwise None."""
    function = getattr(type(processor), name, None)
    code = getattr(function, "__code__", None)
    if code is None or name in getattr(processor, "__dict__", {name: 0}):
        return None
    return function if code.co_code in _NOTHING and code.co_consts[-1:] == (None,) else None


def _without_text() -> None:
    pass


def _with_text() -> None:
    """Nothing."""


_NOTHING: Final = frozenset({_without_text.__code__.co_code, _with_text.__code__.co_code})
