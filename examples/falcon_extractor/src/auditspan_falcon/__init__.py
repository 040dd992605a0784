"""Falcon (WSGI): the actor from ``req.context.user``, the rest from the URI template and the response.

Where an application keeps its user is a matter of taste in Falcon; ``req.context.user``, put there by the middleware
that verified it, is what Falcon's own documentation uses. It may be a name, a mapping, or an object.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from auditspan.extractors import (
    ANONYMOUS,
    Actor,
    begin,
    chain,
    finish,
    first_text,
    guard,
    held_roles,
    hold,
    http_facts,
    respond,
    scheme_word,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from auditspan.extractors import Facts

INSTRUMENTORS: Final = ("opentelemetry.instrumentation.falcon:FalconInstrumentor",)
TESTED: Final = {"falcon": ("4.4", "4.4")}

_SOURCE: Final = "auditspan_falcon.source"  # in the WSGI environment
_MISSING: Final = object()
_IDENTITIES: Final = ("username", "id", "sub", "email", "name")
_CUT_SHORT: Final = "the response was cut short"


def instrument(instrumentor: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Add our hooks to the documented ones of the Falcon instrumentor."""
    del instrumentor  # there is only one
    return {
        **arguments,
        "request_hook": chain(arguments.get("request_hook"), _request),
        "response_hook": chain(arguments.get("response_hook"), _response),
    }


class FalconSource:
    """What one request says. Asked at any moment, from any thread; the last time when the request is over."""

    status = 0
    location = ""
    cut_short = ""  # why the response did not come to its end

    def __init__(self, request: Any) -> None:
        self._request = request

    def actor(self) -> Actor | None:
        """Whom the application put into ``req.context.user``: None there is nobody, nothing there is unknown."""
        user = getattr(self._request.context, "user", _MISSING)
        if user is _MISSING:
            return None
        if not user:
            return ANONYMOUS
        name = text(user) if isinstance(user, (str, int)) else first_text(user, _IDENTITIES)
        if not name:
            return None
        method = scheme_word(self._request.get_header("Authorization") or "")
        return Actor(name, roles=held_roles(user), auth_method=method)

    def facts(self, span: Any) -> Facts:
        """From method, URI template, path and status."""
        del span
        request = self._request
        facts = http_facts(
            request.method,
            request.uri_template or "",
            request.path,
            status=self.status,
            location=self.location,
        )
        if self.cut_short and facts.outcome == "success":
            return replace(facts, outcome="failure", reason=self.cut_short)
        return facts

    def address(self) -> str:
        """The other end of the connection, as the server tells it."""
        return str(self._request.env.get("REMOTE_ADDR") or "")

    # What an operator's rules may name.

    def header(self, name: str) -> list[str]:
        """The values of a request header."""
        value = self._request.get_header(name)
        return [value] if value is not None else []

    def query(self) -> str:
        """The URL's query as it was sent."""
        return str(self._request.query_string)


def _request(span: Any, request: Any) -> None:
    """Before the application's middleware: from here on its code can be asked who acts."""
    source = FalconSource(request)
    if begin(span, source) is not None:
        request.env[_SOURCE] = source


def _response(span: Any, request: Any, response: Any) -> None:
    """Behind the application's middleware: the status is known, and *span* is still open."""
    source = request.env.get(_SOURCE)
    if source is None:
        return
    source.status = response.status_code  # the span says 404 of whatever was refused before it was routed
    source.location = response.headers.get("location", "")
    respond(span)
    stream = response.stream
    # What can be read is a file, which the server sends by itself: as good as sent.
    if stream is not None and not hasattr(stream, "read") and request.method != "HEAD" and hold(span):
        response.stream = _Pieces(stream, span, source)


class _Pieces:
    """A response in pieces, which are made after the span has ended; when they end, so does the request."""

    def __init__(self, pieces: Any, span: Any, source: FalconSource) -> None:
        self._pieces, self._iterator = pieces, iter(pieces)
        self._span, self._source = span, source
        self._ended = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            piece: bytes = next(self._iterator)
        except StopIteration:
            self._end("")
            raise
        except BaseException:
            self._end(_CUT_SHORT)
            raise
        return piece

    def close(self) -> None:
        """The server is done with it, or has lost the client (PEP 3333)."""
        try:
            if hasattr(self._pieces, "close"):
                self._pieces.close()
        finally:
            self._end(_CUT_SHORT)

    def _end(self, cut_short: str) -> None:
        if not self._ended:
            self._ended = True
            self._source.cut_short = cut_short
            guard(finish)(self._span)
