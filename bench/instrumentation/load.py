"""Send the same request over a few connections without a pause, and count the answers.

    python -m bench.instrumentation.load PORT SECONDS METHOD PATH

Prints the number of answers with status 200 and the seconds they took; any other answer is an error. Plain sockets,
so that one core of it keeps a server busy.
"""

from __future__ import annotations

import re
import selectors
import socket
import sys
import time
from typing import Final

CONNECTIONS: Final = 4
_LENGTH: Final = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = _LENGTH.search(head)
    return bool(end) and (length is None or len(body) >= int(length[1]))


def main(port: int, seconds: float, method: str, path: str) -> None:
    """Send until *seconds* are over, then wait for what is on its way."""
    request = (
        f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nuser-agent: bench\r\naccept: */*\r\n"
        "content-length: 0\r\n\r\n"
    ).encode()
    selector = selectors.DefaultSelector()
    for _ in range(CONNECTIONS):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(connection, selectors.EVENT_READ, bytearray())
        connection.sendall(request)
    answers, open_connections = 0, CONNECTIONS
    started = time.monotonic()
    while open_connections:
        for key, _ in selector.select(10):
            source, buffer = key.fileobj, key.data
            assert isinstance(source, socket.socket)
            piece = source.recv(65536)
            buffer += piece
            if not piece:
                raise RuntimeError(f"the server closed the connection: {bytes(buffer)!r}")
            if not _is_whole(buffer):
                continue
            if not buffer.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(f"not the answer expected: {bytes(buffer[:200])!r}")
            answers += 1
            buffer.clear()
            if time.monotonic() - started < seconds:
                source.sendall(request)
            else:
                selector.unregister(source)
                source.close()
                open_connections -= 1
    print(answers, time.monotonic() - started, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4])
