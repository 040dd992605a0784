"""Put a span processor of ours into a TracerProvider that others use as well, and hear of providers that come later.

Of several span processors the SDK calls each in turn, and where one raises, those behind it hear nothing. So ours
hears first that a span ended, whatever stands before it. Of a span's start it hears last: what others write on a span
when it starts (baggage, for instance) must be there to be seen through.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from auditspan.sampler import audit

if TYPE_CHECKING:
    from collections.abc import Callable

_SDK: Final = "opentelemetry.sdk."  # processors of the SDK don't raise
_WATCHED: Final = "_auditspan"  # attribute of the API's wrapped function
_told: Final[list[Callable[[TracerProvider], None]]] = []


def attach(provider: TracerProvider, processor: SpanProcessor, *, exits: bool = True) -> None:
    """Let *processor* hear of the spans of *provider*, whatever its sampler drops. There is no way back.

    *exits* as in ``sampler.audit``.
    """
    sampler = audit(provider.sampler, exits=exits)
    provider.sampler = sampler
    # Tracers copy the sampler. Some may be there already: a declarative configuration starts its own
    # instrumentations before us.
    for tracer in list(getattr(provider, "_tracers", {}).values()):
        tracer.sampler = sampler
    _add(provider, processor)


def watch(arrived: Callable[[TracerProvider], None]) -> None:
    """Call *arrived*, which must not raise, with each SDK provider that somebody makes the global one from now on.

    Also with one that OpenTelemetry refuses because there is another: its application uses it all the same.
    """
    if arrived in _told:
        return
    _told.append(arrived)
    api: Any = trace
    original = getattr(api, "_set_tracer_provider", None)  # docs/decisions/0010
    if original is None or hasattr(original, _WATCHED):
        return

    @functools.wraps(original)
    def set_tracer_provider(provider: Any, *args: Any, **kwargs: Any) -> None:
        original(provider, *args, **kwargs)
        if isinstance(provider, TracerProvider):
            for tell in _told:
                tell(provider)

    setattr(set_tracer_provider, _WATCHED, True)
    api._set_tracer_provider = set_tracer_provider  # noqa: SLF001 - docs/decisions/0010


class _Starts(SpanProcessor):
    def __init__(self, processor: SpanProcessor) -> None:
        self.on_start = processor.on_start  # type: ignore[method-assign]


class _Ends(SpanProcessor):
    def __init__(self, processor: SpanProcessor) -> None:
        self.on_end = processor.on_end  # type: ignore[method-assign]
        self.shutdown = processor.shutdown  # type: ignore[method-assign]
        self.force_flush = processor.force_flush  # type: ignore[method-assign]


def _add(provider: TracerProvider, processor: SpanProcessor) -> None:
    several: Any = getattr(provider, "_active_span_processor", None)
    before = getattr(several, "_span_processors", ())
    if all(type(one).__module__.startswith(_SDK) for one in before):
        provider.add_span_processor(processor)
        return
    provider.add_span_processor(_Starts(processor))
    several._span_processors = (_Ends(processor), *several._span_processors)  # noqa: SLF001 - docs/decisions/0010
