"""What the operator set in ``OTEL_AUDITSPAN_*``, read once and frozen.

A service never fails to start because of us: a value that can't be used is replaced by the default, and
*problems* holds one sentence each that says which variable, what it was and what is allowed. Credentials are
never part of such a sentence, nor of the settings' ``repr``.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from auditspan import proxies, pseudonyms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DISABLED: Final = "OTEL_AUDITSPAN_DISABLED"
ENDPOINT: Final = "OTEL_AUDITSPAN_ENDPOINT"
PROTOCOL: Final = "OTEL_AUDITSPAN_PROTOCOL"
HEADERS: Final = "OTEL_AUDITSPAN_HEADERS"
CERTIFICATE: Final = "OTEL_AUDITSPAN_CERTIFICATE"
SPOOL_DIR: Final = "OTEL_AUDITSPAN_SPOOL_DIR"
SPOOL_MAX_BYTES: Final = "OTEL_AUDITSPAN_SPOOL_MAX_BYTES"
SPOOL_SYNC: Final = "OTEL_AUDITSPAN_SPOOL_SYNC"
READS: Final = "OTEL_AUDITSPAN_READS"
GRPC_READ_METHODS: Final = "OTEL_AUDITSPAN_GRPC_READ_METHODS"
SPAN_ATTRIBUTES: Final = "OTEL_AUDITSPAN_SPAN_ATTRIBUTES"
FLOOD_FULL: Final = "OTEL_AUDITSPAN_FLOOD_FULL"
FLOOD_INTERVAL_S: Final = "OTEL_AUDITSPAN_FLOOD_INTERVAL_S"
RULES: Final = "OTEL_AUDITSPAN_RULES"
ACTOR: Final = "OTEL_AUDITSPAN_ACTOR"
ACTOR_KEY_FILE: Final = "OTEL_AUDITSPAN_ACTOR_KEY_FILE"
ACTOR_KEY: Final = "OTEL_AUDITSPAN_ACTOR_KEY"
TRUSTED_PROXIES: Final = "OTEL_AUDITSPAN_TRUSTED_PROXIES"
FORWARDED_HEADER: Final = "OTEL_AUDITSPAN_FORWARDED_HEADER"
CONTEXT_KEYS_FILE: Final = "OTEL_AUDITSPAN_CONTEXT_KEYS_FILE"
CONTEXT_DESTINATIONS: Final = "OTEL_AUDITSPAN_CONTEXT_DESTINATIONS"
CONTEXT_TTL_S: Final = "OTEL_AUDITSPAN_CONTEXT_TTL_S"
CONTEXT_QUEUE_TTL_S: Final = "OTEL_AUDITSPAN_CONTEXT_QUEUE_TTL_S"

PREFIX: Final = "OTEL_AUDITSPAN_"
VARIABLES: Final = (
    DISABLED,
    ENDPOINT,
    PROTOCOL,
    HEADERS,
    CERTIFICATE,
    SPOOL_DIR,
    SPOOL_MAX_BYTES,
    SPOOL_SYNC,
    READS,
    GRPC_READ_METHODS,
    SPAN_ATTRIBUTES,
    FLOOD_FULL,
    FLOOD_INTERVAL_S,
    RULES,
    ACTOR,
    ACTOR_KEY_FILE,
    ACTOR_KEY,
    TRUSTED_PROXIES,
    FORWARDED_HEADER,
    CONTEXT_KEYS_FILE,
    CONTEXT_DESTINATIONS,
    CONTEXT_TTL_S,
    CONTEXT_QUEUE_TTL_S,
)

GRPC: Final = "grpc"
HTTP_PROTOBUF: Final = "http/protobuf"

DEFAULT_ENDPOINT: Final = "http://localhost:4317"
DEFAULT_SPOOL_MAX_BYTES: Final = 256 * 1024 * 1024
DEFAULT_CONTEXT_TTL_S: Final = 60.0
DEFAULT_CONTEXT_QUEUE_TTL_S: Final = 86_400.0
DEFAULT_FLOOD_FULL: Final = 20
DEFAULT_FLOOD_INTERVAL_S: Final = 10.0
DEFAULT_GRPC_READ_METHODS: Final = (
    "Get*",
    "BatchGet*",
    "List*",
    "Read*",
    "Search*",
    "Find*",
    "Query*",
    "Fetch*",
    "Lookup*",
    "Describe*",
    "Count*",
    "Exists*",
    "Check*",
    "Watch*",
    "Ping*",
    "ServerReflectionInfo",
)

_TRUE: Final = frozenset({"true", "1", "yes", "on"})
_FALSE: Final = frozenset({"false", "0", "no", "off"})
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.1: a field name is a token


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One service's settings. Patterns are globs where ``*`` crosses ``/`` (``fnmatch``).

    *reads* holds route patterns (``/orders/{id}``, ``/admin/*``, ``/shop.Billing/Get*``) whose reads are audited
    too; *grpc_read_methods* method names or ``/service/method`` patterns that change nothing. *headers* are sent
    to the collector only. *flood_full* denied requests of nobody are recorded in full per route, address and
    *flood_interval_s*; 0 for the latter folds none. *actor* says how actors are named (raw, hmac, off), *actor_key* is the content of a keys file
    and counts where *actor_key_file* is None. *trusted_proxies* are addresses and networks, *forwarded_header* is the
    header that they write, empty for whichever is there. *context_ttl_s* is how long a signed ``audit-context`` is believed,
    *context_queue_ttl_s* the same for one that came with a message.
    """

    disabled: bool = False
    endpoint: str = DEFAULT_ENDPOINT
    protocol: str = GRPC
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    certificate_file: Path | None = None
    spool_dir: Path = field(default_factory=lambda: default_spool_dir({}, ""))
    spool_max_bytes: int = DEFAULT_SPOOL_MAX_BYTES
    spool_sync: bool = False
    reads: tuple[str, ...] = ()
    grpc_read_methods: tuple[str, ...] = DEFAULT_GRPC_READ_METHODS
    span_attributes: bool = True
    flood_full: int = DEFAULT_FLOOD_FULL
    flood_interval_s: float = DEFAULT_FLOOD_INTERVAL_S
    rules_file: Path | None = None
    actor: str = pseudonyms.RAW
    actor_key_file: Path | None = None
    actor_key: str = field(default="", repr=False)
    trusted_proxies: tuple[str, ...] = ()
    forwarded_header: str = ""
    context_keys_file: Path | None = None
    context_destinations: tuple[str, ...] = ()
    context_ttl_s: float = DEFAULT_CONTEXT_TTL_S
    context_queue_ttl_s: float = DEFAULT_CONTEXT_QUEUE_TTL_S
    problems: tuple[str, ...] = ()


def read(environ: Mapping[str, str], *, service_name: str = "") -> Settings:
    """Settings from *environ*; never raises. *service_name* names the spool folder."""
    reader = _Reader(environ)
    own_endpoint = reader.text(ENDPOINT)
    # Credentials and certificates of the ordinary exporter go along only with its endpoint: what was meant for
    # one receiver is never sent to another.
    shared_endpoint = "" if own_endpoint else reader.text("OTEL_EXPORTER_OTLP_ENDPOINT")
    shared = "OTEL_EXPORTER_OTLP_" if shared_endpoint else ""
    endpoint = reader.endpoint(own_endpoint or shared_endpoint)
    certificate = reader.text(CERTIFICATE) or (reader.text(f"{shared}CERTIFICATE") if shared else "")
    keys_file = reader.text(CONTEXT_KEYS_FILE)
    spool_dir = reader.text(SPOOL_DIR)
    return Settings(
        disabled=reader.boolean(DISABLED, default=False)
        or reader.text("OTEL_SDK_DISABLED").lower() == "true",
        endpoint=endpoint,
        protocol=reader.protocol(f"{shared}PROTOCOL" if shared else "", endpoint),
        headers=reader.headers(HEADERS) or (reader.headers(f"{shared}HEADERS") if shared else ()),
        certificate_file=Path(certificate) if certificate else None,
        spool_dir=Path(spool_dir).expanduser() / _folder_name(service_name)
        if spool_dir
        else default_spool_dir(environ, service_name),
        spool_max_bytes=int(
            reader.number(
                SPOOL_MAX_BYTES, DEFAULT_SPOOL_MAX_BYTES, int, 1024 * 1024, "bytes, 1048576 or more"
            )
        ),
        # As a database calls it; it means the same as on.
        spool_sync=reader.text(SPOOL_SYNC).lower() == "full" or reader.boolean(SPOOL_SYNC, default=False),
        reads=reader.patterns(READS),
        grpc_read_methods=reader.patterns(GRPC_READ_METHODS) or DEFAULT_GRPC_READ_METHODS,
        span_attributes=reader.boolean(SPAN_ATTRIBUTES, default=True),
        flood_full=int(
            reader.number(FLOOD_FULL, DEFAULT_FLOOD_FULL, int, 1, "a number of records, 1 or more")
        ),
        flood_interval_s=reader.number(
            FLOOD_INTERVAL_S, DEFAULT_FLOOD_INTERVAL_S, float, 0.0, "seconds; 0 folds nothing"
        ),
        rules_file=reader.path(RULES),
        # Whoever sets it wants less than names: a word that is not known must not mean all of them.
        actor=reader.word(ACTOR, pseudonyms.MODES, unset=pseudonyms.RAW, wrong=pseudonyms.OFF),
        actor_key_file=reader.path(ACTOR_KEY_FILE),
        actor_key=reader.text(ACTOR_KEY),
        trusted_proxies=reader.patterns(TRUSTED_PROXIES),
        forwarded_header=reader.word(
            FORWARDED_HEADER, proxies.HEADERS, unset="", wrong=proxies.X_FORWARDED_FOR
        ),
        context_keys_file=Path(keys_file).expanduser() if keys_file else None,
        context_destinations=reader.patterns(CONTEXT_DESTINATIONS),
        context_ttl_s=reader.number(CONTEXT_TTL_S, DEFAULT_CONTEXT_TTL_S, float, 1.0, "seconds, 1 or more"),
        context_queue_ttl_s=reader.number(
            CONTEXT_QUEUE_TTL_S, DEFAULT_CONTEXT_QUEUE_TTL_S, float, 1.0, "seconds, 1 or more"
        ),
        problems=tuple(reader.problems + reader.unknown()),
    )


def default_spool_dir(environ: Mapping[str, str], service_name: str) -> Path:
    """Where records wait: the user's state folder, one folder a service; without a home, the temporary folder."""
    service = _folder_name(service_name)
    state = environ.get("XDG_STATE_HOME", "")
    if state.startswith("/"):
        return Path(state) / "auditspan" / service
    home = environ.get("HOME", "")
    if home.startswith("/") and home != "/nonexistent" and Path(home).is_dir():
        return Path(home) / ".local" / "state" / "auditspan" / service
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"auditspan-{user}" / service


def _folder_name(service_name: str) -> str:
    """Services never share a folder, whatever the operator set: none sends another's records with its credentials."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", service_name).strip(".") or "unknown_service"


class _Reader:
    """Reads variables one at a time and collects what was wrong with them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def text(self, name: str) -> str:
        return self._environ.get(name, "").strip()

    def boolean(self, name: str, *, default: bool) -> bool:
        word = self.text(name).lower()
        if not word:
            return default
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        self._wrong(name, word, "on or off (or true, false)", "on" if default else "off")
        return default

    def number(
        self, name: str, default: float, parse: Callable[[str], float], minimum: float, allowed: str
    ) -> float:
        word = self.text(name)
        if not word:
            return default
        try:
            value = parse(word)
        except ValueError:
            value = minimum - 1
        if minimum <= value < float("inf"):
            return value
        self._wrong(name, word, allowed, default)
        return default

    def endpoint(self, value: str) -> str:
        if not value:
            return DEFAULT_ENDPOINT
        candidate = value if "://" in value else f"http://{value}"
        try:
            parts = urlsplit(candidate)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if usable and not parts.username and not parts.password:
            return candidate
        # The value is not repeated: a URL may carry a password.
        self.problems.append(
            f"{ENDPOINT} is not usable; allowed is http://HOST:PORT or https://HOST:PORT without user and "
            f"password (credentials belong in {HEADERS}). Using {DEFAULT_ENDPOINT}."
        )
        return DEFAULT_ENDPOINT

    def protocol(self, fallback: str, endpoint: str) -> str:
        # 4318 is OTLP/HTTP's registered port; whoever names it means that protocol.
        default = HTTP_PROTOBUF if urlsplit(endpoint).port == 4318 else GRPC
        word = self.text(PROTOCOL)
        if word in (GRPC, HTTP_PROTOBUF):
            return word
        if word:
            self._wrong(PROTOCOL, word, f"{GRPC} or {HTTP_PROTOBUF}", default)
        elif fallback and self.text(fallback) in (GRPC, HTTP_PROTOBUF):
            return self.text(fallback)
        return default

    def path(self, name: str) -> Path | None:
        word = self.text(name)
        return Path(word).expanduser() if word else None

    def word(self, name: str, allowed: tuple[str, ...], *, unset: str, wrong: str) -> str:
        word = self.text(name).lower()
        if not word or word in allowed:
            return word or unset
        self._wrong(name, word, " or ".join(allowed), wrong)
        return wrong

    def headers(self, name: str) -> tuple[tuple[str, str], ...]:
        found: dict[str, str] = {}
        for number, part in enumerate(filter(None, map(str.strip, self.text(name).split(","))), 1):
            key, equals, value = part.partition("=")
            key, value = unquote(key).strip().lower(), unquote(value).strip()
            if equals and _HEADER.fullmatch(key) and value.isprintable() and value.isascii():
                found[key] = value
            else:
                self.problems.append(
                    f"{name}: entry {number} is not usable; allowed is name=value,name=value with values in "
                    "URL encoding. The entry is left out."
                )
        return tuple(found.items())

    def patterns(self, name: str) -> tuple[str, ...]:
        return tuple(filter(None, map(str.strip, self.text(name).split(","))))

    def unknown(self) -> list[str]:
        return [
            f"{name} is not a variable of ours and has no effect; known are {', '.join(VARIABLES)}."
            for name in sorted(self._environ)
            if name.startswith(PREFIX) and name not in VARIABLES
        ]

    def _wrong(self, name: str, value: str, allowed: str, default: object) -> None:
        self.problems.append(f"{name}={value!r} is not usable; allowed is {allowed}. Using {default}.")
