"""The keys: what a file may hold, how it is replaced while services run, and what each kind of key believes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import os
import subprocess
import sys
import threading
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from auditspan.context import Actor, Upstream
from auditspan.propagation import KeyRing, Tokens, install, new_key
from auditspan.propagation.key_file import KeyFile
from auditspan.propagation.keys import QUEUES, REQUESTS, Ed25519Key, KeysError
from auditspan.propagation.letters import from_letters, to_letters
from auditspan.propagation.tokens import MAX_TOKEN_LENGTH, Claims, Rejected
from auditspan.settings import Settings
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import propagate

if TYPE_CHECKING:
    from collections.abc import Callable

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CLAIMS = Claims(TRACE, Actor("alice"), "00f067aa0ba902b7", "gateway")
OLD, NEW = "2026-10 " + "o" * 32, "2026-11 " + "n" * 32
PRIVATE, PUBLIC = new_key.lines("gateway-1", ed25519=True)


def tokens(*lines: str) -> Tokens:
    return Tokens(KeyRing.from_text("\n".join(lines)))


def verdict(token: str, judge: Tokens) -> str:
    try:
        return judge.verify(token, TRACE).actor.id
    except Rejected as reason:
        return str(reason)


# -- what a file may hold


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no key"),
        ("# only a comment\n\n", "no key"),
        ("justakey", "line 1: expected a key id and a secret"),
        ("a b c d", "line 1: expected"),
        (f"a rsa {'s' * 32}", "line 1: the word between key id and key must be ed25519 or ed25519-public"),
        ("a short", "line 1: the secret has 5 characters; 32"),
        ("b@d " + "s" * 32, "line 1: a key id is"),
        ("x" * 33 + " " + "s" * 32, "line 1: a key id is"),
        (f"a {'s' * 32}\na {'t' * 32}", "line 2: key id a occurs twice"),
        (f"{PUBLIC}\ngateway-1 {'s' * 32}", "line 2: key id gateway-1 occurs twice"),
        ("\n".join(f"k{number} {'s' * 32}" for number in range(17)), "17 keys"),
        (f"a ed25519 {'s' * 44}", "line 1: an ed25519 key is 32 bytes in base64"),
        ("a ed25519-public sss!", "line 1: an ed25519-public key is 32 bytes in base64"),
    ],
)
def test_keys_that_can_t_be_used_say_where_and_never_show_a_secret(text, problem):
    with pytest.raises(KeysError, match=problem) as raised:
        KeyRing.from_text(text)
    assert "sss" not in str(raised.value)


def test_comments_are_skipped_and_secrets_are_not_in_reprs():
    ring = KeyRing.from_text(
        "# rotated in spring\n\nnew " + "n" * 32 + "\n  old\t" + "o" * 40 + f"  \n{PRIVATE}"
    )
    assert (ring.signing_id, list(ring.keys)) == ("new", ["new", "old", "gateway-1"])
    shown = repr(ring) + "".join(map(repr, ring.keys.values()))
    for secret in ("nnn", "ooo", PRIVATE.split()[2]):
        assert secret not in shown
    assert repr(ring) == "KeyRing(signing_id='new')"


def test_without_cryptography_an_ed25519_key_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(KeysError, match=r"line 1: .*pip install 'auditspan\[ed25519\]'"):
        KeyRing.from_text(PUBLIC)
    assert KeyRing.from_text(NEW).signing_id == "2026-11"


def test_hmac_does_not_import_cryptography():
    code = (
        "import sys; from auditspan.propagation import KeyRing, Tokens; from auditspan.propagation.tokens import Claims;"
        f"t = Tokens(KeyRing.from_text('{NEW}')); t.verify(t.sign(Claims('{TRACE}')), '{TRACE}');"
        "sys.exit('cryptography' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=100))
def test_letters_are_base64_for_urls(content):
    letters = to_letters(content)
    assert letters == base64.urlsafe_b64encode(content).rstrip(b"=").decode()
    assert from_letters(letters) == from_letters(base64.b64encode(content).decode()) == content


# -- Ed25519


def test_who_has_the_public_key_verifies_and_can_not_sign():
    minted = tokens(PRIVATE).sign(CLAIMS)
    assert minted.startswith("gateway-1.")
    for judge in (tokens(PUBLIC), tokens(PRIVATE), tokens(NEW, PUBLIC)):
        assert judge.verify(minted, TRACE) == Upstream(
            Actor("alice", origin="asserted"), CLAIMS.parent_span_id, "gateway"
        )
    assert not tokens(PUBLIC).can_sign
    with pytest.raises(ValueError, match="no key to sign with"):
        tokens(PUBLIC).sign(CLAIMS)
    with pytest.raises(ValueError, match="does not sign"):
        Ed25519Key(public=from_letters(PUBLIC.split()[2])).sign(REQUESTS, b"")


def test_the_first_key_that_can_sign_does():
    assert tokens(PUBLIC, NEW, OLD).sign(CLAIMS).startswith("2026-11.")


def test_an_ed25519_token_is_over_the_purpose_and_the_parts_before_it():
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    public = Ed25519PublicKey.from_public_bytes(from_letters(PUBLIC.split()[2]))
    for queue, purpose in ((False, REQUESTS), (True, QUEUES)):
        payload, _, signature = tokens(PRIVATE).sign(CLAIMS, queue=queue).rpartition(".")
        public.verify(from_letters(signature), f"{purpose}\n{payload}".encode())


def test_a_long_list_of_roles_is_cut_to_fit_with_the_longer_signature_too():
    actor = Actor("alice", roles=tuple(f"role-{number}" for number in range(2000)))
    token = tokens(PRIVATE).sign(Claims(TRACE, actor), queue=True)
    assert len(token) <= MAX_TOKEN_LENGTH
    assert len(tokens(PUBLIC).verify(token, TRACE).actor.roles) > 50


def by_hmac(secret: bytes, key_id: str) -> str:
    """A token that the holder of *secret* would make under *key_id*, in all the ways that the secret could be meant."""
    payload = tokens(PRIVATE).sign(CLAIMS).rpartition(".")[0].replace("gateway-1", key_id)
    return f"{payload}.{to_letters(hmac.digest(secret, payload.encode(), hashlib.sha256))}"


def with_signature(signature: bytes, token: str) -> str:
    return f"{token.rpartition('.')[0]}.{to_letters(signature)}"


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (by_hmac(from_letters(PUBLIC.split()[2]), "gateway-1"), "wrong_algorithm"),
        (by_hmac(PUBLIC.split()[2].encode(), "gateway-1"), "wrong_algorithm"),
        (
            by_hmac(hmac.digest(PUBLIC.split()[2].encode(), REQUESTS.encode(), "sha256"), "gateway-1"),
            "wrong_algorithm",
        ),
        (tokens(PRIVATE.replace("gateway-1", "2026-11")).sign(CLAIMS), "wrong_algorithm"),
        (tokens(NEW).sign(CLAIMS).replace("2026-11", "gateway-1"), "wrong_algorithm"),
        (tokens(new_key.lines("gateway-1", ed25519=True)[0]).sign(CLAIMS), "bad_signature"),
        (with_signature(bytes(64), tokens(PRIVATE).sign(CLAIMS)), "bad_signature"),
        (with_signature(b"\xff" * 64, tokens(PRIVATE).sign(CLAIMS)), "bad_signature"),
        (tokens(PRIVATE).sign(CLAIMS, queue=True).removeprefix("q."), "bad_signature"),
        ("q." + tokens(PRIVATE).sign(CLAIMS), "bad_signature"),
        (tokens(PRIVATE).sign(CLAIMS)[:-43], "wrong_algorithm"),
    ],
    ids=[
        "HMAC with the public key as the secret",
        "HMAC with the public key's letters as the secret",
        "HMAC with what is derived from the public key's letters",
        "Ed25519 under the id of a secret",
        "HMAC under the id of a public key",
        "another private key under a known id",
        "a signature of zeroes",
        "a signature out of range",
        "signed for a queue and sent as for a request",
        "signed for a request and sent as for a queue",
        "half a signature",
    ],
)
def test_the_key_fixes_the_algorithm_and_the_token_never(token, reason):
    assert verdict(token, tokens(NEW, PUBLIC)) == reason


@pytest.mark.parametrize("ed25519", [False, True], ids=["a secret", "Ed25519"])
def test_a_new_key_is_made_on_the_command_line(ed25519, capsys):
    assert new_key.main(["2026-12", *(["--ed25519"] if ed25519 else [])]) == 0
    made = capsys.readouterr().out.splitlines()
    assert verdict(tokens(made[0]).sign(CLAIMS), tokens(made[-1])) == "alice"
    assert len(made) == 1 + ed25519


@pytest.mark.parametrize(
    ("arguments", "said"), [(["b@d"], "a key id is 1 to 32 letters"), ([], "key_id")], ids=["bad id", "no id"]
)
def test_a_key_that_can_t_be_made_is_an_error_of_use(arguments, said, capsys):
    with pytest.raises(SystemExit):
        new_key.main(arguments)
    assert said in capsys.readouterr().err


def test_a_new_ed25519_key_without_cryptography_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", ModuleType("nothing")
    )
    with pytest.raises(SystemExit):
        new_key.main(["2026-12", "--ed25519"])
    assert "auditspan[ed25519]" in capsys.readouterr().err


# -- a file that is replaced


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "keys"
    path.write_text(OLD)
    path.chmod(0o600)
    return path


@pytest.fixture
def key_file(path):
    """The file as a service sees it; ``rings`` are the keys that it used, one after the other."""
    rings: list[KeyRing] = []
    made = KeyFile(path, rings.append)
    made.rings = rings
    made.look()
    yield made
    made.close()


def ids(key_file: KeyFile) -> list[list[str]]:
    return [list(ring.keys) for ring in key_file.rings]


def test_a_changed_file_is_used_and_an_unchanged_one_is_not_read_as_new(key_file, path, caplog):
    caplog.set_level(logging.INFO)
    key_file.look()
    assert ids(key_file) == [["2026-10"]]
    path.write_text(f"{NEW}\n{OLD}")
    key_file.look()
    key_file.look()
    assert ids(key_file) == [["2026-10"], ["2026-11", "2026-10"]]
    assert "have changed: 2026-11, 2026-10, of which 2026-11 signs" in caplog.text
    assert "nnn" not in caplog.text


@pytest.mark.parametrize("way", ["rename", "symbolic link", "same size and time"])
def test_a_file_may_be_replaced_in_any_way(path, tmp_path, way):
    if way == "symbolic link":  # as Kubernetes does with secrets
        (tmp_path / "old").write_text(OLD)
        path.unlink()
        path.symlink_to("old")
    before = path.stat()
    rings: list[KeyRing] = []
    key_file = KeyFile(path, rings.append)
    key_file.look()
    (tmp_path / "new").write_text(NEW)
    if way == "rename":
        (tmp_path / "new").rename(path)
    elif way == "symbolic link":
        (tmp_path / "link").symlink_to("new")
        (tmp_path / "link").rename(path)
    else:
        path.write_text(NEW)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    key_file.look()
    assert [list(ring.keys) for ring in rings] == [["2026-10"], ["2026-11"]]


def make_folder(path) -> None:
    path.unlink()
    path.mkdir()


def make_pipe(path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_text("2026-11 short"), "line 1: the secret has 5 characters"),
        (lambda path: path.write_text(""), "no key in it"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "is not UTF-8 text"),
        (lambda path: path.write_text("# " + "x" * 70_000 + "\n" + NEW), "is larger than 65536 bytes"),
        (lambda path: path.unlink(), "No such file"),
        (make_folder, "is no regular file"),
        (make_pipe, "is no regular file"),
    ],
    ids=["weak", "empty", "binary", "huge", "gone", "a folder", "a pipe that nobody writes to"],
)
def test_a_broken_new_file_keeps_the_old_keys_and_says_so_once(key_file, path, caplog, spoil, said):
    spoil(path)
    for _ in range(3):
        key_file.look()
    assert ids(key_file) == [["2026-10"]]
    (warning,) = caplog.records
    assert said in warning.message
    assert warning.message.endswith("the keys from before stay in use")
    assert str(path) in warning.message


def test_a_mended_file_is_used_and_a_second_mistake_is_said_again(key_file, path, caplog):
    for text in ("2026-11 short", NEW, "2026-11 short", "2026-11 shorter", NEW):
        path.write_text(text)
        key_file.look()
        key_file.look()
    assert ids(key_file) == [["2026-10"], ["2026-11"]]
    assert [warning.message.count("characters") for warning in caplog.records] == [1, 1, 1]


def test_a_file_that_everybody_can_read_is_said_once_each_time(key_file, path, caplog):
    for mode in (0o644, 0o644, 0o640, 0o644):
        path.chmod(mode)
        key_file.look()
    assert caplog.text.count("every user of this host can read") == 2


def test_a_watched_file_is_read_without_being_asked_and_by_no_request(path):
    read = threading.Event()
    seen: list[tuple[str, str]] = []

    def changed(ring: KeyRing) -> None:
        seen.append((ring.signing_id, threading.current_thread().name))
        if ring.signing_id == "2026-11":
            read.set()

    key_file = KeyFile(path, changed)
    key_file.look()
    key_file.watch(look_s=0.01)
    path.with_name("new").write_text(NEW)
    path.with_name("new").rename(path)
    assert read.wait(30)
    key_file.close()
    assert seen == [("2026-10", threading.current_thread().name), ("2026-11", "auditspan-keys")]


def test_a_forked_child_reads_the_file_too(child, path):
    """As a worker of a server that loads the application before it forks."""
    process = child(
        """
        from auditspan.propagation.key_file import KeyFile
        rings = []
        key_file = KeyFile(folder, rings.append)
        key_file.look()
        key_file.watch(look_s=0.01)
        if os.fork() == 0:
            print("forked", flush=True)
            wait_until(lambda: rings[-1].signing_id == "2026-11")
            print("read", flush=True)
            os._exit(0)
        os.wait()
        """,
        path,
    )
    assert process.read() == "forked"
    path.with_name("new").write_text(NEW)
    path.with_name("new").rename(path)
    assert process.read() == "read"
    process.finish()


@pytest.fixture
def installed(monkeypatch) -> Callable[[Settings], Tokens]:
    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", propagate.get_global_textmap())
    monkeypatch.setattr("auditspan.propagation._guard", lambda *_: None)
    made = []

    def start(chosen: Settings):
        made.append(install(chosen, service="orders"))
        return made[-1]

    yield start
    for propagator in made:
        propagator.key_file.close()


def test_a_running_service_rotates_its_keys_and_forgets_those_that_were_removed(installed, path):
    propagator = installed(Settings(context_keys_file=path))
    by_old, by_new = tokens(OLD).sign(CLAIMS), tokens(NEW).sign(CLAIMS)
    assert (verdict(by_old, propagator.tokens), verdict(by_new, propagator.tokens)) == (
        "alice",
        "unknown_key",
    )
    path.write_text(f"{NEW}\n{OLD}")
    propagator.key_file.look()
    assert (verdict(by_old, propagator.tokens), verdict(by_new, propagator.tokens)) == ("alice", "alice")
    assert propagator.tokens.sign(CLAIMS).startswith("2026-11.")
    path.write_text(NEW)
    propagator.key_file.look()
    # It was verified a moment ago, and is cached no more.
    assert (verdict(by_old, propagator.tokens), verdict(by_new, propagator.tokens)) == (
        "unknown_key",
        "alice",
    )


def test_keys_that_come_late_are_used(installed, path, caplog):
    path.unlink()
    propagator = installed(Settings(context_keys_file=path))
    assert "audit-context is off until it is mended" in caplog.text
    assert not propagator.tokens.can_sign
    assert verdict(tokens(NEW).sign(CLAIMS), propagator.tokens) == "unknown_key"
    path.write_text(NEW)
    path.chmod(0o600)
    propagator.key_file.look()
    assert verdict(tokens(NEW).sign(CLAIMS), propagator.tokens) == "alice"
