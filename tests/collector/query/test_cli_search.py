import csv
import io
import json
import os
import re
import signal
import subprocess
import time
import uuid
from contextlib import ExitStack

import pytest
from collector.query.commands import Commands
from collector.query.shelf import Shelf, serving

DAY = ("--since", "2026-11-24", "--until", "2026-11-24")
ANSI = re.compile(r"\x1b\[[0-9;]*m")

# An actor and a target that would repaint the screen, forge a row, turn the reading direction, run as a formula.
HOSTILE_ACTOR = "mallory\x1b[2J\x1b]0;owned\x07\r\nroot\u202etxt"
HOSTILE_TARGET = '=HYPERLINK("http://evil.example","x")'


def rows(output):
    return [line for line in output.splitlines() if re.match(r"\d\d:\d\d:\d\d", line)]


def test_a_terminal_of_80_columns_shows_a_row_on_a_line(ask_shop):
    shown = ask_shop.in_terminal("auditspan", "search", *DAY, "--outcome", "denied")
    assert shown.status == 0
    assert ANSI.sub("", shown.output).splitlines() == [
        "TIME     ACTOR            ACTION TARGET                OUTCOME  SERVICE TRACE",
        "2026-11-24 UTC",
        "10:15:22 bob@shop.example GRANT  user:bob@shop.example ⊘ denied gateway 29a7e964",
        "09:02:44 ?anonymous       LOGIN                        ⊘ denied gateway acc2df20",
        "2 records from 2026-11-24 00:00:00 UTC until 2026-11-25 00:00:00 UTC",
        "? unverified: nobody vouched for them",
    ]


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_no_line_runs_over_the_terminals_width(ask_shop, width):
    shown = ask_shop.in_terminal("auditspan", "search", *DAY, width=width)
    table = ANSI.sub("", shown.output).partition("\n12 records")[0]
    assert max(map(len, table.splitlines())) <= width
    assert len(rows(table)) == 12


def test_a_pipe_gets_whole_values_one_line_each_and_no_colour(ask_shop):
    piped = ask_shop("search", *DAY)
    lines = piped.stdout.splitlines()
    assert len(lines) == 13
    assert "\x1b" not in piped.stdout
    assert lines[1].split() == [
        "2026-11-24T16:20:51.340Z", "alice@shop.example", "support,refunds", "DELETE", "order:1199", "✓", "success",
        "gateway", "c1576b54",
    ]  # fmt: skip


def test_notes_go_to_the_person_and_not_into_the_data(ask_shop):
    piped = ask_shop("search", *DAY, "--format", "jsonl", "--limit", "2")
    assert len(piped.stdout.splitlines()) == 2
    assert piped.stderr == (
        "2 records from 2026-11-24 00:00:00 UTC until 2026-11-25 00:00:00 UTC; the newest, there are more: --limit\n"
    )


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ((), 12),
        (("--actor", "alice@shop.example"), 5),
        (("--actor", "*@shop.example", "--actor", "svc-*"), 11),
        (("--actor", "!*@shop.example"), 2),
        (("--role", "refunds"), 5),
        (("--action", "login"), 3),
        (("--outcome", "denied", "--outcome", "failure"), 3),
        (("--target", "order:*", "--action", "!create"), 1),
        (("--target", "1234"), 4),
        (("--service", "!gateway"), 4),
        (("--tenant", "default"), 12),
        (("--tenant", "other"), 0),
        (("--origin", "asserted"), 3),
        (("--client", "10.0.0.0/8"), 3),
        (("expired",), 1),
        (("wrong", "PASSWORD"), 1),
        (("eur",), 1),
    ],
)
def test_each_option_narrows_the_search(ask_shop, options, count):
    found = ask_shop("search", *DAY, "--format", "jsonl", *options)
    assert found.status == 0
    assert len(found.stdout.splitlines()) == count


def test_a_trace_id_is_looked_for_at_any_time(ask_shop):
    found = ask_shop("search", "--trace-id", "df6f8568", "--format", "jsonl")
    assert [json.loads(line)["service_name"] for line in found.stdout.splitlines()] == [
        "billing",
        "orders",
        "gateway",
    ]
    assert found.stderr == "3 records at any time\n"


def test_nothing_found_says_where_it_looked_and_is_no_error(ask_shop):
    found = ask_shop("search", "--actor", "nobody", *DAY)
    assert found.status == 0
    assert found.stdout == ""
    assert found.stderr == "no record from 2026-11-24 00:00:00 UTC until 2026-11-25 00:00:00 UTC\n"


def test_local_times_are_read_and_shown_in_the_systems_zone(ask_shop):
    found = ask_shop.as_program(
        "search", "--local", "--since", "2026-11-24T10:59", "--until", "2026-11-24T11:20"
    )
    assert found.stdout.splitlines()[1].startswith("2026-11-24T11:15:22.004 ")
    assert "from 2026-11-24 10:59:00 local time" in found.stderr


def test_the_oldest_come_first_when_asked(ask_shop):
    found = ask_shop("search", *DAY, "--oldest-first", "--limit", "1", "--format", "jsonl")
    assert json.loads(found.stdout)["start_time"] == "2026-11-24T08:59:12.101000000Z"


def test_json_is_one_array_and_jsonl_one_object_a_line_with_the_same_records(ask_shop):
    array = ask_shop("search", *DAY, "--format", "json")
    lines = ask_shop("search", *DAY, "--format", "jsonl")
    assert json.loads(array.stdout) == [json.loads(line) for line in lines.stdout.splitlines()]
    assert json.loads(ask_shop("search", *DAY, "--actor", "nobody", "--format", "json").stdout) == []


def test_columns_can_be_chosen_for_table_and_csv(ask_shop):
    found = ask_shop("search", *DAY, "--columns", "actor,reason", "--format", "csv", "--outcome", "failure")
    assert found.stdout.splitlines() == ["actor,reason", "bob@shop.example,card expired"]
    found = ask_shop("search", *DAY, "--columns", "actor,reason", "--outcome", "failure")
    assert found.stdout.splitlines() == ["ACTOR             REASON", "bob@shop.example  card expired"]


@pytest.fixture
def hostile(shelf, make_record):
    shelf.add(
        make_record(
            actor_id=HOSTILE_ACTOR,
            target_type="",
            target_id=HOSTILE_TARGET,
            service_name="[red]gateway[/red]",
            actor_roles=("a\nb",),
            reason="\x9b31m",
            start_time_unix_ns=time.time_ns() - 10**9,
        )
    )


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv"])
def test_nothing_in_a_record_can_act_on_a_terminal(hostile, auditspan, form):
    columns = () if "json" in form else ("--columns", "actor,roles,target,service,reason")
    shown = auditspan.in_terminal("auditspan", "search", "--format", form, *columns, width=400)
    assert shown.status == 0
    text = ANSI.sub("", shown.output)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "[red]gateway[/red]" in text
    assert len([line for line in text.splitlines() if "mallory" in line]) == 1


def test_json_holds_the_exact_text(hostile, auditspan):
    record = json.loads(auditspan("search", "--format", "jsonl").stdout)
    assert (record["actor_id"], record["target_id"]) == (HOSTILE_ACTOR, HOSTILE_TARGET)


def test_a_formula_is_disarmed_in_csv(hostile, auditspan):
    piped = auditspan.as_program("search", "--format", "csv", "--columns", "actor,target")
    header, (actor, target) = csv.reader(io.StringIO(piped.stdout, newline=""))
    assert header == ["actor", "target"]
    assert actor == HOSTILE_ACTOR
    assert target == "'" + HOSTILE_TARGET


def test_a_terminal_without_unicode_is_served_too(ask_shop):
    shown = ask_shop.in_terminal("auditspan", "search", *DAY, PYTHONIOENCODING="ascii")
    assert shown.output.isascii()
    assert "! denied" in shown.output


def test_no_color_is_respected(ask_shop):
    shown = ask_shop.in_terminal("auditspan", "search", *DAY, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3\dm", shown.output)


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv"])
def test_a_reader_that_has_seen_enough_ends_it_quietly(shelf, auditspan, make_record, form):
    now = time.time_ns()
    shelf.add(
        *(
            make_record(start_time_unix_ns=now - n, record_id=uuid.UUID(int=n).bytes, reason="x" * 500)
            for n in range(900)
        )
    )
    script = f"auditspan search --limit 900 --format {form} --columns reason,trace | head -1 > /dev/null; echo ${{PIPESTATUS[0]}}"
    if "json" in form:
        script = script.replace("--columns reason,trace ", "")
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        env=auditspan.environment,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (("--since", "soon"), 2, "'soon' is not a time; allowed: an age"),
        (("--since", "1h", "--until", "2h"), 2, "swap --since and --until"),
        (("--outcome", "deny"), 2, "'deny' is no outcome; allowed: success, failure, denied, unknown"),
        (("--client", "10.0.0.0/99"), 2, "is no network"),
        (("--trace-id", "xyz"), 2, "is not a trace id"),
        (("--columns", "actor,nope"), 2, "'nope' is no column; allowed: time, received"),
        (("--columns", "actor", "--format", "jsonl"), 2, "--columns is for table and csv"),
        (("--follow", "--format", "json"), 2, "--follow has no end"),
        (("--url", "http://127.0.0.1:9"), 1, "http://127.0.0.1:9: connection refused; no store there? start one with `auditspan up`"),
        (("--database", "nowhere"), 1, "which creates it"),
    ],
)  # fmt: skip
def test_an_error_is_one_clear_line(auditspan, options, status, says):
    ended = auditspan("search", *options)
    assert ended.status == status
    assert ended.stdout == ""
    assert says in ended.stderr.splitlines()[-1]
    if not ended.stderr.startswith("Usage"):
        assert len(ended.stderr.splitlines()) == 1


def test_help_shows_examples(ask_shop):
    shown = ask_shop("search", "--help").stdout
    assert "Examples:\n    auditspan search --actor alice" in shown
    assert "PATTERN" in shown


def test_a_start_time_in_the_future_does_not_stand_first_for_ever(shelf, auditspan, make_record):
    now = time.time_ns()
    for number, (name, start) in enumerate(
        [("alice", now), ("ahead", now + 60 * 10**9), ("mallory", 2**63 - 1)]
    ):
        shelf.add(
            make_record(actor_id=name, start_time_unix_ns=start, record_id=uuid.UUID(int=number + 1).bytes),
            stream=f"default/{name}/00",
        )
    found = auditspan("search", "--limit", "2", "--columns", "actor")
    assert found.stdout.split() == ["ACTOR", "ahead", "alice"]
    first, second = found.stderr.splitlines()[:2]
    assert re.fullmatch(r"2 records from .* until now", first)
    assert second == "1 record later than now, by the senders' clocks: `--since now` shows them"
    assert "mallory" in auditspan("search", "--since", "now").stdout
    assert "later than now" not in auditspan("search", "--until", "now").stderr


def read_until(terminal, text, within_s=30):
    """What the terminal shows until *text* is among it."""
    output = b""
    deadline = time.monotonic() + within_s
    while text.encode() not in output:
        assert time.monotonic() < deadline, output
        output += os.read(terminal, 65536)
    return ANSI.sub("", output.decode())


def test_following_shows_what_there_is_then_what_comes_and_ends_cleanly(shelf, auditspan, make_record):
    now = time.time_ns()
    shelf.add(make_record(actor_id="early", start_time_unix_ns=now, record_id=uuid.UUID(int=1).bytes))
    with auditspan.started_in_terminal("auditspan", "search", "--follow", "--poll-seconds", "0.1") as (
        process,
        terminal,
    ):
        shown = read_until(terminal, "Ctrl-C ends")
        assert len(rows(shown)) == 1
        assert "following; 1 earlier from" in shown
        late, other = (
            make_record(
                actor_id=name,
                start_time_unix_ns=now - 10**15,
                received_time_unix_ms=now // 10**6 + number,
                record_id=uuid.UUID(int=number).bytes,
            )
            for number, name in ((2, "late"), (3, "other"))
        )
        shelf.add(late)
        shelf.add(other, stream="default/b/00")
        shown = read_until(terminal, "other")
        assert [line.split()[1] for line in rows(shown)] == ["late", "other"]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    # Nothing but the line break after ^C: no "Aborted!", no traceback.


def test_following_as_jsonl_writes_each_record_at_once(shelf, auditspan, make_record):
    command = [
        "auditspan",
        "search",
        "--follow",
        "--poll-seconds",
        "0.1",
        "--format",
        "jsonl",
        "--action",
        "DELETE",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=auditspan.environment
    ) as process:
        assert "following; 0 earlier" in process.stderr.readline()
        shelf.add(make_record(record_id=uuid.UUID(int=1).bytes))
        shelf.add(make_record(record_id=uuid.UUID(int=2).bytes, action="DELETE"))
        assert json.loads(process.stdout.readline())["action"] == "DELETE"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert process.stderr.read().strip() == ""


def test_following_goes_on_when_the_store_comes_back(tmp_path, make_record):
    def record(number):
        return make_record(actor_id=f"actor{number}", record_id=uuid.UUID(int=number).bytes)

    with ExitStack() as running:
        with serving(tmp_path) as url:
            shelf = Shelf(url, "audit")
            shelf.add(record(1))
            command = ("auditspan", "search", "--follow", "--poll-seconds", "0.1")
            _, terminal = running.enter_context(Commands(shelf).started_in_terminal(*command))
            read_until(terminal, "Ctrl-C ends")
            shelf.add(record(2))
            read_until(terminal, "actor2")
            shelf.client.close()
        assert "; trying again until it is back" in read_until(terminal, "is back")
        with serving(tmp_path, port=url.rpartition(":")[2]):
            shelf = Shelf(url, "audit")
            shelf.add(record(3), first=2)
            shown = read_until(terminal, "actor3")
            shelf.client.close()
        assert "the store is back" in shown or "the store is back" in read_until(terminal, "store is back")
        assert "actor2" not in shown


def test_bytes_that_are_no_text_are_an_error(ask_shop):
    done = subprocess.run(
        [b"auditspan", b"search", b"--actor", b"\xff\xfe"],
        capture_output=True,
        env=ask_shop.environment,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert b"is not text in UTF-8" in done.stderr
    assert len(done.stderr.splitlines()) == 1
