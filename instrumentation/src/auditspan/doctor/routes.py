"""Which routes are audited, which that change something are not, and why."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from auditspan.doctor.http_application import ANY, WEBSOCKET
from auditspan.doctor.http_routes import http_application
from auditspan.doctor.report import WrongUse
from auditspan.extractors.sockets import ACTION
from auditspan.facts import grpc_facts, http_facts, plain_route

if TYPE_CHECKING:
    from collections.abc import Callable

    from auditspan.decisions import Decision, Decisions
    from auditspan.doctor.http_application import HttpApplication
    from auditspan.doctor.report import Report

_PART: Final = "application"
RPC: Final = "RPC"
_EXCLUDED_SERVICES: Final = "OTEL_PYTHON_GRPC_EXCLUDED_SERVICES"
_PARAMETER: Final = re.compile(r"\{[^{}]*\}")
_VALUES: Final = (
    "1",
    "x",
    "00000000-0000-0000-0000-000000000000",
)  # to ask which URLs of a route are excluded
_MOST_NAMED: Final = 5


def look(name: str, thing: Any, decisions: Decisions, started: frozenset[str], report: Report) -> None:
    """Add the part ``application``: *thing* is what *name* led to. Raises WrongUse for what the doctor doesn't know."""
    http = http_application(thing)
    part = _http(http, decisions, report) if http is not None else _grpc(thing, decisions, started, report)
    report.parts[_PART] = {"name": name, **part}
    if not report.parts["opentelemetry"]["starts"]:
        for row in part["routes"]:
            row.update(audited=False, gap=row["changes"], reason="nothing is audited, see `opentelemetry`")
        return
    gaps = [row for row in part["routes"] if row["gap"]]
    if gaps and part["instrumented"]:
        named = ", ".join(f"{row['method']} {row['route']} ({row['reason']})" for row in gaps[:_MOST_NAMED])
        more = f" and {len(gaps) - _MOST_NAMED} more" if len(gaps) > _MOST_NAMED else ""
        what = (
            "1 route that may change something is"
            if len(gaps) == 1
            else f"{len(gaps)} routes that may change something are"
        )
        report.problem(_PART, f"{what} not audited: {named}{more}")


def _http(app: HttpApplication, decisions: Decisions, report: Report) -> dict[str, Any]:
    if not app.instrumented and app.framework == "WSGI":
        report.problem(
            _PART,
            "no instrumentation starts by itself around a WSGI function, so nothing of it is audited, unless it has an "
            "OpenTelemetryMiddleware inside that the doctor can't see: wrap it in that, see docs/frameworks/wsgi.md",
        )
    elif not app.instrumented:
        report.problem(
            _PART,
            f"OpenTelemetry does not instrument this {app.framework} application, so nothing of it is audited: see "
            f"`instrumentation` for why, or whether it imports {app.framework} before OpenTelemetry starts",
        )
    elif not app.hooked and report.parts["opentelemetry"]["starts"]:
        report.problem(
            _PART,
            "the application instruments itself, or its instrumentation started before Auditspan, so nobody but "
            "set_actor() tells us who acts: see docs/instrumentation.md, Other ways to start",
        )
    if app.wrapped:
        report.note(
            _PART,
            f"{', '.join(app.wrapped)} stands around the instrumentation: what it refuses makes no record",
        )
    rows = [_http_row(app, method, route, decisions) for method, route in app.routes]
    return {
        "framework": app.framework,
        "instrumented": app.instrumented,
        "hooked": app.hooked,
        "routes": rows,
    }


def _http_row(app: HttpApplication, method: str, route: str, decisions: Decisions) -> dict[str, Any]:
    plain = plain_route(route)
    facts = http_facts(method, route, "")
    decision = decisions.decide(plain, method)
    if method == WEBSOCKET and not decision.chosen:
        decision = replace(decision, reason="any message of a session may change something")
    reason = _excluded(app, plain) if app.instrumented else f"{app.framework} is not instrumented here"
    action = {ANY: "", WEBSOCKET: ACTION}.get(method, facts.action)
    row = _row(method, plain, decision, action, why_not=reason)
    row["target_type"] = facts.target_type
    if method == ANY and row["audited"]:
        row["reason"] = f"{app.any_is}; methods that may change something are audited"
    return row


def _excluded(app: HttpApplication, route: str) -> str:
    """Why the instrumentation makes no span for *route*; empty when it does for the values that are tried."""
    disabled: Callable[[str], bool] | None = getattr(app.excluded, "url_disabled", None)
    if disabled is None:
        return ""
    tried = [f"http://localhost{_PARAMETER.sub(value, route)}" for value in _VALUES]
    hit = [url for url in tried if disabled(url)]
    if not hit:
        return ""
    # As opentelemetry.util.http.get_excluded_urls reads them; an application may also pass a list of its own.
    own = app.setting or f"OTEL_PYTHON_{app.framework.upper()}_EXCLUDED_URLS"
    names = (own, "OTEL_PYTHON_EXCLUDED_URLS")
    source = next((name for name in names if name in os.environ), "excluded_urls of the application")
    path = hit[0].removeprefix("http://localhost")
    return (
        f"excluded by {source}" if len(hit) == len(tried) else f"excluded by {source} for values as in {path}"
    )


def _grpc(thing: Any, decisions: Decisions, started: frozenset[str], report: Report) -> dict[str, Any]:
    found = None
    if "grpc" in sys.modules:
        from auditspan.doctor.grpc_methods import registered  # noqa: PLC0415 - needs grpc

        found = registered(thing)
    if found is None:
        raise WrongUse(
            f"the application is a {type(thing).__module__}.{type(thing).__qualname__}; the doctor knows FastAPI, "
            "Starlette, Flask, Django, aiohttp and WSGI applications and gRPC servers, handlers, registration functions "
            "and descriptors. Is it a function that makes one? Then --factory"
        )
    instrumented = any(name in started for name in found.instrumentors)
    if not instrumented:
        report.problem(
            _PART,
            "OpenTelemetry does not instrument gRPC servers here, so nothing of it is audited: see `instrumentation`",
        )
    if found.unknown:
        report.note(
            _PART,
            f"{', '.join(found.unknown)} can't be asked for its methods; those that are called are audited all the same",
        )
    rows = []
    for method in found.methods:
        why_not = _excluded_service(method) if instrumented else "gRPC servers are not instrumented here"
        decision = decisions.decide(method, "")
        facts = grpc_facts(method, status=0, read=not decision.changes)
        row = _row(RPC, method, decision, facts.action, why_not=why_not)
        row["target_type"] = facts.target_type
        rows.append(row)
    return {"framework": "gRPC", "instrumented": instrumented, "hooked": instrumented, "routes": rows}


def _excluded_service(method: str) -> str:
    """Why the instrumentation makes no span for *method*, asked of its own filter; empty when it does."""
    from grpc import HandlerCallDetails  # noqa: PLC0415 - only where it is
    from opentelemetry.instrumentation.grpc import filters  # noqa: PLC0415 - as above

    class Call(HandlerCallDetails):
        """What a filter of the instrumentation looks at."""

    call = Call()
    call.method = method
    services = filter(None, map(str.strip, os.environ.get(_EXCLUDED_SERVICES, "").split(",")))
    if any(filters.service_name(service)(call) for service in services):
        return f"excluded by {_EXCLUDED_SERVICES}"
    return ""


def _row(method: str, route: str, decision: Decision, action: str, *, why_not: str) -> dict[str, Any]:
    """*why_not* says why there is no record whatever the decision; empty when it stands."""
    audited = decision.audited and not why_not
    return {
        "method": method,
        "route": route,
        "audited": audited,
        "changes": decision.changes,
        "reason": why_not or decision.reason,
        "gap": decision.changes and not audited and not decision.chosen,
        "action": action,
        "target_type": "",
    }
