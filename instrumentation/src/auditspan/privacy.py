"""Keep out of records what requests carry, and what quotes it, but for what a rule names.

A record is the request's span, and instrumentations put more on spans than an audit trail should keep for years:
the query of the URL, captured headers, SQL, messages of exceptions with values in them. What a rule may let through
is in ``rules.Keep``.
"""

from __future__ import annotations

import operator
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link, Status

from auditspan.extractors import hash_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, MutableMapping

    from opentelemetry.util.types import AnyValue

    from auditspan.pseudonyms import ActorNames
    from auditspan.rules import Keep

_DROPPED, _ADDRESS, _HEADER, _EXCEPTION, _AGENT, _SESSION = range(1, 7)
_MAX_SEEN: Final = 4096

LEFT_OUT: Final = {
    **dict.fromkeys(("http.url", "http.target", "url.full"), _ADDRESS),
    **dict.fromkeys(("http.user_agent", "user_agent.original", "rpc.user_agent"), _AGENT),
    **dict.fromkeys(("session.id", "session.previous_id"), _SESSION),
    **dict.fromkeys(("exception.message", "exception.stacktrace", "error.message"), _EXCEPTION),
    **dict.fromkeys(
        (
            "url.query",
            "url.fragment",
            "http.request.body",
            "http.response.body",
            "db.statement",
            "db.query.text",
            "db.statement.parameters",
            "graphql.document",
            "messaging.message.body",
        ),
        _DROPPED,
    ),
}
LEFT_OUT_WITH_PREFIX: Final = {
    "http.request.header.": _HEADER,
    "rpc.grpc.request.metadata.": _HEADER,
    "rpc.request.metadata.": _HEADER,
    "http.response.header.": _DROPPED,
    "rpc.grpc.response.metadata.": _DROPPED,
    "rpc.response.metadata.": _DROPPED,
    "db.query.parameter.": _DROPPED,
    "db.operation.parameter.": _DROPPED,
}
_MAX_VALUE: Final = 1024  # characters of a header's value
_MAX_VALUES: Final = 8
_TYPE: Final = re.compile(r"([A-Za-z_][\w.]*):")  # "ValueError: what a client sent"


class _Marked:
    """Which keys are sensitive, remembered: what most spans have is looked up all at once."""

    def __init__(self) -> None:
        # Replaced as one: a key that is seen must have been judged, whichever thread comes last.
        self._known: tuple[frozenset[str], dict[str, int]] = (frozenset(), {})

    def among(self, attributes: Mapping[str, AnyValue]) -> dict[str, int]:
        """Kinds by those keys of *attributes* that are sensitive."""
        seen, kinds = self._known
        if not seen.issuperset(attributes):
            seen, kinds = (seen, kinds) if len(seen) < _MAX_SEEN else (frozenset(), {})
            kinds = kinds | {key: kind for key in attributes if (kind := kind_of(key))}
            self._known = (seen.union(attributes), kinds)
        return {key: kinds[key] for key in kinds.keys() & attributes.keys()}


def kind_of(key: str) -> int:
    """What may be done with the value of *key*: 0 for anything; the numbers stand in _packing.c, too."""
    exact = LEFT_OUT.get(key)
    if exact is not None:
        return exact
    return next((kind for prefix, kind in LEFT_OUT_WITH_PREFIX.items() if key.startswith(prefix)), 0)


_marked: Final = _Marked()  # what is known of names is the same for everybody


def clean(
    attributes: MutableMapping[str, AnyValue],
    keep: Keep,
    actors: ActorNames,
    query: Callable[[], str] = str,
) -> None:
    """Take headers, queries, bodies and SQL out of a span's *attributes*, but for what *keep* names; hash sessions.

    *query* gives the URL's query as it was sent; it is asked only where *keep* names a parameter.
    """
    sensitive = _marked.among(attributes)
    named = _named_query(query(), keep.query) if keep.query else ""
    for key, kind in sensitive.items():
        if kind == _ADDRESS:
            address = str(attributes[key])
            if "?" in address or "#" in address:
                attributes[key] = address.partition("?")[0].partition("#")[0]
        elif kind == _SESSION:
            attributes[key] = actors.session(hash_session(attributes[key]))
        elif not _lets(keep, kind, key):
            del attributes[key]
    if named:
        attributes["url.query"] = named


def _lets(keep: Keep, kind: int, key: str) -> bool:
    if kind == _HEADER:
        prefix = next(filter(key.startswith, LEFT_OUT_WITH_PREFIX))
        return key.removeprefix(prefix).replace("_", "-") in keep.headers
    if kind == _AGENT:
        return "user-agent" in keep.headers
    return kind == _EXCEPTION and keep.exceptions


def add_headers(
    attributes: MutableMapping[str, AnyValue], keep: Keep, values_of: Callable[[str], Iterable[object]]
) -> None:
    """Put the request headers (an RPC's metadata) that *keep* names into *attributes*, each a list of texts."""
    rpc = "rpc.system" in attributes or "rpc.service" in attributes
    prefix = "rpc.grpc.request.metadata." if rpc else "http.request.header."
    for name in keep.headers:
        values = [value[:_MAX_VALUE] for value in values_of(name) if isinstance(value, str)]
        if values:
            # The same, as an instrumentation captured it.
            attributes.pop(prefix + name.replace("-", "_"), None)
            attributes[prefix + name] = values[:_MAX_VALUES]


def _named_query(query: str, wanted: frozenset[str]) -> str:
    from urllib.parse import unquote_plus  # noqa: PLC0415 - only where a rule names a parameter

    pairs = [pair for pair in query.split("&") if unquote_plus(pair.partition("=")[0]) in wanted]
    return "&".join(pairs)[: _MAX_VALUE * 2]


def plain(
    span: ReadableSpan, keep: Keep, actors: ActorNames, people: frozenset[str] = frozenset()
) -> ReadableSpan:
    """*span*, or a copy without what its exceptions and links say (unless *keep* lets it) and the names of *people*.

    Its attributes are not looked at: the caller encodes others.
    """
    said = span.status.description
    if not (said or actors.hides or span.events or span.links):
        return span
    links = tuple(
        link if (kept := _kept(link, keep, actors, people)) is None else Link(link.context, kept)
        for link in span.links
    )
    events = tuple(
        event
        if (kept := _kept(event, keep, actors, people)) is None
        else Event(event.name, kept, event.timestamp)
        for event in span.events
    )
    name, description = actors.without(span.name, people), said or ""
    if said and not keep.exceptions:
        found = _TYPE.match(said)
        description = found[1] if found else said
    description = actors.without(description, people)
    if (name, description) == (span.name, said or "") and all(
        map(operator.is_, (*events, *links), (*span.events, *span.links))
    ):
        return span
    status = Status(span.status.status_code, description) if said else span.status
    return _Copy(span, name, status, events, links)


class _Copy(ReadableSpan):
    """A span with another name, status, events and links; the counts of what it dropped are the original's."""

    def __init__(
        self,
        span: ReadableSpan,
        name: str,
        status: Status,
        events: tuple[Event, ...],
        links: tuple[Link, ...],
    ) -> None:
        super().__init__(
            name,
            context=span.context,
            parent=span.parent,
            resource=span.resource,
            attributes=span.attributes,
            events=events,
            links=links,
            kind=span.kind,
            status=status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )
        self._dropped = (span.dropped_attributes, span.dropped_events, span.dropped_links)

    @property
    def dropped_attributes(self) -> int:
        return self._dropped[0]

    @property
    def dropped_events(self) -> int:
        return self._dropped[1]

    @property
    def dropped_links(self) -> int:
        return self._dropped[2]


def _kept(
    said: Event | Link, keep: Keep, actors: ActorNames, people: frozenset[str]
) -> BoundedAttributes | None:
    """What an event or a link may say, with the count of what it dropped; None where all that it says may stay."""
    if not said.attributes or not (actors.hides or _marked.among(said.attributes)):
        return None
    attributes = dict(said.attributes)
    clean(attributes, replace(keep, query=frozenset()), actors)
    actors.scrub(attributes, people)
    if attributes == dict(said.attributes):
        return None
    kept = BoundedAttributes(attributes=attributes)
    kept.dropped += said.dropped_attributes
    return kept
