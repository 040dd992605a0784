import io
import json
import unicodedata

import pytest
from auditspan_collector.cli.render import (
    Heading,
    Screen,
    Table,
    duration,
    fold,
    origin_legend,
    target,
    to_json,
    visible,
)
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

# What a terminal may act on, or a person may misread: escape sequences, line breaks, bidirectional controls,
# invisible characters and spaces that look like one.
HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\n\x00\x7f\x9b31m\u202e\u2066\u200b\u2028\ufeff\u00a0\U000e0041\ud800"


def screen(width=None, encoding="utf-8"):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Screen(Console(file=stream, width=width or 80, markup=False, highlight=False, emoji=False), width)


def printed(on):
    on.console.file.flush()
    return on.console.file.buffer.getvalue().decode(on.encoding)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("alice", "alice"),
        ("Zoë Müller 張", "Zoë Müller 張"),
        (r"DOMAIN\alice", r"DOMAIN\alice"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\nb\tc", r"a\nb\tc"),
        ("txt\u202eexe", r"txt\u202eexe"),
        ("\u0301a", r"\u0301a"),
        ("e\u0301", "e\u0301"),
        ("", ""),
    ],
)
def test_what_does_not_simply_print_is_shown_as_its_escape(text, shown):
    assert visible(text) == shown


@given(st.text() | st.text(alphabet=HOSTILE))
def test_nothing_that_acts_on_a_terminal_is_left(text):
    shown = visible(text)
    assert all(unicodedata.category(c)[0] in "LMNPS" or c == " " for c in shown)
    shown.encode()


@given(st.text())
def test_a_terminal_without_unicode_gets_escapes(text):
    visible(text, "ascii").encode("ascii")


@given(st.dictionaries(st.text(), st.text() | st.text(alphabet=HOSTILE.replace("\ud800", ""))))
def test_json_is_the_same_data_and_prints_safely(value):
    text = to_json(value)
    assert json.loads(text) == value
    assert visible(text) == text


def test_markup_in_a_value_is_text():
    on = screen()
    on.line(on.text("[bold red]admin[/] :smile:"))
    assert printed(on) == "[bold red]admin[/] :smile:\n"


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_terminals_table_never_runs_over_its_width_and_loses_nothing(width):
    on = screen(width)
    headings = [
        Heading("TIME"),
        Heading("ACTOR", flexible=True),
        Heading("TARGET", flexible=True),
        Heading("TRACE"),
    ]
    long = "".join(f"{number:04}" for number in range(60))
    rows = [
        [Text("10:30:00"), Text("alice"), Text(long), Text("4bf92f35")],
        [Text("10:30:01"), Text("張" * 40), Text("x"), Text("4bf92f35")],
    ]
    table = Table(on, headings, rows)
    table.header()
    for row in rows:
        table.row(row)
    output = printed(on)
    assert max(cell_len(line) for line in output.splitlines()) <= width
    assert output.count("張") == 40
    squeezed = "".join(output.replace("4bf92f35", "").replace("alice", "").split())
    assert long in squeezed


def test_a_pipe_gets_one_line_a_record_with_whole_values_and_no_colour():
    on = screen(None)
    rows = [[on.text("a" * 300), on.outcome("denied")], [on.text("b"), on.outcome("success")]]
    table = Table(on, [Heading("ACTOR", flexible=True), Heading("OUTCOME")], rows)
    table.header()
    for row in rows:
        table.row(row)
    lines = printed(on).splitlines()
    assert len(lines) == 3
    assert lines[1] == "a" * 300 + "  \N{CIRCLED DIVISION SLASH} denied"
    assert "\x1b" not in printed(on)


@pytest.mark.parametrize("outcome", ["success", "failure", "denied", "unknown", "own\x1bword"])
def test_an_outcome_has_a_symbol_and_a_word_in_every_encoding(outcome):
    for encoding in ("utf-8", "ascii"):
        on = screen(encoding=encoding)
        on.line(on.outcome(outcome))
        symbol, word = printed(on).rstrip("\n").split(" ")
        assert len(symbol) == 1
        assert word == visible(outcome)


def test_outcomes_differ_without_colour():
    on = screen(encoding="ascii")
    symbols = {on.outcome(outcome).plain[0] for outcome in ("success", "failure", "denied", "unknown")}
    assert len(symbols) == 4


@pytest.mark.parametrize(
    ("origin", "shown"),
    [
        ("authenticated", "alice"),
        ("asserted", "~alice"),
        ("unverified", "?alice"),
        ("", "?alice"),
        ("\x1b", "?alice"),
    ],
)
def test_an_actor_is_marked_by_how_they_are_known(make_record, origin, shown):
    assert screen().actor(make_record(actor_origin=origin)).plain == shown


def test_an_unverified_actor_can_not_look_like_an_authenticated_one(make_record):
    names = ["alice", "~alice", "alice ", "\u200balice"]
    authenticated = {screen().actor(make_record(actor_id=name)).plain for name in names}
    unverified = {
        screen().actor(make_record(actor_id=name, actor_origin="unverified")).plain for name in names
    }
    assert not authenticated & unverified


def test_who_acts_for_an_actor_is_said(make_record):
    assert screen().actor(make_record(actor_delegate="support-tool")).plain == "alice via support-tool"


def test_the_legend_explains_the_marks_that_were_used():
    assert origin_legend(["authenticated"]) == []
    assert [line[0] for line in origin_legend(["asserted", "unverified", "asserted"])] == ["~", "?"]


@pytest.mark.parametrize(
    ("nanoseconds", "shown"),
    [(0, "0 ms"), (900, "0.9 us"), (12_345, "12.3 us"), (1_000_000, "1 ms"), (48_210_000, "48.2 ms"),
     (123_400_000, "123 ms"), (999_960_000, "1000 ms"), (1_234_000_000, "1.23 s"), (119_000_000_000, "119 s"),
     (125_000_000_000, "2 min 5 s"), (7_260_000_000_000, "2 h 1 min"), (-2_500_000, "-2.5 ms")],
)  # fmt: skip
def test_a_duration_is_in_the_unit_that_a_person_would_choose(nanoseconds, shown):
    assert duration(nanoseconds) == shown


def test_a_target_reads_as_search_takes_it(make_record):
    assert target(make_record()) == "order:1234"
    assert target(make_record(target_type="")) == "1234"


@given(st.text(max_size=200), st.integers(2, 60))
def test_folding_loses_nothing_and_keeps_to_the_width(text, width):
    content = screen().text(text)
    lines = list(fold(content, width))
    assert "".join(line.plain for line in lines) == content.plain
    assert all(line.cell_len <= width for line in lines)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("bob@shop.example", ["bob@shop.", "example"]),
        ("/orders/{order_id}/refund", ["/orders/", "{order_", "id}/refund"]),
        ("a-abcdefghijklm", ["a-abcdefgh", "ijklm"]),
        ("one two three", ["one two ", "three"]),
    ],
)
def test_a_line_is_broken_where_a_reader_would(text, lines):
    assert [line.plain for line in fold(Text(text), 10)] == lines
