"""Who may see a token: exactly those on the list."""

from __future__ import annotations

import pytest
from auditspan.propagation.destinations import Destination, Destinations


@pytest.mark.parametrize(
    ("entry", "url", "allowed"),
    [
        ("orders", "http://orders/x", True),
        ("orders", "https://orders:8443/x", True),
        ("orders", "http://ORDERS./x", True),
        ("orders", "http://orders.evil.example/x", False),
        ("orders", "http://evil-orders/x", False),
        ("orders", "http://user:pass@orders/x", True),
        ("orders", "http://orders@evil.example/x", False),
        ("orders", "http://evil.example/orders", False),
        ("orders", "http://evil.example#@orders/", False),
        ("orders", "http://evil.example\\@orders/", False),
        ("orders", "http://orders\\@evil.example/", False),
        ("orders", "http://orders%2eevil.example/", False),
        ("orders", "http://orders\t.evil.example/", False),
        ("orders", "//orders/x", False),
        ("orders", "ftp://orders/x", False),
        ("orders", "http:///x", False),
        ("orders", "http://orders:99999/x", False),
        ("orders", "", False),
        ("orders:8080", "http://orders:8080/", True),
        ("orders:8080", "http://orders/", False),
        ("orders:80", "http://orders/", True),
        ("orders:443", "https://orders/", True),
        ("*.shop.internal", "http://a.shop.internal/", True),
        ("*.shop.internal", "http://a.b.shop.internal:99/", True),
        ("*.shop.internal", "http://shop.internal/", False),
        ("*.shop.internal", "http://evilshop.internal/", False),
        ("*.shop.internal", "http://a.shop.internal.evil.example/", False),
        ("*.shop.internal:443", "https://a.shop.internal/", True),
        ("*.shop.internal:443", "http://a.shop.internal/", False),
        ("127.0.0.1", "http://127.0.0.1:5/", True),
        ("127.0.0.1", "http://127.0.0.2:5/", False),
        ("127.0.0.1:5000", "http://127.0.0.1:5000/", True),
        ("127.0.0.1:5000", "http://127.0.0.1:5001/", False),
        ("127.0.0.1", "http://[::ffff:127.0.0.1]/", True),
        ("127.0.0.1", "http://2130706433/", False),
        ("127.0.0.1", "http://127.1/", False),
        ("10.0.0.0/8", "http://10.200.3.4:8080/", True),
        ("10.0.0.0/8", "http://11.0.0.1/", False),
        ("10.0.0.0/8", "http://10.evil.example/", False),
        ("fd00::/8", "http://[fd12::1]:8080/", True),
        ("fd00::/8", "http://10.0.0.1/", False),
        ("[fd00::1]:8080", "http://[fd00:0:0::1]:8080/", True),
        ("[fd00::1]:8080", "http://[fd00::1]:8081/", False),
        ("::1", "http://[::1]:7/", True),
    ],
)
def test_urls(entry, url, allowed):
    destinations = Destinations([entry])
    assert destinations.problems == []
    assert destinations.allows(Destination.of_url(url)) is allowed
    for key in ("http.url", "url.full"):
        assert destinations.allows_span({key: url, "server.address": "orders"}) is allowed


@pytest.mark.parametrize(
    ("entry", "target", "allowed"),
    [
        ("billing:50051", "billing:50051", True),
        ("billing:50051", "billing:50052", False),
        ("billing", "billing:50051", True),
        ("billing", "dns:billing:50051", True),
        ("billing", "dns:///billing:50051", True),
        ("billing", "dns://billing/evil.example:443", False),
        ("billing", "dns://8.8.8.8/billing:443", True),
        ("billing:443", "billing", True),
        ("10.0.0.0/8", "ipv4:10.1.2.3:50051", True),
        ("10.0.0.0/8", "ipv4:10.1.2.3:50051,10.1.2.4:50051", True),
        ("10.0.0.0/8", "ipv4:10.1.2.3:50051,11.1.2.3:50051", False),
        ("::1", "ipv6:[::1]:50051", True),
        ("::1", "[::1]:50051", True),
        ("unix:/run/billing.sock", "unix:/run/billing.sock", True),
        ("unix:/run/billing.sock", "unix:/run/other.sock", False),
        ("billing", "unix:billing", False),
        ("billing", "xds:///billing", False),
        ("billing", "passthrough:///billing", False),
        ("billing", "", False),
    ],
)
def test_grpc_targets(entry, target, allowed):
    assert Destinations([entry]).allows_grpc(target) is allowed


@pytest.mark.parametrize(
    ("entries", "name", "brokers", "allowed"),
    [
        (["queue:orders"], "orders", [], True),
        (["queue:orders"], "orders", ["anywhere:9092"], True),
        (["queue:orders"], "Orders", [], False),
        (["queue:orders"], "orders.new", [], False),
        (["queue:orders.*"], "orders.new", [], True),
        (["queue:orders.*"], "orders", [], False),
        (["queue:*"], "anything", [], True),
        (["queue:*"], "", [], False),
        (["orders"], "orders", [], False),
        (["queue:orders@kafka"], "orders", ["kafka:9092"], True),
        (["queue:orders@kafka"], "orders", ["kafka"], True),
        (["queue:orders@kafka:9092"], "orders", ["kafka"], True),
        (["queue:orders@kafka:9092"], "orders", ["kafka:9093"], False),
        (["queue:orders@kafka"], "orders", ["kafka.evil.example:9092"], False),
        (["queue:orders@kafka"], "orders", ["kafka:9092", "evil.example:9092"], False),
        (["queue:orders@kafka"], "orders", [], False),
        (["queue:orders@kafka"], "other", ["kafka:9092"], False),
        (["queue:orders@kafka"], "orders", ["SASL://kafka:9092"], False),
        (["queue:orders@k1", "queue:orders@k2"], "orders", ["k1:9092", "k2:9092"], True),
        (["queue:orders@k1", "queue:other@k2"], "orders", ["k1:9092", "k2:9092"], False),
        (["queue:*@10.0.0.0/8"], "orders", ["10.1.2.3:9092"], True),
        (["queue:*@[fd00::1]:9092"], "orders", ["[fd00::1]:9092"], True),
        (["queue:*@*.shop.internal"], "orders", ["KAFKA.shop.internal:1"], True),
    ],
)
def test_queues(entries, name, brokers, allowed):
    destinations = Destinations(entries)
    assert destinations.problems == []
    assert destinations
    assert destinations.allows_queue(name, brokers) is allowed
    assert not Destinations(()).allows_queue(name, brokers)


@pytest.mark.parametrize(
    "attributes",
    [
        {"http.url": "http://orders:8080/x"},
        {"url.full": "http://orders:8080/x"},
        {"server.address": "orders", "server.port": 8080},
        {"net.peer.name": "orders", "net.peer.port": 8080},
    ],
)
def test_old_and_new_conventions_name_the_destination(attributes):
    assert Destinations(["orders:8080"]).allows_span(attributes)
    assert not Destinations(["orders:8081", "billing"]).allows_span(attributes)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"server.address": "orders"},
        {"rpc.system": "grpc", "rpc.service": "orders"},
        {"http.url": 7},
        {"server.address": "orders", "server.port": "8080"},
    ],
)
def test_a_span_that_does_not_tell_is_no_destination(attributes):
    destinations = Destinations(["orders", "0.0.0.0/0"])
    assert not destinations.allows_span(attributes)
    assert not destinations.allows(None)


@pytest.mark.parametrize(
    "entry",
    [
        *("", "*", "*.", "http://orders", "a b", "orders:http", "orders:0", "300.1.1.1/8", "*x", "a/b"),
        *("queue:", "queue:a b", "queue:a*b", "queue:orders@", "queue:x@queue:x", "queue:orders@unix:/x"),
    ],
)
def test_an_entry_that_can_t_be_used_is_named_and_allows_nothing(entry):
    destinations = Destinations([entry])
    assert len(destinations.problems) == 1
    assert not destinations


def test_an_empty_list_allows_nothing():
    assert not Destinations(())
    assert not Destinations(()).allows(Destination("localhost", 80))
    assert not Destinations(()).allows_grpc("localhost:80")
