"""Say where to listen, and which requests a listener may answer: none that a web page makes.

A listener on loopback without a password can be reached by every web page that its owner visits: directly, and, once
the page's own name resolves to 127.0.0.1 (DNS rebinding), as what the browser takes for the page's own site. So the
Host header must name this machine, what a browser marks as coming from another site is refused, and no header ever
allows a page to read an answer. Programs send no Origin and are not concerned.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. Port 0 lets the system choose."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """``127.0.0.1:4317``, ``[::1]:4317`` or ``localhost:4317``. Raises ValueError, saying what is allowed."""
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if bracketed else host
        if not colon or not host or (":" in host) != bracketed or not port.isascii() or not port.isdigit():
            raise ValueError(
                f"{text!r} is no address; allowed: host:port, such as 127.0.0.1:4317 or [::1]:4317"
            )
        if int(port) > 65535:
            raise ValueError(f"{text!r}: port {port} does not exist; allowed: 0 to 65535")
        return cls(host, int(port))

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        """As *parse* reads it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach *host*. A name other than localhost may mean anything, so it does not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Refusal(NamedTuple):
    """Why a request is not answered: an HTTP status, and words for its sender."""

    status: int
    message: str


class Hosts:
    """The names that a listener answers to. Immutable."""

    def __init__(
        self, listen: str, names: Iterable[str] = (), *, hint: str, programs_by_any_name: bool = False
    ) -> None:
        """*listen* is the host listened on; *hint* says what an operator can do for another name.

        *programs_by_any_name*: an address that other machines can reach may have names in DNS that nobody lists
        here; by such a name programs are served, and pages are not.
        """
        self._names = {name.lower() for name in (*names, listen, "localhost")}
        self._hint = hint
        self._open = not is_loopback(listen)
        self._any_name = self._open and programs_by_any_name

    def refusal(self, host: str | None, origin: str | None, site: str | None) -> Refusal | None:
        """Why a request with these headers (Host, Origin, Sec-Fetch-Site) is not answered; None when it may be."""
        known = host is None or self._is_known(host)
        if not known and not (self._any_name and origin is None and site is None):
            return Refusal(421, f"Host {host!r} is not known here; {self._hint}.")
        foreign = origin is not None and origin.lower() not in (
            f"http://{host}".lower(),
            f"https://{host}".lower(),
        )
        if foreign or site not in (None, "none", "same-origin"):
            return Refusal(403, "Requests of web pages are not served.")
        return None

    def _is_known(self, header: str) -> bool:
        try:
            name = (urlsplit(f"//{header}").hostname or "").lower()
        except ValueError:
            return False
        if name in self._names or is_loopback(name):
            return True
        # On an open address clients come by the machine's addresses; a web page's name is none.
        return self._open and _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
