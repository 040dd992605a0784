"""The client's answers when things go wrong: which errors a retry can help, and what they must not tell."""

from __future__ import annotations

import socket
import ssl
import threading

import pytest
from auditspan_collector.clickhouse import TRANSIENT_CODES, ClickHouseClient, Config
from auditspan_collector.errors import AuditspanError, ConfigError, StoreRejected, StoreUnavailable
from collector.durability.scripted_store import Store, serve
from collector.service.otlp_peer import TLS_FILES

QUESTION = "SELECT DISTINCT ledger_index FROM records WHERE ledger_stream = {stream:String} AND {first:UInt64} <= {last:UInt64}"
VALUES = {"stream": "a secret value", "first": 0, "last": 9}


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def client(store):
    with serve(store) as port:
        client = ClickHouseClient(
            Config(url=f"http://127.0.0.1:{port}", user="collector", password="s3cret", query_timeout_s=2)
        )
        yield client
        client.close()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_making_a_client_touches_nothing():
    ClickHouseClient(Config(url=f"http://127.0.0.1:{closed_port()}")).close()


def test_a_server_that_is_not_there_is_unavailable_and_found_again_later():
    port = closed_port()
    client = ClickHouseClient(Config(url=f"http://127.0.0.1:{port}"))
    with pytest.raises(StoreUnavailable, match=rf"ClickHouse at http://127.0.0.1:{port}: connection refused"):
        client.ping()
    with serve(Store(), port):
        client.ping()
        client.close()


def test_a_name_that_does_not_resolve_is_said():
    client = ClickHouseClient(Config(url="http://no-such-host.invalid:8123"))
    with pytest.raises(StoreUnavailable, match="can't be resolved"):
        client.ping()
    client.close()


def test_a_server_that_does_not_answer_is_unavailable(store, client):
    client.ping()
    client = ClickHouseClient(Config(url=client.config.url, query_timeout_s=0.2))
    client.ping()
    store.query_faults.append("hang")
    with pytest.raises(StoreUnavailable, match="no answer in time"):
        client.rows(QUESTION, VALUES)
    client.close()


@pytest.mark.parametrize("code", sorted(TRANSIENT_CODES))
def test_a_transient_code_is_unavailable(store, client, code):
    client.ping()
    store.query_faults.append(f"code {code}")
    with pytest.raises(StoreUnavailable, match=f"Code: {code}"):
        client.rows(QUESTION, VALUES)


@pytest.mark.parametrize("code", [16, 47, 53, 60, 62, 81, 164, 497, 516])
def test_a_permanent_code_is_rejected_with_its_number(store, client, code):
    client.ping()
    store.query_faults.append(f"code {code}")
    with pytest.raises(StoreRejected, match="scripted") as caught:
        client.rows(QUESTION, VALUES)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("status", "kind"),
    [("500", StoreUnavailable), ("502", StoreUnavailable), ("503", StoreUnavailable), ("504", StoreUnavailable),
     ("429", StoreUnavailable), ("408", StoreUnavailable), ("403", StoreRejected), ("404", StoreRejected)],
)  # fmt: skip
def test_an_answer_without_a_code_is_judged_by_its_status(store, client, status, kind):
    client.ping()
    store.query_faults.extend([status] * 4)
    with pytest.raises(kind, match=status):
        client.rows(QUESTION, VALUES)


def test_a_cut_connection_is_unavailable(store, client):
    client.ping()
    store.query_faults.extend(["cut"] * 8)
    with pytest.raises(StoreUnavailable, match=r"connection|reset"):
        client.rows(QUESTION, VALUES)


@pytest.mark.parametrize("fault", ["500", "cut", "code 60", "code 241"])
def test_no_message_and_no_log_holds_credentials_or_the_values_of_parameters(store, client, caplog, fault):
    caplog.set_level("DEBUG", "auditspan_collector")
    client.ping()
    store.query_faults.extend([fault] * 8)
    with pytest.raises(AuditspanError) as caught:
        client.rows(QUESTION, VALUES)
    chain, error = [], caught.value
    while error is not None:
        chain.append(str(error))
        error = None if error.__suppress_context__ else error.__context__
    for text in (*chain, caplog.text):
        assert "s3cret" not in text
        assert "secret" not in text


def test_the_password_is_not_shown_with_the_settings():
    assert "s3cret" not in repr(Config(password="s3cret"))


def test_the_servers_version_and_address_do_not_lengthen_its_message(store, client):
    client.ping()
    store.query_faults.append("code 60")
    with pytest.raises(StoreRejected) as caught:
        client.rows(QUESTION, VALUES)
    assert (
        str(caught.value)
        == f"ClickHouse at {client.config.url}: Code: 60. DB::Exception: scripted. (SCRIPTED)"
    )


def test_parameters_without_a_place_are_never_put_into_the_text(client):
    with pytest.raises(ValueError, match="no place"):
        client.rows("SELECT %(stream)s", {"stream": "'; DROP TABLE records"})


def test_rows_come_with_their_names_and_types(store, client):
    store.rows |= {("s", index): b"" for index in (3, 5)}
    with client.query(QUESTION, {"stream": "s", "first": 0, "last": 9}) as result:
        assert (result.column_names, result.column_types) == (("ledger_index",), ("UInt64",))
        assert list(result) == [(3,), (5,)]


def test_threads_share_a_client(store, client):
    store.rows |= {("s", index): b"" for index in range(5)}
    results = []

    def ask():
        results.extend(client.rows(QUESTION, {"stream": "s", "first": 0, "last": 9}) for _ in range(10))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[(n,) for n in range(5)]] * 80


def test_an_insert_names_the_database_whatever_it_is_called(store, client):
    client.insert_block("records", ("a", "b"), b"\x01s" + bytes(8) + b"row", "s:0-0:00")
    assert store.inserts == [("s:0-0:00", [0])]


# More than the system holds on the way between two sockets.
LARGE_ROW = b"\x01s" + bytes(8) + bytes(24 << 20)


def test_an_insert_may_take_long_on_its_way_as_long_as_the_server_goes_on_taking_it(store, client):
    slowly = threading.Event()
    store.mib_taken = lambda: slowly.wait(0.025)
    patient = ClickHouseClient(Config(url=client.config.url, connect_timeout_s=0.25))
    patient.insert_block("records", ("a", "b"), LARGE_ROW, "s:0-0:00")
    assert store.inserts == [("s:0-0:00", [0])]
    patient.close()


def test_a_large_insert_goes_over_tls_whole(store):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS_FILES / "server.pem", TLS_FILES / "server.key")
    with serve(store, tls=context) as port:
        client = ClickHouseClient(
            Config(url=f"https://localhost:{port}", ca_file=str(TLS_FILES / "ca.pem"), insert_timeout_s=5)
        )
        client.insert_block("records", ("a", "b"), LARGE_ROW, "s:0-0:00")
        client.close()
    assert store.inserts == [("s:0-0:00", [0])]


def test_a_server_that_stops_taking_an_insert_is_unavailable_after_the_time_limit_of_an_insert(store, client):
    store.mib_taken = lambda: store.release_hang.wait(30)
    hasty = ClickHouseClient(Config(url=client.config.url, insert_timeout_s=0.2))
    with pytest.raises(StoreUnavailable, match="no answer in time"):
        hasty.insert_block("records", ("a", "b"), LARGE_ROW, "s:0-0:00")
    store.release_hang.set()
    hasty.close()


def test_a_closed_client_says_so(client):
    client.ping()
    client.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        client.ping()


def test_a_proxy_in_the_environment_does_not_come_between(store, client, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
    client.ping()


def test_the_address_of_another_host_that_is_not_https_is_allowed_but_credentials_in_it_are_not():
    Config(url="http://clickhouse.internal:8123", user="a", password="b")
    with pytest.raises(ConfigError, match="put them into user and password") as caught:
        Config(url="http://u:s3cret@host:8123")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "host:8123", "ftp://host", "http://", "http://host:port", "http://host?x=1", "http://[::1"]
)
def test_an_impossible_address_is_refused_with_what_is_allowed(url):
    with pytest.raises(ConfigError, match=r"url: .*allowed: http://host:8123 or https://host:8443"):
        Config(url=url)
