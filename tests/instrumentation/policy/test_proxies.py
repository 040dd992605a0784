"""Whose word on the client's address counts."""

from __future__ import annotations

import pytest
from auditspan.proxies import FORWARDED, X_FORWARDED_FOR, Proxies
from auditspan.settings import Settings

PROXY = "10.0.0.1"


def client(headers: dict[str, list[str]], *, peer: str = PROXY, header: str = "") -> str:
    proxies = Proxies(("10.0.0.0/8", "2001:db8:ffff::/48"), header=header)
    assert proxies.problems == ()
    return proxies.client(peer, lambda name: headers.get(name, []))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["203.0.113.7"], "203.0.113.7"),
        (["198.51.100.1, 203.0.113.7"], "203.0.113.7"),
        (["203.0.113.7, 10.0.0.2"], "203.0.113.7"),
        (["198.51.100.1", "203.0.113.7, 10.0.0.2"], "203.0.113.7"),
        (["203.0.113.7:4711"], "203.0.113.7"),
        (["2001:db8::7"], "2001:db8::7"),
        (["[2001:db8::7]:4711"], "2001:db8::7"),
        (["::ffff:203.0.113.7"], "203.0.113.7"),
        (["203.0.113.7, ::ffff:10.0.0.2"], "203.0.113.7"),
        (["10.0.0.9, 10.0.0.2"], "10.0.0.9"),
        (["203.0.113.7, unknown, 10.0.0.2"], "10.0.0.2"),
        (["203.0.113.7, "], PROXY),
        (["203.0.113.7, 010.0.0.2"], PROXY),
        (["fe80::1%eth0"], PROXY),
        ([", ".join(["203.0.113.7"] + ["10.0.0.2"] * 100)], "10.0.0.2"),
        (["198.51.100.1, " * 10_000 + "203.0.113.7"], "203.0.113.7"),
        ([], ""),
    ],
    ids=[
        "one",
        "the-client-wrote-one-too",
        "through-two-proxies",
        "two-headers",
        "port",
        "v6",
        "v6-with-port",
        "v4-as-v6",
        "a-proxy-in-v4-as-v6",
        "a-client-among-the-proxies",
        "unknown-hop",
        "empty-hop",
        "octal",
        "zone",
        "too-many",
        "long",
        "none",
    ],
)
def test_the_right_most_address_that_is_no_proxys_is_the_clients(values, expected):
    assert client({X_FORWARDED_FOR: values}) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["for=203.0.113.7"], "203.0.113.7"),
        (['For="[2001:db8::7]:4711";proto=https;by=10.0.0.1'], "2001:db8::7"),
        (["for=198.51.100.1, for=203.0.113.7;host=shop, for=10.0.0.2"], "203.0.113.7"),
        (['for=203.0.113.7, for="_hidden"'], PROXY),
        (["proto=https"], PROXY),
        (["for=198.51.100.1;for=203.0.113.7"], PROXY),
        (['by="for=198.51.100.1";for=203.0.113.7'], "203.0.113.7"),
    ],
    ids=["one", "v6-with-port", "through-two", "hidden", "nobody", "two-in-one-element", "inside-a-quote"],
)
def test_forwarded_is_read_as_rfc_7239_has_it(values, expected):
    assert client({FORWARDED: values}) == expected


def test_nobody_else_is_believed():
    assert client({X_FORWARDED_FOR: ["203.0.113.7"]}, peer="192.0.2.1") == ""
    assert client({X_FORWARDED_FOR: ["203.0.113.7"]}, peer="") == ""
    assert client({X_FORWARDED_FOR: ["203.0.113.7"]}, peer="no address") == ""
    assert not Proxies()


def test_of_two_headers_that_differ_neither_counts_unless_the_operator_chose_one():
    both = {X_FORWARDED_FOR: ["203.0.113.7"], FORWARDED: ["for=198.51.100.1"]}
    assert client(both) == ""
    assert client(both | {FORWARDED: ["for=203.0.113.7"]}) == "203.0.113.7"
    assert client(both, header=X_FORWARDED_FOR) == "203.0.113.7"
    assert client(both, header=FORWARDED) == "198.51.100.1"


def test_a_connection_without_an_address_can_be_a_proxys():
    proxies = Proxies(("unix",))
    assert (
        proxies.client("", lambda name: ["203.0.113.7"] if name == X_FORWARDED_FOR else []) == "203.0.113.7"
    )
    assert proxies.client("10.0.0.1", lambda name: ["203.0.113.7"] if name == X_FORWARDED_FOR else []) == ""


@pytest.mark.parametrize("entry", ["10.0.0.1/8", "proxy.internal", "10.0.0.0/40", "*"])
def test_an_entry_that_is_no_network_is_named_and_left_out(entry):
    proxies = Proxies((entry, "10.0.0.0/8"))
    assert len(proxies.problems) == 1
    assert repr(entry) in proxies.problems[0]
    assert (
        proxies.client(PROXY, lambda name: ["203.0.113.7"] if name == X_FORWARDED_FOR else [])
        == "203.0.113.7"
    )


class Source:
    """A request that came with headers."""

    def __init__(self, **headers: str) -> None:
        self.headers = headers

    def actor(self):
        return None

    def facts(self, span):
        del span
        from auditspan.context import Facts

        return Facts(action="CREATE", outcome="success", changes=True)

    def header(self, name: str) -> list[str]:
        return [value] if (value := self.headers.get(name.replace("-", "_"))) else []


@pytest.mark.parametrize(
    "attribute", ["network.peer.address", "net.sock.peer.addr", "net.peer.ip", "client.address"]
)
def test_the_record_names_the_client_and_the_proxy(installed, attribute):
    running = installed(Settings(trusted_proxies=("10.0.0.0/8",)))
    with running.serve(**{attribute: PROXY}) as span:
        running.state(span).source = Source(x_forwarded_for="198.51.100.1, 203.0.113.7")
    (record,) = running.sink.records
    peers = {k: v for k, v in record.attributes.items() if "peer" in k or "address" in k}
    assert peers == {"client.address": "203.0.113.7", "audit.proxy.address": PROXY}


def test_without_named_proxies_the_record_names_the_connection(installed):
    running = installed(Settings())
    with running.serve(**{"network.peer.address": PROXY}) as span:
        running.state(span).source = Source(x_forwarded_for="203.0.113.7")
    (record,) = running.sink.records
    assert record.attributes["network.peer.address"] == PROXY
    assert "203.0.113.7" not in str(record.span)
