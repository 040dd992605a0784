import json
import re
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def test_a_pipe_gets_tab_separated_values_with_names(ask_shop):
    ended = ask_shop(
        "sql",
        "SELECT actor_id, count() AS times FROM records GROUP BY actor_id ORDER BY times DESC, actor_id LIMIT 2",
    )
    assert ended.status == 0
    assert ended.stdout == "actor_id\ttimes\nalice@shop.example\t5\nbob@shop.example\t5\n"


def test_a_terminal_gets_a_table(ask_shop):
    shown = ask_shop.in_terminal("auditspan", "sql", "SELECT 1 AS one")
    assert shown.status == 0
    assert "┌─one─┐" in shown.output


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--format", "csv"), '"one","two"\n1,"x"\n'),
        (("--format", "tsv"), "one\ttwo\n1\tx\n"),
        (("--format", "jsonl"), '{"one":1,"two":"x"}\n'),
        (("--format", "JSONCompactEachRow"), '[1, "x"]\n'),
        (("-F", "Values"), "(1,'x')"),
    ],
)
def test_every_format_of_clickhouse_can_be_asked_for(ask_shop, options, expected):
    assert ask_shop("sql", "SELECT 1 AS one, 'x' AS two", *options).stdout == expected


def test_a_format_in_the_query_wins(ask_shop):
    assert ask_shop("sql", "SELECT 1 AS one FORMAT JSONEachRow").stdout == '{"one":1}\n'
    assert ask_shop("sql", "SELECT 1 AS one FORMAT JSONEachRow", "--format", "csv").stdout == '{"one":1}\n'
    assert ask_shop("sql", "SELECT ' format ' AS x").stdout == "x\n format \n"


@pytest.mark.parametrize("arguments", [(), ("-",)], ids=["no argument", "a dash"])
def test_the_query_may_come_on_standard_input(ask_shop, arguments):
    ended = ask_shop("sql", *arguments, text="SELECT count() FROM records\n;\n")
    assert ended.stdout == "count()\n12\n"


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_parameter_is_data_whatever_it_holds(ask_shop, value):
    ended = ask_shop(
        "sql", "SELECT {value:String} AS value", "--param", f"value={value}", "--format", "jsonl"
    )
    assert json.loads(ended.stdout) == {"value": value}


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("UInt64", "42", 42),
        ("Array(String)", "['a','b\\'c']", ["a", "b'c"]),
        ("Array(UInt8)", "[1,2]", [1, 2]),
        ("Map(String, UInt8)", "{'a':1}", {"a": 1}),
        ("DateTime64(3, 'UTC')", "2026-11-24 10:00:00.123", "2026-11-24 10:00:00.123"),
    ],
)
def test_parameters_have_types(ask_shop, kind, text, expected):
    ended = ask_shop("sql", f"SELECT {{x:{kind}}} AS x", "--param", f"x={text}", "--format", "jsonl", "--set", "output_format_json_quote_64bit_integers=0")  # fmt: skip
    assert ended.stderr == ""
    assert json.loads(ended.stdout) == {"x": expected}


@pytest.mark.parametrize(
    "query",
    [
        "DROP TABLE records",
        "TRUNCATE TABLE records",
        "ALTER TABLE records DELETE WHERE 1",
        "INSERT INTO records (ledger_index) SELECT 1",
        "CREATE TABLE x (y UInt8) ENGINE = Memory",
        "SELECT 1 SETTINGS readonly = 0",
    ],
)
@pytest.mark.parametrize("user", ["default", "reader"])
def test_it_only_reads(ask_shop, query, user):
    ended = ask_shop("sql", query, "--user", user)
    assert (ended.status, ended.stdout) == (1, "")
    assert "[code 164]" in ended.stderr
    assert ask_shop("sql", "SELECT count() FROM records").stdout == "count()\n12\n"


def test_readonly_can_not_be_set_away(ask_shop):
    assert ask_shop("sql", "SET readonly = 0").status == 1
    assert "[code 164]" in ask_shop("sql", "DROP TABLE records", "--set", "readonly=0").stderr


def test_a_user_who_may_only_read_can_ask_too(ask_shop):
    assert ask_shop("sql", "SELECT count() FROM records", "--user", "reader").stdout == "count()\n12\n"


def test_a_setting_can_be_given(ask_shop):
    assert (
        ask_shop("sql", "SELECT getSetting('max_threads') AS n", "--set", "max_threads=1").stdout == "n\n1\n"
    )


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("SELECT nope FROM records",), 1, r"Unknown expression identifier .?nope.*\[code 47\]$"),
        (("SELEC 1",), 1, r"Syntax error: .*\[code 62\]$"),
        (("SELECT FROM WHERE FORMAT JSON",), 1, r"\[code 62\]$"),
        (("SELECT 1 FROM nowhere",), 1, r"\[code 60\]; `auditspan sql 'SHOW TABLES'` lists the tables"),
        (("SELECT throwIf(number = 5000000) FROM numbers(6000000)",), 1, r"\[code 395\]$"),
        (("SELECT {x:String}",), 1, r"\[code 456\]; give each \{name:Type\} a value with --param"),
        (("SELECT 1", "--param", "x=1"), 2, r"--param x: the query has no \{x:Type\}$"),
        (("SELECT 1", "--param", "x"), 2, r"'x': allowed: name=value$"),
        (("SELECT 1", "--format", "a;b"), 2, r"allowed: pretty, tsv, csv, json, jsonl, or a format of ClickHouse$"),
        (("SELECT 1", "--format", "Nope"), 1, r"Unknown format Nope.*\[code 73\]$"),
        (("SELECT 1", "--set", "nope=1"), 1, r"\[code 115\]$"),
        (("  ",), 2, r"the query is empty$"),
        (("SELECT 1", "--url", "http://127.0.0.1:9"), 1, r"connection refused; no store there\? start one with `auditspan up`"),
    ],
)  # fmt: skip
def test_an_error_is_one_clear_line(ask_shop, arguments, status, says):
    ended = ask_shop("sql", *arguments)
    assert ended.status == status
    line = ended.stderr.splitlines()[-1]
    assert re.search(says, line)
    assert "DB::Exception" not in line
    assert len(line) < 400
    if status == 1:
        assert len(ended.stderr.splitlines()) == 1


def test_nothing_in_an_answer_can_act_on_a_terminal(ask_shop):
    query = "SELECT 'a\\x1b[2Jb\\x9b\\rc\\u202ed' AS x"
    for form in ("pretty", "tsv", "TSVRaw", "Vertical", "CSV"):
        shown = ask_shop.in_terminal("auditspan", "sql", query, "--format", form)
        assert shown.status == 0
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown.output)
        assert r"\x1b[2J" in shown.output


def test_a_pipe_gets_the_very_bytes(ask_shop):
    ended = ask_shop.as_program("sql", "SELECT 'a\\x1b[2Jé' AS x", "--format", "TSVRaw")
    assert ended.stdout == "a\x1b[2Jé\n"


def test_a_reader_that_has_seen_enough_ends_it_quietly(ask_shop):
    script = "auditspan sql 'SELECT number FROM numbers(3000000)' | head -2 | tail -1; echo ${PIPESTATUS[0]}"
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        env=ask_shop.environment,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("0\n0\n", "")


def test_without_a_query_in_a_terminal_it_says_how_to_give_one(ask_shop):
    shown = ask_shop.in_terminal("auditspan", "sql")
    assert shown.status == 2
    assert "no query: give it as an argument or on standard input" in shown.output
