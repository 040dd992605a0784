"""Plain WSGI: the actor from what the server and middleware left in the environment, the rest from the response.

WSGI has no instrumentor: an application is wrapped in ``opentelemetry.instrumentation.wsgi.OpenTelemetryMiddleware`` by
whoever makes it. Inside of that, around the application, ours takes its place: it is a WSGI middleware itself, so it
sees the environment, the response's start and each of its pieces.

``REMOTE_USER`` is the server's or a middleware's word: no header can set it, since headers are ``HTTP_...`` there
(RFC 3875 section 4.1.18). A user name in an Authorization header is the client's word and is never read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import wrapt
from opentelemetry import trace

from auditspan.context import Actor
from auditspan.extractors import (
    ANONYMOUS,
    guard,
    hash_session,
    own_state,
    respond,
    scheme_word,
    text,
    texts,
    warn_once,
)
from auditspan.extractors.environ import EnvironSource
from auditspan.extractors.streams import CUT_SHORT, PlainStream
from auditspan.facts import cut_short, http_facts, http_status
from auditspan.spans import attributes_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from auditspan.context import Facts, OpenedSpan

INSTRUMENTORS: Final = ()
TESTED: Final = {"Beaker": ("1", "1"), "repoze.who": ("3", "3")}

_IDENTITY: Final = "repoze.who.identity"
_SESSION: Final = "beaker.session"
_respond: Final = guard(respond)


def instrument(instrumentor: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Leave the arguments as they are: there is no instrumentor."""
    del instrumentor
    return arguments


def start() -> None:
    """Wrap each application that OpenTelemetry's middleware is given from now on."""

    def hook(module: Any) -> None:
        wrapt.wrap_function_wrapper(module, "OpenTelemetryMiddleware.__init__", _made)

    wrapt.when_imported("opentelemetry.instrumentation.wsgi")(hook)


def _made(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if args:
        args = (AuditedApplication(args[0]), *args[1:])
    elif "wsgi" in kwargs:
        kwargs = {**kwargs, "wsgi": AuditedApplication(kwargs["wsgi"])}
    wrapped(*args, **kwargs)


class WsgiSource(EnvironSource):
    """What one request's environment says."""

    status = 0
    location = ""
    cut_short = ""  # why the response did not come to its end

    def __init__(self, environ: dict[str, Any]) -> None:
        super().__init__(environ)
        # Now: what dispatches to applications inside moves the border between the two.
        self._path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")

    def actor(self) -> Actor | None:
        """The server's REMOTE_USER, or whom repoze.who has identified."""
        environ = self.environ
        identity = environ.get(_IDENTITY) or {}
        known = text(identity["repoze.who.userid"]) if "repoze.who.userid" in identity else ""
        name = text(environ.get("REMOTE_USER")) or known
        if not name:
            return ANONYMOUS if _IDENTITY in environ else None
        session = self._session()
        method = text(environ.get("AUTH_TYPE")).lower() if "AUTH_TYPE" in environ else ""
        if not method and "HTTP_AUTHORIZATION" in environ:
            method = scheme_word(environ["HTTP_AUTHORIZATION"])
        return Actor(
            name,
            # With another name the groups would be somebody else's.
            roles=texts(identity.get("groups") or ()) if known == name else (),
            session=session,
            auth_method=method or ("session" if session else ""),
        )

    def facts(self, span: ReadableSpan) -> Facts:
        """From method, status, and the route when the application has put one on the span (``http.route``)."""
        attributes = attributes_of(span)
        facts = http_facts(
            self.environ.get("REQUEST_METHOD", ""),
            str(attributes.get("http.route") or ""),
            self._path,
            status=self.status or http_status(attributes),
            location=self.location,
        )
        return cut_short(facts, self.cut_short)

    def _session(self) -> str:
        """The hashed id of Beaker's session, when the request has loaded one; asking would load it."""
        session = getattr(self.environ.get(_SESSION), "__dict__", {}).get("_sess")
        return hash_session(getattr(session, "id", "")) if session else ""


class AuditedApplication:
    """A WSGI application inside OpenTelemetry's middleware."""

    def __init__(self, application: Any) -> None:
        self._application = application

    def __getattr__(self, name: str) -> Any:
        """What the application has besides."""
        return getattr(self._application, name)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Serve one request."""
        request = _begun(environ)
        if request is None:
            served: Iterable[bytes] = self._application(environ, start_response)
            return served

        def start(status: str, headers: Sequence[tuple[str, str]], *exc_info: Any) -> Any:
            request.starts(status, headers)
            return start_response(status, headers, *exc_info)

        try:
            pieces = self._application(environ, start)
            unread = "" if request.method == "HEAD" else CUT_SHORT
            return PlainStream(pieces, request.ends, lambda: request.length, closes=True, unread=unread)
        except BaseException as error:
            request.raised(error)
            raise


def _begun(environ: dict[str, Any]) -> _Request | None:
    """The request whose own span is current; None where there is none, or somebody else knows it better."""
    try:
        span = trace.get_current_span()
        state = own_state(span)
        if state is None or not state.entry or state.source is not None:
            return None
        state.source = source = WsgiSource(environ)
    except Exception:  # noqa: BLE001 - runs inside the application's request; nothing of ours may break it
        warn_once("WSGI middleware")
        return None
    return _Request(span, state, source, environ.get("REQUEST_METHOD", ""))


class _Request:
    """What happens to one request. Never raises."""

    length = -1  # bytes of the response; below 0 when nobody said how many

    def __init__(self, span: Any, state: OpenedSpan, source: WsgiSource, method: str) -> None:
        self._span, self._state, self._source = span, state, source
        self.method = method

    def ends(self, cut_short: str) -> None:
        """The last of the response is about to be sent, or never will be; the span is open until then."""
        try:
            self._source.cut_short = cut_short
            emitter = self._state.emitter
            if not emitter.passes(self._span, self._state, self.method, self._source.status):
                emitter.concluding(self._span, self._state)
        except Exception:  # noqa: BLE001 - inside the application's response
            warn_once("look at the end of a WSGI response")

    def starts(self, status: str, headers: Sequence[tuple[str, str]]) -> None:
        """The application has called ``start_response``, perhaps again, because of an error."""
        try:
            self._starts(status, headers)
        except Exception:  # noqa: BLE001 - as above
            warn_once("look at a WSGI response")

    def _starts(self, status: str, headers: Sequence[tuple[str, str]]) -> None:
        source = self._source
        source.status = int(status.partition(" ")[0])
        found = {key.lower(): value for key, value in headers}
        source.location = found.get("location", "") if 300 <= source.status < 400 else ""
        length = found.get("content-length", "")
        self.length = int(length) if length.isdecimal() else -1

    def raised(self, error: BaseException) -> None:
        """*error* left the application before it had given its pieces to the server, which answers.

        The span ends next, with the error in it, so the record waits for that; of others than an Exception it does not.
        """
        if isinstance(error, Exception):
            self._source.status = 500
            _respond(self._span)
        else:
            self.ends(f"ended by {type(error).__name__}")


# For the README's table (auditspan.extractors.table); nothing at run time reads it.
FRAMEWORKS: Final = {
    "plain WSGI": {
        "page": "wsgi",
        "distribution": "",
        "gives": "actor roles method session streams upstream",
    },
}
