"""deploy/compose/collector.yaml is a configuration that the collector takes as it is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from auditspan_collector import config

FILE = Path(__file__).parents[2] / "deploy" / "compose" / "collector.yaml"
VARIABLES = re.findall(r"\$\{env:(\w+)\}", str(yaml.safe_load(FILE.read_text())))
ENVIRONMENT = {name: f"{name.lower()}-of-the-test-{'x' * 16}" for name in VARIABLES}


@pytest.fixture
def file(tmp_path):
    """The file, with a spool in a folder that this test may write to, wherever that is."""
    text = FILE.read_text()
    assert text.count("path: /var/lib/auditspan/spool\n") == 1
    here = text.replace(
        "path: /var/lib/auditspan/spool\n", f"path: {tmp_path / 'spool'}\n  allow_memory_filesystem: true\n"
    )
    copy = tmp_path / "collector.yaml"
    copy.write_text(here)
    return copy


def check(file: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("auditspan")), "config", "check", str(file)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_config_check_says_ok_and_shows_no_secret(file):
    checked = check(file, ENVIRONMENT)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.startswith("OK: ")
    for secret in ENVIRONMENT.values():
        assert secret not in checked.stdout


@pytest.mark.parametrize("name", VARIABLES)
def test_without_one_of_its_secrets_the_collector_does_not_start(file, name):
    checked = check(file, {key: value for key, value in ENVIRONMENT.items() if key != name})
    assert checked.returncode == 2
    assert name in checked.stderr


def test_nobody_without_a_token_gets_a_record_in():
    loaded = config.load(FILE, environ=ENVIRONMENT)
    assert loaded.receiver.anonymous in {"auto", "refuse"}
    assert {sender.name: sender.services for sender in loaded.receiver.senders} == {
        "gateway": ("gateway",),
        "orders": ("orders",),
        "billing": ("billing",),
        "shipping": ("shipping",),
        "backoffice": ("backoffice",),
    }


def test_the_collector_writes_as_the_account_that_users_sql_makes():
    users = (FILE.parents[1] / "clickhouse" / "users.sql").read_text()
    assert f"CREATE USER IF NOT EXISTS {config.load(FILE, environ=ENVIRONMENT).clickhouse.user} " in users
