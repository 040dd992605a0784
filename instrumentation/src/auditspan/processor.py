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

import logging
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanKind, TraceFlags

from auditspan import attributes as names
from auditspan import context, gate, losses, set_by_hand
from auditspan.context import Facts, OpenedSpan
from auditspan.decisions import Decisions
from auditspan.facts import http_method, http_status, may_change, span_facts
from auditspan.flood import ANY, Flood, Key, address_in, is_nobody
from auditspan.packing import COMPILED, Packer
from auditspan.policy import Policy
from auditspan.propagation.counts import ContextCounts
from auditspan.rules import AUDIT, SKIP
from auditspan.spans import PlainKeys, attributes_of, copy_attributes, put
from auditspan.told import Sequence, Told, uuid7
from auditspan.wire import SpanEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span
    from opentelemetry.trace import Tracer
    from opentelemetry.util.types import AnyValue

    from auditspan.context import AuditedSpan, Upstream
    from auditspan.flood import Counter
    from auditspan.pseudonyms import ActorNames
    from auditspan.settings import Settings

_log = logging.getLogger(__name__)

_live_of: Final = context.live.of
_SPAN: Final = context.SPAN_KEY
_SAMPLED: Final = int(TraceFlags.SAMPLED)  # of the fourth of a SpanContext, which is a tuple
_SERVER: Final = SpanKind.SERVER
_CONSUMER: Final = SpanKind.CONSUMER

# Where the collector finds the other end of the connection, in the order of its trust.
_ADDRESSES: Final = (
    *("network.peer.address", "net.sock.peer.addr", "net.peer.ip", "client.address", "http.client_ip"),
)


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
        self.carries_context: Final = settings.context_keys_file is not None
        self.decisions: Final = Decisions(settings, self._policy.rules)
        self.is_read_method: Final = self.decisions.is_read_method
        self.context_counts: Final = ContextCounts()
        self._ruled: Final = bool(self._policy.rules)
        self._plain = PlainKeys()
        self._encoder = SpanEncoder()
        at_once = COMPILED and not (self.actors.hides or self._policy.proxies)
        self._packer: Final = Packer(self._encoder) if at_once else None
        self._warned = False
        self.flood: Final = Flood(settings.flood_full, settings.flood_interval_s)
        # A sink that can't count gets everything in full.
        self._open_tally: Any = getattr(sink, "open_tally", None)
        self._sequences: dict[str, Sequence] = {}  # by emitter
        self.tracer: Tracer = trace.NoOpTracer()  # for the spans of records that the application begins
        shorter = gate.doors(
            self, self._plain.known, plain_reads=not self.decisions.chooses, failed=self._failed
        )
        if shorter is not None and type(self) is AuditSpanProcessor:
            self.on_start, self.on_end, self.passes = shorter  # type: ignore[method-assign]

    # -- OpenTelemetry's side

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Give *span* a state of its own, or let it find the one around it."""
        try:
            try:  # the insides, as in ``spans``: each of a request's spans comes by here
                kind, attributes = span._kind, span._attributes._dict  # type: ignore[union-attr] # noqa: SLF001 - as above
            except AttributeError:
                kind, attributes = span.kind, attributes_of(span)
            if kind is _SERVER or kind is _CONSUMER:
                self._enter(span, parent_context, kind, attributes)
            elif not attributes or self._plain(attributes):
                # Most are right inside the request's span or inside one that knows it.
                current = otel_context.get_current() if parent_context is None else parent_context
                around = getattr(current.get(_SPAN), context.SLOT, None) or context.around(parent_context)
                if around is not None:
                    setattr(span, context.SLOT, around)
            else:
                self._begin_inner(span, parent_context)
        except Exception:  # noqa: BLE001 - runs inside the application's request; nothing of ours may break it
            self._failed()

    def on_end(self, span: ReadableSpan) -> None:
        """Append the record that *span* is, if it is one. On return it survives the process."""
        ids = span.context
        if ids is None:
            return
        span_id = ids[1]  # the same as .span_id, without a call
        state = _live_of(span_id)
        if state is None or state.emitter is not self:
            return
        context.live.remove(span_id)
        state.ended = True
        if state.held:
            return
        try:
            if state.source is None and state.entry and not (state.certain or state.wanted):
                attributes = attributes_of(span)
                if self.passes(span, state, http_method(attributes), http_status(attributes)):
                    return
            if not state.written:
                self._write(state, span, span.end_time or time.time_ns())
            if (let_go := getattr(state.source, "let_go", None)) is not None:
                let_go()
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

    def passes(self, span: ReadableSpan, state: AuditedSpan, method: str, status: int) -> bool:
        """Whether an HTTP request that ended so is plainly no record; what most reads are spared more than."""
        if (
            state.wanted
            or state.certain
            or state.held
            or not self.decisions.passes(method, status)
            or not self._plain(attributes_of(span))
        ):
            return False
        state.judged = True
        return True

    def concluding(self, span: Span, state: AuditedSpan, end_time_ns: int = 0) -> None:
        """The whole response is about to be sent: write the record now, then mark the ordinary *span*.

        Where the instrumentation ends the span only after sending, a process killed in between would have answered
        without a record. *end_time_ns* is when the span ends, now if 0. Never raises.
        """
        try:
            self._write(state, span, end_time_ns or time.time_ns())
            if not state.shown:
                self._show(state, span)
        except Exception:  # noqa: BLE001 - runs inside the application's request; nothing of ours may break it
            self._failed()

    def responding(self, span: Span, state: AuditedSpan) -> None:
        """The response is about to start: put what is known on the ordinary *span*, while it can still change.

        Last, so that a full span evicts others' attributes and not these. Never raises.
        """
        try:
            attributes = copy_attributes(span)
            self._judge(state, span, attributes)
            self._show(state, span)
            if state.shown:
                state.before = attributes
        except Exception:  # noqa: BLE001 - runs inside the application's request; nothing of ours may break it
            self._failed()

    def finishing(self, span: Span, state: AuditedSpan) -> None:
        """The last of a response is about to be sent, whose start was told: write the record now. Never raises."""
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
        around = context.of_span(span) or context.current()
        return self.begin_record_in(otel_context.get_current(), span, around)

    def begin_record_in(self, origin: Context, span: Span, around: AuditedSpan | None) -> AuditedSpan:
        """The same, where it is known that *span* began in *origin*, and what audited span is *around* it."""
        state = OpenedSpan(span.get_span_context(), self, origin, entry=False)
        if around is not None:
            state.parent = around
        else:
            state.upstream = self._upstream(state.origin, queue=False)
        state.wanted = state.certain = True
        context.bind(span, state)
        context.live.add(state.span_context.span_id, state)
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
        attributes = losses.attributes_of(uuid7().decode(), self._sink.stream_id, lost, reason)
        return self._sink.append(self._encoder.encode(span, attributes, now, self._place()))

    # -- inside

    def _enter(
        self,
        span: Span,
        parent_context: Context | None,
        kind: SpanKind,
        attributes: Mapping[str, AnyValue],
    ) -> None:
        span_context = span.context
        origin = parent_context if parent_context is not None else otel_context.get_current()
        state = OpenedSpan(span_context, self, origin, entry=True)
        if origin:  # otherwise nothing is around this span, here or upstream
            parent = span.parent
            if parent is not None and not parent.is_remote:
                state.parent = context.current(origin)
            if state.parent is None:
                state.upstream = self._upstream(origin, queue=kind is _CONSUMER)
        certain = kind is _SERVER and may_change(attributes, self.is_read_method)
        if self._ruled:
            certain = self._policy.rules.promises(attributes, default=certain)
        if certain:
            state.certain = True
        if not self._plain(attributes):
            span.set_attribute(names.DELIVERY, names.DELIVERY_SPOOL)
        setattr(span, context.SLOT, state)
        context.live.add(span_context.span_id, state)

    def _upstream(self, origin: Context, *, queue: bool) -> Upstream:
        said = context.upstream(origin)
        if said is context.NO_UPSTREAM:
            return said
        counted = said.at(queue=queue)
        if counted is not said:
            self.context_counts.note(counted)
        return counted

    def _begin_inner(self, span: Span, parent_context: Context | None) -> None:
        around = context.current(parent_context)
        carried = context.carried(parent_context) | (around.carried if around is not None else frozenset())
        said = set_by_hand.said(attributes_of(span), {}, carried)
        span.set_attribute(names.DELIVERY, names.DELIVERY_SPOOL)  # the record, if any, comes by the spool
        if around is not None:
            context.bind(span, around)
        if said:
            self.begin_record_in(otel_context.get_current(), span, around)

    def _write(self, state: AuditedSpan, span: ReadableSpan, end_time_ns: int) -> None:
        if state.written or (state.judged and not (state.wanted or state.certain)):
            return
        attributes = copy_attributes(span)
        if state.shown:
            for key, value in state.shown.items():  # ours come last, with what happened since
                if attributes.get(key) == value:
                    del attributes[key]
        told = self._judge(state, span, attributes)
        if told is not None:
            state.written = True
            if span.dropped_attributes:
                attributes = _refilled(state, attributes)
            if told.facts.outcome == names.DENIED and self._folds(state, told, span, attributes, end_time_ns):
                return
            ours = told.encoded + self._place()
            payload = None
            if self._packer is not None and not (state.rule or self._policy.rules.default).keep.anything:
                payload = self._packer.pack(span, attributes, end_time_ns, ours)
            if payload is None:
                span = self._policy.limit(state, span, attributes)
                payload = self._encoder.encode(span, attributes, end_time_ns, ours)
            self._sink.append(payload)

    def _folds(
        self,
        state: AuditedSpan,
        told: Told,
        span: ReadableSpan,
        attributes: dict[str, AnyValue],
        end_time_ns: int,
    ) -> bool:
        """Whether this denied request is one of a flood of nobody's, and counted there."""
        if not state.entry or state.wanted or self._open_tally is None:
            return False
        actor, facts = state.effective_actor(), told.facts
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
        kept = {
            name: value for name, value in attributes.items() if key.address != ANY or name not in _ADDRESSES
        }
        facts = Facts("EXECUTE", names.DENIED) if key.route == ANY else replace(facts, target_id="")
        told = self._told(state, facts)
        span = self._policy.limit(state, span, kept)
        sequence = self._sequence()
        number = sequence.next()
        try:
            ours = told.encoded + sequence.place(number)
            counter: Counter = self._open_tally(self._encoder.pieces(span, kept, ours))
        except OSError:
            sequence.give_back(number)
            raise
        return counter

    def _judge(self, state: AuditedSpan, span: ReadableSpan, attributes: dict[str, AnyValue]) -> Told | None:
        """What the record of *span* says, None when it is none; of its *attributes*, those remain that it keeps."""
        plain = self._plain(attributes)
        facts = self._settled(state, span, attributes, plain=plain)
        state.judged = True
        if state.rule is not None or not (state.certain or state.wanted):
            if not self._is_record(state, facts):
                state.told = None
                return None
            state.certain = True
        if not plain:
            set_by_hand.clear(attributes, state.carried | context.carried())
        # Asked for when the response starts and when it ends; in between, little changes.
        told = state.told
        if told is None or told.facts != facts or told.said != state.actor:
            told = state.told = self._told(state, facts)
        return told

    def _told(self, state: AuditedSpan, facts: Facts) -> Told:
        shown = self._as_shown(state, facts) if self.actors.hides else facts
        return Told(state, facts, shown, state.effective_actor())

    def _show(self, state: AuditedSpan, span: Span) -> None:
        """Put on the ordinary *span* what its record says, or that there is none, while it can still change."""
        if state.told is None:
            # What is there is not by us, so it shall be no record at the collector either.
            if not self._plain(attributes_of(span)):
                span.set_attribute(names.DELIVERY, names.DELIVERY_SPOOL)
        elif self.span_attributes and (ids := span.context) is not None and ids[3] & _SAMPLED:
            shown = state.told.mapping()
            shown[names.DELIVERY] = names.DELIVERY_SPOOL
            state.shown = shown
            put(span, shown)

    def _settled(
        self, state: AuditedSpan, span: ReadableSpan, attributes: dict[str, AnyValue], *, plain: bool
    ) -> Facts:
        """What is known of *span*: the application's word first, then what it set by hand, a rule's, the framework's."""
        found = None
        if state.source is not None:
            try:
                found = state.source.facts(span)
            except Exception:  # noqa: BLE001 - runs inside the application's request; nothing of ours may break it
                self._failed()
        if found is None:
            found = span_facts(span, is_read_method=self.is_read_method) if state.entry else Facts()
        if not plain:
            said = set_by_hand.said(attributes, state.shown, state.carried | context.carried())
            self._take_up(state, {key: value for key, value in said.items() if isinstance(value, str)})
        ruled = self._policy.apply(state, found, attributes) if self._ruled else found
        if (
            ruled.outcome in names.OUTCOMES
            and ruled.action.isupper()
            and not (state.action or state.outcome or state.reason or state.target_type or state.target_id)
        ):
            return ruled
        outcome = state.outcome or ruled.outcome
        return Facts(
            (state.action or ruled.action or "EXECUTE").upper(),
            outcome if outcome in names.OUTCOMES else self._outcome_of_status(span),
            state.reason or ruled.reason,
            state.target_type or ruled.target_type,
            state.target_id or ruled.target_id,
            ruled.route,
            ruled.changes,
            ruled.unrouted,
        )

    @staticmethod
    def _take_up(state: AuditedSpan, said: Mapping[str, str]) -> None:
        """Keep what was set by hand, before our own attributes cover it; the functions' word stands."""
        state.action = state.action or said.get(names.ACTION, "")
        state.outcome = state.outcome or said.get(names.OUTCOME, "")
        state.reason = state.reason or said.get(names.REASON, "")
        state.target_type = state.target_type or said.get(names.TARGET_TYPE, "")
        state.target_id = state.target_id or said.get(names.TARGET_ID, "")

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

    def _as_shown(self, state: AuditedSpan, facts: Facts) -> Facts:
        """*facts* without the names that may not leave this process."""
        return replace(
            facts,
            reason=self._policy.without_people(state, facts.reason),
            target_id=self._policy.without_people(state, facts.target_id),
        )

    def _sequence(self) -> Sequence:
        stream = self._sink.stream_id  # another one in a forked child
        sequence = self._sequences.get(stream)
        if sequence is None:
            # setdefault is atomic: two threads with the first records count on with one sequence.
            sequence = self._sequences.setdefault(stream, Sequence(stream))
        return sequence

    def _place(self) -> bytes:
        sequence = self._sequence()
        return sequence.place(sequence.next())

    def _failed(self, error: Exception | None = None) -> None:
        # Once with its traceback: a defect of ours must be seen, and must not fill the service's log.
        if not self._warned:
            self._warned = True
            _log.warning(
                "Auditspan could not handle a span; the service is not affected", exc_info=error or True
            )


def _refilled(state: AuditedSpan, attributes: dict[str, AnyValue]) -> dict[str, AnyValue]:
    """*attributes* of a full span, with what ours may have evicted from it, and where the request came from."""
    attributes = {**state.before, **attributes}
    if not address_in(attributes, _ADDRESSES):
        address = getattr(state.source, "address", str)()
        if address:
            attributes["client.address"] = address
    return attributes
