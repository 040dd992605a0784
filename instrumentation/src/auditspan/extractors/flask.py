"""Flask: the actor from Flask-Login, Flask-HTTPAuth, ``g.user`` or REMOTE_USER; the rest from rule and response.

Only what something on the server has verified counts: the user name in an Authorization header is the client's word,
so it is never read. A user object that nobody has loaded is not loaded for us: that could ask a database.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from auditspan import attributes as names
from auditspan.context import Actor
from auditspan.extractors import begin, chain, first_text, held_roles, respond, scheme_word, session_of, text
from auditspan.facts import http_facts, http_status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from auditspan.context import Facts

INSTRUMENTORS: Final = ("opentelemetry.instrumentation.flask:FlaskInstrumentor",)

_SOURCE: Final = "auditspan.source"  # in the WSGI environment
_MISSING: Final = object()

# Where each extension leaves the user it has verified, in Flask's g; the first that names somebody counts.
_LOGIN_USER: Final = "_login_user"  # Flask-Login, flask_login/utils.py _get_user
_USERS: Final = (_LOGIN_USER, "flask_httpauth_user", "user")


def instrument(instrumentor: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
    """Add our hooks to the documented ones of the Flask instrumentor."""
    del instrumentor
    hooked = {
        **arguments,
        "request_hook": chain(arguments.get("request_hook"), _request),
        "response_hook": chain(arguments.get("response_hook"), _response),
    }
    return hooked, lambda: None


class FlaskSource:
    """What one request's objects say; held directly, so that any thread may ask."""

    def __init__(self, request: Any, g: Any) -> None:
        self._request = request
        self._g = g
        self.status = 0
        self.location = ""
        self.session = ""

    def actor(self) -> Actor | None:
        """The user that an extension or the application has put into ``g``, or the server's REMOTE_USER."""
        there = [user for place in _USERS if (user := self._g.get(place, _MISSING)) is not _MISSING]
        found = [actor for user in there if (actor := self._named(user)) is not None]
        for actor in found:
            if actor.id != names.ANONYMOUS:
                return actor
        remote = text(self._request.environ.get("REMOTE_USER"))
        if remote:
            return Actor(remote, auth_method=self._auth_method(default=""))
        return found[0] if found else None

    def facts(self, span: ReadableSpan) -> Facts:
        """From method, URL rule, view arguments and status."""
        request = self._request
        rule = request.url_rule
        return http_facts(
            request.method,
            rule.rule if rule is not None else "",
            request.path,
            status=self.status or http_status(span),
            parameters=request.view_args or {},
            location=self.location,
        )

    def header(self, name: str) -> list[str]:
        """The values of a request header; WSGI has several of one name as one, joined by commas (PEP 3333)."""
        value = self._request.environ.get("HTTP_" + name.upper().replace("-", "_"))
        return [value] if isinstance(value, str) else []

    def query(self) -> str:
        """The URL's query as it was sent."""
        return str(self._request.environ.get("QUERY_STRING", ""))

    def parameter(self, name: str) -> object:
        """An argument of the view."""
        return (self._request.view_args or {}).get(name)

    def _named(self, user: Any) -> Actor | None:
        authenticated = getattr(user, "is_authenticated", bool(user))
        if callable(authenticated):
            authenticated = authenticated()
        if not authenticated:
            return Actor(names.ANONYMOUS, origin=names.UNVERIFIED)
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
        return scheme_word(self._request.environ.get("HTTP_AUTHORIZATION", "")) or default


def _request(span: Any, environ: dict[str, Any]) -> None:
    import flask  # noqa: PLC0415 - the hook runs only where Flask is

    # Werkzeug's way to take the object behind a proxy along to another thread.
    request: Any = flask.request
    g: Any = flask.g
    source = FlaskSource(request._get_current_object(), g._get_current_object())  # noqa: SLF001
    if begin(span, source) is not None:
        environ[_SOURCE] = source


def _response(span: Any, status: str, headers: Sequence[tuple[str, str]]) -> None:
    import flask  # noqa: PLC0415 - the hook runs only where Flask is

    source = flask.request.environ.get(_SOURCE)
    if span is None or not isinstance(source, FlaskSource):
        return
    source.status = int(status.partition(" ")[0])
    if 300 <= source.status < 400:
        source.location = next((value for key, value in headers if key.lower() == "location"), "")
    if "flask_session" in sys.modules or flask.request.cookies:
        # Reading it now changes nothing: Flask has already saved the session and set its headers.
        source.session = session_of(flask.session) or session_of({"sid": getattr(flask.session, "sid", "")})
    respond(span)
