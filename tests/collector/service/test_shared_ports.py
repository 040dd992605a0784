"""A port that is held for the workers of one collector is theirs alone, from the first moment to the last."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest
from auditspan_collector.errors import ConfigError
from auditspan_collector.receiver.config import Address
from auditspan_collector.receiver.listening import claim, reserve

ANY = Address("127.0.0.1", 0)


def of(held: socket.socket) -> Address:
    return Address(*held.getsockname()[:2])


@pytest.mark.parametrize("ask", [claim, reserve])
def test_a_held_port_can_not_be_had_with_or_without_workers_on_it(ask):
    with reserve("a.listen", ANY) as held:
        with pytest.raises(ConfigError, match=r"b\.listen: 127\.0\.0\.1:\d+ is in use by another process"):
            ask("b.listen", of(held))
        with claim("worker", of(held), shared=True), pytest.raises(ConfigError):
            ask("b.listen", of(held))


@pytest.mark.parametrize("ask", [claim, reserve])
def test_a_port_that_somebody_has_can_not_be_held(ask):
    with ask("a.listen", ANY) as taken, pytest.raises(ConfigError, match="in use by another process"):
        reserve("b.listen", of(taken))


def test_workers_share_a_held_port_and_whoever_holds_it_gets_no_connection():
    with (
        reserve("a.listen", ANY) as held,
        claim("worker 1", of(held), shared=True) as one,
        claim("worker 2", of(held), shared=True) as two,
    ):
        for worker in (one, two):
            worker.settimeout(0)
        clients = [socket.create_connection(held.getsockname()) for _ in range(40)]
        accepted = [sum(1 for _ in _accept_all(worker)) for worker in (one, two)]
        assert sum(accepted) == 40
        assert all(accepted)
        for client in clients:
            client.close()


def test_a_port_is_held_again_at_once_after_a_run_that_had_connections():
    with reserve("a.listen", ANY) as held:
        address = of(held)
        with claim("worker", address, shared=True) as worker:
            client = socket.create_connection(held.getsockname())
            server, _ = worker.accept()
            server.close()  # this side closes first, so it is the one in TIME_WAIT
            client.close()
    with reserve("a.listen", address), claim("worker", address, shared=True):
        pass


def test_a_held_ipv6_port_is_held_too():
    try:
        held = reserve("a.listen", Address("::1", 0))
    except ConfigError:
        pytest.fail("this machine has no IPv6 loopback")
    with closing(held), claim("worker", of(held), shared=True), pytest.raises(ConfigError):
        claim("b.listen", of(held))


def _accept_all(listener: socket.socket):
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        connection.close()
        yield 1
