"""The receivers' settings. Secure when left alone: loopback only, and nothing unknown accepted beyond it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta, Struct

from auditspan_collector.errors import ConfigError

MIN_TOKEN_CHARACTERS = 16


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
        """Whether only this machine can reach it. A name other than localhost may mean anything, so it does not."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        """As *parse* reads it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _check_address(name: str, text: str) -> None:
    try:
        Address.parse(text)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


class GrpcConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """OTLP/gRPC. *threads* requests are worked on at a time; each waits for its commit."""

    listen: str = "127.0.0.1:4317"
    threads: Annotated[int, Meta(ge=1, le=1024)] = 32

    def __post_init__(self) -> None:
        """Refuse an address that can't be one."""
        _check_address("listen", self.listen)


class HttpConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """OTLP/HTTP. A request's head and its body each have to arrive within *read_timeout_s*."""

    listen: str = "127.0.0.1:4318"
    threads: Annotated[int, Meta(ge=1, le=1024)] = 32
    max_connections: Annotated[int, Meta(ge=1, le=65536)] = 512
    read_timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 30.0

    def __post_init__(self) -> None:
        """Refuse an address that can't be one."""
        _check_address("listen", self.listen)


class TlsConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Encryption for both listeners: PEM files. With *client_ca_file* only clients with its certificate get in."""

    cert_file: str = ""
    key_file: str = ""
    client_ca_file: str = ""

    def __post_init__(self) -> None:
        """Refuse half a key pair."""
        if bool(self.cert_file) != bool(self.key_file):
            missing = "key_file" if self.cert_file else "cert_file"
            raise ConfigError(f"{missing}: empty; a certificate and its key are needed together")
        if self.client_ca_file and not self.cert_file:
            raise ConfigError("cert_file: empty; client_ca_file needs a certificate of the collector's own")


class SenderConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A credential and what it may say; see record.Sender."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    token: str
    tenant: Annotated[str, Meta(min_length=1, max_length=128)] = "default"
    services: tuple[str, ...] | None = None
    instrumented: bool = False

    def __post_init__(self) -> None:
        """Refuse a token that could be guessed or can't be sent in a header."""
        if len(self.token) < MIN_TOKEN_CHARACTERS:
            raise ConfigError(
                f"token: has {len(self.token)} characters; allowed: at least {MIN_TOKEN_CHARACTERS}, "
                "for instance from `openssl rand -hex 32`"
            )
        if not all("!" <= character <= "~" for character in self.token):
            raise ConfigError(
                "token: has a space or a character outside ASCII; allowed: printable ASCII, no spaces"
            )

    def __repr__(self) -> str:
        """Without the token: a repr ends up in logs."""
        return f"SenderConfig(name={self.name!r}, tenant={self.tenant!r})"


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Both receivers. *anonymous* says what a request without a token gets:

    refuse: nothing is kept. accept: kept, but its actors are unverified. trust: kept as from an instrumented
    service. auto: refuse when there are senders, trust when every listener is on loopback, and otherwise the
    collector does not start.
    """

    grpc: GrpcConfig = GrpcConfig()
    http: HttpConfig = HttpConfig()
    tls: TlsConfig = TlsConfig()
    max_message_bytes: Annotated[int, Meta(ge=1024, le=1 << 30)] = 16 << 20
    senders: tuple[SenderConfig, ...] = ()
    anonymous: Literal["auto", "refuse", "accept", "trust"] = "auto"
    insecure: bool = False

    def __post_init__(self) -> None:
        """Refuse senders that can't be told apart, and a way in from outside that nobody chose."""
        for what in ("name", "token"):
            values = [getattr(sender, what) for sender in self.senders]
            if len(set(values)) < len(values):
                raise ConfigError(f"senders: two have the same {what}; each needs its own")
        if self.anonymous == "refuse" and not self.senders:
            raise ConfigError(
                "anonymous: 'refuse' without senders refuses everything; name senders or choose another"
            )
        outside = [section for section in ("grpc", "http") if not self.address(section).loopback]
        if not outside:
            return
        where = f"{outside[0]}.listen: {getattr(self, outside[0]).listen} can be reached from other machines"
        if not self.senders and self.anonymous == "auto":
            raise ConfigError(
                f"{where}, and anybody could write records; name senders, or set anonymous: accept or trust"
            )
        if self.senders and not self.tls.cert_file and not self.insecure:
            raise ConfigError(
                f"{where}, and tokens would travel unencrypted; set tls, or insecure: true behind a TLS proxy"
            )

    def address(self, section: str) -> Address:
        """Where ``grpc`` or ``http`` listens."""
        listen: str = getattr(self, section).listen
        return Address.parse(listen)
