"""deploy/clickhouse/users.sql, read by ClickHouse's own parser, and the script that runs it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from auditspan_collector.migrations import MIGRATIONS

FOLDER = Path(__file__).parents[2] / "deploy" / "clickhouse"
# Statements of the table's owner that a tamper-evident store must not hand to the process that writes into it.
NEVER = ("DROP", "TRUNCATE", "DELETE", "UPDATE", "OPTIMIZE", "ALL", "SYSTEM", "GRANT OPTION")

# The engine runs in a process of its own: it can be started once a process, and other tests have theirs.
PARSE = """
import json, sys, chdb
connection = chdb.connect(":memory:")
quote = lambda text: "'" + text.replace("\\\\", "\\\\\\\\").replace("'", "\\\\'") + "'"
print(json.dumps([str(connection.query(f"SELECT formatQuerySingleLine({quote(statement)})", "TSVRaw")).strip()
                  for statement in json.load(sys.stdin)]))
"""


def statements(text: str) -> list[str]:
    without_comments = re.sub(r"--[^\n]*", "", text)
    return [statement.strip() for statement in without_comments.split(";") if statement.strip()]


@pytest.fixture(scope="module")
def parsed():
    """Each statement as the engine's parser understands it; fails on one that it doesn't."""
    given = json.dumps(statements((FOLDER / "users.sql").read_text()))
    run = subprocess.run(
        [sys.executable, "-c", PARSE], input=given, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def granted(parsed: list[str], user: str) -> set[str]:
    """Privileges on audit.* that *user* has."""
    found: set[str] = set()
    for statement in parsed:
        if match := re.fullmatch(rf"GRANT (.+) ON audit\.\* TO {user}", statement):
            found |= set(match[1].split(", "))
    return found


def test_the_engine_parses_every_statement(parsed):
    assert len(parsed) == len(statements((FOLDER / "users.sql").read_text())) >= 10


def test_the_writer_may_append_and_never_change_or_remove(parsed):
    privileges = granted(parsed, "auditspan_writer")
    assert {"SELECT", "INSERT", "CREATE DATABASE", "CREATE TABLE", "CREATE VIEW"} <= privileges
    for privilege in privileges:
        assert not any(re.search(rf"\b{word}\b", privilege) for word in NEVER), privilege
    assert "ALTER" not in privileges, "ALTER alone includes UPDATE and DELETE"


def test_the_reader_may_only_read_within_limits(parsed):
    assert granted(parsed, "auditspan_reader") == {"SELECT", "SHOW"}
    profile = next(statement for statement in parsed if statement.startswith("ALTER SETTINGS PROFILE"))
    assert "readonly = 2" in profile
    assert re.search(r"max_execution_time = \d+ MAX \d+", profile)
    assert re.search(r"max_memory_usage = \d+ MAX \d+", profile)


def test_nothing_is_granted_outside_the_audit_database(parsed):
    grants = [statement for statement in parsed if statement.startswith("GRANT")]
    outside = [statement for statement in grants if " ON audit.* TO " not in statement]
    assert outside == ["GRANT TABLE ENGINE ON MergeTree TO auditspan_writer"]


def test_running_it_again_sets_passwords_anew_and_none_is_in_the_file(parsed):
    for user in ("writer", "reader"):
        secret = f"IDENTIFIED WITH sha256_hash BY {{{user}_sha256:String}}"
        assert any(s.startswith(f"CREATE USER IF NOT EXISTS auditspan_{user} {secret}") for s in parsed)
        assert any(s.startswith(f"ALTER USER auditspan_{user} {secret}") for s in parsed)


@pytest.fixture
def client(tmp_path):
    """A clickhouse-client that keeps what it is given."""
    stand_in = tmp_path / "clickhouse-client"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$KEPT"\n')
    stand_in.chmod(0o755)
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "KEPT": str(tmp_path / "kept"),
        "CLICKHOUSE_HOST": "clickhouse",
        "CLICKHOUSE_USER": "admin",
        "CLICKHOUSE_PASSWORD": "admin-password-of-the-test",
        "AUDITSPAN_WRITER_PASSWORD": "w" * 32,
        "AUDITSPAN_READER_PASSWORD": "r" * 32,
    }


def apply(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", str(FOLDER / "apply-users.sh")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_script_gives_the_client_hashes_and_no_password(client):
    assert apply(client).returncode == 0
    kept = Path(client["KEPT"]).read_text().splitlines()
    for name, letter in (("writer", "w"), ("reader", "r")):
        assert f"--param_{name}_sha256={hashlib.sha256(letter.encode() * 32).hexdigest()}" in kept
    assert kept[kept.index("--queries-file") + 1] == str(FOLDER / "users.sql")
    for secret in ("w" * 32, "r" * 32, client["CLICKHOUSE_PASSWORD"]):
        assert not any(secret in argument for argument in kept)


@pytest.mark.parametrize("password", ["", "short"])
def test_the_script_refuses_a_password_that_is_missing_or_short(client, password):
    refused = apply({**client, "AUDITSPAN_READER_PASSWORD": password})
    assert refused.returncode == 2
    assert not Path(client["KEPT"]).exists()
    assert "AUDITSPAN_READER_PASSWORD" in refused.stderr or "at least 32" in refused.stderr


def test_the_writer_may_run_every_statement_that_prepares_the_database(parsed):
    statements = [sql for migration in MIGRATIONS for sql in migration.statements("audit", "")]
    assert len(statements) >= len(MIGRATIONS) >= 2
    privileges = granted(parsed, "auditspan_writer")
    for sql in statements:
        words = re.sub(r" IF NOT EXISTS", "", sql).split()
        # CREATE TABLE and CREATE VIEW need the privilege of that name, ALTER TABLE x ADD COLUMN needs ALTER ADD COLUMN.
        needed = " ".join(words[:2]) if words[0] == "CREATE" else " ".join([words[0], *words[3:5]])
        assert needed in privileges, sql
        engines = set(re.findall(r"ENGINE = (\w+)", sql))
        assert engines <= {"MergeTree"}, "grant TABLE ENGINE on it as well"
