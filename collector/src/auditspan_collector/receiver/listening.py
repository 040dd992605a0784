"""Get a port and a certificate, or say in one line why not."""

from __future__ import annotations

import errno
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from auditspan_collector.errors import ConfigError

if TYPE_CHECKING:
    from auditspan_collector.receiver.config import Address, TlsConfig

_BACKLOG = 1024


def claim(setting: str, address: Address, *, shared: bool = False) -> socket.socket:
    """A socket that listens on *address*, *shared* with the other workers of this collector.

    Raises ConfigError naming *setting* when that can't be.
    """
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise refuse_bind(setting, address, error) from error
    try:
        # A port in TIME_WAIT is free; one that somebody listens on is not, with or without this.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(target)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise refuse_bind(setting, address, error) from error
    return listener


def reserve(setting: str, address: Address) -> socket.socket:
    """Hold *address* for this collector's workers: each of them may listen there (*shared*), nobody else can.

    The socket that this returns never listens; the address is held until it is closed. Raises ConfigError.

    SO_REUSEPORT alone would let a second collector of the same user share the port in silence, and each would get
    half. So the port is first had exclusively, and is never free while that turns into sharing. Linux compares the
    options of two sockets when the later one is bound (net/ipv4/inet_connection_sock.c, inet_csk_bind_conflict): what
    is held here shares with sockets that set SO_REUSEPORT, and *claim* and *reserve* ask for the port without.
    """
    exclusive = claim(setting, address)
    with exclusive:
        exclusive.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder = socket.socket(exclusive.family, exclusive.type, exclusive.proto)
        try:
            # While binding: connections of an earlier run may still be in TIME_WAIT.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind(exclusive.getsockname())
            # Afterwards: otherwise a port that nobody listens on yet could be had by whoever sets it too.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        except OSError as error:
            holder.close()
            raise refuse_bind(setting, address, error) from error
    return holder


def refuse_bind(setting: str, address: Address, error: Exception) -> ConfigError:
    """Why *address* can't be had, and what to do."""
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"{setting}: {address} is in use by another process; stop it or choose another port"
        )
    if isinstance(error, OSError) and error.errno == errno.EACCES:
        return ConfigError(f"{setting}: {address}: no permission; choose a port above 1023")
    return ConfigError(
        f"{setting}: {address} can't be listened on ({error}); choose an address of this machine"
    )


def tls_context(tls: TlsConfig) -> ssl.SSLContext:
    """The server's side of TLS 1.2 or newer. Raises ConfigError when a file is missing or does not fit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for name in ("cert_file", "key_file"):
        read_pem(name, getattr(tls, name))
    try:
        context.load_cert_chain(tls.cert_file, tls.key_file, password=_no_password)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"receiver.tls.key_file: {tls.key_file}: no unencrypted PEM key of {tls.cert_file} ({error})"
        ) from error
    if tls.client_ca_file:
        read_pem("client_ca_file", tls.client_ca_file)
        try:
            context.load_verify_locations(tls.client_ca_file)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"receiver.tls.client_ca_file: {tls.client_ca_file}: no PEM certificate ({error})"
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def read_pem(name: str, path: str) -> bytes:
    """The bytes of a file under ``receiver.tls``. Raises ConfigError when it can't be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"receiver.tls.{name}: {path} can't be read ({error.strerror})") from error


def _no_password() -> str:
    # Without this OpenSSL would ask on the terminal, and a service would hang.
    raise ValueError("the key is encrypted")
