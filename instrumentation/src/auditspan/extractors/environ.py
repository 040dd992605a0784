"""What the environment of a WSGI request says, whatever framework serves it (PEP 3333)."""

from __future__ import annotations

from typing import Any


class EnvironSource:
    """The part of a ``Source`` that *environ* can answer."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self.environ = environ

    def address(self) -> str:
        """The other end of the connection, as the server tells it."""
        return str(self.environ.get("REMOTE_ADDR") or "")

    def header(self, name: str) -> list[str]:
        """The values of a request header; WSGI has several of one name as one, joined by commas."""
        value = self.environ.get("HTTP_" + name.upper().replace("-", "_"))
        return [value] if isinstance(value, str) else []

    def query(self) -> str:
        """The URL's query as it was sent."""
        return str(self.environ.get("QUERY_STRING", ""))
