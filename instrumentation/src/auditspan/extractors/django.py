"""Django and Django REST framework: the actor from ``request.user``, the rest from URL pattern, response and signals.

A request in which somebody signs in or out, or fails to, is that LOGIN or LOGOUT, whatever its path; where the
signal comes outside a request, it is a record of its own. The hooks are those of the Django instrumentation, whose
middleware is the outermost one, so all that other middleware does is behind us when the response comes by.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from auditspan import attributes as names
from auditspan.extractors import chain, guard, hold, own_state, text, warn_once
from auditspan.extractors.django_users import actor_of
from auditspan.extractors.streams import WITHOUT_BODY, AsyncStream, PlainStream, ending
from auditspan.facts import SAFE_METHODS, cut_short, http_facts, http_status
from auditspan.spans import attributes_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace import ReadableSpan

    from auditspan.context import Actor, Facts, OpenedSpan

INSTRUMENTORS: Final = ("opentelemetry.instrumentation.django:DjangoInstrumentor",)
TESTED: Final = {"django": ("4.2", "5.2"), "djangorestframework": ("3", "3")}

SOURCE: Final = "_auditspan"  # attribute of Django's request
_DENIED: Final = frozenset({401, 403})


def instrument(instrumentor: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
    """Add our hooks to the documented ones of the Django instrumentor, and let it wait for Django's settings."""
    del instrumentor
    from auditspan.extractors import django_start  # noqa: PLC0415 - only where Django is

    django_start.wait_for_settings()
    hooked = {
        **arguments,
        "request_hook": chain(arguments.get("request_hook"), _request, raises=False),
        "response_hook": chain(arguments.get("response_hook"), _response, raises=False),
    }

    def afterwards() -> None:
        from auditspan.extractors import django_signals  # noqa: PLC0415 - only where Django is

        _hear_of_cancelled_requests()
        _hear_of_csrf_failures()
        django_signals.connect()

    return hooked, afterwards


class DjangoSource:
    """What one request's objects say; held directly, so that any thread may ask."""

    status = 0
    location = ""
    refused = ""  # why, where the status does not say it
    cut_short = ""  # why there was no whole response
    unsure = False  # the view may have done its work all the same
    signed = ""  # LOGIN or LOGOUT, when a signal said so
    logged_in: Any = None  # the user of that LOGIN
    proved: Actor | None = None  # whose credentials were verified, whatever became of it
    left: Actor | None = None  # who logged out
    failed = False  # credentials were refused, and none accepted since
    attempted = ""  # whose they were said to be; hashed
    _resolved: Any = None

    def __init__(self, request: Any, state: OpenedSpan | None = None) -> None:
        self.request = request
        self.state = state

    def actor(self) -> Actor | None:
        """The user of Django's request; of a LOGOUT, the one that it had."""
        if self.left is not None:
            return self.left
        found = actor_of(self.request, self.logged_in)
        if self.proved is not None and (found is None or found.id == names.ANONYMOUS):
            return self.proved
        return found

    def address(self) -> str:
        """The other end of the connection, as the server tells it."""
        return str(self.request.META.get("REMOTE_ADDR") or "")

    def facts(self, span: ReadableSpan) -> Facts:
        """From method, URL pattern, its arguments, the response and what signals said."""
        request, match = self.request, self._match()
        facts = http_facts(
            request.method or "",
            plain_route(match.route) if match is not None else "",
            request.path,
            status=self.status or http_status(attributes_of(span)),
            parameters=_parameters(match),
            location=self._login_page(),
        )
        if match is not None and _is_admin_list(match) and facts.action == "CREATE":
            facts = replace(
                facts, action="EXECUTE"
            )  # an action on chosen objects; each has a record of its own
        facts = self._signalled(facts)
        if self.refused:
            reason = f"{facts.reason}: {self.refused}" if facts.reason else self.refused
            facts = replace(facts, outcome=names.DENIED, reason=reason)
        return cut_short(facts, self.cut_short, names.UNKNOWN if self.unsure else names.FAILURE)

    def header(self, name: str) -> list[str]:
        """The values of a request header; Django joins several of one name by commas."""
        value = self.request.headers.get(name)
        return [value] if isinstance(value, str) else []

    def query(self) -> str:
        """The URL's query as it was sent."""
        return str(self.request.META.get("QUERY_STRING", ""))

    def parameter(self, name: str) -> object:
        """An argument of the view."""
        return _parameters(self._match()).get(name)

    def _signalled(self, facts: Facts) -> Facts:
        if self.signed:
            return replace(facts, action=self.signed, changes=True)
        if not self.failed and self.proved is None:
            return facts
        # HTTP's own authentication of a request is no attempt to sign in, nor is a password asked of who is known.
        known = actor_of(self.request, self.logged_in)
        signs_in = not self.request.META.get("HTTP_AUTHORIZATION") and (
            known is None or known.id == names.ANONYMOUS
        )
        if self.proved is not None:
            return replace(facts, action="LOGIN", changes=True) if signs_in else facts
        reason = facts.reason or "the credentials were refused"
        if not signs_in:
            return replace(facts, outcome=names.DENIED, reason=reason)
        facts = replace(facts, action="LOGIN", outcome=names.DENIED, reason=reason, changes=True)
        return replace(facts, target_type="user", target_id=self.attempted) if self.attempted else facts

    def _match(self) -> Any:
        """The URL pattern, also of a request that middleware refused before it was routed."""
        match = getattr(self.request, "resolver_match", None)
        if match is None and self.status not in (0, 404):
            if self._resolved is None:
                self._resolved = _resolve(self.request)
            match = self._resolved or None
        return match

    def _login_page(self) -> str:
        """Where a redirect leads, when that says that the request was denied; empty otherwise.

        Django's own redirects say in the query where to go afterwards. What has been done may end at the login page,
        too, as a new password does: that is no denial.
        """
        if not self.location:
            return ""
        target = urlsplit(self.location)
        if not target.query and self.request.method not in SAFE_METHODS:
            return ""
        return "/login" if target.path == _login_url() else target.path


def _request(span: Any, request: Any) -> None:
    try:
        state = own_state(span)
        if state is not None and state.entry:
            source = DjangoSource(request, state)
            state.source = source
            setattr(request, SOURCE, source)
    except Exception:  # noqa: BLE001 - runs inside the application's request; nothing of ours may break it
        warn_once("Django's request hook")


def _response(span: Any, request: Any, response: Any) -> None:
    try:
        state = own_state(span)
        if state is not None and isinstance(state.source, DjangoSource):
            _answer(span, state, state.source, request, response)
    except Exception:  # noqa: BLE001 - as above
        warn_once("Django's response hook")


def _answer(span: Any, state: OpenedSpan, source: DjangoSource, request: Any, response: Any) -> None:
    status = source.status = response.status_code
    told = source.signed or source.failed or source.refused
    if not told and state.emitter.passes(span, state, request.method, status):
        return
    if 300 <= status < 400:
        source.location = str(response.headers.get("Location", ""))
    elif status in _DENIED and not source.refused:
        source.refused = _code(response)
    if not response.streaming and status < 500:
        state.emitter.concluding(span, state)  # it is all there; an exception comes onto the span after this
        return
    state.emitter.responding(span, state)
    if response.streaming and (state.wanted or state.certain):
        _watch(span, source, request, response)


def _code(response: Any) -> str:
    """Why Django REST framework denies: the code of its error, which is the framework's or the application's word."""
    data = getattr(response, "data", None)
    detail = data.get("detail") if isinstance(data, dict) else None
    return text(getattr(detail, "code", ""))


def _watch(span: Any, source: DjangoSource, request: Any, response: Any) -> None:
    """Let a streamed response be watched to its end: the span ends before its first piece is sent."""
    if request.method == "HEAD" or response.status_code in WITHOUT_BODY:
        return
    if getattr(response, "file_to_stream", None) is not None and request.META.get("wsgi.file_wrapper"):
        return  # a file that the server sends by itself is as good as sent

    if not hold(span):
        return
    said = response.headers.get("Content-Length", "")
    length = int(said) if said.isdecimal() and int(said) else -1
    kind = AsyncStream if response.is_async else PlainStream
    # Django closes the pieces itself, as well as ours.
    response.streaming_content = kind(response.streaming_content, ending(source, span), lambda: length)


def _hear_of_cancelled_requests() -> None:
    """The instrumentation never ends the span of a request that is cancelled, as when an ASGI client leaves."""
    middleware = sys.modules["opentelemetry.instrumentation.django"]._DjangoMiddleware  # noqa: SLF001 - no other name
    original = middleware.__call__
    if hasattr(original, SOURCE):
        return

    @functools.wraps(original)
    def call(self: Any, request: Any) -> Any:
        try:
            return original(self, request)
        except BaseException as error:
            _end_early(self, request, error)
            raise

    setattr(call, SOURCE, True)
    middleware.__call__ = call


def _ended_early(middleware: Any, request: Any, error: BaseException) -> None:
    meta = request.META
    activation = meta.pop(middleware._environ_activation_key, None)  # noqa: SLF001 - as above
    if activation is None:
        return
    source = getattr(request, SOURCE, None)
    if isinstance(source, DjangoSource):
        kind = type(error).__name__
        cancelled = isinstance(error, asyncio.CancelledError)
        source.cut_short = f"{'cancelled' if cancelled else 'ended by ' + kind} before there was a response"
        view = getattr(source._match(), "func", None)  # noqa: SLF001 - one module
        if cancelled and not inspect.iscoroutinefunction(view):
            source.unsure = True
            source.cut_short += "; its view, in a thread, may have done its work"
    counted = meta.pop(middleware._environ_active_request_attr_key, None)  # noqa: SLF001 - as above
    if counted is not None:
        middleware._active_request_counter.add(-1, counted)  # noqa: SLF001 - as above
    activation.__exit__(type(error), error, error.__traceback__)
    token = meta.pop(middleware._environ_token, None)  # noqa: SLF001 - as above
    if token is not None:
        from opentelemetry.context import detach  # noqa: PLC0415 - rarely needed

        detach(token)


_end_early: Final = guard(_ended_early)


def _hear_of_csrf_failures() -> None:
    from django.middleware.csrf import CsrfViewMiddleware  # noqa: PLC0415 - only where Django is

    original = CsrfViewMiddleware._reject  # noqa: SLF001 - where all its refusals come by
    if hasattr(original, SOURCE):
        return

    @functools.wraps(original)
    def reject(self: Any, request: Any, reason: Any) -> Any:
        source = getattr(request, SOURCE, None)
        if isinstance(source, DjangoSource):
            source.refused = "CSRF verification failed"
        return original(self, request, reason)

    setattr(reject, SOURCE, True)
    CsrfViewMiddleware._reject = reject  # noqa: SLF001 - as above


def _resolve(request: Any) -> Any:
    from django.urls import Resolver404, resolve  # noqa: PLC0415 - only where Django is

    try:
        return resolve(request.path_info, urlconf=getattr(request, "urlconf", None))
    except Resolver404:
        return False


def _is_admin_list(match: Any) -> bool:
    return match.app_name == "admin" and (match.url_name or "").endswith("_changelist")


def _parameters(match: Any) -> dict[str, object]:
    if match is None:
        return {}
    return {**{str(number): value for number, value in enumerate(match.args)}, **match.kwargs}


@functools.lru_cache(maxsize=1)
def _login_url() -> str:
    from django.conf import settings  # noqa: PLC0415 - only where Django is
    from django.shortcuts import resolve_url  # noqa: PLC0415 - as above

    return str(urlsplit(resolve_url(settings.LOGIN_URL)).path)


@functools.lru_cache(maxsize=4096)
def plain_route(route: str) -> str:
    """The URL pattern of a resolver match as records write it: ``/orders/{order_id}``, of expressions too.

    ``^orders/(?P<order_id>[0-9]+)/$`` is ``/orders/{order_id}/``; groups without a name are ``{0}``, ``{1}``.
    """
    if not any(sign in route for sign in "^$(\\"):
        return "/" + route.removeprefix("/")
    found: list[str] = []
    unnamed = position = 0
    while position < len(route):
        sign = route[position]
        if sign == "(":
            end = _closing(route, position)
            group = route[position + 1 : end]
            if group.startswith("?P<"):
                found.append("{" + group[3:].partition(">")[0] + "}")
            elif not group.startswith("?"):
                found.append(f"{{{unnamed}}}")
                unnamed += 1
            position = end
        elif sign == "\\":
            position += 1
            if route[position : position + 1] not in ("Z", "A", "b", "B"):
                found.append(route[position : position + 1])
        elif sign not in "^$?*+":
            found.append(sign)
        position += 1
    return "/" + "".join(found).removeprefix("/")


def _closing(pattern: str, start: int) -> int:
    """Where the group ends that begins at *start*."""
    depth, position, in_class = 0, start, False
    while position < len(pattern):
        sign = pattern[position]
        if sign == "\\":
            position += 1
        elif in_class:
            in_class = sign != "]"
        elif sign == "[":
            in_class = True
        elif sign in "()":
            depth += 1 if sign == "(" else -1
            if depth == 0:
                return position
        position += 1
    return len(pattern)


# For the README's table (auditspan.extractors.table); nothing at run time reads it.
FRAMEWORKS: Final = {
    "Django": {
        "page": "django",
        "distribution": "django",
        "gives": "actor roles method session sign-in streams upstream",
    },
    "Django REST framework": {
        "page": "django",
        "distribution": "djangorestframework",
        "gives": "actor roles method session streams upstream",
    },
}
