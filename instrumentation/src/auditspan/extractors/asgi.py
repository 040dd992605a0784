"""FastAPI and Starlette: the actor from ``scope["user"]``, everything else from the route and the response.

Starlette's AuthenticationMiddleware, or any that keeps its convention, says who acts. Roles are the credentials'
scopes and the user object's own ``roles``. Without it the actor is unknown, until the application says more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from auditspan import attributes as names
from auditspan.context import Actor
from auditspan.extractors import (
    ANONYMOUS,
    chain,
    first_text,
    held_roles,
    is_authenticated,
    own_state,
    scheme_word,
    session_of,
    text,
    texts,
    warn_once,
)
from auditspan.extractors.streams import CUT_SHORT, GONE
from auditspan.facts import cut_short, http_facts, http_status, match_path
from auditspan.spans import attributes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, MutableMapping

    from opentelemetry.sdk.trace import ReadableSpan

    from auditspan.context import Facts, OpenedSpan

    Scope = MutableMapping[str, Any]

_FASTAPI: Final = "opentelemetry.instrumentation.fastapi:FastAPIInstrumentor"
_STARLETTE: Final = "opentelemetry.instrumentation.starlette:StarletteInstrumentor"
INSTRUMENTORS: Final = (_FASTAPI, _STARLETTE)
TESTED: Final = {"fastapi": ("0", "0"), "starlette": ("0.46", "1")}

_SOURCE: Final = "auditspan"  # the scope's key for our source; ASGI lets middleware add keys
_MISSING: Final = object()
_IDENTITIES: Final = ("identity", "username", "id", "user_id", "sub", "display_name", "email", "name")
_BODIES: Final = frozenset({"http.response.body", "http.response.pathsend"})


def instrument(instrumentor: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
    """Add our hooks to the documented ones of the FastAPI and Starlette instrumentors."""
    hooked = {
        **arguments,
        "server_request_hook": chain(arguments.get("server_request_hook"), _request, raises=False),
        "client_request_hook": chain(arguments.get("client_request_hook"), _receive, raises=False),
        "client_response_hook": chain(arguments.get("client_response_hook"), _response, raises=False),
    }

    def afterwards() -> None:
        _hear_of_failed_authentication()
        if instrumentor == _STARLETTE:
            _keep_outermost()

    return hooked, afterwards


class AsgiSource:
    """What one HTTP request's scope says."""

    status = 0
    location = ""
    denied = ""  # why authentication failed
    complete = False  # the last of the response is on its way
    gone = False  # the client disconnected before that
    _responded = False
    _matched = ""

    def __init__(
        self, scope: Scope, route: str = "", span: Any = None, state: OpenedSpan | None = None
    ) -> None:
        """*route* as the instrumentation knows it when the request begins: a full span may forget it."""
        self._scope = scope
        self._known_route = route
        self._span = span
        self._state = state
        self._root_path = scope.get("root_path", "")
        self._path = scope.get("path", "")

    def actor(self) -> Actor | None:
        """The user that the authentication middleware put into the scope."""
        scope = self._scope
        user = scope.get("user", _MISSING)
        if user is _MISSING:
            return ANONYMOUS if self.denied else None
        if not is_authenticated(user):
            return ANONYMOUS
        identity = first_text(user, _IDENTITIES) or text(user)
        if not identity:
            return None
        session = scope.get("session")
        authorization = _header(scope.get("headers", ()), b"authorization")
        scheme = scheme_word(authorization) if authorization else ""
        roles = held_roles(user)
        if auth := scope.get("auth"):
            roles = texts((*getattr(auth, "scopes", ()), *roles))
        return Actor(
            identity,
            roles=roles,
            session=session_of(session) if session else "",
            auth_method=scheme or ("session" if session else ""),
        )

    def address(self) -> str:
        """The other end of the connection, as the server tells it."""
        client = self._scope.get("client")
        return str(client[0]) if client else ""

    def facts(self, span: ReadableSpan) -> Facts:
        """From method, route, path parameters and status."""
        scope = self._scope
        self._matched = self._route(span)
        facts = http_facts(
            scope.get("method", ""),
            self._matched,
            self._path,
            status=self.status or http_status(attributes_of(span)),
            parameters=scope.get("path_params"),
            location=self.location,
        )
        if self.denied:
            return replace(facts, outcome=names.DENIED, reason=self.denied)
        return cut_short(facts, self._cut_short(span))

    def _cut_short(self, span: ReadableSpan) -> str:
        """Why the request ended without a whole response; empty when it did not."""
        if self.complete or span.end_time is None:
            return ""
        if not self.status and http_status(attributes_of(span)):
            return ""  # told not to make spans of messages, so it calls no hooks
        raised = [str((event.attributes or {}).get("exception.type", "")) for event in span.events]
        if self.gone or any(name.endswith("ClientDisconnect") for name in raised):
            return GONE
        if self.status:
            return CUT_SHORT
        return "" if raised else "cancelled before there was a response"

    def sends(self, message: MutableMapping[str, Any]) -> None:
        """Hear of *message* before it is sent; after its last one the instrumentation ends the span."""
        kind, state = message["type"], self._state
        if state is None:
            return
        if kind in _BODIES:
            if not message.get("more_body", False):
                self.complete = True
            if state.judged and not (state.wanted or state.certain):
                return
            if self.complete:
                if self._responded:
                    state.emitter.finishing(self._span, state)
                else:
                    state.emitter.concluding(self._span, state)
            elif not self._responded:
                self._respond(state)
        elif kind == "http.response.start":
            self._starts(message, state)

    def let_go(self) -> None:
        """The span has ended: keep nothing that leads back here."""
        self._span = self._state = None
        if self._scope.get(_SOURCE) is self:
            del self._scope[_SOURCE]

    def receives(self, message: MutableMapping[str, Any]) -> None:
        """Hear of what the client sent on a WebSocket, which is not of this kind."""

    def _starts(self, message: MutableMapping[str, Any], state: OpenedSpan) -> None:
        status = self.status = message["status"]
        if not self.denied and state.emitter.passes(self._span, state, self._scope["method"], status):
            return
        headers = message.get("headers", ())
        if 300 <= status < 400:
            self.location = _header(headers, b"location")
        # Where the length is known the body follows at once, so all is looked at then; otherwise it may never come.
        if b"content-length" not in dict(headers):
            self._respond(state)

    def _respond(self, state: OpenedSpan) -> None:
        self._responded = True
        state.emitter.responding(self._span, state)

    def header(self, name: str) -> list[str]:
        """The values of a request header."""
        wanted = name.encode("latin-1")
        headers = self._scope.get("headers", ())
        return [value.decode("latin-1") for key, value in headers if key.lower() == wanted]

    def query(self) -> str:
        """The URL's query as it was sent."""
        return bytes(self._scope.get("query_string", b"")).decode("latin-1")

    def parameter(self, name: str) -> object:
        """A path parameter, also of a request that was refused before it was routed."""
        parameters = self._scope.get("path_params")
        if parameters is None:
            parameters = match_path(self._matched, self._path)
        return parameters.get(name)

    def _route(self, span: ReadableSpan) -> str:
        scope = self._scope
        route = self._known_route or _route(span)
        if scope.get("root_path", "") == self._root_path:
            return route
        # The request went into a mounted application, whose routes the instrumentation does not know: lay the
        # path parameters of all levels over the path.
        endpoint = scope.get("endpoint")
        if endpoint is None or getattr(scope.get("route"), "app", None) is endpoint:
            return ""
        segments = self._path.split("/")
        position = 0
        for name, value in (scope.get("path_params") or {}).items():
            written = str(value).split("/")
            for start in range(position, len(segments) - len(written) + 1):
                if segments[start : start + len(written)] == written:
                    segments[start : start + len(written)] = ["{" + name + "}"]
                    position = start + 1
                    break
        return "/".join(segments)


def _route(span: Any) -> str:
    return str(attributes_of(span).get("http.route") or "")


def _request(span: Any, scope: Scope) -> None:
    try:
        state = own_state(span)
        if state is not None and state.entry:
            if scope["type"] == "websocket":
                _open_session(span, scope, state)
            else:
                state.source = scope[_SOURCE] = AsgiSource(scope, _route(span), span, state)
    except Exception:  # noqa: BLE001 - runs inside the application's request; nothing of ours may break it
        warn_once("ASGI's request hook")


def _open_session(span: Any, scope: Scope, state: OpenedSpan) -> None:
    from auditspan.extractors.asgi_sockets import SocketSource  # noqa: PLC0415 - it builds on this module

    state.source = scope[_SOURCE] = SocketSource(scope, _route(span), span, state)
    state.certain = True


def _response(_: Any, scope: Scope, message: MutableMapping[str, Any]) -> None:
    try:
        source = scope.get(_SOURCE)
        if isinstance(source, AsgiSource):
            source.sends(message)
    except Exception:  # noqa: BLE001 - as above
        warn_once("ASGI's response hook")


def _receive(_: Any, scope: Scope, message: MutableMapping[str, Any]) -> None:
    try:
        kind = message["type"]
        if kind == "http.request":
            return
        source = scope.get(_SOURCE)
        if not isinstance(source, AsgiSource):
            return
        if kind == "http.disconnect":
            if not source.complete:
                source.gone = True
        elif kind == "websocket.disconnect":
            source.receives(message)
    except Exception:  # noqa: BLE001 - as above
        warn_once("ASGI's receive hook")


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    if type(headers) is list:
        # Without a line of Python for each of those that most requests have, which servers give in small letters.
        there = dict(headers)
        if name not in there and b"".join(there).islower():
            return ""
    size = len(name)
    for key, value in headers:
        if len(key) == size and key.lower() == name:
            return value.decode("latin-1")
    return ""


def _hear_of_failed_authentication() -> None:
    """Starlette answers a failed authentication with 400 by default, which tells nothing; so ask where it answers."""
    from starlette.middleware.authentication import AuthenticationMiddleware  # noqa: PLC0415 - only where it is

    if getattr(AuthenticationMiddleware, "_auditspan", False):
        return
    original = AuthenticationMiddleware.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        answer = self.on_error

        def on_error(connection: Any, error: Exception) -> Any:
            source = connection.scope.get(_SOURCE)
            if isinstance(source, AsgiSource):
                source.denied = text(error) or "authentication failed"
            return answer(connection, error)

        self.on_error = on_error

    AuthenticationMiddleware.__init__ = init  # type: ignore[method-assign]
    AuthenticationMiddleware._auditspan = True  # type: ignore[attr-defined]  # noqa: SLF001 - our own mark


def _keep_outermost() -> None:
    """Middleware that is added after construction would run outside the span, and what it refuses go unseen."""
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware  # noqa: PLC0415 - only where it is
    from starlette.applications import Starlette  # noqa: PLC0415 - only where it is

    if getattr(Starlette, "_auditspan", False):
        return
    original = Starlette.build_middleware_stack

    def build(self: Any) -> Any:
        self.user_middleware.sort(key=lambda entry: entry.cls is not OpenTelemetryMiddleware)  # stable
        return original(self)

    Starlette.build_middleware_stack = build  # type: ignore[method-assign]
    Starlette._auditspan = True  # type: ignore[attr-defined]  # noqa: SLF001 - our own mark


# For the README's table (auditspan.extractors.table); nothing at run time reads it.
FRAMEWORKS: Final = {
    "FastAPI": {
        "page": "fastapi",
        "distribution": "fastapi",
        "gives": "actor roles method session streams WebSockets upstream",
    },
    "Starlette": {
        "page": "fastapi",
        "distribution": "starlette",
        "gives": "actor roles method session streams WebSockets upstream",
    },
}
