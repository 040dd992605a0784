import re

import pytest
from auditspan_collector.errors import QueryError
from auditspan_collector.query.filter import Conditions, Filter, Match, conditions, trace_condition
from auditspan_collector.query.times import Window
from hypothesis import given
from hypothesis import strategies as st

PATTERN_FIELDS = (
    "actor",
    "role",
    "action",
    "outcome",
    "target",
    "service",
    "tenant",
    "origin",
    "client_address",
)


@pytest.mark.parametrize(
    ("text", "parts", "negated"),
    [
        ("alice", ("alice",), False),
        ("", ("",), False),
        ("alice*", ("alice", ""), False),
        ("*@example.org", ("", "@example.org"), False),
        ("a*b*c", ("a", "b", "c"), False),
        ("!alice", ("alice",), True),
        ("!svc-*", ("svc-", ""), True),
        ("!!x", ("!x",), True),
        (r"\!x", ("!x",), False),
        (r"\*", ("*",), False),
        (r"a\\*", ("a\\", ""), False),
        (r"DOMAIN\alice", (r"DOMAIN\alice",), False),
        ("trailing\\", ("trailing\\",), False),
        ("a!b", ("a!b",), False),
    ],
)
def test_a_pattern_reads_as_documented(text, parts, negated):
    assert Match.parse(text) == Match(parts, negated)


@given(st.text())
def test_every_value_can_be_written_as_a_pattern(value):
    escaped = re.sub(r"([*\\])", r"\\\1", value)
    if escaped.startswith("!"):
        escaped = "\\" + escaped
    assert Match.parse(escaped) == Match.exact(value)


@pytest.mark.parametrize(
    ("pattern", "like"),
    [("a*", "a%"), ("100%*", r"100\%%"), ("a_b*", r"a\_b%"), (r"D\\*", "D\\\\%"), ("*", "%")],
)
def test_only_a_star_is_a_wildcard_in_like(pattern, like):
    assert Match.parse(pattern).like == like


@given(st.sampled_from(PATTERN_FIELDS), st.text(min_size=1), st.booleans())
def test_no_part_of_a_value_reaches_the_text_of_the_sql(field, value, glob):
    marked = f"\N{BLACK STAR}{value}\N{BLACK STAR}"
    match = Match((marked, "") if glob else (marked,))
    try:
        found = conditions(Filter(**{field: (match,)}))
    except QueryError:
        return
    assert "\N{BLACK STAR}" not in found.sql
    assert found.sql.isascii()
    assert set(re.findall(r"\{(\w+):", found.sql)) == set(found.parameters)


@given(st.text(min_size=1))
def test_free_text_stays_out_of_the_sql_too(text):
    found = conditions(Filter(text=(f"\N{BLACK STAR}{text}",)))
    assert "\N{BLACK STAR}" not in found.sql
    assert list(found.parameters.values()) == [f"\N{BLACK STAR}{text}"]


def test_no_filter_is_no_condition():
    assert conditions(Filter()).sql == "1"


def test_alternatives_are_joined_by_or_and_negations_each_exclude():
    found = conditions(Filter(actor=tuple(map(Match.parse, ("alice", "bob*", "!carol", "!d*")))))
    assert found.sql == (
        "(NOT (actor_id = {p2:String})) AND (NOT (actor_id LIKE {p3:String})) "
        "AND (actor_id = {p0:String} OR actor_id LIKE {p1:String})"
    )


def test_a_window_is_asked_for_in_nanoseconds():
    found = conditions(Filter(window=Window(5, 7)))
    assert found.parameters == {"p0": 5, "p1": 7}


@pytest.mark.parametrize("word", ["deny", "ok", "SUCCES", "!nope"])
def test_an_outcome_that_does_not_exist_is_an_error_not_an_empty_answer(word):
    with pytest.raises(QueryError, match="success, failure, denied, unknown"):
        conditions(Filter(outcome=(Match.parse(word),)))


@pytest.mark.parametrize("value", ["10.0.0.0/33", "10.0.0/8/8", "fe80::/200", "/", "a/b"])
def test_a_network_that_is_none_is_an_error(value):
    with pytest.raises(QueryError, match="is no network"):
        conditions(Filter(client_address=(Match.parse(value),)))


@pytest.mark.parametrize(
    "digits",
    [
        "",
        "4bf92",
        "4bf92g",
        "x" * 32,
        "4" * 33,
        "4bf92f35-77b3",
        "4bf92f\n3577",
        "' OR 1=1",
        "\N{FULLWIDTH DIGIT FOUR}bf92f",
    ],
)
def test_a_trace_id_that_is_none_is_an_error(digits):
    with pytest.raises(QueryError, match="is not a trace id"):
        trace_condition(Conditions(), digits)
