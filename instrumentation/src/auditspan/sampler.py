"""Keep what may become a record, whatever ordinary sampling decides, without exporting one ordinary span more.

A span that the wrapped sampler drops is only recorded (RECORD_ONLY): its sampled flag and trace state stay as they
were, so no exporter takes it and no service downstream notices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanKind

from auditspan import attributes as names
from auditspan.context import is_kept

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, TraceState
    from opentelemetry.util.types import Attributes

# Work comes in by SERVER and CONSUMER spans. CLIENT and PRODUCER spans are how the signed audit-context learns the
# destination it would go to; a dropped span has no attributes.
_KEPT_KINDS: Final = frozenset({SpanKind.SERVER, SpanKind.CONSUMER, SpanKind.CLIENT, SpanKind.PRODUCER})


class AuditSampler(Sampler):
    """*wrapped*, except that spans which records need are recorded where it drops them."""

    def __init__(self, wrapped: Sampler) -> None:
        self.wrapped = wrapped

    def should_sample(  # noqa: PLR0917 - the SDK's signature
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """The wrapped sampler's result, with DROP turned into RECORD_ONLY for spans that a record may need."""
        result = self.wrapped.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )
        if result.decision is not Decision.DROP:
            return result
        if (
            kind in _KEPT_KINDS
            or (attributes and any(key.startswith(names.PREFIX) for key in attributes))
            or is_kept(parent_context)
        ):
            return SamplingResult(Decision.RECORD_ONLY, attributes, result.trace_state)
        return result

    def get_description(self) -> str:
        """The name that the SDK shows for this sampler."""
        return f"AuditSampler{{{self.wrapped.get_description()}}}"
