"""What a request does, to what, and how it ended, from what its protocol says. Pure: text in, text out.

HTTP. The action comes from the method; a POST, PUT or PATCH whose route ends in a verb (the last segment, after the
thing it acts on: ``/orders/{order_id}/refund``) has that verb as its action. The target is read off the route:

    route                            method   action    target type   target id
    /orders                          POST     CREATE    orders
    /orders/{order_id}               PUT      UPDATE    orders        7
    /orders/{order_id}               DELETE   DELETE    orders        7
    /orders/{order_id}/refund        POST     REFUND    orders        7
    /orders/{order_id}/approve       POST     APPROVE   orders        7
    /orders/{order_id}/items         POST     CREATE    items               a plural is a collection, no verb
    /users/{name}/role               PUT      UPDATE    users         bob   a verb needs POST or the table
    /orders/export                   POST     EXPORT    orders
    /login, /auth/token              POST     LOGIN
    /files/{bucket}/{key}            DELETE   DELETE    files         b/k   neighbouring parameters belong together

The target type is the segment as the route writes it, never translated; the target id is the value of the last
path parameter. A path that no route matches has no target: its text is the client's to choose.

gRPC. The action is the first word of the method's name through the same table, or that word itself
(``ChargeCard`` -> CHARGE). The target type is the service's last name without "Service".
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from auditspan import attributes as names
from auditspan.context import Facts
from auditspan.spans import attributes_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.sdk.trace import ReadableSpan

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "QUERY"})  # RFC 9110 section 9.2.1

_BY_METHOD: Final = {"POST": "CREATE", "PUT": "UPDATE", "PATCH": "UPDATE", "DELETE": "DELETE"}

# Verbs that mean one of the contract's actions; anything else is the application's own verb.
VERBS: Final = {
    **dict.fromkeys(("login", "signin", "sign-in", "log-in", "token", "authenticate", "authorize"), "LOGIN"),
    **dict.fromkeys(("logout", "signout", "sign-out", "log-out"), "LOGOUT"),
    **dict.fromkeys(("create", "add", "insert", "register", "signup", "sign-up", "new"), "CREATE"),
    **dict.fromkeys(
        ("update", "set", "modify", "patch", "edit", "change", "replace", "put", "rename"), "UPDATE"
    ),
    **dict.fromkeys(("delete", "remove", "drop", "destroy", "purge"), "DELETE"),
    **dict.fromkeys(
        ("get", "list", "read", "search", "find", "query", "fetch", "lookup", "describe"), "READ"
    ),
    **dict.fromkeys(("execute", "run", "invoke"), "EXECUTE"),
    **dict.fromkeys(("approve", "accept"), "APPROVE"),
    **dict.fromkeys(("reject", "decline", "deny"), "REJECT"),
    **dict.fromkeys(("export", "download"), "EXPORT"),
    **dict.fromkeys(("import", "upload"), "IMPORT"),
    **dict.fromkeys(("grant", "assign"), "GRANT"),
    **dict.fromkeys(("revoke", "unassign"), "REVOKE"),
}
_READING_VERBS: Final = frozenset({"LOGOUT", "EXPORT"})  # what a GET may be besides a READ
_LOGIN_PAGES: Final = frozenset({"login", "signin", "sign-in", "sign_in", "log-in", "log_in"})
_PAGE_SUFFIX: Final = re.compile(r"\.(?:html?|php|aspx?|jsp|do)$")

# {name}, {name:int} (Starlette) and <name>, <int:name>, <any(a,b):name> (Werkzeug).
_PARAMETER: Final = re.compile(r"\{([^{}:]+)(?::[^{}]*)?\}|<(?:[^<>]*:)?([^<>:]+)>")
_UNNAMED_SEGMENT: Final = re.compile(r"api|v\d+[a-z0-9]*", re.IGNORECASE)
_VERB: Final = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_][A-Za-z0-9]+)*")
_FIRST_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+")

_DENIED_STATUS: Final = frozenset({401, 403, 407, 511})
_GRPC_DENIED: Final = {7: "PERMISSION_DENIED", 16: "UNAUTHENTICATED"}


def http_facts(
    method: str,
    route: str,
    path: str,
    *,
    status: int = 0,
    parameters: Mapping[str, object] | None = None,
    location: str = "",
) -> Facts:
    """Facts of one HTTP request.

    *route* is the pattern that matched, empty when none did; *path* the path without query; *status* 0 when no
    response was sent; *parameters* the path parameters, read off *path* when None; *location* the redirect's target.
    """
    action, target_type, target_parameters, known_route, changes = _http_action(method, route)
    target_id = ""
    if target_parameters:
        if parameters is None:
            parameters = match_path(route, path)
        if len(target_parameters) == 1:
            target_id = str(parameters.get(target_parameters[0], ""))
        else:
            target_id = "/".join([str(parameters.get(name, "")) for name in target_parameters])
    outcome, reason = names.SUCCESS, ""
    if not 200 <= status < 300:
        outcome, reason = _http_outcome(status, action, location)
    return Facts(action, outcome, reason, target_type, target_id, known_route or path, changes, not route)


def cut_short(facts: Facts, why: str, outcome: str = names.FAILURE) -> Facts:
    """*facts* of a request whose response did not come to its end because of *why*: *outcome* in place of success.

    A failure or a denial stays what it is, as all does where there is no *why*.
    """
    if why and facts.outcome in ("", names.SUCCESS):
        return replace(facts, outcome=outcome, reason=why)
    return facts


def grpc_facts(full_method: str, *, status: int, details: str = "", read: bool = False) -> Facts:
    """Facts of one RPC. *full_method* is ``/package.Service/Method``; *read* says that it changes nothing."""
    service, _, method = full_method.removeprefix("/").rpartition("/")
    outcome = names.SUCCESS if status == 0 else names.DENIED if status in _GRPC_DENIED else names.FAILURE
    reason = ""
    if outcome == names.DENIED:
        reason = f"{_GRPC_DENIED[status]}: {details}" if details else _GRPC_DENIED[status]
    return Facts(
        action=_grpc_action(method, read=read),
        outcome=outcome,
        reason=reason,
        target_type=service.rpartition(".")[2].removesuffix("Service"),
        route=full_method,
        changes=not read,
    )


def span_facts(span: ReadableSpan, *, is_read_method: ReadMethods) -> Facts:
    """Facts that the span's own HTTP or RPC attributes give, for a framework that has no extractor."""
    attributes = attributes_of(span)
    if method := http_method(attributes):
        path = str(attributes.get("url.path") or attributes.get("http.target") or "").partition("?")[0]
        return http_facts(
            method, str(attributes.get("http.route") or ""), path, status=http_status(attributes)
        )
    service, name = attributes.get("rpc.service"), attributes.get("rpc.method")
    if isinstance(service, str) and isinstance(name, str):
        status = attributes.get("rpc.grpc.status_code")
        full_method = f"/{service}/{name}"
        return grpc_facts(
            full_method,
            status=status if isinstance(status, int) else 2 if not span.status.is_ok else 0,
            details=_grpc_details(span),
            read=is_read_method(full_method),
        )
    return Facts()


def may_change(attributes: Mapping[str, object], is_read_method: ReadMethods) -> bool:
    """Whether an entry span with these *attributes* may change something; known when it starts, and cheap."""
    method = attributes.get("http.request.method") or attributes.get("http.method")
    if method is not None:
        return method not in SAFE_METHODS
    service, method = attributes.get("rpc.service"), attributes.get("rpc.method")
    return service is not None and method is not None and not is_read_method(f"/{service}/{method}")


def http_method(attributes: Mapping[str, object]) -> str:
    """The request's method in a span's *attributes*, empty when there is none."""
    method = attributes.get("http.request.method") or attributes.get("http.method")
    return method if isinstance(method, str) else ""


def http_status(attributes: Mapping[str, object]) -> int:
    """The response's status in a span's *attributes*, 0 when there is none."""
    status = attributes.get("http.response.status_code") or attributes.get("http.status_code")
    return status if isinstance(status, int) else 0


def match_path(route: str, path: str) -> dict[str, str]:
    """Path parameters by laying *route* over *path*, for requests that were refused before they were routed.

    Empty when they don't fit. A parameter takes one segment, the last one all that is left.
    """
    parameters, pattern = _path_pattern(route)
    found = pattern.fullmatch(path)
    return dict(zip(parameters, found.groups(), strict=True)) if found else {}


@lru_cache(maxsize=4096)
def _path_pattern(route: str) -> tuple[tuple[str, ...], re.Pattern[str]]:
    found_names: list[str] = []

    def group(match: re.Match[str]) -> str:
        found_names.append(match[1] or match[2])
        return "\0"

    literal = re.escape(_PARAMETER.sub(group, route)).split(re.escape("\0"))
    pattern = "([^/]+)".join(literal)
    if pattern.endswith("([^/]+)"):
        pattern = pattern.removesuffix("([^/]+)") + "(.+)"
    return tuple(found_names), re.compile(pattern)


@lru_cache(maxsize=4096)
def plain_route(route: str) -> str:
    """*route* with parameters as ``{name}``, without types: the form that settings and records use."""
    return _PARAMETER.sub(lambda match: "{" + (match[1] or match[2]) + "}", route)


class ReadMethods:
    """Which RPCs change nothing.

    A pattern ``Get*`` is the word: it fits GetInvoice, not Getaway, GetOrCreate or FindAndModify. One with a slash
    (``/shop.Billing/Check*``) is compared with the full name. Other globs are taken as they are.
    """

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._patterns = tuple((pattern, "/" in pattern, self._compile(pattern)) for pattern in patterns)
        self._known: dict[str, bool] = {}

    def __call__(self, full_method: str) -> bool:
        """Whether ``/package.Service/Method`` changes nothing."""
        known = self._known.get(full_method)
        if known is None:
            known = bool(self.pattern(full_method))
            if len(self._known) < 4096:
                self._known[full_method] = known
        return known

    def pattern(self, full_method: str) -> str:
        """The pattern that says so, as it was written; empty when none does."""
        method = full_method.rpartition("/")[2]
        for written, full, pattern in self._patterns:
            if pattern.fullmatch(full_method if full else method):
                return written
        return ""

    @staticmethod
    def _compile(pattern: str) -> re.Pattern[str]:
        word = pattern.removesuffix("*")
        if pattern.endswith("*") and word.isalnum():
            return re.compile(rf"{word}(?![a-z])(?!.*(?:Or|And)[A-Z]).*")
        return glob(pattern)


def glob(pattern: str) -> re.Pattern[str]:
    """*pattern* with ``*`` for any text, slashes too, and ``?`` for one character; braces are themselves."""
    return re.compile(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."))


@lru_cache(maxsize=4096)
def _http_action(method: str, route: str) -> tuple[str, str, tuple[str, ...], str, bool]:
    """Action, target type, the parameters whose values are the target's id, the plain route, whether it may change."""
    segments = [s for s in plain_route(route).split("/") if s]
    last = segments[-1] if segments else ""
    verb = ""
    if ":" in last and not last.endswith("}"):  # Google's custom methods: /orders/{id}:cancel
        segments[-1], _, verb = last.rpartition(":")
    elif last and "{" not in last and _is_verb(method, segments):
        verb = segments.pop()
    action = VERBS.get(verb.lower(), verb.upper().replace("-", "_")) if verb else ""
    if not action or (method in SAFE_METHODS and action not in _READING_VERBS):
        action = "READ" if method in SAFE_METHODS else _BY_METHOD.get(method, "EXECUTE")
    target = _target(segments, creates=action == "CREATE" and not verb)
    return action, *target, plain_route(route), method not in SAFE_METHODS


def _is_verb(method: str, segments: list[str]) -> bool:
    last = segments[-1].lower()
    if method == "DELETE":  # DELETE /auth/token ends a token, it is no login
        return False
    if last in VERBS:
        return True
    # After a thing, a POST to something that is no plural does something to that thing.
    after_a_thing = len(segments) > 1 and segments[-2].endswith("}")
    plural = last.endswith("s") and not last.endswith("ss")
    return method == "POST" and after_a_thing and not plural and _VERB.fullmatch(last) is not None


def _target(segments: list[str], *, creates: bool) -> tuple[str, tuple[str, ...]]:
    if creates and segments and "{" not in segments[-1]:
        return segments[-1], ()
    parameters = [n for n, s in enumerate(segments) if "{" in s]
    if not parameters:
        named = [s for s in segments if not _UNNAMED_SEGMENT.fullmatch(s)]
        return (named[-1] if named else ""), ()
    first = last = parameters[-1]
    while first > 0 and "{" in segments[first - 1]:
        first -= 1
    target_type = segments[first - 1] if first > 0 else ""
    return target_type, tuple(
        name for s in segments[first : last + 1] for name in re.findall(r"\{([^}]+)\}", s)
    )


def _http_outcome(status: int, action: str, location: str) -> tuple[str, str]:
    if status < 300:
        return names.SUCCESS if status else "", ""
    if status in _DENIED_STATUS or (status == 400 and action == "LOGIN"):
        try:
            return names.DENIED, f"{status} {HTTPStatus(status).phrase}"
        except ValueError:
            return names.DENIED, str(status)
    if status >= 400:
        return names.FAILURE, ""
    if 300 <= status < 400 and location and action not in ("LOGIN", "LOGOUT"):
        page = location.partition("?")[0].partition("#")[0].rstrip("/").rpartition("/")[2].lower()
        if _PAGE_SUFFIX.sub("", page) in _LOGIN_PAGES:
            return names.DENIED, "redirected to the login page"
    return names.SUCCESS, ""


@lru_cache(maxsize=4096)
def _grpc_action(method: str, *, read: bool) -> str:
    first = _FIRST_WORD.match(method)
    word = first[0] if first else method
    if method.startswith(("LogIn", "SignIn")):
        return "LOGIN"
    if method.startswith(("LogOut", "SignOut")):
        return "LOGOUT"
    known = VERBS.get(word.lower())
    if read:
        return known if known == "EXPORT" else "READ"
    if known == "READ":  # GetOrCreate: a reading word that was judged to change something
        return "EXECUTE"
    return known or word.upper() or "EXECUTE"


def _grpc_details(span: ReadableSpan) -> str:
    # The instrumentation's description is "StatusCode.NAME:details".
    return (span.status.description or "").partition(":")[2].strip()
