"""Where a request came from, when it came through proxies that the operator named.

Anybody can write a forwarding header; a proxy only adds to it at the right. So the list is read from the right, and
only as far as it was written by proxies that are trusted: the first address that is none of theirs is the client's,
and what stands left of it is that client's own word. Without a named proxy the connection's address is all there is.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from ipaddress import IPv4Address, IPv4Network, IPv6Network

X_FORWARDED_FOR: Final = "x-forwarded-for"
FORWARDED: Final = "forwarded"  # RFC 7239
HEADERS: Final = (X_FORWARDED_FOR, FORWARDED)
LOCAL: Final = "unix"  # the entry for connections that have no address

_MAX_HOPS: Final = 32
_MAX_LENGTH: Final = 4096  # characters of one header, of which the right-most count
_FOR: Final = re.compile(r'(?:^|[;\s])for\s*=\s*(?:"([^"]*)"|([^;\s"]*))', re.IGNORECASE)
_V4_WITH_PORT: Final = re.compile(r"([0-9.]+):\d{1,5}")
_IN_BRACKETS: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::\d{1,5})?")


class Proxies:
    """The proxies whose forwarding headers count; *entries* are addresses, networks, or ``unix``. Thread-safe."""

    def __init__(self, entries: Iterable[str] = (), *, header: str = "") -> None:
        """*header* is the one that the proxies write, empty for whichever is there. *problems* says what is wrong."""
        found: list[IPv4Network | IPv6Network] = []
        problems: list[str] = []
        self._local = False
        for entry in entries:
            if entry.lower() == LOCAL:
                self._local = True
                continue
            try:
                found.append(ip_network(entry))
            except ValueError as problem:
                problems.append(f"{entry!r} is left out: {problem}; allowed is 10.0.0.0/8, 10.1.2.3 or unix")
        self._networks = tuple(found)
        self._headers = (header,) if header else HEADERS
        self._trusts = lru_cache(maxsize=4096)(self._is_proxy)
        self._behind = lru_cache(maxsize=1024)(self._find)
        self.problems: Final = tuple(problems)

    def __bool__(self) -> bool:
        """Whether any proxy is named."""
        return bool(self._networks) or self._local

    def client(self, peer: str, values_of: Callable[[str], Sequence[str]]) -> str:
        """The client's address behind the proxy *peer*; empty when *peer* is none, or names nobody.

        *peer* is the connection's other end, empty without an address; *values_of* gives the values of a header of
        this name. Where both headers are there, the proxies' own can't be told: they count when they agree.
        """
        if not (self._trusts(peer) if peer else self._local):
            return ""
        return self._behind(peer, tuple(",".join(values_of(name))[-_MAX_LENGTH:] for name in self._headers))

    def _find(self, peer: str, headers: tuple[str, ...]) -> str:
        found = set()
        for name, value in zip(self._headers, headers, strict=True):
            if value:
                hops = _forwarded(value) if name == FORWARDED else _split(value)
                found.add(self._client(hops) or _text(_address(peer)))
        return found.pop() if len(found) == 1 else ""

    def _client(self, hops: list[str]) -> str:
        last = ""
        for hop in reversed(hops[-_MAX_HOPS:]):
            address = _address(hop)
            if address is None:
                break  # who is meant is unknown, and so is who wrote what stands left of it
            last = _text(address)
            if not self._trusts(last):
                break
        return last

    def _is_proxy(self, text: str) -> bool:
        address = _address(text)
        return address is not None and any(address in network for network in self._networks)


def _split(value: str) -> list[str]:
    return [part.strip() for part in value.split(",")]


def _forwarded(value: str) -> list[str]:
    """The ``for`` of each element; empty where it has none. A quoted comma separates too: it is in no address."""
    found = [_FOR.findall(element) for element in _split(value)]
    # Two in one element were not written by a proxy.
    return [(element[0][0] or element[0][1]) if len(element) == 1 else "" for element in found]


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """An address with or without port and brackets; an IPv4 address written as IPv6 is that IPv4 address."""
    text = text.strip()
    found = _V4_WITH_PORT.fullmatch(text) or _IN_BRACKETS.fullmatch(text)
    try:
        address = ip_address(found[1] if found else text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return None if address.scope_id else address.ipv4_mapped or address
    return address


def _text(address: IPv4Address | IPv6Address | None) -> str:
    return str(address) if address is not None else ""
