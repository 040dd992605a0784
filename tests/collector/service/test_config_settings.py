"""The configuration file: what is taken, and the one line that each mistake gets."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from auditspan_collector import config
from auditspan_collector.cli.data_folder import make_private_folder
from auditspan_collector.config import reference
from auditspan_collector.errors import ConfigError
from hypothesis import given, settings
from hypothesis import strategies as st

DATA = Path("/data")
TOKEN = "0123456789abcdef"
DOCUMENT = Path(__file__).parents[3] / "docs" / "configuration.md"


def parse(text, **environ):
    return config.parse(text, data=DATA, environ=environ)


def test_every_default_is_usable_without_a_file():
    found = config.load(None, data=DATA, environ={})
    assert found.receiver.grpc.listen == "127.0.0.1:4317"
    assert found.receiver.http.listen == "127.0.0.1:4318"
    assert (found.spool.path, found.store.path) == ("/data/spool", "/data/store")
    assert found.clickhouse.url == "http://127.0.0.1:8123"
    assert re.fullmatch(r"[A-Za-z0-9._-]+", found.collector.name)


@pytest.mark.parametrize(
    "text", ["", "\n# only a comment\n", "---\n", "null", "spool:\nreceiver:\n  grpc:\n", "{}"]
)
def test_what_is_left_out_has_its_default(text):
    assert parse(text) == parse("")


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"AUDITSPAN_DATA": "/a", "XDG_DATA_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_DATA_HOME": "/b", "HOME": "/c"}, "/b/auditspan"),
        ({"XDG_DATA_HOME": "relative", "HOME": "/c"}, "/c/.local/share/auditspan"),
        ({"HOME": "/c"}, "/c/.local/share/auditspan"),
    ],
    ids=["named", "xdg", "relative xdg", "home"],
)
def test_the_data_folder_is_found_in_this_order(environ, folder):
    assert config.default_data_folder(environ) == Path(folder)
    assert config.load(None, environ=environ).spool.path == f"{folder}/spool"


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        ("67108864", 67108864),
        ("64MiB", 64 << 20),
        ("1GiB", 1 << 30),
        ("0.5 GiB", 1 << 29),
        ("100MB", 10**8),
        ("0x4000000", 1 << 26),
    ],
)
def test_a_size_is_bytes_or_has_a_unit(written, size_bytes):
    assert parse(f"spool: {{max_bytes: {written}}}").spool.max_bytes == size_bytes


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("5", 5), ("2.5", 2.5), ("5s", 5), ("500ms", 0.5), ("1m30s", 90), ("1h", 3600), ("1e2", 100)],
)
def test_a_duration_is_seconds_or_has_a_unit(written, seconds):
    assert parse(f"receiver: {{http: {{read_timeout_s: {written}}}}}").receiver.http.read_timeout_s == seconds


@pytest.mark.parametrize(
    ("written", "password"),
    [
        ("${env:PW}", "pass word"),
        ("'${env:PW}'", "pass word"),
        ("a${env:PW}b", "apass wordb"),
        ("${env:NUMBER}", "12345"),
        ("${env:TRUE}", "true"),
        ("${env:EMPTY:-other}", "other"),
        ("${env:UNSET:-other}", "other"),
        ("${env:UNSET:-}", ""),
        ("$$1", "$1"),
        ("$${env:PW}", "${env:PW}"),
        ("a$b", "a$b"),
        ("${env:SNEAKY}", "${env:PW}: [x]"),
    ],
)
def test_a_value_may_come_from_the_environment(written, password):
    environ = {"PW": "pass word", "NUMBER": "12345", "TRUE": "true", "EMPTY": "", "SNEAKY": "${env:PW}: [x]"}
    assert parse(f"clickhouse:\n  password: {written}\n", **environ).clickhouse.password == password


def test_a_number_may_come_from_the_environment():
    assert parse("spool:\n  max_bytes: ${env:SIZE}", SIZE="64MiB").spool.max_bytes == 64 << 20
    assert parse("receiver:\n  grpc:\n    threads: ${env:N:-7}").receiver.grpc.threads == 7


SENDER = f"receiver:\n  senders:\n  - name: shop\n    token: {TOKEN}x\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spol: {}", "spol: unknown; did you mean spool? allowed: collector, receiver, .* (line 1)"),
        ("receiver:\n  grcp: {}", "receiver.grcp: unknown; did you mean grpc? allowed: grpc, http, .* (line 2)"),
        ("receiver: {x: 1}", "receiver.x: unknown; allowed: grpc, .*"),
        ("spool: {}\nspool: {}", "spool: stands here twice; keep one (line 2)"),
        ("spool: {path: /a, path: /b}", "spool.path: stands here twice; keep one (line 1)"),
        ("spool: 5", "spool: 5; allowed: the settings path, .*"),
        ("spool: []", "spool: a list; allowed: the settings path, .*"),
        ("spool: {max_bytes: lots}", "spool.max_bytes: 'lots'; allowed: bytes, or a size such as 16MiB (line 1)"),
        ("spool: {max_bytes: 5 s}", "spool.max_bytes: '5 s'; allowed: bytes, .*"),
        ("spool: {max_bytes: [1]}", "spool.max_bytes: a list; allowed: bytes, .*"),
        ("spool: {max_bytes: }", "spool.max_bytes: empty; allowed: bytes, .*"),
        ("spool: {path: 7}", "spool.path: 7; allowed: text; put it in quotes if it is meant as text (line 1)"),
        ("receiver: {grpc: {threads: 0}}", "receiver.grpc.threads: 0; allowed: a whole number, from 1 to 1024 (line 1)"),
        ("receiver: {grpc: {threads: 1.5}}", "receiver.grpc.threads: 1.5; allowed: a whole number, .*"),
        ("receiver: {grpc: {threads: '8'}}", "receiver.grpc.threads: '8'; allowed: a whole number, .*"),
        ("receiver: {grpc: {threads: .inf}}", "receiver.grpc.threads: .inf; allowed: a whole number, .*"),
        ("receiver: {grpc: {threads: 5s}}", "receiver.grpc.threads: '5s'; allowed: a whole number, .*"),
        ("receiver: {insecure: yes}", "receiver.insecure: 'yes'; allowed: true or false (line 1)"),
        ("receiver: {insecure: 1}", "receiver.insecure: 1; allowed: true or false (line 1)"),
        ("receiver: {anonymous: maybe}", "receiver.anonymous: 'maybe'; allowed: one of accept, auto, refuse, trust (line 1)"),
        ("receiver: {http: {read_timeout_s: 2h}}", "receiver.http.read_timeout_s: '2h'; allowed: seconds, or a duration such as 5s, .*"),
        ("receiver: {http: {read_timeout_s: 0}}", "receiver.http.read_timeout_s: 0; allowed: seconds, .* above 0 to 3600 (line 1)"),
        ("receiver: {http: {listen: nope}}", "receiver.http.listen: 'nope' is no address; allowed: host:port, .*"),
        ("receiver: {grpc: {listen: '127.0.0.1:99999'}}", "receiver.grpc.listen: '127.0.0.1:99999': port 99999 does not exist; .*"),
        ("receiver: {grpc: {listen: '::1:4317'}}", "receiver.grpc.listen: '::1:4317' is no address; .*"),
        ("receiver: {max_message_bytes: 2GiB}", "receiver.max_message_bytes: '2GiB'; allowed: bytes, .* from 1KiB to 1GiB (line 1)"),
        ("receiver: {tls: {cert_file: /a.pem}}", "receiver.tls.key_file: empty; a certificate and its key are needed together (line 1)"),
        ("receiver: {tls: {client_ca_file: /a.pem}}", "receiver.tls.cert_file: empty; client_ca_file needs .*"),
        ("receiver:\n  senders:\n  - {name: a, token: short}", "receiver.senders[0].token: has 5 characters; allowed: at least 16, .* (line 3)"),
        (f"receiver:\n  senders:\n  - {{name: a, token: '{TOKEN} b'}}", "receiver.senders[0].token: has a space or .*"),
        ("receiver:\n  senders:\n  - {name: a}", "receiver.senders[0].token: missing; allowed: text (line 3)"),
        (f"receiver:\n  senders:\n  - {{name: '', token: {TOKEN}x}}", "receiver.senders[0].name: ''; allowed: text, at least 1 character, .*"),
        (f"{SENDER}  - {{name: shop, token: {TOKEN}y}}", "receiver.senders: two have the same name; each needs its own (line 2)"),
        (f"{SENDER}  - {{name: other, token: {TOKEN}x}}", "receiver.senders: two have the same token; each needs its own (line 2)"),
        (f"receiver:\n  senders:\n  - {{name: a, token: {TOKEN}x, services: shop-*}}", "receiver.senders[0].services: 'shop-*'; allowed: a list, each of it text .*"),
        ("receiver: {anonymous: refuse}", "receiver.anonymous: 'refuse' without senders refuses everything; .*"),
        ("receiver: {grpc: {listen: '0.0.0.0:4317'}}", "receiver.grpc.listen: 0.0.0.0:4317 can be reached from other machines, and anybody could write records; .*"),
        ("receiver: {http: {listen: '[::]:4318'}}", "receiver.http.listen: [::]:4318 can be reached from other machines, .*"),
        ("receiver: {http: {listen: 'example:4318'}}", "receiver.http.listen: example:4318 can be reached .*"),
        (f"{SENDER}  http: {{listen: '0.0.0.0:4318'}}", "receiver.http.listen: 0.0.0.0:4318 can be reached from other machines, and tokens would travel unencrypted; .*"),
        ("collector: {name: a/b}", "collector.name: 'a/b'; allowed: text, .*"),
        ("collector: {deployment: ''}", "collector.deployment: ''; allowed: text, .*"),
        ("telemetry: {metrics_listen: '127.0.0.1:4317'}", "telemetry.metrics_listen: 127.0.0.1:4317 is receiver.grpc.listen already; .*"),
        ("telemetry: {log_level: loud}", "telemetry.log_level: 'loud'; allowed: one of debug, error, info, warning (line 1)"),
        ("spool: {path: /x}\nstore: {path: /x/y}", "spool.path: /x and store.path: /x/y overlap; give each its own folder"),
        ("clickhouse: {url: 'ftp://x'}", "clickhouse.url: 'ftp://x'; allowed: http://host:8123 .*"),
        ("clickhouse:\n  password: ${env:UNSET}", "clickhouse.password: the environment variable UNSET is not set; .* (line 2)"),
        ("clickhouse:\n  password: ${UNSET}", "clickhouse.password: '${UNSET}'; allowed: ${env:NAME}, .* (line 2)"),
        ("clickhouse:\n  password: ${env:1}", "clickhouse.password: '${env:1}'; allowed: .*"),
        ("clickhouse: {password: ${env:PW}}", "not YAML: .* inside {...} or [...] write references in quotes: .* (line 1)"),
        ("spool: [", "not YAML: .* (line 1)"),
        ("\tspool: x", "not YAML: .* (line 1)"),
        ("a: 1\n---\nb: 2", "not YAML: .*"),
        ("spool: \x00", "not YAML: unacceptable character .*"),
        ("a: &x [*x]", "a[0].*: nested too deeply (line 1)"),
        ("just text", "the file holds no settings; .* (line 1)"),
        ("- a", "the file holds no settings; .* (line 1)"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line_with_path_value_and_what_is_allowed(text, message):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    found = str(caught.value)
    assert re.fullmatch(re.escape(message).replace(r"\.\*", ".*"), found), found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        ("clickhouse: {password: [hunter2hunter2]}", {}),
        ("clickhouse: {password: 20202020202020}", {}),
        ("receiver:\n  senders:\n  - {name: a, token: hunter2}", {}),
        ("receiver:\n  senders:\n  - {name: a, token: hunter2hunter2 hunter2}", {}),
        ("receiver:\n  senders:\n  - name: a\n    token: ${env:T}", {"T": "hunter2"}),
    ],
    ids=["list", "number", "short", "space", "environment"],
)
def test_no_error_shows_a_secret(text, environ):
    with pytest.raises(ConfigError) as caught:
        parse(text, **environ)
    assert "hunter2" not in str(caught.value)
    assert "2020" not in str(caught.value)


def test_what_is_shown_of_the_settings_hides_every_secret():
    found = parse(
        f"{SENDER}clickhouse: {{password: hunter2}}\nstore: {{users: [{{name: a, password: hunter2}}]}}"
    )
    shown = repr(config.effective(found))
    assert "hunter2" not in shown
    assert TOKEN not in shown
    assert shown.count("(hidden)") == 3
    assert "hunter2" not in repr(found.store)
    assert TOKEN not in repr(found.receiver)


def test_a_file_is_named_in_its_errors(tmp_path):
    file = tmp_path / "auditspan.yaml"
    file.write_text("spol: {}")
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(file))}: spol: unknown"):
        config.load(file, environ={})


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda _path: None, "can't be read (No such file or directory)"),
        (lambda path: path.mkdir(), "can't be read (Is a directory)"),
        (lambda path: path.write_bytes(b"a: \xff"), "not UTF-8 (byte 3)"),
    ],
    ids=["missing", "folder", "not text"],
)
def test_a_file_that_can_not_be_read_is_one_line(tmp_path, prepare, words):
    file = tmp_path / "auditspan.yaml"
    prepare(file)
    with pytest.raises(ConfigError, match=re.escape(words)):
        config.load(file, environ={})


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["receiver", "spool", "grpc", "listen", "senders", "name", "path", "x"]), inner, max_size=3),
    max_leaves=12,
))  # fmt: skip
def test_any_document_is_either_taken_or_refused_in_one_line(document):
    import yaml

    refused = ""
    try:
        parse(yaml.safe_dump(document, allow_unicode=True))
    except ConfigError as error:
        refused = str(error)
    assert "\n" not in refused


def test_the_spool_is_checked_where_it_would_be(tmp_path):
    found = parse(f"spool: {{path: {tmp_path}/spool, max_bytes: 1MiB}}")
    with pytest.raises(ConfigError, match=r"spool\.max_bytes"):
        config.check(found)
    config.check(
        parse(
            f"spool: {{path: {tmp_path}/spool, max_bytes: 64MiB, dedup_window_records: 1000, allow_memory_filesystem: true}}"
        )
    )
    assert not (tmp_path / "spool").exists()


def test_the_document_says_what_each_setting_does():
    missing = [path for section in msgspec.structs.fields(config.Config)
               for path, allowed, default, words in reference.settings(section.type, section.name) if not (allowed and default and words)]  # fmt: skip
    assert missing == []


def test_the_example_in_the_document_is_right():
    example = re.search(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[1]
    parse(example, AUDITSPAN_SHOP_TOKEN=TOKEN, CLICKHOUSE_PASSWORD="x")


def test_settings_are_read_without_the_embedded_engine():
    code = (
        "import sys; sys.modules['chdb'] = None; import auditspan_collector.config; "
        "print([m for m in ('grpc', 'uvicorn', 'prometheus_client') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_the_data_folder_is_private(tmp_path):
    folder = make_private_folder(tmp_path / "a" / "b")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert make_private_folder(folder) == folder
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be created"):
        make_private_folder(tmp_path / "file" / "x")
