"""FastAPI and Starlette: the actor from ``scope["user"]``, everything else from the route and the response.

Starlette's AuthenticationMiddleware, or any that keeps its convention, says who acts. Roles are the credentials'
scopes and the user object's own ``roles``. Without it the actor is unknown, until the application says more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from auditspan import attributes as names
from auditspan.context import Actor, Facts
from auditspan.extractors import (
    begin,
    chain,
    finish,
    first_text,
    held_roles,
    respond,
    scheme_word,
    session_of,
    text,
    texts,
)
from auditspan.facts import http_facts, http_status, match_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, MutableMapping

    from opentelemetry.sdk.trace import ReadableSpan

    Scope = MutableMapping[str, Any]

_FASTAPI: Final = "opentelemetry.instrumentation.fastapi:FastAPIInstrumentor"
_STARLETTE: Final = "opentelemetry.instrumentation.starlette:StarletteInstrumentor"
INSTRUMENTORS: Final = (_FASTAPI, _STARLETTE)

_SOURCE: Final = "auditspan"  # the scope's key for our source; ASGI lets middleware add keys
_SPAN: Final = "auditspan.span"
_BODIES: Final = frozenset({"http.response.body", "http.response.pathsend"})


def instrument(instrumentor: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
    """Add our hooks to the documented ones of the FastAPI and Starlette instrumentors."""
    hooked = {
        **arguments,
        "server_request_hook": chain(arguments.get("server_request_hook"), _request),
        "client_request_hook": chain(arguments.get("client_request_hook"), _receive),
        "client_response_hook": chain(arguments.get("client_response_hook"), _response),
    }

    def afterwards() -> None:
        _hear_of_failed_authentication()
        if instrumentor == _STARLETTE:
            _keep_outermost()

    return hooked, afterwards


class AsgiSource:
    """What one HTTP request's scope says."""

    def __init__(self, scope: Scope, route: str = "") -> None:
        """*route* as the instrumentation knows it when the request begins: a full span may forget it."""
        self._scope = scope
        self._known_route = route
        self._root_path = str(scope.get("root_path", ""))
        self._path = str(scope.get("path", ""))
        self.status = 0
        self.location = ""
        self.denied = ""  # why authentication failed
        self.complete = False  # the last of the response is on its way
        self.gone = False  # the client disconnected before that
        self._matched = ""

    def actor(self) -> Actor | None:
        """The user that the authentication middleware put into the scope."""
        scope = self._scope
        if "user" not in scope:
            return Actor(names.ANONYMOUS, origin=names.UNVERIFIED) if self.denied else None
        user = scope["user"]
        authenticated = getattr(user, "is_authenticated", bool(user))
        if callable(authenticated):
            authenticated = authenticated()
        if not authenticated:
            return Actor(names.ANONYMOUS, origin=names.UNVERIFIED)
        identity = first_text(
            user, ("identity", "username", "id", "user_id", "sub", "display_name", "email", "name")
        )
        if not (identity or text(user)):
            return None
        session = scope.get("session")
        scheme = scheme_word(_header(scope.get("headers", ()), b"authorization"))
        return Actor(
            id=identity or text(user),
            roles=texts((*getattr(scope.get("auth"), "scopes", ()), *held_roles(user))),
            session=session_of(session),
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
        if scope.get("type") != "http":
            return Facts(route=self._matched or self._path, outcome=names.DENIED if self.denied else "")
        facts = http_facts(
            str(scope.get("method", "")),
            self._matched,
            self._path,
            status=self.status or http_status(span),
            parameters=scope.get("path_params"),
            location=self.location,
        )
        if self.denied:
            return replace(facts, outcome=names.DENIED, reason=self.denied)
        if facts.outcome in ("", names.SUCCESS) and (why := self._cut_short(span)):
            return replace(facts, outcome=names.FAILURE, reason=why)
        return facts

    def _cut_short(self, span: ReadableSpan) -> str:
        """Why the request ended without a whole response; empty when it did not."""
        if self.complete or span.end_time is None:
            return ""
        if not self.status and http_status(span):  # told not to make spans of messages, so it calls no hooks
            return ""
        raised = [str((event.attributes or {}).get("exception.type", "")) for event in span.events]
        if self.gone or any(name.endswith("ClientDisconnect") for name in raised):
            return "the client disconnected"
        if self.status:
            return "the response was cut short"
        return "" if raised else "cancelled before there was a response"

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
        route = self._known_route or str((span.attributes or {}).get("http.route") or "")
        if str(scope.get("root_path", "")) == self._root_path:
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


def _request(span: Any, scope: Scope) -> None:
    # A span inside another server span may be one that sampling dropped: it has no attributes.
    known = getattr(span, "attributes", None) or {}
    source = AsgiSource(scope, str(known.get("http.route") or ""))
    if begin(span, source) is not None:
        scope[_SOURCE] = source
        scope[_SPAN] = span


def _response(_: Any, scope: Scope, message: MutableMapping[str, Any]) -> None:
    source = scope.get(_SOURCE)
    if not isinstance(source, AsgiSource):
        return
    if message.get("type") == "http.response.start":
        source.status = message["status"]
        if 300 <= source.status < 400:
            source.location = _header(message.get("headers", ()), b"location")
        respond(scope[_SPAN])
    elif message.get("type") in _BODIES and not message.get("more_body", False):
        source.complete = True
        # The instrumentation sends this message and then ends the span.
        finish(scope[_SPAN])


def _receive(_: Any, scope: Scope, message: MutableMapping[str, Any]) -> None:
    if message.get("type") == "http.disconnect":
        source = scope.get(_SOURCE)
        if isinstance(source, AsgiSource) and not source.complete:
            source.gone = True


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    for key, value in headers:
        if key.lower() == name:
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
