"""The actor, and the audited span that the current code runs in.

Two kinds of state. An *AuditedSpan* hangs on the SDK span it belongs to, so that code in a thread pool, in a
dependency or under a child span finds it through whatever span is current; it is filled until the span ends.
An *Upstream* travels in the OpenTelemetry context: what the signed ``audit-context`` of the caller said.

``current()`` looks in three places, the surest first: the current span itself; the OpenTelemetry context (for code
under a child span that ordinary sampling dropped, which is an object without state); the entry spans of this
trace that are open in this process, when there is only one. Where two are open and nothing says which, it finds
none: an action without a name is better than an action under somebody else's.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

import opentelemetry.trace.propagation
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context

from auditspan import attributes as names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span
    from opentelemetry.trace import SpanContext
    from opentelemetry.util.types import AnyValue

    from auditspan.pseudonyms import ActorNames
    from auditspan.rules import Rule
    from auditspan.told import Told

# Of the current span in a context; empty where this OpenTelemetry has another.
SPAN_KEY: Final = getattr(opentelemetry.trace.propagation, "_SPAN_KEY", "")
UPSTREAM: Final = otel_context.create_key("auditspan-upstream")
_KEPT = otel_context.create_key("auditspan-kept")
_STATE = otel_context.create_key("auditspan-state")
_ANNOUNCED: Final[ContextVar[Announced | None]] = ContextVar("auditspan-announced", default=None)
SLOT: Final = "_auditspan"  # attribute of an SDK span object
_NOTHING: Final[frozenset[str]] = frozenset()
_MAX_OPEN_SPANS: Final = 65_536  # those that are never ended must not fill the memory


@dataclass(slots=True, unsafe_hash=True)  # not frozen: that triples the price of making one
class Actor:
    """Who acts, and how we know; never changed. *session* is already hashed; *delegate* is who acts for them."""

    id: str
    type: str = "user"
    roles: tuple[str, ...] = ()
    origin: str = names.AUTHENTICATED
    session: str = ""
    auth_method: str = ""
    delegate: str = ""


# Why a context was rejected, besides what is wrong with a token itself (propagation/tokens.py).
WRONG_PURPOSE: Final = "wrong_purpose"  # signed for messages and came with a request, or the other way round
UNSIGNED: Final = "unsigned"  # an actor in plain baggage


@dataclass(slots=True)  # as Actor
class Upstream:
    """What the caller's ``audit-context`` said, already verified; never changed.

    *actor* is None when it named nobody or was rejected; *parent_span_id* is 16 hex digits or empty;
    *rejected* is empty or why the context was ignored; *queued* says that it was signed for a message in a queue.
    """

    actor: Actor | None = None
    parent_span_id: str = ""
    service: str = ""
    rejected: str = ""
    queued: bool = False

    def at(self, *, queue: bool) -> Upstream:
        """What counts of it where work comes from a *queue*, or does not: what was signed for the other is rejected."""
        says_something = self.actor is not None or self.parent_span_id or self.service
        if self.queued is queue or self.rejected or not says_something:
            return self
        return Upstream(rejected=WRONG_PURPOSE)


NO_UPSTREAM: Final = Upstream()
_NOBODY: Final = Actor(names.UNKNOWN, origin=names.UNVERIFIED)


@dataclass(slots=True)  # as Actor
class Facts:
    """What a framework tells of one request; empty strings where it can't say. Made anew for each answer.

    *changes* says whether the request may change something. *route* is the pattern that reads are asked for by:
    ``/orders/{order_id}``, or ``/shop.Billing/GetInvoice``; *unrouted* that no pattern matched, and it is the path.
    """

    action: str = ""
    outcome: str = ""
    reason: str = ""
    target_type: str = ""
    target_id: str = ""
    route: str = ""
    changes: bool = False
    unrouted: bool = False


class Source(Protocol):
    """One request in the eyes of its framework; an extractor puts it on the entry span's state.

    It may have a method ``address() -> str`` besides: the other end of the connection, for spans too full to tell. And
    ``let_go()``: the span has ended, so nothing but ``actor()`` is asked any more. Objects that the request leads to and
    that lead back here should not be kept then: a circle waits for the garbage collector, which costs each request
    some 10 microseconds.

    It may have more, for what rules name: ``header(name)``, the values of a request header (or an RPC's metadata) in
    their order; ``query()``, the URL's query as it was sent; ``parameter(name)``, a path parameter or, of an RPC, a
    field of the request, None where there is none.
    """

    def actor(self) -> Actor | None:
        """Whom the framework authenticated so far, or None when it can't say.

        May be called at any moment of the request, also before authentication ran, and from any thread.
        """

    def facts(self, span: ReadableSpan) -> Facts:
        """What is known by now. Called when the response starts (*span* is open) and when *span* has ended."""


@dataclass(slots=True)
class Announced:
    """Whom the application named before the entry span of its work began; None until it does."""

    actor: Actor | None = None


class Emitter(Protocol):
    """What makes records of audited spans."""

    @property
    def is_read_method(self) -> Callable[[str], bool]:
        """Whether the RPC ``/package.Service/Method`` changes nothing."""

    def passes(self, span: ReadableSpan, state: AuditedSpan, method: str, status: int) -> bool:
        """Whether an HTTP request that is answered so is plainly no record."""

    def concluding(self, span: Span, state: AuditedSpan) -> None:
        """The whole response to *span*'s request is about to be sent; never raises."""

    @property
    def actors(self) -> ActorNames:
        """How actors are called in what leaves this process."""

    def responding(self, span: Span, state: AuditedSpan) -> None:
        """The response to *span*'s request is about to start; never raises."""

    def finishing(self, span: Span, state: AuditedSpan) -> None:
        """The last of that response is about to be sent; never raises."""


class AuditedSpan:
    """What is known so far about the record that a span may become; filled until the span ends.

    Actor, action, outcome, reason and target are what the application said; *source* knows the rest. *wanted*
    means that the application asked for a record. *certain* means that there will be one, whatever the outcome;
    *judged* that the outcome of the request has been looked at; *written* that the record is in the spool; *held*
    that it waits for the end of the response, which comes after that of the span.
    An entry span (SERVER, CONSUMER) is one that work comes in by; *parent* is the nearest audited span around this
    one in this process; *carried* are the names of audit attributes that came as baggage, so that nobody's copy of
    them counts; *verified* is whom a token of the request names that the application has verified; *rule* is the operator's for this request; *shown* are the attributes that its ordinary span got,
    *before* all that it had then, *told* those of the record. A state stays useful after its span has *ended*: work in
    the background goes on in its name.
    """

    # Defaults of the class, since one of these is made for each request, and most requests are not audited.
    source: Source | None = None
    wanted: bool = False
    certain: bool = False
    ended: bool = False
    judged: bool = False
    written: bool = False
    held: bool = False
    actor: Actor | None = None
    verified: Actor | None = None
    action: str = ""
    outcome: str = ""
    reason: str = ""
    target_type: str = ""
    target_id: str = ""
    record_id: bytes = b""
    rule: Rule | None = None
    shown: Mapping[str, AnyValue] = MappingProxyType({})
    before: Mapping[str, AnyValue] = MappingProxyType({})
    told: Told | None = None

    def __init__(
        self,
        span_id: str,
        trace_id: int,
        *,
        entry: bool,
        upstream: Upstream = NO_UPSTREAM,
        parent: AuditedSpan | None = None,
        emitter: Emitter | None = None,
        carried: frozenset[str] = frozenset(),
        certain: bool = False,
        actor: Actor | None = None,
    ) -> None:
        """*span_id* is 16 hex digits."""
        self.span_id = span_id
        self.trace_id = trace_id
        self.entry = entry
        self.upstream = upstream
        self.parent = parent
        self.emitter = emitter
        self.carried = carried
        self.certain = certain
        self.actor = actor

    def root(self) -> AuditedSpan:
        """The entry span around this one, or the outermost audited span where nothing came in."""
        state = self
        while not state.entry and state.parent is not None:
            state = state.parent
        return state

    def effective_actor(self) -> Actor:
        """Who acts here: the application's word, the framework's, the signed upstream's, in this order.

        A service that authenticated itself and relays a user is that user's delegate. The names are those that may
        leave this process. Never raises.
        """
        actors = self.emitter.actors if self.emitter is not None else None
        said = self.actor
        if said is not None:
            return actors.known_here(said) if actors is not None else said
        framework = self._from_framework() if self.source is not None else None
        named = framework is not None and framework.id != names.ANONYMOUS
        if framework is not None and actors is not None:
            framework = actors.known_here(framework)
        if framework is not None and named and framework.type == "user":
            return framework
        asserted = self.upstream.actor
        if asserted is not None:
            asserted = actors.asserted(asserted) if actors is not None else asserted
            relay = framework.id if framework is not None and named else ""
            relay = relay or self.upstream.service
            return replace(asserted, origin=names.ASSERTED, delegate=asserted.delegate or relay)
        if self.parent is not None:
            return self.parent.effective_actor()
        return framework or _NOBODY

    def named(self) -> Iterator[Actor | None]:
        """Everybody who was named in this span or around it, as they were named here."""
        state: AuditedSpan | None = self
        while state is not None:
            yield from (state.actor, state._from_framework(), state.upstream.actor)  # noqa: SLF001 - one class
            state = state.parent

    def parent_record(self) -> str:
        """Span id (16 hex digits, or empty) of the nearest record around this span, also across services."""
        if self.entry and self.parent is None:
            return self.upstream.parent_span_id
        return self.parent.nearest_record() if self.parent is not None else ""

    def nearest_record(self) -> str:
        """The span's own id when it is sure to become a record, otherwise that of the nearest one around it."""
        return self.span_id if self.wanted or self.certain else self.parent_record()

    def _from_framework(self) -> Actor | None:
        if self.source is None:
            return None
        try:
            found = self.source.actor()
        except Exception:  # noqa: BLE001 - an application's user object may raise anything; it names nobody then
            found = None
        if self.verified is None or (found is not None and found.id != names.ANONYMOUS):
            return found
        # Answered with 401, the application has not believed the token after all: revoked, or for somebody else.
        return found if getattr(self.source, "status", 0) == 401 else self.verified


class _Lazily:
    """An attribute that is found out when somebody asks, once."""

    def __init__(self, find_out: Callable[[Any], object]) -> None:
        self._find_out = find_out

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> object:
        found = vars(instance)[self._name] = self._find_out(instance)
        return found


class OpenedSpan(AuditedSpan):
    """The state of a span that the SDK has just started; what is in its context is read when somebody asks."""

    emitter: Emitter
    parent: AuditedSpan | None = None
    upstream: Upstream = NO_UPSTREAM

    def __init__(  # not the other one's: a request that is not audited pays for each line
        self, span_context: SpanContext, emitter: Emitter, origin: Context, *, entry: bool
    ) -> None:
        """*origin* is the context that the span began in."""
        self.span_context = span_context
        self.emitter = emitter
        self.origin = origin
        self.entry = entry

    if not TYPE_CHECKING:
        span_id = _Lazily(lambda self: trace.format_span_id(self.span_context.span_id))
        trace_id = _Lazily(lambda self: self.span_context.trace_id)
        carried = _Lazily(
            lambda self: (
                carried(self.origin)
                | (self.parent.carried if self.parent is not None and not self.entry else frozenset())
            )
        )


def upstream(context: Context | None = None) -> Upstream:
    """The caller's ``audit-context`` in *context* (default: the current one), or an empty one."""
    found = otel_context.get_value(UPSTREAM, context)
    return found if isinstance(found, Upstream) else NO_UPSTREAM


def with_upstream(value: Upstream, context: Context | None = None) -> Context:
    """*context* with *value* as the caller's ``audit-context``."""
    return otel_context.set_value(UPSTREAM, value, context)


def with_state(state: AuditedSpan, context: Context | None = None) -> Context:
    """*context* with *state* as the audited span that code runs in."""
    return otel_context.set_value(_STATE, state, context)


def kept(context: Context | None = None) -> Context:
    """*context* (default: the current one), for the start of a span that is recorded whatever ordinary sampling says."""
    return otel_context.set_value(_KEPT, True, context)


def is_kept(context: Context | None) -> bool:
    """Whether a span that starts in *context* is recorded in any case."""
    return context is not None and otel_context.get_value(_KEPT, context) is True


def current(context: Context | None = None) -> AuditedSpan | None:
    """The audited span that code under *context* (default: the current one) runs in, or None."""
    there = otel_context.get_current() if context is None else context
    found = getattr(
        there.get(SPAN_KEY), SLOT, None
    )  # a third of what the public way costs, and mostly enough
    if isinstance(found, AuditedSpan):
        return found
    span = trace.get_current_span(there)
    found = of_span(span)
    if found is not None:
        return found
    span_context = span.get_span_context()
    if not span_context.is_valid or span_context.is_remote:
        return None
    found = _in_context(context, span_context.trace_id)
    return found if found is not None else live.only(span_context.trace_id)


def around(context: Context | None = None) -> AuditedSpan | None:
    """As ``current``, without a guess: only what *context* itself leads to."""
    span = trace.get_current_span(context)
    found = of_span(span)
    return found if found is not None else _in_context(context, span.get_span_context().trace_id)


def stay_findable(context: Context | None = None) -> None:
    """Let code under a child that sampling drops, whose span has no state, find the audited span of *context*.

    The child is made current in a context derived from the one that this changes. It is left changed: whoever
    attached the request's context restores the one before.
    """
    state = of_span(trace.get_current_span(context))
    if state is not None and otel_context.get_value(_STATE) is not state:
        otel_context.attach(with_state(state))


def carried(context: Context | None = None) -> frozenset[str]:
    """The audit attributes that baggage names: a client may have sent it, and somebody may copy it onto spans.

    By name, not by value: a copy may be cut, and be looked at where the baggage is no longer current.
    """
    entries = baggage.get_all(context)
    if not entries:
        return _NOTHING
    return frozenset(key for key in entries if key.startswith(names.PREFIX))


def await_announcement() -> Announced:
    """Begin to listen for an actor that is named before the entry span starts.

    Only where the framework gives each piece of work a context of its own; elsewhere one request's actor would
    become the next one's.
    """
    announced = Announced()
    _ANNOUNCED.set(announced)
    return announced


def announced() -> Announced | None:
    """Where to leave the actor when no audited span is current, or None."""
    return _ANNOUNCED.get()


def of_span(span: object) -> AuditedSpan | None:
    """The audited span that *span* belongs to: its own state, or that of the nearest one around it."""
    found = getattr(span, SLOT, None)
    return found if isinstance(found, AuditedSpan) else None


def bind(span: object, state: AuditedSpan) -> None:
    """Let code under *span* find *state*."""
    setattr(span, SLOT, state)


def _in_context(context: Context | None, trace_id: int) -> AuditedSpan | None:
    # An earlier request may have left its state in a reused thread: only the same trace counts, and there an
    # open span before one that has ended.
    state = otel_context.get_value(_STATE, context)
    ended: AuditedSpan | None = None
    while isinstance(state, AuditedSpan):
        if state.trace_id == trace_id:
            if not state.ended:
                return state
            ended = ended or state
        state = state.parent
    return ended


class _Live:
    """The audited spans that are open in this process, by span id. A dict's single operations are atomic."""

    def __init__(self) -> None:
        self._open: dict[int, AuditedSpan] = {}
        # The state of a span by its id, if it is an audited one that is open; the dict's own way, without a call of ours.
        self.of: Final[Callable[[int], AuditedSpan | None]] = self._open.get

    def add(self, span_id: int, state: AuditedSpan) -> None:
        """Until ``remove``, or until too many others have come."""
        if len(self._open) >= _MAX_OPEN_SPANS:
            self._open.pop(next(iter(self._open)), None)
        self._open[span_id] = state

    def remove(self, span_id: int) -> None:
        """It has ended."""
        self._open.pop(span_id, None)

    def all_open(self) -> tuple[dict[int, AuditedSpan], int]:
        """They themselves, by span id, and how many there may be."""
        return self._open, _MAX_OPEN_SPANS

    def only(self, trace_id: int) -> AuditedSpan | None:
        """The outermost one that is open in the trace, None when there are several or none."""
        found = [
            state
            for state in list(self._open.values())
            if state.trace_id == trace_id and (state.entry or state.parent is None)
        ]
        return found[0] if len(found) == 1 else None


# Global because OpenTelemetry's context is: a span that sampling dropped leads nowhere else.
live: Final = _Live()
