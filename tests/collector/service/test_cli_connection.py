"""Which ClickHouse a reading command asks: the order, and what is said when it can't be told."""

from __future__ import annotations

import click
import pytest
from auditspan_collector.cli.connection import (
    connection_options,
    read_connection_file,
    resolve,
    write_connection_file,
)
from auditspan_collector.errors import ConfigError
from click.testing import CliRunner

RUNNING = {"url": "http://127.0.0.1:9123", "user": "reader", "password": "from up", "database": "audit"}


@pytest.fixture(autouse=True)
def own_home(monkeypatch, tmp_path):
    """A home without a running `auditspan up`, and none of the variables."""
    for name in ("AUDITSPAN_DATA", "AUDITSPAN_CLICKHOUSE_PASSWORD", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def data(tmp_path):
    """The data folder of a running `auditspan up`."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_connection_file(folder, **RUNNING)
    return folder


@pytest.fixture
def file(tmp_path):
    """A configuration file with an address of its own."""
    path = tmp_path / "auditspan.yaml"
    path.write_text(
        "clickhouse: {url: 'https://server:8443', user: writer, password: from file, database: other}"
    )
    return path


def shown(found):
    return (found.url, found.user, found.password, found.database)


def test_what_is_said_comes_before_the_file_before_a_running_up_before_the_default(data, file, monkeypatch):
    assert shown(resolve(url="http://h:1", config_file=file, data=data)) == (
        "http://h:1",
        "default",
        "",
        "audit",
    )
    assert shown(resolve(config_file=file, data=data)) == (
        "https://server:8443",
        "writer",
        "from file",
        "other",
    )
    assert shown(resolve(data=data)) == tuple(RUNNING.values())
    assert shown(resolve()) == ("http://127.0.0.1:8123", "default", "", "audit")
    monkeypatch.setenv("AUDITSPAN_DATA", str(data))
    assert shown(resolve()) == tuple(RUNNING.values())


def asked(*arguments, **variables):
    """What a command with these arguments and variables would ask."""
    found = []

    @click.command()
    @connection_options
    def command(connection):
        found.append(connection)

    environment = {f"AUDITSPAN_{name}": str(value) for name, value in variables.items()}
    CliRunner(env=environment).invoke(command, [str(each) for each in arguments], catch_exceptions=False)
    return shown(*found)


def test_a_store_on_the_command_line_comes_before_every_variable(data, file):
    server = {"CLICKHOUSE_URL": "http://h:1", "CLICKHOUSE_USER": "bob", "CLICKHOUSE_DATABASE": "x"}
    from_file = ("https://server:8443", "writer", "from file", "other")
    assert asked(**server) == ("http://h:1", "bob", "", "x")
    assert asked("--data", data, CONFIG=file, **server) == tuple(RUNNING.values())
    assert asked("--config", file, DATA=data, **server) == from_file
    assert asked("--config", file, "--data", data) == from_file
    assert asked("--url", "http://h:2", CONFIG=file, **server) == ("http://h:2", "bob", "", "x")


def test_user_and_database_come_before_those_of_a_file(data, file, monkeypatch):
    assert asked("--data", data, "--database", "old") == ("http://127.0.0.1:9123", "reader", "from up", "old")
    assert asked("--data", data, "--user", "bob") == ("http://127.0.0.1:9123", "bob", "", "audit")
    monkeypatch.setenv("AUDITSPAN_CLICKHOUSE_PASSWORD", "of bob")
    assert asked("--data", data) == tuple(RUNNING.values())
    assert asked("--user", "bob", CONFIG=file) == ("https://server:8443", "bob", "of bob", "other")
    assert asked("--user", "bob") == ("http://127.0.0.1:8123", "bob", "of bob", "audit")


def test_a_file_that_may_not_be_read_is_one_line(file, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    assert asked("--config", file)[0] == "https://server:8443"  # it is reading that says so, not a usage text


def test_a_running_up_in_the_usual_place_is_found(tmp_path):
    folder = tmp_path / "home" / ".local" / "share" / "auditspan"
    folder.mkdir(parents=True)
    write_connection_file(folder, **RUNNING)
    assert shown(resolve()) == tuple(RUNNING.values())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"url": "http://bob:p%40ss@h:1/"}, ("http://h:1/", "bob", "p@ss", "audit")),
        ({"url": "http://bob@h:1", "user": "carol"}, ("http://h:1", "carol", "", "audit")),
        ({"url": "https://h", "database": "x"}, ("https://h", "default", "", "x")),
        ({"url": "http://[::1]:8123"}, ("http://[::1]:8123", "default", "", "audit")),
        ({"url": "http://proxy/clickhouse"}, ("http://proxy/clickhouse", "default", "", "audit")),
    ],
)
def test_an_url_may_hold_a_user_and_a_password(given, expected):
    assert shown(resolve(**given)) == expected


def test_the_password_of_the_environment_comes_before_the_one_in_the_url(monkeypatch):
    monkeypatch.setenv("AUDITSPAN_CLICKHOUSE_PASSWORD", "from environment")
    assert resolve(url="http://bob:x@h:1").password == "from environment"


@pytest.mark.parametrize(
    "url", ["h:8123", "ftp://h", "http://", "http://h:port", "http://h:99999", "tcp://u:hunter2@h:9000"]
)
def test_an_url_that_is_none_is_one_line_without_its_password(url):
    with pytest.raises(ConfigError, match=r"^--url: .*allowed: http://host:8123") as caught:
        resolve(url=url)
    assert "hunter2" not in str(caught.value)


def test_a_data_folder_without_a_running_up_says_how_to_start_one(tmp_path):
    with pytest.raises(ConfigError, match="no `auditspan up` runs there; start it with"):
        resolve(data=tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"url": 5}',
        '{"url": "x"}',
        '{"url": "ftp://x", "user": "a", "password": "", "database": "d"}',
    ],
)
def test_a_file_that_up_did_not_write_is_one_line(tmp_path, content):
    (tmp_path / "connection").write_text(content)
    with pytest.raises(ConfigError, match="not written by `auditspan up`; delete it"):
        read_connection_file(tmp_path)


def test_the_file_is_for_this_user_only_and_replaced_in_one_step(data):
    assert (data / "connection").stat().st_mode & 0o777 == 0o600
    write_connection_file(data, **{**RUNNING, "password": "new"})
    assert read_connection_file(data).password == "new"
    assert [path.name for path in data.iterdir()] == ["connection"]
