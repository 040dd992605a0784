import uuid
from dataclasses import replace

import pytest
from auditspan_collector.query.filter import Filter, Match
from auditspan_collector.query.rows import SELECT, read_row
from auditspan_collector.query.search import page_query, search
from auditspan_collector.query.times import Window
from auditspan_collector.record import SpanEvent, SpanLink
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SECOND = 1_000_000_000

# Text as protobuf has it: any code point but surrogates.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
# What would matter if a value were ever read as SQL, as a pattern or as an escape.
AWKWARD = st.sampled_from(
    ["'", "''", "\\", "\\'", "\\\\", '"', "`", "%", "_", "*", "!", "\0", "\n", "\t", "\r", "' OR 1=1 --", "{p0:String}",
     "%(p0)s", "\\N", "NULL", "');DROP TABLE records--", "alice", "Alice", "é", "\u202e", "\U0001f600", "order:1", ":", ""]
)  # fmt: skip
VALUES = AWKWARD | TEXTS | st.lists(AWKWARD, max_size=4).map("".join)


def found(shelf, wanted, **options):
    return [row.ledger_index for row in search(shelf.client, wanted, **options)]


@pytest.fixture(scope="module")
def story(module_shelf, make_record):
    """Eight records, a second apart; their indexes are their numbers here."""
    start = make_record().start_time_unix_ns
    changes = [
        {"action": "LOGIN", "target_type": "", "target_id": "", "actor_roles": ("support",)},
        {"actor_id": "bob", "actor_roles": ("customer",), "reason": "Wrong password", "outcome": "denied",
         "action": "LOGIN", "actor_origin": "unverified", "client_address": ""},
        {"actor_roles": ("support", "refunds"), "target_id": "1234"},
        {"service_name": "orders", "actor_origin": "asserted", "client_address": "10.1.2.3"},
        {"service_name": "billing", "actor_origin": "asserted", "action": "EXECUTE", "target_type": "payment",
         "target_id": "pay_1", "attributes": (("card.brand", "Visa"),), "client_address": "2001:db8::1"},
        {"actor_id": "svc-reports", "actor_type": "service", "actor_roles": (), "action": "read",
         "target_type": "isbn", "target_id": "urn:isbn:1", "outcome": "failure"},
        {"actor_id": "svc-cleanup", "actor_type": "service", "actor_roles": (), "action": "DELETE",
         "target_id": "12345", "status_message": "disk FULL", "tenant": "other"},
        {"actor_id": "Alice", "action": "PURGE_CACHE", "outcome": "unknown", "span_name": "nightly purge",
         "trace_id": bytes.fromhex("00" * 15 + "01"), "client_address": "not an address"},
    ]  # fmt: skip
    records = [
        make_record(
            start_time_unix_ns=start + number * SECOND, record_id=uuid.UUID(int=number).bytes, **change
        )
        for number, change in enumerate(changes)
    ]
    module_shelf.add(*records)
    return module_shelf


def pattern(**fields):
    return Filter(**{name: tuple(map(Match.parse, texts)) for name, texts in fields.items()})


ALL = {*range(8)}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Filter(), ALL),
        (pattern(actor=["alice"]), {0, 2, 3, 4}),
        (pattern(actor=["alice", "bob"]), {0, 1, 2, 3, 4}),
        (pattern(actor=["svc-*"]), {5, 6}),
        (pattern(actor=["!svc-*", "!bob"]), {0, 2, 3, 4, 7}),
        (pattern(actor=["a*", "A*", "!alice"]), {7}),
        (pattern(role=["support"]), {0, 2, 3, 4, 7}),
        (pattern(role=["refund*"]), {2}),
        (pattern(role=["!support"]), {1, 5, 6}),
        (pattern(action=["login"]), {0, 1}),
        (pattern(action=["READ"]), set()),
        (pattern(action=["read"]), {5}),
        (pattern(action=["purge_*"]), {7}),
        (pattern(action=["!create", "!login"]), {4, 5, 6, 7}),
        (pattern(outcome=["DENIED"]), {1}),
        (pattern(outcome=["!success"]), {1, 5, 7}),
        (pattern(target=["1234"]), {1, 2, 3, 7}),
        (pattern(target=["order:1234"]), {1, 2, 3, 7}),
        (pattern(target=["payment:*"]), {4}),
        (pattern(target=["order:123*"]), {1, 2, 3, 6, 7}),
        (pattern(target=["urn:isbn:1"]), {5}),
        (pattern(target=["isbn:urn:isbn:1"]), {5}),
        (pattern(target=["!order:*"]), {0, 4, 5}),
        (pattern(service=["orders", "bill*"]), {3, 4}),
        (pattern(tenant=["other"]), {6}),
        (pattern(origin=["unverified"]), {1}),
        (pattern(origin=["!authenticated"]), {1, 3, 4}),
        (pattern(client_address=["192.0.2.7"]), {0, 2, 5, 6}),
        (pattern(client_address=["10.0.0.0/8"]), {3}),
        (pattern(client_address=["10.1.2.3/16", "2001:db8::/32"]), {3, 4}),
        (pattern(client_address=["!192.0.2.0/24"]), {1, 3, 4, 7}),
        (Filter(text=("wrong PASS",)), {1}),
        (Filter(text=("visa",)), {4}),
        (Filter(text=("disk full",)), {6}),
        (Filter(text=("purge", "nightly")), {7}),
        (Filter(text=("purge", "visa")), set()),
        (Filter(text=("123",)), {1, 2, 3, 6, 7}),
        (Filter(text=("%",)), set()),
        (Filter(trace_id="4bf92f3577b34da6a3ce929d0e0e4736"), ALL - {7}),
        (Filter(trace_id="4BF92F35"), ALL - {7}),
        (Filter(trace_id="000000"), {7}),
        (pattern(actor=["alice"], service=["!gateway"], action=["execute"]), {4}),
    ],
)  # fmt: skip
def test_a_filter_finds_exactly_what_it_says(story, wanted, expected):
    assert set(found(story, wanted)) == expected


def test_a_window_has_its_beginning_inside_and_its_end_outside(story, make_record):
    start = make_record().start_time_unix_ns
    assert set(found(story, Filter(window=Window(start + SECOND, start + 3 * SECOND)))) == {1, 2}
    assert set(found(story, Filter(window=Window(start + SECOND + 1)))) == ALL - {0, 1}


def test_the_newest_come_first_and_the_limit_keeps_them(story):
    assert found(story, Filter(), limit=3) == [7, 6, 5]
    assert found(story, Filter(), limit=3, order="oldest") == [0, 1, 2]


@pytest.mark.parametrize("order", ["newest", "oldest"])
@pytest.mark.parametrize("limit", [1, 3, 4, 8, 9, None])
def test_pages_join_without_a_seam(story, order, limit):
    whole = found(story, Filter(), order=order, limit=limit)
    assert found(story, Filter(), order=order, limit=limit, page_rows=3) == whole


def test_records_that_begin_at_the_same_instant_are_not_lost_between_pages(shelf, make_record):
    shelf.add(*(make_record(record_id=uuid.UUID(int=number).bytes) for number in range(10)))
    shelf.add(
        *(make_record(record_id=uuid.UUID(int=number + 10).bytes) for number in range(10)),
        stream="default/b/00",
    )
    rows = [(row.ledger_stream, row.ledger_index) for row in search(shelf.client, Filter(), page_rows=3)]
    assert len(rows) == len(set(rows)) == 20


def test_rows_that_are_stored_meanwhile_shift_no_page(shelf, make_record):
    start = make_record().start_time_unix_ns
    shelf.add(
        *(make_record(start_time_unix_ns=start + n, record_id=uuid.UUID(int=n).bytes) for n in range(6))
    )
    rows = search(shelf.client, Filter(), page_rows=2)
    first = [next(rows).ledger_index for _ in range(2)]
    shelf.add(make_record(start_time_unix_ns=start + 99, record_id=uuid.UUID(int=99).bytes))
    assert first + [row.ledger_index for row in rows] == [5, 4, 3, 2, 1, 0]


def test_a_copy_in_another_collectors_stream_is_shown_once(shelf, make_record):
    record = make_record()
    shelf.add(record)
    shelf.add(
        replace(record, received_time_unix_ms=record.received_time_unix_ms + 9_000), stream="default/b/00"
    )
    assert len(list(search(shelf.client, Filter()))) == 1
    assert len(list(search(shelf.client, Filter(), page_rows=1))) == 1


def test_a_limit_counts_records_and_not_their_copies(shelf, make_record):
    start = make_record().start_time_unix_ns
    records = [make_record(start_time_unix_ns=start + n, record_id=uuid.UUID(int=n).bytes) for n in range(5)]
    shelf.add(*records)
    shelf.add(*records, stream="default/b/00")
    assert found(shelf, Filter(), limit=4, page_rows=3) == [4, 3, 2, 1]


def test_a_record_can_not_be_hidden_behind_another_with_its_id(shelf, make_record):
    shelf.add(make_record(), make_record(attributes=(("http.request.method", "GET"),)))
    assert len(list(search(shelf.client, Filter()))) == 2


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(VALUES, min_size=1, max_size=5, unique=True),
    st.sampled_from(
        [("actor", "actor_id"), ("target", "target_id"), ("service", "service_name"), ("tenant", "tenant")]
    ),
)
def test_any_value_is_found_as_data_and_finds_nothing_else(shelf, make_record, values, where):
    field, column = where
    shelf.clear()
    shelf.add(*(make_record(**{column: value}) for value in values))
    for index, value in enumerate(values):
        assert found(shelf, Filter(**{field: (Match.exact(value),)})) == [index]
        begins_so = {n for n, other in enumerate(values) if other.startswith(value)}
        assert set(found(shelf, Filter(**{field: (Match((value, "")),)}))) == begins_so
        excluded = set(found(shelf, Filter(**{field: (Match.exact(value, negated=True),)})))
        assert excluded == set(range(len(values))) - {index}


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_record_is_read_back_as_it_was_to_the_last_bit(module_shelf, make_record, data):
    pairs = st.lists(st.tuples(VALUES, VALUES), max_size=3).map(tuple)
    counts = st.integers(0, 2**32 - 1)
    events = st.builds(SpanEvent, st.integers(0, 2**63 - 1), VALUES, pairs, pairs, counts)
    links = st.builds(SpanLink, st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8), VALUES, counts, pairs, pairs, counts)  # fmt: skip
    record = make_record(
        actor_id=data.draw(VALUES),
        actor_roles=tuple(data.draw(st.lists(VALUES, max_size=3))),
        attributes=data.draw(pairs),
        attribute_types=data.draw(pairs),
        events=tuple(data.draw(st.lists(events, max_size=2))),
        links=tuple(data.draw(st.lists(links, max_size=2))),
        trace_id=data.draw(st.binary(min_size=16, max_size=16)),
        record_id=data.draw(st.binary(min_size=16, max_size=16)),
        start_time_unix_ns=data.draw(st.integers(0, 2**62)),
        flags=data.draw(counts),
        reason=data.draw(VALUES),
    )
    stream = f"round/trip/{uuid.uuid4().hex}"
    module_shelf.add(record, stream=stream)
    sql = f"SELECT {SELECT} FROM records WHERE ledger_stream = {{stream:String}}"
    ((row),) = module_shelf.client.rows(sql, {"stream": stream})
    assert read_row(row).record == record


def test_json_has_every_column_under_its_name(module_shelf, make_stored):
    columns = {
        name.partition(".")[0]
        for (name,) in module_shelf.client.rows(
            "SELECT name FROM system.columns WHERE table = 'records' AND database = {database:String} "
            "AND default_kind != 'ALIAS'",
            {"database": module_shelf.database},
        )
    }
    assert set(make_stored().as_json()) == columns


def test_a_page_query_names_no_value(make_stored):
    row = make_stored(7, stream="secret/stream/00", start_time_unix_ns=123_456_789)
    sql, parameters = page_query(pattern(actor=["alice"]), size=5, behind=row)
    assert not any(str(value) in sql for value in ("alice", "secret", "123456789"))
    assert set(parameters.values()) == {"alice", "secret/stream/00", 123_456_789, 7, 5}
