"""aiohttp's server: the actor from ``request["user"]`` or aiohttp-security, the rest from the route and the response.

The instrumentation has no hooks; it puts a middleware of its own in front of an application's. Ours goes right behind
it: there it runs inside the span, and also where a middleware of the application refuses the request. A sub-application
gets neither, since aiohttp runs those of the application around it anyway: one request is one span and one record.

A session of aiohttp-session names nobody, only its id is kept (hashed): what else is in it means what the application
says it means, and its simplest storage believes the client.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any, Final

import wrapt
from opentelemetry import trace

from auditspan import attributes as names
from auditspan.context import Actor
from auditspan.extractors import (
    ANONYMOUS,
    finish,
    first_text,
    guard,
    hash_session,
    held_roles,
    hold,
    is_authenticated,
    own_state,
    scheme_word,
    text,
    warn_once,
)
from auditspan.extractors.sockets import session_facts
from auditspan.extractors.streams import CUT_SHORT, GONE, WITHOUT_BODY, ending
from auditspan.facts import cut_short, http_facts, http_status
from auditspan.spans import attributes_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from opentelemetry.sdk.trace import ReadableSpan

    from auditspan.context import Facts, OpenedSpan

    Handler = Callable[[Any], Awaitable[Any]]

INSTRUMENTORS: Final = ("opentelemetry.instrumentation.aiohttp_server:AioHttpServerInstrumentor",)
TESTED: Final = {"aiohttp": ("3", "3"), "aiohttp-security": ("0.5", "0.5"), "aiohttp-session": ("2", "2")}

_MISSING: Final = object()
_SESSION: Final = "aiohttp_session"  # aiohttp_session.SESSION_KEY, in the request
_IDENTITIES: Final = ("username", "id", "user_id", "sub", "login", "email", "name")


def instrument(instrumentor: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
    """Leave the arguments as they are; afterwards let new applications have our middleware behind theirs."""
    del instrumentor
    return arguments, _join


class AiohttpSource:
    """What one request says."""

    status = 0
    location = ""
    cut_short = ""  # why the response did not come to its end
    socket: Any = None  # the WebSocketResponse, once it is accepted
    closed_with = 0  # by this service
    returned = False  # the handler has
    secured: Any = _MISSING  # whom aiohttp-security found, None for nobody

    def __init__(self, request: Any, span: Any, state: OpenedSpan) -> None:
        self.request = request
        self.span = span
        self.state = state

    def actor(self) -> Actor | None:
        """Whom the application put into the request, or aiohttp-security found."""
        found = []
        for user in (_user(self.request), self.secured):
            if user is not _MISSING:
                actor = self._named(user)
                if actor is not None and actor.id != names.ANONYMOUS:
                    return actor
                found.append(actor)
        return next((actor for actor in found if actor is not None), None)

    def address(self) -> str:
        """The other end of the connection."""
        return str(self.request.remote or "")

    def facts(self, span: ReadableSpan) -> Facts:
        """From method, the route's resource, its parameters and the status."""
        request = self.request
        route, status = _route(request), self.status or http_status(attributes_of(span))
        if self.socket is not None or (status >= 400 and _wants_socket(request)):
            return self._session(route, status)
        facts = http_facts(
            request.method,
            route,
            request.path,
            status=status,
            parameters=request.match_info,
            location=self.location,
        )
        return cut_short(facts, self.cut_short)

    def _session(self, route: str, status: int) -> Facts:
        socket, request = self.socket, self.request
        refused = status if socket is None else 0
        code = self.closed_with or int(getattr(socket, "close_code", 0) or 0)
        facts = session_facts(
            route,
            request.path,
            request.match_info,
            refused=refused,
            code=code,
            by_service=bool(self.closed_with),
        )
        return cut_short(facts, self.cut_short)

    def header(self, name: str) -> list[str]:
        """The values of a request header."""
        return list(self.request.headers.getall(name, ()))

    def query(self) -> str:
        """The URL's query as it was sent."""
        return str(self.request.rel_url.raw_query_string)

    def parameter(self, name: str) -> object:
        """A path parameter."""
        return self.request.match_info.get(name)

    def _named(self, user: Any) -> Actor | None:
        if not is_authenticated(user):
            return ANONYMOUS
        identity = first_text(user, _IDENTITIES) if not isinstance(user, (str, int)) else ""
        identity = identity or text(user)
        if not identity:
            return None
        session = getattr(self.request.get(_SESSION), "identity", None)
        kept = hash_session(session) if isinstance(session, (str, bytes)) else ""
        method = scheme_word(self.request.headers.get("Authorization", ""))
        if not method and self.request.get(_SESSION) is not None:
            method = "session"
        return Actor(identity, roles=held_roles(user), session=kept, auth_method=method)

    # -- what happens to it

    def answers(self, response: Any) -> None:
        """*response* is about to start, or to be given to the server, and the span is still open."""
        self.status = response.status
        if 300 <= self.status < 400:
            self.location = response.headers.get("Location", "")
        state = self.state
        if self.socket is None and state.emitter.passes(self.span, state, self.request.method, self.status):
            return
        state.emitter.responding(self.span, state)

    def raises(self, error: BaseException) -> None:
        """*error* left the handler; the server answers it when nothing was sent yet."""
        status = getattr(error, "status", 0)
        if isinstance(error, Exception) and isinstance(status, int) and hasattr(error, "prepared"):
            self.returned = True
            self.answers(error)  # an HTTPException, which is a response
            return
        gone = self.request.transport is None or self.request.transport.is_closing()
        if isinstance(error, asyncio.CancelledError):
            before = self.status or self.socket is not None
            self.cut_short = (
                GONE if gone else CUT_SHORT if before else "cancelled before there was a response"
            )
        elif self.status or self.socket is not None:
            self.cut_short = GONE if gone or isinstance(error, ConnectionError) else CUT_SHORT
        else:
            self.status = 504 if isinstance(error, asyncio.TimeoutError) else 500
        self.returned = True
        self.state.emitter.responding(self.span, self.state)

    def returns(self, response: Any) -> None:
        """The handler gave *response* to the server; the span ends now, before it is sent unless it has started."""
        if not hasattr(response, "prepared"):
            self.raises(TypeError("no response"))  # which is what the server makes of it
            return
        self.returned = True
        if not response.prepared:
            self.answers(response)
            if (self.state.wanted or self.state.certain) and self._streams(response):
                _Body(self, response.body)

    def starts(self, response: Any) -> None:
        """The handler itself has begun to send *response*."""
        if self.returned:
            return
        if hasattr(response, "close_code"):
            self.socket = response
            self.state.certain = True
            response.close = _closing(self, response.close)
        else:
            response.write_eof = _ending(self, response.write_eof)
        self.answers(response)

    def _streams(self, response: Any) -> bool:
        """Whether its body comes from something that may stop in the middle; a file is as good as sent."""
        body = getattr(response, "body", None)
        return (
            hasattr(body, "write")
            and getattr(body, "size", 0) is None
            and self.request.method != "HEAD"
            and response.status not in WITHOUT_BODY
        )


class _Body:
    """The body of a response that is sent after the span has ended; when it has been written, so has the record.

    Stands in for the body's ``write``, and goes with it: a body that is never written was cut short.
    """

    _ended = True  # as long as it is not made

    def __init__(self, source: AiohttpSource, body: Any) -> None:
        self._tell = ending(source, source.span)
        self._body = weakref.ref(body)  # else neither of the two would go
        self._ended = not hold(source.span)
        body.write = self.write

    async def write(self, writer: Any) -> None:
        """Send all of it. Behind it comes the end of the response, by which the client knows that it is whole."""
        body: Any = self._body()
        try:
            await type(body).write(body, writer)
        except BaseException as error:
            self._end(GONE if isinstance(error, (ConnectionError, asyncio.CancelledError)) else CUT_SHORT)
            raise
        self._end("")

    def __del__(self) -> None:
        self._end(CUT_SHORT)

    def _end(self, cut_short: str) -> None:
        if not self._ended:
            self._ended = True
            self._tell(cut_short)


def _ending(source: AiohttpSource, original: Any) -> Any:
    async def write_eof(*args: Any, **kwargs: Any) -> Any:
        guard(finish)(source.span)  # before the client knows that it has everything
        return await original(*args, **kwargs)

    return write_eof


def _closing(source: AiohttpSource, original: Any) -> Any:
    async def close(*args: Any, **kwargs: Any) -> Any:
        socket = source.socket
        if socket.close_code is None and not socket.closed:
            code = kwargs.get("code", 1000)
            source.closed_with = int(code) if isinstance(code, int) else 0
            guard(finish)(source.span)  # before the client hears of it
        return await original(*args, **kwargs)

    return close


# -- in aiohttp's place


async def _middleware(request: Any, handler: Handler) -> Any:
    source = _begun(request)
    if source is None:
        return await handler(request)
    try:
        response = await handler(request)
    except BaseException as error:
        _tell(source.raises, error)
        raise
    _tell(source.returns, response)
    return response


_middleware.__middleware_version__ = 1  # type: ignore[attr-defined] # what aiohttp.web.middleware does


def _begun(request: Any) -> AiohttpSource | None:
    """The source of a request whose own span is current; None for one that has no span."""
    try:
        span = trace.get_current_span()
        state = own_state(span)
        if state is None or not state.entry or state.source is not None:
            return None
        source = AiohttpSource(request, span, state)
        state.source = request[_key()] = source
        if request.remote:
            span.set_attribute("network.peer.address", request.remote)  # the instrumentation leaves it out
    except Exception:  # noqa: BLE001 - runs inside the application's request; nothing of ours may break it
        warn_once("aiohttp middleware")
        return None
    return source


def _tell(told: Callable[[Any], None], what: Any) -> None:
    try:
        told(what)
    except Exception:  # noqa: BLE001 - as above
        warn_once("aiohttp middleware")


async def _prepared(request: Any, response: Any) -> None:
    """On aiohttp's signal ``on_response_prepare``: the headers go out next."""
    source = request.get(_key())
    if isinstance(source, AiohttpSource):
        _tell(source.starts, response)


def _join() -> None:
    """Give applications that are made from now on our middleware; ``web.Application`` is the instrumentation's here."""
    from aiohttp import web  # noqa: PLC0415 - called only where aiohttp is

    application: Any = web.Application
    if getattr(application, "_auditspan", False):
        return
    if not _keys and hasattr(
        web, "RequestKey"
    ):  # since 3.14; it looks for the module that makes it, which is here
        _keys.append(web.RequestKey("source", AiohttpSource))
    wrapt.wrap_function_wrapper(application, "__init__", _made)
    for method in ("add_subapp", "add_domain"):
        wrapt.wrap_function_wrapper(application, method, _added)
    application._auditspan = True  # noqa: SLF001 - our own mark
    wrapt.when_imported("aiohttp_security.api")(_hear_of_security)


def _made(wrapped: Any, app: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    # As a list, whatever it is: the instrumentation puts its own in front of it, in place.
    kwargs["middlewares"] = [_middleware, *(kwargs.get("middlewares") or ())]
    wrapped(*args, **kwargs)
    app.on_response_prepare.append(_prepared)


def _added(wrapped: Any, app: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Take the instrumentation's middleware and ours from the sub-application: those around it see its requests."""
    subapp = args[1] if len(args) > 1 else kwargs.get("subapp")
    guard(_leave)(app, subapp)
    return wrapped(*args, **kwargs)


def _leave(app: Any, subapp: Any) -> None:
    theirs: Any = getattr(subapp, "middlewares", ())
    if _middleware in app.middlewares and _middleware in theirs and not theirs.frozen:
        # The instrumentation's is the one that was put right before ours.
        at = theirs.index(_middleware)
        del theirs[max(0, at - 1) : at + 1]
        if _prepared in subapp.on_response_prepare:
            subapp.on_response_prepare.remove(_prepared)


def _key() -> Any:
    """The request's key for our source: of the kind that this aiohttp wants."""
    return _keys[0] if _keys else "auditspan.source"


_keys: Final[list[Any]] = []


def _route(request: Any) -> str:
    resource = getattr(request.match_info.route, "resource", None)
    return str(getattr(resource, "canonical", "") or "")


def _user(request: Any) -> Any:
    """``request["user"]``, or what a ``web.RequestKey("user", ...)`` holds; _MISSING when neither is there."""
    user = request.get("user", _MISSING)
    if user is _MISSING:
        for key in request:
            if not isinstance(key, str) and str(getattr(key, "_name", "")).rpartition(".")[2] == "user":
                return request[key]
    return user


def _wants_socket(request: Any) -> bool:
    return bool(request.headers.get("Upgrade", "").lower().strip() == "websocket")


def _hear_of_security(module: Any) -> None:
    """aiohttp-security asks whoever keeps its identities; so listen where the application asks it."""

    async def asked(wrapped: Any, request: Any) -> Any:
        user_id = await wrapped(request)
        source = request.get(_key()) if request is not None else None
        if isinstance(source, AiohttpSource):
            source.secured = user_id
        return user_id

    def authorized_userid(wrapped: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return asked(wrapped, args[0] if args else kwargs["request"])

    wrapt.wrap_function_wrapper(module, "authorized_userid", authorized_userid)


# For the README's table (auditspan.extractors.table); nothing at run time reads it.
FRAMEWORKS: Final = {
    "aiohttp's server": {
        "page": "aiohttp",
        "distribution": "aiohttp",
        "gives": "actor roles method session streams WebSockets upstream",
    },
}
