"""Flask: the actor from Flask-Login, Flask-HTTPAuth, ``g.user`` or REMOTE_USER; the rest from rule and response.

Only what something on the server has verified counts: the user name in an Authorization header is the client's word,
so it is never read. A user object that nobody has loaded is not loaded for us: that could ask a database.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import wrapt

from auditspan import attributes as names
from auditspan.context import Actor
from auditspan.extractors import (
    ANONYMOUS,
    chain,
    first_text,
    guard,
    held_roles,
    hold,
    is_authenticated,
    own_state,
    scheme_word,
    session_of,
    text,
    warn_once,
)
from auditspan.extractors.environ import EnvironSource
from auditspan.extractors.streams import WITHOUT_BODY, PlainStream, ending
from auditspan.facts import cut_short, http_facts, http_status
from auditspan.spans import attributes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from auditspan.context import Facts, OpenedSpan

INSTRUMENTORS: Final = ("opentelemetry.instrumentation.flask:FlaskInstrumentor",)
TESTED: Final = {"flask": ("2.3", "3.1")}

_SOURCE: Final = "auditspan.source"  # in the WSGI environment
_SPAN: Final = "auditspan.span"
_MISSING: Final = object()

# Where each extension leaves the user it has verified, in Flask's g; the first that names somebody counts.
_LOGIN_USER: Final = "_login_user"  # Flask-Login, flask_login/utils.py _get_user
_USERS: Final = (_LOGIN_USER, "flask_httpauth_user", "user")
_WHO: Final = ("REMOTE_USER", "HTTP_AUTHORIZATION")


def instrument(instrumentor: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
    """Add our hooks to the documented ones of the Flask instrumentor."""
    del instrumentor
    hooked = {
        **arguments,
        "request_hook": chain(arguments.get("request_hook"), _request, raises=False),
        "response_hook": chain(arguments.get("response_hook"), _response, raises=False),
    }
    return hooked, _hear_of_responses


class FlaskSource(EnvironSource):
    """What one request's objects say; held directly, so that any thread may ask."""

    status = 0
    location = ""
    session = ""
    cut_short = ""  # why the response did not come to its end
    left: Actor | None = None  # who logged out

    def __init__(self, request: Any, g: Any) -> None:
        super().__init__(request.environ)
        self.request = request
        self._g = g

    def let_go(self) -> None:
        """Keep what says who acted, without the request: its environment leads back here by way of the span."""
        environ = self.environ
        named = "REMOTE_USER" in environ or "HTTP_AUTHORIZATION" in environ
        self.environ = {key: environ[key] for key in _WHO if key in environ} if named else {}
        self.request = None

    def actor(self) -> Actor | None:
        """The user that an extension or the application has put into ``g``, or the server's REMOTE_USER.

        Of a logout, the one that was there before.
        """
        if self.left is not None:
            return self.left
        found = []
        for place in _USERS:
            user = self._g.get(place, _MISSING)
            actor = self.named(user) if user is not _MISSING else None
            if actor is not None:
                if actor.id != names.ANONYMOUS:
                    return actor
                found.append(actor)
        remote = text(self.environ.get("REMOTE_USER"))
        if remote:
            return Actor(remote, auth_method=self._auth_method(default=""))
        return found[0] if found else None

    def facts(self, span: ReadableSpan) -> Facts:
        """From method, URL rule, view arguments and status."""
        request = self.request
        rule = request.url_rule
        facts = http_facts(
            request.method,
            rule.rule if rule is not None else "",
            request.path,
            status=self.status or http_status(attributes_of(span)),
            parameters=request.view_args or {},
            location=self.location,
        )
        return cut_short(facts, self.cut_short)

    def parameter(self, name: str) -> object:
        """An argument of the view."""
        return (self.request.view_args or {}).get(name)

    def named(self, user: Any) -> Actor | None:
        """*user* as an actor; None without a name."""
        if not is_authenticated(user):
            return ANONYMOUS
        get_id = getattr(user, "get_id", None)
        identity = text(get_id()) if callable(get_id) else ""
        identity = (
            identity or first_text(user, ("username", "id", "user_id", "sub", "email", "name")) or text(user)
        )
        if not identity:
            return None
        return Actor(
            id=identity,
            roles=held_roles(user),
            session=self.session,
            auth_method=self._auth_method(default="session" if self._g.get(_LOGIN_USER) is user else ""),
        )

    def _auth_method(self, *, default: str) -> str:
        authorization = self.environ.get("HTTP_AUTHORIZATION")
        return (scheme_word(authorization) if authorization else "") or default


def _request(span: Any, environ: dict[str, Any]) -> None:
    try:
        state = own_state(span)
        if state is not None and state.entry:
            flask: Any = sys.modules["flask"]  # the hook runs only where Flask is
            # Werkzeug's way to take the object behind a proxy along to another thread.
            request, g = flask.request._get_current_object(), flask.g._get_current_object()  # noqa: SLF001 - as above
            state.source = environ[_SOURCE] = FlaskSource(request, g)
            environ[_SPAN] = span
    except Exception:  # noqa: BLE001 - runs inside the application's request; nothing of ours may break it
        warn_once("Flask's request hook")


def _response(span: Any, status: str, headers: Sequence[tuple[str, str]]) -> None:
    try:
        state = own_state(span)
        if state is not None and isinstance(state.source, FlaskSource):
            _answer(span, state, state.source, int(status.partition(" ")[0]), headers)
    except Exception:  # noqa: BLE001 - as above
        warn_once("Flask's response hook")


def _answer(
    span: Any, state: OpenedSpan, source: FlaskSource, status: int, headers: Sequence[tuple[str, str]]
) -> None:
    source.status = status
    if state.emitter.passes(span, state, source.request.method, status):
        return
    if 300 <= status < 400:
        source.location = next((value for key, value in headers if key.lower() == "location"), "")
    flask: Any = sys.modules["flask"]
    # The header is asked for, since Werkzeug's cookies would be parsed: a quarter of what all of this costs.
    if "flask_session" in sys.modules or "HTTP_COOKIE" in source.environ:
        # Reading it now changes nothing: Flask has already saved the session and set its headers.
        source.session = session_of(flask.session) or session_of({"sid": getattr(flask.session, "sid", "")})
    if state.held:
        state.emitter.responding(span, state)
    else:
        state.emitter.concluding(
            span, state
        )  # what is no stream is all there, and nothing can happen to it any more


def _hear_of_responses() -> None:
    import flask  # noqa: PLC0415 - called only where Flask is

    flask.request_finished.connect(_on_finished, weak=False)
    wrapt.when_imported("flask_login.signals")(_hear_of_logouts)


def _hear_of_logouts(module: Any) -> None:
    module.user_logged_out.connect(_on_logged_out, weak=False)


def _logged_out(_: Any, user: Any = None, **__: Any) -> None:
    """On Flask-Login's signal: afterwards nobody knows who it was."""
    source = sys.modules["flask"].request.environ.get(_SOURCE)
    if isinstance(source, FlaskSource):
        source.left = source.named(user)


def _finished(_: Any, response: Any, **__: Any) -> None:
    """Let a streamed response be watched to its end: the instrumentation's span ends before its first piece is sent."""
    import flask  # noqa: PLC0415 - as above

    environ = flask.request.environ
    source, span = environ.get(_SOURCE), environ.get(_SPAN)
    if not isinstance(source, FlaskSource) or not response.is_streamed or response.direct_passthrough:
        return  # a file that the server sends by itself is as good as sent
    if flask.request.method == "HEAD" or response.status_code in WITHOUT_BODY:
        return
    length = response.content_length or -1
    stream = PlainStream(response.response, ending(source, span), lambda: length, closes=True)
    if hold(span):
        response.response = stream
    else:
        stream.let_go()


_on_finished: Final = guard(_finished)  # one object, so that the signal knows it again
_on_logged_out: Final = guard(_logged_out)


# For the README's table (auditspan.extractors.table); nothing at run time reads it.
FRAMEWORKS: Final = {
    "Flask": {
        "page": "flask",
        "distribution": "flask",
        "gives": "actor roles method session streams upstream",
    },
}
