"""The receivers' settings. Secure when left alone: loopback only, and nothing unknown accepted beyond it."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from auditspan_collector.errors import ConfigError
from auditspan_collector.hosts import Address

__all__ = ["Address", "Config", "GrpcConfig", "HttpConfig", "SenderConfig", "TlsConfig"]

MIN_TOKEN_CHARACTERS = 16


def _check_address(name: str, text: str) -> None:
    try:
        Address.parse(text)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


class GrpcConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``receiver.grpc`` section: OTLP/gRPC.

    Attributes:
        listen: Address and port; port 0 lets the system choose.
        threads: Requests that are read and answered at a time; each has its place until its commit is done. More of
            them share a commit, and need up to *max_message_bytes* of memory each. Where the installed gRPC can't do
            without, each has a thread besides.
        max_requests: Requests at a time, those that wait for a place among them. Further ones are asked to come
            back later.
        read_timeout_s: How long a request's message may take after its headers; one second where others wait for
            the place. Slower clients are cut off.

    """

    listen: str = "127.0.0.1:4317"
    threads: Annotated[int, Meta(ge=1, le=1024)] = 32
    max_requests: Annotated[int, Meta(ge=1, le=65536)] = 512
    read_timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 30.0

    def __post_init__(self) -> None:
        """Refuse an address that can't be one."""
        _check_address("listen", self.listen)


class HttpConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``receiver.http`` section: OTLP/HTTP, ``POST /v1/traces``.

    Attributes:
        listen: Address and port; port 0 lets the system choose.
        threads: Requests that are worked on at a time; each waits for its commit.
        max_connections: Connections at a time. Further requests are asked to come back later.
        read_timeout_s: How long a request's head may take, and then its body. Slower clients are cut off.
        hosts: Further names that clients reach the listener by (HTTP's Host header). Known without saying so:
            ``localhost``, loopback addresses, and the address in *listen*. On loopback a request by any other name
            is refused, since any web page can make one; elsewhere only what comes from a browser is.

    """

    listen: str = "127.0.0.1:4318"
    threads: Annotated[int, Meta(ge=1, le=1024)] = 32
    max_connections: Annotated[int, Meta(ge=1, le=65536)] = 512
    read_timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an address that can't be one."""
        _check_address("listen", self.listen)


class TlsConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``receiver.tls`` section: encryption for both listeners, TLS 1.2 or newer.

    Attributes:
        cert_file: PEM file with the collector's certificate and its chain; empty for no encryption.
        key_file: PEM file with the certificate's private key, not encrypted.
        client_ca_file: PEM file with an authority. With it only clients that show a certificate of this authority
            get in, on both listeners.

    """

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
    """One entry of ``receiver.senders``: a credential, sent as ``authorization: Bearer <token>``, and what it may say.

    Attributes:
        name: What the sender is called in messages.
        token: At least 16 printable characters; ``${env:NAME}`` keeps it out of the file. Not shown anywhere.
        tenant: Stored with each record of this sender.
        services: Patterns such as ``shop-*``; a span of a service that matches none is refused. Null allows all.
        instrumented: Whether the sender speaks for services instrumented by Auditspan, so that what they say about
            how an actor is known (``audit.actor.origin``) counts. Without it their actors are ``unverified``.

    """

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
    """The ``receiver`` section.

    Attributes:
        grpc: OTLP/gRPC.
        http: OTLP/HTTP.
        tls: Encryption for both.
        max_message_bytes: Largest request, after decompression. Larger ones are refused for good, so keep it above
            what the exporters' batches come to.
        senders: Who may send. Empty: nobody is told apart, and *anonymous* decides.
        anonymous: What a request without a token gets. ``refuse``: nothing is kept. ``accept``: kept, its actors are
            ``unverified``. ``trust``: kept as from an instrumented service. ``auto``: refuse when there are
            senders, trust when both listeners are on loopback, and otherwise the collector does not start.
        insecure: Allow tokens over an unencrypted listener that other machines can reach, for instance behind a
            proxy that ends TLS.

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
