"""Starting on a folder and a port, and every way in which that can't be done: one clear line each."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from auditspan_collector.errors import ConfigError, StoreInUse
from auditspan_collector.store import Config, EmbeddedStore, User
from collector.store.running_store import launch


def refusal(path, **config) -> str:
    """What a store says that does not start."""
    process, said = launch({"path": str(path), **config})
    process.stdin.close()
    process.stdout.close()
    assert process.wait(30) == 1, said
    assert "\n" not in said
    return said


def test_a_store_says_where_it_is_reached(start, tmp_path):
    store = start(tmp_path / "made" / "on the way")
    address = (store.path / "store.address").read_text()
    assert address == f"127.0.0.1:{store.port}\n"
    assert store.stop() == 0
    assert not (store.path / "store.address").exists()


def test_only_the_owner_may_look_into_the_folder(start):
    store = start()
    store.sql("CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a")
    for folder in (store.path, store.path / "data", store.path / "results"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
    for file in (p for p in store.path.iterdir() if p.is_file() and p.name != "store.address"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_what_was_stored_is_there_after_a_restart(start, tmp_path):
    first = start(tmp_path / "s")
    first.sql("CREATE DATABASE audit")
    first.sql("CREATE TABLE audit.t (a UInt8) ENGINE = MergeTree ORDER BY a")
    first.sql("INSERT INTO audit.t VALUES (7)")
    first.stop()
    second = start(tmp_path / "s")
    assert second.sql("SELECT a FROM audit.t") == "7"
    second.kill()
    assert start(tmp_path / "s").sql("SELECT a FROM audit.t") == "7"


def test_a_folder_in_use_names_itself_and_its_owner(start, tmp_path):
    first = start(tmp_path / "s")
    said = refusal(tmp_path / "s")
    assert said == (
        f"StoreInUse: store.path: {tmp_path / 's'} is in use by process {first.pid}; stop it, or choose another folder"
    )
    assert first.sql("SELECT 1") == "1"
    assert not StoreInUse.retryable


def test_a_folder_is_free_after_kill_9(start, tmp_path):
    start(tmp_path / "s").kill()
    assert start(tmp_path / "s").sql("SELECT 1") == "1"


def test_a_port_in_use_is_told(start, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = refusal(tmp_path / "s", listen=address)
    assert said == (
        f"ConfigError: store.listen: {address} is in use by another process; choose another port (0 picks a free one)"
    )


def test_an_address_that_is_not_of_this_machine_is_told(tmp_path):
    said = refusal(tmp_path / "s", listen="192.0.2.1:0", users=[{"name": "alice", "password": "x"}])
    assert said.startswith("ConfigError: store.listen: 192.0.2.1:0 can't be listened on: ")


def test_a_path_that_is_no_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    assert (
        refusal(tmp_path / "file")
        == f"ConfigError: store.path: {tmp_path / 'file'} can't be used: File exists"
    )
    assert "Not a directory" in refusal(tmp_path / "file" / "below")


def test_a_folder_that_can_not_be_written_is_told():
    # /proc takes no files, not even from root.
    assert refusal("/proc/store").startswith("ConfigError: store.path: /proc/store can't be used: ")


def test_a_full_disk_is_told():
    if not os.access("/dev/full", os.W_OK):
        pytest.fail("this system has no /dev/full")
    program = textwrap.dedent(
        """
        import pathlib, sys
        from auditspan_collector.errors import StoreUnavailable
        from auditspan_collector.store import embedded
        try:
            with embedded._disk_errors(pathlib.Path("/data")), open("/dev/full", "wb", buffering=0) as full:
                full.write(b"x")
        except StoreUnavailable as error:
            print(error.retryable, error)
        """
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said == "True store.path: no space left for /data; free some, or choose another disk\n"


@pytest.mark.parametrize("character", ["?", "&", "%", "#"])
def test_a_path_that_the_engine_would_misread_is_told(tmp_path, character):
    assert "which the engine can't open" in refusal(tmp_path / f"a{character}b")


@pytest.mark.parametrize("name", ["with space", "ünï", "a+b=c;d", "it's"])
def test_other_paths_are_fine(start, tmp_path, name):
    store = start(tmp_path / name)
    assert store.sql("SELECT path FROM system.disks WHERE name = 'default'").replace("\\'", "'") == (
        f"{tmp_path / name}/data/"
    )


def test_a_damaged_folder_shows_the_engines_words(start, tmp_path):
    store = start(tmp_path / "s")
    store.sql("CREATE DATABASE audit")
    store.stop()
    (tmp_path / "s" / "data" / "metadata" / "audit.sql").write_text("nonsense")
    process, said = launch({"path": str(tmp_path / "s")})
    process.stdin.close()
    rest = process.stdout.read().decode()
    process.stdout.close()
    assert process.wait(30) == 1
    assert said.startswith(f"StoreRejected: store.path: the engine can't open {tmp_path / 's' / 'data'}: ")
    assert "SYNTAX_ERROR" in said + rest


def test_without_the_extra_it_says_what_to_install(tmp_path):
    program = textwrap.dedent(
        f"""
        import sys
        for name in ("chdb", "lz4", "zstandard"):
            sys.modules[name] = None  # as if it were not installed
        from auditspan_collector.errors import ConfigError
        from auditspan_collector.store import Config, EmbeddedStore
        try:
            EmbeddedStore(Config(path={str(tmp_path / "s")!r})).start()
        except ConfigError as error:
            print(error)
        """
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.startswith("the embedded store needs ")
    assert said.endswith("which is not installed; run: pip install 'auditspan-collector[embedded]'\n")
    assert not (tmp_path / "s").exists()


def test_the_settings_alone_do_not_load_the_engine():
    program = "import sys; import auditspan_collector.store; print([m for m in ('chdb', 'lz4', 'zstandard') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_an_engine_that_is_not_confined_does_not_start(start, tmp_path):
    """As with a version of chDB that lets something through: here, the function in front of `file` is gone."""
    program = textwrap.dedent(
        f"""
        from auditspan_collector.errors import StoreRejected
        from auditspan_collector.store import Config, EmbeddedStore, confinement
        confinement._SHADOWED.clear()
        try:
            EmbeddedStore(Config(path={str(tmp_path / "s")!r}, listen="127.0.0.1:0")).start()
        except StoreRejected as error:
            print(error)
        """
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.startswith(
        "the engine does not stay inside its folder: SELECT file('probe') ended with code "
    )


def test_an_engine_that_hides_refused_rows_does_not_start(tmp_path):
    """As with an engine whose way of taking data says OK too early; chDB's streaming insert is one."""
    program = textwrap.dedent(
        f"""
        from auditspan_collector.errors import StoreRejected
        from auditspan_collector.store import Config, EmbeddedStore
        from auditspan_collector.store.engine import Connection

        def streaming(self, found, source):
            source.seek(0)
            handle = self._raw.send_insert(found.target + found.settings, found.format)
            self._raw.insert_append(handle, source.read())
            self._raw.insert_done(handle)

        Connection.insert = streaming
        try:
            EmbeddedStore(Config(path={str(tmp_path / "s")!r}, listen="127.0.0.1:0")).start()
        except StoreRejected as error:
            print(error)
        """
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.startswith("the engine does not tell when a table refuses rows: ")


def test_configuration_files_of_clickhouse_elsewhere_are_not_read(start, tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / ".clickhouse-local").mkdir(parents=True)
    hostile = "<clickhouse><max_server_memory_usage>1</max_server_memory_usage></clickhouse>"
    (home / ".clickhouse-local" / "config.xml").write_text(hostile)
    (home / "config.xml").write_text(hostile)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    assert start(tmp_path / "s").sql("SELECT sum(number) FROM numbers(1000000)") == "499999500000"


def test_a_store_can_be_copied_and_moved(start, tmp_path):
    first = start(tmp_path / "s")
    first.sql("CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a")
    first.sql("INSERT INTO t VALUES (7)")
    first.stop()
    shutil.copytree(tmp_path / "s", tmp_path / "copy", symlinks=True)
    assert start(tmp_path / "copy").sql("SELECT a FROM t") == "7"


# Settings that can't be.


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"listen": "8123"}, "listen: '8123' is no address; allowed: host:port"),
        ({"listen": "::1:8123"}, "is no address"),
        ({"listen": "127.0.0.1:x"}, "is no address"),
        ({"listen": "127.0.0.1:70000"}, "port 70000 does not exist; allowed: 0 to 65535"),
        ({"listen": "0.0.0.0:8123"}, "users: none, and 0.0.0.0:8123 can be reached from other machines"),
        ({"listen": "[::]:8123"}, "users: none"),
        ({"listen": "example.com:8123"}, "users: none"),
        ({"listen": "0.0.0.0:8123", "users": (User(name="alice"),)}, "'alice' has no password"),
        ({"users": (User(name="a"), User(name="a", password="x"))}, "'a' is there twice"),
    ],
)
def test_an_unsafe_or_impossible_setting_is_refused(settings, problem):
    with pytest.raises(ConfigError) as refused:
        Config(**settings)
    assert problem in str(refused.value)


def test_a_store_without_a_path_does_not_start():
    with pytest.raises(ConfigError, match=r"store\.path: empty"):
        EmbeddedStore(Config()).start()


def test_passwords_stay_out_of_representations():
    assert "s3cret" not in repr(Config(users=(User(name="alice", password="s3cret"),)))


def test_every_loopback_address_can_be_listened_on(start):
    store = start(listen="[::1]:0")
    assert store.url.startswith("http://[::1]:")
    with socket.create_connection(("::1", store.port), timeout=10) as connection:
        connection.sendall(b"GET /ping HTTP/1.1\r\nHost: [::1]\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_process_can_start_its_store_again(tmp_path):
    program = textwrap.dedent(
        f"""
        import urllib.request
        from auditspan_collector.store import Config, EmbeddedStore
        store = EmbeddedStore(Config(path={str(tmp_path / "s")!r}, listen="127.0.0.1:0"))
        for number in range(3):
            store.start()
            assert urllib.request.urlopen(store.url + "/?query=SELECT+1").read() == b"1\\n"
            store.stop(1)
            store.stop(1)
        print("done")
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_signals_stay_those_of_the_program(tmp_path):
    """The engine would take them for itself."""
    program = textwrap.dedent(
        f"""
        import os, signal
        from auditspan_collector.store import Config, EmbeddedStore
        store = EmbeddedStore(Config(path={str(tmp_path / "s")!r}, listen="127.0.0.1:0"))
        signal.signal(signal.SIGTERM, lambda *_: print("told"))
        store.start()
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
        except KeyboardInterrupt:
            print("interrupted")
        store.stop()
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "told\ninterrupted\n"


def test_the_documentation_names_every_setting():
    documented = (Path(__file__).parents[3] / "docs" / "embedded-store.md").read_text()
    for name in Config.__struct_fields__:
        assert f"| `store.{name}` |" in documented, name
