import json
import re
import uuid

import pytest
from auditspan_collector.errors import QueryError
from auditspan_collector.query.trace import trace

ANSI = re.compile(r"\x1b\[[0-9;]*m")
REFUND = "df6f85687a0d5820baa1a069a04eff2d"

DAY = ("--since", "2026-11-24", "--until", "2026-11-24")


def test_a_refund_is_one_tree_across_three_services(ask_shop):
    shown = ask_shop.in_terminal("auditspan", "trace", REFUND)
    assert shown.status == 0
    assert ANSI.sub("", shown.output).splitlines() == [
        f"trace {REFUND}  2026-11-24 09:41:07.512 UTC",
        "gateway  ✓ success  CREATE order:1234  by alice@shop.example (support, refunds)",
        "│  POST /orders/{order_id}/refund  at +0 ms, took 96 ms",
        "└─ orders  ✓ success  CREATE order:1234  by ~alice@shop.example (support, ",
        "   │  refunds)",
        "   │  POST /orders/{order_id}/refund  at +8 ms, took 81 ms",
        "   └─ billing  ✓ success  EXECUTE payment:pay_8842  by ~alice@shop.example ",
        "         (support, refunds)",
        "         shop.v1.Billing/Refund  at +32 ms, took 37 ms",
        "3 services, 3 records, 1 actor, 96 ms in all",
        "~ asserted: a trusted service vouched for them",
    ]


@pytest.mark.parametrize("prefix", [REFUND, REFUND.upper(), REFUND[:8], REFUND[:6], REFUND[:31]])
def test_the_beginning_of_a_trace_id_is_enough(shop, prefix):
    assert trace(shop.client, prefix).trace_id.hex() == REFUND


def test_what_search_shows_as_the_trace_is_what_trace_takes(ask_shop):
    found = ask_shop("search", *DAY, "--action", "GRANT", "--columns", "trace")
    (short,) = found.stdout.split()[1:]
    assert ask_shop("trace", short).stdout.count("needs the role admin") == 1


@pytest.fixture
def two_alike(shelf, make_record):
    for number in (1, 2):
        shelf.add(
            make_record(
                trace_id=bytes.fromhex(f"abcdef12{number:024x}"),
                record_id=uuid.UUID(int=number).bytes,
                start_time_unix_ns=make_record().start_time_unix_ns + number,
            )
        )
    return shelf


def test_a_beginning_that_two_traces_share_is_an_error_that_names_them(two_alike):
    with pytest.raises(QueryError) as caught:
        trace(two_alike.client, "abcdef12")
    assert str(caught.value) == (
        "several traces begin with abcdef12; give more digits: "
        f"abcdef12{2:024x} (2026-11-24 10:30:00 UTC, 1 record); abcdef12{1:024x} (2026-11-24 10:30:00 UTC, 1 record)"
    )


def test_one_of_them_is_found_by_more_digits(two_alike):
    assert trace(two_alike.client, f"abcdef12{2:024x}").trace_id.hex().endswith("2")


def test_a_trace_that_is_not_there_is_an_error(ask_shop):
    ended = ask_shop("trace", "ffffffff")
    assert (ended.status, ended.stdout) == (1, "")
    assert "no record has a trace id that begins with ffffffff" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_copy_in_another_collectors_stream_stands_in_the_tree_once(shelf, make_record):
    shelf.add(make_record())
    shelf.add(
        make_record(received_time_unix_ms=make_record().received_time_unix_ms + 1), stream="default/b/00"
    )
    assert len(list(trace(shelf.client, make_record().trace_id.hex()).walk())) == 1


def test_a_trace_that_is_too_long_says_that_there_is_more(shelf, auditspan, make_record):
    shelf.add(
        *(make_record(span_id=n.to_bytes(8, "big"), record_id=uuid.UUID(int=n).bytes) for n in range(1, 5))
    )
    found = trace(shelf.client, make_record().trace_id.hex(), most=3)
    assert not found.complete
    assert len(list(found.walk())) == 3
    assert trace(shelf.client, make_record().trace_id.hex(), most=4).complete


def test_json_lists_the_records_in_the_order_of_the_tree(ask_shop):
    shown = json.loads(ask_shop("trace", REFUND, "--format", "json").stdout)
    assert (shown["trace_id"], shown["duration_ns"], shown["complete"]) == (REFUND, 96_000_000, True)
    assert [(record["depth"], record["place"], record["service_name"]) for record in shown["records"]] == [
        (0, "root", "gateway"),
        (1, "child", "orders"),
        (2, "child", "billing"),
    ]
    assert shown["records"][2]["attributes"]["payment.amount"] == "49.90"


def test_failures_and_reasons_are_said_in_words(ask_shop):
    shown = ask_shop(
        "trace",
        ask_shop("search", *DAY, "expired", "--columns", "trace").stdout.split()[1],
    )
    assert "✗ failure  CREATE order:1235  by bob@shop.example (customer)" in shown.stdout
    assert "reason: card expired" in shown.stdout


@pytest.fixture
def hostile(shelf, make_record):
    """A trace with an orphan, a circle, another tenant and texts that would act on a terminal."""
    spans = [(1, 0), (2, 99), (3, 4), (4, 3)]
    for number, parent in spans:
        shelf.add(
            make_record(
                span_id=number.to_bytes(8, "big"),
                audit_parent_span_id=parent.to_bytes(8, "big"),
                record_id=uuid.UUID(int=number).bytes,
                actor_id="x\x1b[2J\ny",
                actor_origin="unverified",
                service_name="\u202esvc",
                span_name="a\tb",
                reason="\x07",
                tenant="mine" if number < 3 else "theirs",
                start_time_unix_ns=make_record().start_time_unix_ns + number,
            )
        )
    return make_record().trace_id.hex()


def test_a_hostile_trace_is_shown_whole_and_can_not_act(hostile, auditspan):
    shown = auditspan.in_terminal("auditspan", "trace", hostile, width=120)
    text = ANSI.sub("", shown.output)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert text.count(r"?x\x1b[2J\ny") == 4
    assert "its audited parent 0000000000000063 is not in the store" in text
    assert "the circle is cut here" in text
    assert text.count("[tenant theirs]") == 2


def test_a_deep_trace_stays_readable(shelf, auditspan, make_record):
    shelf.add(
        *(
            make_record(
                span_id=number.to_bytes(8, "big"),
                audit_parent_span_id=(number - 1).to_bytes(8, "big"),
                record_id=uuid.UUID(int=number).bytes,
                start_time_unix_ns=make_record().start_time_unix_ns + number,
            )
            for number in range(1, 401)
        )
    )
    shown = auditspan.in_terminal("auditspan", "trace", make_record().trace_id.hex(), NO_COLOR="1")
    assert shown.status == 0
    assert max(map(len, ANSI.sub("", shown.output).splitlines())) <= 80
    assert "(level 399)" in shown.output
    assert (
        json.loads(auditspan("trace", make_record().trace_id.hex(), "--format", "json").stdout)["records"][
            -1
        ]["depth"]
        == 399
    )


def test_a_terminal_without_unicode_is_served_too(ask_shop):
    shown = ask_shop.in_terminal("auditspan", "trace", REFUND, PYTHONIOENCODING="ascii")
    assert shown.output.isascii()
    assert "`- orders  + success" in ANSI.sub("", shown.output)


def test_a_pipe_gets_the_tree_without_colour_and_without_folding(ask_shop):
    lines = ask_shop("trace", REFUND).stdout.splitlines()
    assert "\x1b" not in "".join(lines)
    assert (
        "   └─ billing  ✓ success  EXECUTE payment:pay_8842  by ~alice@shop.example (support, refunds)"
        in lines
    )
