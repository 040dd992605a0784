"""Does the collector answer, and does it accept this service's credentials?

Makes the call that delivery makes, with the same code, target and credentials: one Export request without spans, over
the configured protocol and TLS.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from auditspan.shipper import Target
from auditspan.shipper.otlp import NotTaken, Taken, connect

if TYPE_CHECKING:
    from auditspan.doctor.report import Report
    from auditspan.settings import Settings
    from auditspan.shipper.otlp import Answer

_PART: Final = "collector"
_HERE: Final = ("localhost", "127.0.0.1", "::1")
_EMPTY: Final = b""  # an ExportTraceServiceRequest without resource_spans


def leave(chosen: Settings, report: Report) -> dict[str, Any]:
    """Add the part ``collector`` without asking."""
    target = Target.of(chosen)
    part: dict[str, Any] = {
        "endpoint": target.endpoint,
        "protocol": target.protocol,
        "tls": urlsplit(target.endpoint).scheme == "https",
        "certificate": str(target.certificate_file or ""),
        "headers": sorted(name for name, _ in target.headers),
        "asked": False,
        "accepted": False,
        "answer": "",
        "took_ms": 0.0,
    }
    report.parts[_PART] = part
    if target.headers and not part["tls"] and urlsplit(target.endpoint).hostname not in _HERE:
        report.note(_PART, "credentials go to another host without TLS: use https in OTEL_AUDITSPAN_ENDPOINT")
    return part


def ask(chosen: Settings, timeout_s: float, report: Report) -> None:
    """Add the part ``collector``, with what to do when the answer is not good."""
    part = leave(chosen, report)
    began = time.monotonic()
    answer = _answer(Target.of(chosen), timeout_s)
    part.update(asked=True, took_ms=round((time.monotonic() - began) * 1000, 1))
    if isinstance(answer, Taken):
        part.update(accepted=True, answer="OK")
        return
    part["answer"] = masked(answer.reason, chosen)
    report.problem(_PART, f"the collector at {chosen.endpoint}: {part['answer']}. {_advice(answer, chosen)}")


def _answer(target: Target, timeout_s: float) -> Answer:
    try:
        sender = connect(target)
        try:
            return sender.send(_EMPTY, timeout_s)
        finally:
            sender.close()
    except OSError as problem:
        return NotTaken("later", f"{type(problem).__name__}: {problem}")


def masked(text: str, chosen: Settings) -> str:
    """*text* without any value of the headers that go to the collector, should an answer repeat one."""
    for _, value in chosen.headers:
        for secret in (value, value.rpartition(" ")[2]):
            if len(secret) > 3:
                text = text.replace(secret, "***")
    return text[:500]


def _advice(answer: NotTaken, chosen: Settings) -> str:  # noqa: PLR0911 - one return a cause
    reason = answer.reason
    other = "http/protobuf" if chosen.protocol == "grpc" else "grpc"
    if answer.kind == "credentials":
        if not chosen.headers:
            return (
                "It wants credentials: set OTEL_AUDITSPAN_HEADERS, for instance authorization=Bearer%20TOKEN"
            )
        return "It refuses the credentials in OTEL_AUDITSPAN_HEADERS: is the token right, and meant for this service?"
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return "Name who signed its certificate in OTEL_AUDITSPAN_CERTIFICATE (PEM), and a host that is in it"
    if "FileNotFoundError" in reason or "PermissionError" in reason:
        return "OTEL_AUDITSPAN_CERTIFICATE must name a file that this user can read"
    if "SSL" in reason:
        return "Does it speak TLS on that port? Without TLS the endpoint begins with http://"
    if "gaierror" in reason:
        return "The host's name can't be resolved: is OTEL_AUDITSPAN_ENDPOINT right?"
    if "ConnectionRefused" in reason:
        return "Nothing listens there: is the collector running, and OTEL_AUDITSPAN_ENDPOINT right?"
    if "Timeout" in reason or "DEADLINE_EXCEEDED" in reason:
        return "No answer in time: does a firewall or a proxy stand in between? Is it the right port?"
    if answer.kind == "later" and any(word in reason for word in ("UNAVAILABLE", "HTTP 503", "HTTP 429")):
        return "It is there and takes nothing now; records wait in the spool. Its own log says why"
    return f"Is it a receiver of OTLP traces? For its other port set OTEL_AUDITSPAN_PROTOCOL={other}"
