"""Keep what may become a record, whatever ordinary sampling decides, without exporting one ordinary span more.

A span that the wrapped sampler drops is only recorded (RECORD_ONLY): its sampled flag and trace state stay as they
were, so no exporter takes it and no service downstream notices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import SpanKind

from auditspan import attributes as names
from auditspan import context

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, TraceState
    from opentelemetry.util.types import Attributes

_ENTRIES: Final = frozenset({SpanKind.SERVER, SpanKind.CONSUMER})
_EXITS: Final = frozenset({SpanKind.CLIENT, SpanKind.PRODUCER})


def audit(sampler: Sampler, *, exits: bool = True) -> Sampler:
    """*sampler*, except that spans which records need are recorded where it drops them.

    Work comes in by SERVER and CONSUMER spans. With *exits*, CLIENT and PRODUCER spans are kept too: they are how the
    signed audit-context learns the destination it would go to; a dropped span has no attributes.
    """
    if type(sampler).should_sample is ParentBased.should_sample:
        # What always samples never drops, so the common case is spared our judgement.
        judges = [
            judge for name in _PARENT_BASED if isinstance(judge := getattr(sampler, name, None), Sampler)
        ]
        if len(judges) == len(_PARENT_BASED):
            return ParentBased(*[j if j is ALWAYS_ON else AuditSampler(j, exits=exits) for j in judges])
    return AuditSampler(sampler, exits=exits)


# ParentBased's attributes in the order of its arguments.
_PARENT_BASED: Final = (
    "_root",
    "_remote_parent_sampled",
    "_remote_parent_not_sampled",
    "_local_parent_sampled",
    "_local_parent_not_sampled",
)


class AuditSampler(Sampler):
    """*wrapped*, except that spans which records need are recorded where it drops them."""

    def __init__(self, wrapped: Sampler, *, exits: bool = True) -> None:
        self.wrapped = wrapped
        self._kept_kinds = _ENTRIES | _EXITS if exits else _ENTRIES

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
            kind in self._kept_kinds
            or (attributes and any(key.startswith(names.PREFIX) for key in attributes))
            or context.is_kept(parent_context)
        ):
            return SamplingResult(Decision.RECORD_ONLY, attributes, result.trace_state)
        context.stay_findable(parent_context)
        return result

    def get_description(self) -> str:
        """The name that the SDK shows for this sampler."""
        return f"AuditSampler{{{self.wrapped.get_description()}}}"
