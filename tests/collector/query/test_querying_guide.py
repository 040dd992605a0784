"""docs/querying.md tells the truth: each of its commands gives what is printed there, each statement has an answer."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[3] / "docs" / "querying.md"
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


def sessions():
    """Each command of the console blocks and the output under it."""
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            end = next(number for number, line in enumerate(lines) if not line.endswith("\\")) + 1
            yield "\n".join(lines[:end]), "\n".join(lines[end:])


def shown(ask_shop, command):
    """What a terminal of 100 columns shows."""
    ended = ask_shop.in_terminal("bash", "-o", "pipefail", "-c", command, width=100, NO_COLOR="1")
    assert ended.status == 0, ended.output
    return ANSI.sub("", ended.output).rstrip("\n")


@pytest.mark.parametrize(
    ("command", "output"), list(sessions()), ids=[command[:60] for command, _ in sessions()]
)
def test_a_command_shows_what_the_guide_says(ask_shop, command, output):
    assert shown(ask_shop, command) == output.rstrip("\n")


@pytest.mark.parametrize(
    "statement", blocks("sql"), ids=[sql.strip().splitlines()[0][:60] for sql in blocks("sql")]
)
def test_a_statement_of_the_cookbook_has_an_answer(ask_shop, statement):
    ended = ask_shop("sql", text=statement)
    assert ended.status == 0, ended.stderr
    # The gateway did not know that a record of its got lost; test_faults_of_services has one that did.
    assert len(ended.stdout.splitlines()) >= (1 if "'LOSE'" in statement else 2)


def test_the_gap_in_the_gateways_numbers_is_found(ask_shop):
    (statement,) = [sql for sql in blocks("sql") if "lagInFrame(sequence_number)" in sql]
    assert ask_shop("sql", text=statement).stdout.splitlines()[1:] == ["gateway-7f3a\t4\t4"]


def test_the_program_prints_what_the_guide_says(ask_shop):
    (program,), (output,) = blocks("python"), blocks("text")
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=ask_shop.environment,
        timeout=60,
        check=True,
    )
    assert done.stdout == output


def test_every_filter_is_in_the_guide(ask_shop):
    options = re.findall(r"^  (?:-\w, )?(--[\w-]+)", ask_shop("search", "--help").stdout, re.MULTILINE)
    text = GUIDE.read_text(encoding="utf-8")
    connection = {"--url", "--user", "--database", "--config", "--data"}
    unnecessary = {"--help", "--poll-seconds", "--oldest-first", "--utc"} | connection
    assert [
        option
        for option in options
        if option not in unnecessary and f"`{option}" not in text and f" {option}" not in text
    ] == []
