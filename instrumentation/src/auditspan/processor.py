"""Find the spans that are records and put each, complete, into the spool before its request is over.

``on_start`` gives an entry span its state and lets the spans inside find it. ``on_end`` decides whether the span is a
record, and appends a copy of it, with the audit attributes last, to the spool. Both run inside the application's
request: they never raise, and take no lock that waits for anything but memory and one write.

A record comes from a request that may change something, one that was denied, a read that was asked for by route, or
one that the application spoke of. Audit attributes that were put on the span by somebody else (another processor
that copies baggage, for instance) are no evidence: who acted is never read from them, and none that has a meaning
here survives in the record unless the application itself may have set it.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import time
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Protocol

from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanKind

from auditspan import attributes as names
from auditspan import context, losses
from auditspan.context import AuditedSpan, Facts, Upstream
from auditspan.decisions import Decisions
from auditspan.facts import may_change, span_facts
from auditspan.flood import ANY, Flood, Key, address_in, is_nobody
from auditspan.policy import Policy
from auditspan.propagation.counts import ContextCounts
from auditspan.pseudonyms import key_id
from auditspan.rules import AUDIT, SKIP
from auditspan.wire import SpanEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span
    from opentelemetry.trace import Tracer
    from opentelemetry.util.types import AnyValue, Attributes

    from auditspan.flood import Counter
    from auditspan.pseudonyms import ActorNames
    from auditspan.settings import Settings

_log = logging.getLogger(__name__)

_is_ours: Final = re.compile(
    re.escape(names.PREFIX)
).match  # a third of the cost of startswith in a generator
_MAX_OPEN_SPANS: Final = 65_536  # those that are never ended must not fill the memory

_ENTRY_KINDS: Final = frozenset({SpanKind.SERVER, SpanKind.CONSUMER})

# Where the collector finds the other end of the connection, in the order of its trust.
_ADDRESSES: Final = (
    *("network.peer.address", "net.sock.peer.addr", "net.peer.ip", "client.address", "http.client_ip"),
)

# What the application may say by hand on its span, in the words of the draft conventions, besides the functions.
_SAYABLE: Final = frozenset({names.ACTION, names.OUTCOME, names.REASON, names.TARGET_TYPE, names.TARGET_ID})
_OURS: Final = frozenset(
    value for name, value in vars(names).items() if isinstance(value, str) and value.startswith(names.PREFIX)
) - {names.PREFIX}


class Sink(Protocol):
    """Where records go. Thread-safe."""

    @property
    def stream_id(self) -> str:
        """The emitter that this process is; another one in a forked child."""

    # It may have ``open_tally(pieces: wire.Pieces) -> flood.Counter`` besides: a record that counts.

    def append(self, payload: bytes) -> bool:
        """Keep one ExportTraceServiceRequest; False when it could not be kept, and then it is counted there."""


class AuditSpanProcessor(SpanProcessor):
    """Turns spans into records in *sink*."""

    def __init__(self, settings: Settings, sink: Sink, policy: Policy | None = None) -> None:
        self._sink = sink
        self._policy = policy or Policy()
        self.actors: Final[ActorNames] = self._policy.actors
        self.span_attributes: Final = settings.span_attributes
        self.decisions: Final = Decisions(settings, self._policy.rules)
        self.is_read_method: Final = self.decisions.is_read_method
        self.context_counts: Final = ContextCounts()
        self._states: dict[int, AuditedSpan] = {}  # by span id; a dict's single operations are atomic
        self._encoder = SpanEncoder()
        self._warned = False
        self.flood: Final = Flood(settings.flood_full, settings.flood_interval_s)
        # A sink that can't count gets everything in full.
        self._open_tally: Any = getattr(sink, "open_tally", None)
        # Streams and their numbers that nothing came of: left out, they would look like losses.
        self._unused: list[tuple[AnyValue, AnyValue]] = []
        self._counters: dict[str, Iterator[int]] = {}  # by emitter
        self.tracer: Tracer = trace.NoOpTracer()  # for the spans of records that the application begins

    # -- OpenTelemetry's side

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Give *span* a state of its own, or let it find the one around it."""
        try:
            if span.kind in _ENTRY_KINDS:
                self._enter(span, parent_context)
            elif _tagged(span.attributes):
                self._begin_inner(span, parent_context)
            else:
                around = context.current(parent_context)
                if around is not None:
                    context.bind(span, around)
        except Exception:  # noqa: BLE001 - runs inside the application's request; nothing of ours may break it
            self._failed()

    def on_end(self, span: ReadableSpan) -> None:
        """Append the record that *span* is, if it is one. On return it survives the process."""
        if span.context is None:
            return
        state = self._states.pop(span.context.span_id, None)
        if state is None:
            return
        state.ended = True
        try:
            if state.entry or state.parent is None:
                context.live.remove(state)
            if not state.held:
                self._write(state, span, span.end_time or time.time_ns())
        except Exception:  # noqa: BLE001 - runs inside the application's request; nothing of ours may break it
            self._failed()

    def shutdown(self) -> None:
        """Write what is counted; everything else that ended is in the spool."""
        self.finish_counting()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """True: what ended is in the spool."""
        del timeout_millis
        return True

    # -- the extractors' side

    def responding(self, span: Span, state: AuditedSpan) -> None:
        """The response is about to start: put what is known on the ordinary *span*, while it can still change.

        Last, so that a full span evicts others' attributes and not these. Never raises.
        """
        try:
            attributes = _copy(span.attributes)
            facts = self._settled(state, span, attributes)
            state.judged = True
            if not self._is_record(state, facts):
                if _tagged(attributes):  # not by us, so it shall be no record at the collector either
                    span.set_attribute(names.DELIVERY, names.DELIVERY_SPOOL)
                return
            state.certain = True
            if self.span_attributes and span.context is not None and span.context.trace_flags.sampled:
                state.before = attributes
                state.shown = {**self._own(state, facts), names.DELIVERY: names.DELIVERY_SPOOL}
                span.set_attributes(state.shown)
        except Exception:  # noqa: BLE001 - runs inside the application's request; nothing of ours may break it
            self._failed()

    def finishing(self, span: Span, state: AuditedSpan) -> None:
        """The last of the response is about to be sent: write the record now.

        Where the instrumentation ends the span only afterwards, a process killed in between would have answered
        without a record. Never raises.
        """
        try:
            self._write(state, span, time.time_ns())
        except Exception:  # noqa: BLE001 - runs inside the application's request; nothing of ours may break it
            self._failed()

    # -- the side of tests

    def redirect(self, sink: Sink) -> Sink:
        """Write to *sink* from now on; returns where records went before."""
        before, self._sink = self._sink, sink
        self._open_tally = getattr(sink, "open_tally", None)
        return before

    # -- the application's side

    def begin_record(self, span: Span) -> AuditedSpan:
        """Make the open *span* a record of its own inside the audited span around it."""
        around = context.of_span(span)
        upstream = Upstream() if around is not None else self._upstream(queue=False)
        carried = _carried() | (around.carried if around is not None else frozenset())
        state = self._state(span, entry=False, parent=around, upstream=upstream, carried=carried)
        state.wanted = state.certain = True
        if around is None:
            context.live.add(state)
        return state

    # -- the spool's side

    def tend(self, lost: int, reason: str, since_ns: int) -> bool:
        """Write counts whose interval is over, and that *lost* records could not be kept. Never raises.

        False when that could not be written either.
        """
        try:
            self.flood.tend()
            return not lost or self._write_loss(lost, reason, since_ns)
        except Exception:  # noqa: BLE001 - a defect of ours must not stop delivery
            self._failed()
            return True

    def finish_counting(self) -> None:
        """Write all counts: the process ends. Never raises."""
        try:
            self.flood.tend(everything=True)
        except Exception:  # noqa: BLE001 - as above
            self._failed()

    def _write_loss(self, lost: int, reason: str, since_ns: int) -> bool:
        now = time.time_ns()
        span = losses.span_of(self.tracer, since_ns, now)
        attributes = losses.attributes_of(uuid7(), self._sink.stream_id, lost, reason)
        self._number(attributes)
        return self._sink.append(self._encoder.encode(span, attributes, now))

    # -- inside

    def _enter(self, span: Span, parent_context: Context | None) -> None:
        parent = span.parent
        inside = context.current(parent_context) if parent is not None and not parent.is_remote else None
        queue = span.kind is SpanKind.CONSUMER
        upstream = self._upstream(parent_context, queue=queue) if inside is None else Upstream()
        carried = _carried(parent_context)
        state = self._state(span, entry=True, parent=inside, upstream=upstream, carried=carried)
        attributes = _copy(span.attributes)
        state.certain = self._policy.rules.promises(
            attributes, default=span.kind is SpanKind.SERVER and may_change(attributes, self.is_read_method)
        )
        if _tagged(attributes):
            span.set_attribute(names.DELIVERY, names.DELIVERY_SPOOL)
        context.live.add(state)
        # Left in the context on purpose: the instrumentation makes the span current in a context derived from this
        # one, so that code under a child that sampling drops finds the state; whoever attached the request's context
        # restores the one before.
        otel_context.attach(context.with_state(state))

    def _upstream(self, parent_context: Context | None = None, *, queue: bool) -> Upstream:
        said = context.upstream(parent_context)
        counted = said.at(queue=queue)
        if counted is not said:
            self.context_counts.note(counted)
        return counted

    def _begin_inner(self, span: Span, parent_context: Context | None) -> None:
        around = context.current(parent_context)
        carried = _carried(parent_context) | (around.carried if around is not None else frozenset())
        said = self._said(span.attributes or {}, {}, carried)
        span.set_attribute(names.DELIVERY, names.DELIVERY_SPOOL)  # the record, if any, comes by the spool
        if around is not None:
            context.bind(span, around)
        if said:
            self.begin_record(span)

    def _state(
        self,
        span: Span,
        *,
        entry: bool,
        parent: AuditedSpan | None,
        upstream: Upstream,
        carried: frozenset[str],
    ) -> AuditedSpan:
        span_context = span.get_span_context()
        state = AuditedSpan(
            span_id=trace.format_span_id(span_context.span_id),
            trace_id=span_context.trace_id,
            entry=entry,
            parent=parent,
            upstream=upstream,
            carried=carried,
            emitter=self,
        )
        context.bind(span, state)
        if len(self._states) >= _MAX_OPEN_SPANS:
            self._states.pop(next(iter(self._states)), None)
        self._states[span_context.span_id] = state
        return state

    def _write(self, state: AuditedSpan, span: ReadableSpan, end_time_ns: int) -> None:
        if state.written or (state.judged and not (state.wanted or state.certain)):
            return
        attributes = _copy(span.attributes)
        facts = self._settled(state, span, attributes)
        if self._is_record(state, facts):
            state.written = True
            if span.dropped_attributes:
                attributes = _refilled(state, attributes)
            if facts.outcome == names.DENIED and self._folds(state, facts, span, attributes, end_time_ns):
                return
            span = self._complete(state, facts, span, attributes)
            self._sink.append(self._encoder.encode(span, attributes, end_time_ns))

    def _folds(
        self,
        state: AuditedSpan,
        facts: Facts,
        span: ReadableSpan,
        attributes: dict[str, AnyValue],
        end_time_ns: int,
    ) -> bool:
        """Whether this denied request is one of a flood of nobody's, and counted there."""
        if not state.entry or state.wanted or self._open_tally is None:
            return False
        actor = state.effective_actor()
        if not is_nobody(actor.id, actor.origin):
            return False
        address = self._policy.client(state, attributes)
        route = "" if facts.unrouted else facts.route
        key = Key(facts.action, route, address, state.upstream.rejected)
        return self.flood.takes(key, end_time_ns, partial(self._begin_count, state, facts, span, attributes))

    def _begin_count(
        self,
        state: AuditedSpan,
        facts: Facts,
        span: ReadableSpan,
        attributes: dict[str, AnyValue],
        key: Key,
    ) -> Counter:
        """A record that stands for this request and more like it: without a target, or an address, of one of them."""
        told = {
            name: value for name, value in attributes.items() if key.address != ANY or name not in _ADDRESSES
        }
        facts = Facts("EXECUTE", names.DENIED) if key.route == ANY else replace(facts, target_id="")
        span = self._complete(state, facts, span, told)
        try:
            counter: Counter = self._open_tally(self._encoder.pieces(span, told))
        except OSError:
            self._unused.append((told[names.SEQUENCE_STREAM], told[names.SEQUENCE_NUMBER]))
            raise
        return counter

    def _settled(self, state: AuditedSpan, span: ReadableSpan, attributes: dict[str, AnyValue]) -> Facts:
        """What is known of *span*: the application's word first, then what it set by hand, a rule's, the framework's."""
        found = self._facts(state, span)
        if _tagged(attributes):
            said = self._said(attributes, state.shown, state.carried | _carried())
            self._take_up(state, {key: value for key, value in said.items() if isinstance(value, str)})
        ruled = self._policy.apply(state, found, attributes)
        outcome = state.outcome or ruled.outcome
        return Facts(
            action=(state.action or ruled.action or "EXECUTE").upper(),
            outcome=outcome if outcome in names.OUTCOMES else self._outcome_of_status(span),
            reason=state.reason or ruled.reason,
            target_type=state.target_type or ruled.target_type,
            target_id=state.target_id or ruled.target_id,
            route=ruled.route,
            changes=ruled.changes,
            unrouted=ruled.unrouted,
        )

    @staticmethod
    def _take_up(state: AuditedSpan, said: Mapping[str, str]) -> None:
        """Keep what was set by hand, before our own attributes cover it; the functions' word stands."""
        state.action = state.action or said.get(names.ACTION, "")
        state.outcome = state.outcome or said.get(names.OUTCOME, "")
        state.reason = state.reason or said.get(names.REASON, "")
        state.target_type = state.target_type or said.get(names.TARGET_TYPE, "")
        state.target_id = state.target_id or said.get(names.TARGET_ID, "")

    def _facts(self, state: AuditedSpan, span: ReadableSpan) -> Facts:
        if state.source is not None:
            try:
                return state.source.facts(span)
            except Exception:  # noqa: BLE001 - runs inside the application's request; nothing of ours may break it
                self._failed()
        return span_facts(span, is_read_method=self.is_read_method) if state.entry else Facts()

    def _is_record(self, state: AuditedSpan, facts: Facts) -> bool:
        do = state.rule.do if state.rule is not None else ""
        if do == SKIP:
            return state.wanted
        return (
            state.wanted
            or state.certain
            or do == AUDIT
            or facts.changes
            or (facts.outcome == names.DENIED and state.entry)
            or bool(self.decisions.asked_for(facts.route))
        )

    @staticmethod
    def _outcome_of_status(span: ReadableSpan) -> str:
        if not span.status.is_ok or any(event.name == "exception" for event in span.events):
            return names.FAILURE
        return names.SUCCESS

    @staticmethod
    def _said(
        attributes: Mapping[str, AnyValue], shown: Mapping[str, AnyValue], carried: frozenset[str]
    ) -> dict[str, AnyValue]:
        """Audit attributes that the application may have set: not ours, and none that baggage *carried* a value for."""
        return {
            key: value
            for key, value in attributes.items()
            if key.startswith(names.PREFIX)
            and (key not in _OURS or key in _SAYABLE)
            and key not in carried
            and not (key in shown and shown[key] == value)
        }

    def _complete(
        self, state: AuditedSpan, facts: Facts, span: ReadableSpan, attributes: dict[str, AnyValue]
    ) -> ReadableSpan:
        """Make *attributes* of *span* those of its record: nobody else's of ours, and ours last. The rest of the record."""
        foreign = [key for key in attributes if key.startswith(names.PREFIX)]
        if foreign:
            carried = state.carried | _carried()
            for key in foreign:
                if key in _OURS or key in carried:
                    del attributes[key]
        span = self._policy.limit(state, span, attributes)
        attributes |= self._own(state, facts)
        self._number(attributes)
        return span

    def _number(self, attributes: dict[str, AnyValue]) -> None:
        stream = self._sink.stream_id  # another one in a forked child
        attributes[names.SEQUENCE_STREAM] = stream
        if self._unused:
            with contextlib.suppress(IndexError):  # another thread was faster
                of, number = self._unused.pop()
                if of == stream:
                    attributes[names.SEQUENCE_NUMBER] = number
                    return
        # setdefault is atomic: of two threads with the first record, both count on with one counter.
        attributes[names.SEQUENCE_NUMBER] = next(self._counters.setdefault(stream, count(1)))

    def _own(self, state: AuditedSpan, facts: Facts) -> Mapping[str, AnyValue]:
        # Asked for when the response starts and when it ends; in between, little changes.
        if state.told is not None and state.told[:2] == (facts, state.actor):
            return state.told[2]
        said, actor = state.actor, state.effective_actor()
        state.record_id = state.record_id or uuid7()
        optional = {
            names.PARENT_SPAN_ID: state.parent_record(),
            names.ACTOR_TYPE: actor.type if actor.id != names.UNKNOWN else "",
            names.ACTOR_ROLES: actor.roles,
            names.ACTOR_SESSION: actor.session,
            names.ACTOR_AUTH_METHOD: actor.auth_method,
            names.ACTOR_DELEGATE: actor.delegate,
            names.ACTOR_ID: actor.id,
            names.ACTOR_KEY_ID: key_id(actor.id),
            names.REASON: self._policy.without_people(state, facts.reason),
            names.TARGET_TYPE: facts.target_type,
            names.TARGET_ID: self._policy.without_people(state, facts.target_id),
            names.CONTEXT_REJECTED: state.upstream.rejected,
        }
        own: dict[str, AnyValue] = {
            names.SCHEMA_VERSION: names.SCHEMA_VERSION_VALUE,
            names.RECORD_ID: state.record_id,
            names.ACTOR_ORIGIN: actor.origin,
            names.ACTION: facts.action,
            names.OUTCOME: facts.outcome,
            **{key: value for key, value in optional.items() if value},
        }
        state.told = (facts, said, own)
        return own

    def _failed(self) -> None:
        # Once with its traceback: a defect of ours must be seen, and must not fill the service's log.
        if not self._warned:
            self._warned = True
            _log.warning("Auditspan could not handle a span; the service is not affected", exc_info=True)


def _refilled(state: AuditedSpan, attributes: dict[str, AnyValue]) -> dict[str, AnyValue]:
    """*attributes* of a full span, with what ours may have evicted from it, and where the request came from."""
    attributes = {**state.before, **attributes}
    if not address_in(attributes, _ADDRESSES):
        address = getattr(state.source, "address", str)()
        if address:
            attributes["client.address"] = address
    return attributes


def _copy(attributes: Attributes) -> dict[str, AnyValue]:
    # The SDK's mapping takes a lock for each key when it is read one by one, but not to copy.
    copy = getattr(attributes, "copy", None)
    copied: dict[str, AnyValue] = copy() if copy is not None else dict(attributes or {})
    return copied


def _carried(parent_context: Context | None = None) -> frozenset[str]:
    """The audit attributes that baggage names: a client may have sent it, and somebody may copy it onto spans.

    By name, not by value: a copy may be cut, and be looked at where the baggage is no longer current.
    """
    return frozenset(key for key in baggage.get_all(parent_context) if key.startswith(names.PREFIX))


def _tagged(attributes: Attributes) -> bool:
    return any(map(_is_ours, attributes or ()))


def uuid7() -> str:
    """A UUID of version 7 (RFC 9562 section 5.7): 48 bits of milliseconds, then random bits."""
    number = (time.time_ns() // 1_000_000 & 0xFFFF_FFFF_FFFF) << 80 | secrets.randbits(80)
    number = number & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
