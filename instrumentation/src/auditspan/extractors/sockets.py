"""What a WebSocket session was and how it ended, from its handshake and its close code. Pure.

A session is one record, however many messages went through it: CONNECT to what the route names, from the handshake to
the close. Any message may change something, so each session is a record, as a POST is.

    how it ended                                                     outcome
    refused in the handshake: 401, 403, or closed before accepted    denied
    refused otherwise (no such route, 400, 500)                      failure
    closed with 1000, 1001 or without a code                         success
    closed by the service with 1008, 3000, 3003, 4401 or 4403        denied
    the connection broke (1006), or another code below 3000          failure
    another code of the application's own                            unknown; the reason says which

Codes: RFC 6455 section 7.4 and IANA's registry of WebSocket close codes. 4401 and 4403 are in nobody's registry; they
are what applications make of 401 and 403.
"""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from auditspan import attributes as names
from auditspan.facts import http_facts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from auditspan.context import Facts

ACTION: Final = "CONNECT"

_DONE: Final = frozenset({0, 1000, 1001, 1005})
_DENYING: Final = {
    1008: "policy violation",
    3000: "unauthorized",
    3003: "forbidden",
    4401: "unauthorized",
    4403: "forbidden",
}
_LOST: Final = 1006
_FIRST_OF_APPLICATIONS: Final = 3000


def session_facts(
    route: str,
    path: str,
    parameters: Mapping[str, object] | None,
    *,
    refused: int = 0,
    code: int = 0,
    by_service: bool = False,
) -> Facts:
    """Facts of one session; route, path and parameters as for ``http_facts``.

    *refused* is the status that answered the handshake, 0 when it was accepted; *code* the close code, 0 for none;
    *by_service* says that it was this service's.
    """
    facts = http_facts("GET", route, path, status=refused, parameters=parameters)
    outcome, reason = (facts.outcome, facts.reason) if refused else _closed(code, by_service=by_service)
    if refused == HTTPStatus.FORBIDDEN and not route:
        # What answers for a route that is not there closes the session before it is one, as who refuses it does.
        outcome, reason = names.FAILURE, "no such route"
    return replace(facts, action=ACTION, changes=True, outcome=outcome, reason=reason)


def _closed(code: int, *, by_service: bool) -> tuple[str, str]:
    if code in _DONE:
        return names.SUCCESS, ""
    if code == _LOST:
        return names.FAILURE, "the connection was lost"
    if by_service and code in _DENYING:
        return names.DENIED, f"closed with {code} ({_DENYING[code]})"
    return names.UNKNOWN if code >= _FIRST_OF_APPLICATIONS else names.FAILURE, f"closed with {code}"
