"""Which services may see ``audit-context``: those on the operator's list, nobody else.

Entries, separated by commas in OTEL_AUDITSPAN_CONTEXT_DESTINATIONS:

    orders              this host name, any port
    orders:8080         this host name and port
    *.shop.internal     every name that ends so, any port; *.shop.internal:443 one port
    10.0.0.0/8          every address in this network, where the URL has an address, any port
    [fd00::1]:8080      an IPv6 address and port
    unix:/run/x.sock    this gRPC target, letter for letter
    queue:orders        the queue or topic of this name, at whatever broker; queue:orders.* all that begin so
    queue:orders@kafka.shop.internal:9092   at this broker only, where the instrumentation tells the brokers (Kafka)

A name is never resolved: DNS must not decide who may see a token.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_NAME: Final = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
# A URL, and in it all that says where it leads. None of the letters that parsers disagree about.
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^/?#\\\x00-\x20]*)(?:[/?#][^\\\x00-\x20]*)?")
_QUEUE: Final = "queue:"
_QUEUE_NAME: Final = re.compile(r"[^\s,@*]*\*?")
_GRPC_DEFAULT_PORT: Final = 443
_KAFKA_DEFAULT_PORT: Final = 9092
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a request goes: a lower-case *host* name or address, and its *port*."""

    host: str
    port: int

    @classmethod
    def of(cls, host: str, port: int | None, scheme: str = "") -> Destination | None:
        """None when the host or port can't be told for sure."""
        if port is None:
            port = _DEFAULT_PORTS.get(scheme)
        host = host.lower().rstrip(".").removeprefix("[").removesuffix("]")
        if not host or port is None or not host.isascii() or re.search(r"[\s\\/@?#%]", host):
            return None
        return cls(host, port)

    @classmethod
    def of_url(cls, url: str) -> Destination | None:
        """None for what isn't plainly one: parsers that disagree must not send a token astray."""
        if not _URL.fullmatch(url):
            return None
        try:
            parts = urlsplit(url)
            return cls.of(parts.hostname or "", parts.port, parts.scheme)
        except ValueError:
            return None


class Destinations:
    """The list. Immutable, so thread-safe."""

    def __init__(self, entries: Iterable[str]) -> None:
        """*problems* says which entries can't be used; they allow nothing."""
        self.problems: list[str] = []
        self._targets: set[str] = set()
        self._names: set[tuple[str, int | None]] = set()
        self._suffixes: list[tuple[str, int | None]] = []
        self._networks: list[tuple[_Network, int | None]] = []
        self._queues: list[tuple[str, Destinations | None]] = []
        # A fifth of the time of looking at each URL anew. Keys are what comes before its path.
        self._allows_origin = lru_cache(maxsize=1024)(lambda url: self.allows(Destination.of_url(url)))
        for entry in entries:
            if not self._add(entry.strip()):
                self.problems.append(
                    f"{entry!r} is not usable; allowed are host, host:port, *.suffix, a network such as "
                    "10.0.0.0/8, unix:PATH, and queue:NAME or queue:NAME@BROKER"
                )

    def __bool__(self) -> bool:
        """Whether anything is allowed at all."""
        return bool(self._targets or self._names or self._suffixes or self._networks or self._queues)

    def allows(self, destination: Destination | None) -> bool:
        """Whether *destination* may see a token; unknown ones may not."""
        if destination is None:
            return False
        host, port = destination.host, destination.port
        address = _address(host)
        if address is not None:
            return any(address in network and only in (None, port) for network, only in self._networks)
        if (host, None) in self._names or (host, port) in self._names:
            return True
        return any(host.endswith(suffix) and only in (None, port) for suffix, only in self._suffixes)

    def allows_span(self, attributes: Mapping[str, object]) -> bool:
        """The same for where a client span's request goes, by the old or the new HTTP conventions.

        https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-client-span
        """
        url = attributes.get("http.url") or attributes.get("url.full")
        if isinstance(url, str):
            found = _URL.fullmatch(url)
            return found is not None and self._allows_origin(found[1])
        for host_key, port_key in (("server.address", "server.port"), ("net.peer.name", "net.peer.port")):
            host, port = attributes.get(host_key), attributes.get(port_key)
            if isinstance(host, str) and isinstance(port, int):
                return self.allows(Destination.of(host, port))
        return False

    def allows_grpc(self, target: str) -> bool:
        """The same for a gRPC target (https://grpc.github.io/grpc/core/md_doc_naming.html); for a list, all of it."""
        if target in self._targets:
            return True
        places = _grpc_places(target)
        return bool(places) and all(self.allows(place) for place in places)

    def allows_queue(self, name: str, brokers: Iterable[str] = ()) -> bool:
        """The same for the queue or topic *name*; *brokers* are ``host:port``, empty where nobody tells them.

        An entry with a broker counts only when each of *brokers* is on the list for this name.
        """
        at = [broker for listed, broker in self._queues if _fits(name, listed)]
        if not name or not at:
            return False
        if None in at:
            return True
        places = [
            Destination.of(host, _KAFKA_DEFAULT_PORT if port is None else port)
            for host, port in map(_host_and_port, brokers)
        ]
        return bool(places) and all(any(b is not None and b.allows(place) for b in at) for place in places)

    def _add(self, entry: str) -> bool:
        if entry.startswith(_QUEUE):
            return self._add_queue(entry.removeprefix(_QUEUE))
        if entry.startswith(("unix:", "unix-abstract:")):
            self._targets.add(entry)
            return True
        if "/" in entry:
            try:
                self._networks.append((ipaddress.ip_network(entry, strict=False), None))
            except ValueError:
                return False
            return True
        host, port = _host_and_port(entry.lower())
        address = _address(host)
        if address is not None:
            self._networks.append((ipaddress.ip_network(address), port))
        elif not _NAME.fullmatch(host) or port == 0:
            return False
        elif host.startswith("*."):
            self._suffixes.append((host[1:], port))
        else:
            self._names.add((host, port))
        return True

    def _add_queue(self, entry: str) -> bool:
        name, at, broker = entry.partition("@")
        if not name or not _QUEUE_NAME.fullmatch(name):
            return False
        where = Destinations([broker]) if at else None
        if where is not None and (where.problems or broker.startswith((_QUEUE, "unix"))):
            return False
        self._queues.append((name, where))
        return True


def _fits(name: str, listed: str) -> bool:
    return name.startswith(listed[:-1]) if listed.endswith("*") else name == listed


def _address(host: str) -> _Address | None:
    if ":" not in host and not host[-1:].isdecimal():
        return None  # a name, as most are; saves raising an exception
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _host_and_port(text: str) -> tuple[str, int | None]:
    """Host and port of ``host``, ``host:port``, ``[v6]:port`` or a bare IPv6 address; port 0 when it is none."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        return text, None
    if not port:
        return host, None
    return host, int(port) if port.isdecimal() and port.isascii() and 0 < int(port) < 65536 else 0


def _grpc_places(target: str) -> list[Destination | None]:
    scheme, colon, rest = target.partition(":")
    if colon and scheme in ("ipv4", "ipv6"):
        addresses = rest.split(",")
    elif colon and scheme == "dns":
        # dns:[//authority/]host[:port]
        addresses = [rest.removeprefix("//").partition("/")[2] if rest.startswith("//") else rest]
    else:
        addresses = [target]
    places: list[Destination | None] = []
    for address in addresses:
        host, port = _host_and_port(address.strip())
        places.append(Destination.of(host, _GRPC_DEFAULT_PORT if port is None else port))
    return places
