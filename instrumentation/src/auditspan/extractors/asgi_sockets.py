"""WebSocket sessions of FastAPI and Starlette: one record from the handshake to the close.

The instrumentation makes a span of the whole session and one more of each message; the session's is the record.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from auditspan import attributes as names
from auditspan.extractors.asgi import AsgiSource
from auditspan.extractors.sockets import session_facts

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from opentelemetry.sdk.trace import ReadableSpan

    from auditspan.context import Facts

_FORBIDDEN: Final = 403  # what servers answer to a session that is closed before it is accepted
_ABNORMAL: Final = 1006  # of a disconnect without a code


class SocketSource(AsgiSource):
    """What one session's scope and messages say."""

    accepted = False
    code = 0
    by_service = False
    closed = False

    def facts(self, span: ReadableSpan) -> Facts:
        """From the route, its parameters, and how the session ended."""
        scope = self._scope
        self._matched = self._route(span)
        facts = session_facts(
            self._matched,
            self._path,
            scope.get("path_params"),
            refused=self.status,
            code=self.code,
            by_service=self.by_service,
        )
        if self.denied:
            return replace(facts, outcome=names.DENIED, reason=self.denied)
        if facts.outcome != names.SUCCESS:
            return facts
        raised = [str((event.attributes or {}).get("exception.type", "")) for event in span.events]
        # Who waits for a message of a client that has left gets an exception, which is no failure of theirs.
        if any(not name.endswith(("WebSocketDisconnect", "ClientDisconnected")) for name in raised):
            return replace(facts, outcome=names.FAILURE, reason="ended by an exception")
        if span.end_time is not None and not (self.closed or self.accepted):
            # Cancelled before it was answered; or the instrumentation was told not to make spans of messages.
            return replace(facts, outcome=names.UNKNOWN, reason="nobody told how the session began or ended")
        return facts

    def sends(self, message: MutableMapping[str, Any]) -> None:
        """Hear of *message* before it is sent."""
        kind, state = message["type"], self._state
        if kind == "websocket.accept":
            self.accepted = True
        elif kind == "websocket.close":
            self._closes(message)
        elif kind == "websocket.http.response.start":
            self.status = message["status"]
        elif kind == "websocket.http.response.body" and not message.get("more_body", False):
            self.closed = True
        else:
            return
        if self.closed and state is not None:
            state.emitter.concluding(self._span, state)  # before the client hears of it

    def _closes(self, message: MutableMapping[str, Any]) -> None:
        if self.closed:
            return
        self.closed = True
        if self.accepted:
            self.code, self.by_service = int(message.get("code") or 1000), True
        else:
            self.status = _FORBIDDEN

    def receives(self, message: MutableMapping[str, Any]) -> None:
        """Hear of *message* before the application does."""
        if message["type"] == "websocket.disconnect" and not self.closed:
            self.closed = True
            code = message.get("code")
            self.code = code if isinstance(code, int) else _ABNORMAL
