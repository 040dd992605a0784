"""Under what name an actor leaves the process."""

from __future__ import annotations

import hashlib
import hmac
import logging
import subprocess
import sys

import auditspan
import pytest
from auditspan.context import Actor, Upstream, with_upstream
from auditspan.policy import Policy
from auditspan.pseudonyms import HMAC, OFF, ActorKey, ActorKeyError, ActorNames
from auditspan.settings import Settings, read
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation import set_span_in_context

SECRET = "a secret of more than thirty-two characters".replace(" ", "-")
KEY = ActorKey.parse(f"2026-11 {SECRET}")
HASHING = ActorNames(HMAC, KEY)
ALICE = HASHING.name("alice")


def test_a_pseudonym_is_what_the_docs_say():
    derived = hmac.digest(SECRET.encode(), b"auditspan actor", hashlib.sha256)
    digits = hmac.digest(derived, b"name:alice", hashlib.sha256).hex()[:32]
    assert f"hmac:2026-11:{digits}" == ALICE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected one line"),
        ("# a comment\n", "expected one line"),
        (f"a {SECRET}\nb {SECRET}\n", "expected one line"),
        (SECRET, "expected one line"),
        (f"a:b {SECRET}", "a key id is"),
        ("a short-secret", "the secret has 12 characters"),
    ],
)
def test_a_key_that_can_not_be_used_is_told_without_the_secret(text, message):
    with pytest.raises(ActorKeyError, match=message) as found:
        ActorKey.parse(text)
    assert SECRET not in str(found.value)
    assert "short-secret" not in str(found.value)


def test_neither_key_nor_settings_show_the_secret():
    assert SECRET not in repr(KEY)
    assert SECRET not in repr(read({"OTEL_AUDITSPAN_ACTOR_KEY": f"a {SECRET}"}))


@pytest.mark.parametrize(
    ("environ", "mode", "said"),
    [
        ({}, "raw", ""),
        ({"OTEL_AUDITSPAN_ACTOR": "off"}, "off", ""),
        ({"OTEL_AUDITSPAN_ACTOR": "hmac"}, "off", "no OTEL_AUDITSPAN_ACTOR_KEY_FILE is set. No actor is named"),
        (
            {"OTEL_AUDITSPAN_ACTOR": "hmac", "OTEL_AUDITSPAN_ACTOR_KEY_FILE": "/none"},
            "off",
            "/none: No such file or directory. No actor is named",
        ),
        (
            {"OTEL_AUDITSPAN_ACTOR": "hmac", "OTEL_AUDITSPAN_ACTOR_KEY": "a short"},
            "off",
            "OTEL_AUDITSPAN_ACTOR_KEY: the secret has 5 characters",
        ),
        (
            {"OTEL_AUDITSPAN_ACTOR_KEY": "a short"},
            "raw",
            "Session ids are hashed without one",
        ),
        ({"OTEL_AUDITSPAN_ACTOR": "hmac", "OTEL_AUDITSPAN_ACTOR_KEY": f"a {SECRET}"}, "hmac", ""),
    ],
    ids=["unset", "off", "without-key", "no-file", "short-key", "raw-with-short-key", "hmac"],
)  # fmt: skip
def test_without_a_usable_key_nobody_is_named(environ, mode, said, caplog):
    with caplog.at_level(logging.WARNING):
        assert Policy.of(read(environ)).actors.mode == mode
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


def test_a_word_that_is_not_known_names_nobody():
    settings = read({"OTEL_AUDITSPAN_ACTOR": "hashed"})
    assert settings.actor == OFF
    assert "raw or hmac or off" in settings.problems[0]


def test_a_key_file_that_everybody_can_read_is_complained_about(tmp_path, caplog):
    path = tmp_path / "actor.key"
    path.write_text(f"# for pseudonyms\n2026-11 {SECRET}\n")
    path.chmod(0o644)
    assert Policy.of(Settings(actor=HMAC, actor_key_file=path)).actors.name("alice") == ALICE
    assert "chmod o-rwx" in caplog.text
    path.chmod(0o600)
    caplog.clear()
    Policy.of(Settings(actor=HMAC, actor_key_file=path))
    assert caplog.text == ""


def test_whoever_has_the_key_can_ask_for_a_pseudonym(tmp_path):
    path = tmp_path / "actor.key"

    def ask() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "auditspan.pseudonyms", str(path), "alice"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert "No such file" in ask().stderr
    path.write_text(f"2026-11 {SECRET}\n")
    assert ask().stdout == f"{ALICE}\n"


# -- records


@pytest.fixture(params=[ALWAYS_ON, ALWAYS_OFF], ids=["sampled", "not-sampled"])
def running(installed, request):
    def start(mode: str, **settings):
        return installed(Settings(**settings), actors=ActorNames(mode, KEY), sampler=request.param)

    return start


def from_upstream(actor: Actor, *, service: str = "gateway"):
    parent = SpanContext(0x42, 0x77, is_remote=True, trace_flags=TraceFlags(1))
    return with_upstream(Upstream(actor, service=service), set_span_in_context(NonRecordingSpan(parent)))


def test_hmac_records_the_pseudonym_and_the_keys_id(running):
    running = running(HMAC)
    with running.serve():
        auditspan.set_actor("alice", roles=["admin"], delegate="root-user", session="s-1")
    (record,) = running.sink.records
    expected = {
        "actor.id": ALICE,
        "actor.key_id": "2026-11",
        "actor.delegate": HASHING.name("root-user"),
        "actor.roles": ["admin"],
        "actor.origin": "authenticated",
        "actor.type": "user",
    }
    assert {name: record[name] for name in expected} == expected


def test_off_records_how_we_know_the_actor_and_no_name(running):
    running = running(OFF)
    with running.serve():
        auditspan.set_actor("alice", delegate="root-user", session="s-1", roles=["admin"])
    (record,) = running.sink.records
    expected = {
        "actor.id": None,
        "actor.delegate": None,
        "actor.session_id": None,
        "actor.type": "user",
        "actor.origin": "authenticated",
        "actor.roles": ["admin"],
    }
    assert {name: record[name] for name in expected} == expected


@pytest.mark.parametrize("mode", [HMAC, OFF])
def test_who_is_nobody_stays_nobody(running, mode):
    running = running(mode)
    with running.serve():
        pass
    (record,) = running.sink.records
    assert (record["actor.id"], record["actor.origin"], record["actor.key_id"]) == (
        "unknown",
        "unverified",
        None,
    )


@pytest.mark.parametrize("mode", ["raw", HMAC])
def test_with_a_key_sessions_can_not_be_guessed(running, installed, mode):
    running = running(mode)
    with running.serve():
        auditspan.set_actor("alice", session="s-1")
    (record,) = running.sink.records
    unkeyed = hashlib.sha256(b"s-1").hexdigest()[:32]
    assert len(record["actor.session_id"]) == 32
    assert record["actor.session_id"] != unkeyed
    plain = installed(Settings())
    with plain.serve():
        auditspan.set_actor("alice", session="s-1")
    assert plain.sink.records[0]["actor.session_id"] == unkeyed


@pytest.mark.parametrize("mode", ["raw", HMAC, OFF])
def test_a_session_on_the_span_is_hashed_in_the_record_like_the_actors(running, mode):
    running = running(mode)
    with running.serve(**{"session.id": "s-1"}):
        auditspan.set_actor("alice", session="s-1")
    (record,) = running.sink.records
    assert record.attributes["session.id"] == (record["actor.session_id"] or "")
    assert "s-1" not in str(record.span)


@pytest.mark.parametrize("mode", [HMAC, OFF])
def test_the_name_is_nowhere_in_the_record_nor_in_the_ordinary_span(running, mode):
    running = running(mode)
    with running.serve("PUT", "/users/{id}", **{"url.path": "/users/alice", "enduser.id": "alice"}) as span:
        auditspan.set_actor("alice")
        auditspan.describe(target_type="users", target_id="alice", reason="Alice asked for it")
        span.set_attributes(
            {"user.email": "alice@shop.test", "audit.note": "for alice", "people": ["bob", "alice"]}
        )
        span.add_event("mailed", {"to": "alice"})
        span.add_link(running.tracer.start_span("other").get_span_context(), {"for": "alice"})
        span.set_status(Status(StatusCode.ERROR, "alice is not here"))
        span.update_name("PUT /users/alice")
        running.state(span).emitter.responding(span, running.state(span))
    (record,) = running.sink.records
    assert "alice" not in str(record.span).lower()
    assert record["target.type"] == "users"
    assert record.attributes["people"] == ["bob", ALICE if mode == HMAC else "(actor)"]
    for exported in running.exported.get_finished_spans():
        ours = {k: v for k, v in exported.attributes.items() if k.startswith("audit.") and k != "audit.note"}
        assert "alice" not in str(ours).lower()


def test_a_number_that_other_things_have_too_is_left_alone(running):
    running = running(HMAC)
    with running.serve("PUT", "/orders/{id}"):
        auditspan.set_actor(7)
    (record,) = running.sink.records
    assert record["actor.id"] == HASHING.name("7")
    assert record["target.id"] is None or record["target.id"] == "7"
    assert record.attributes["url.path"] == "/orders/7"


def test_a_record_inside_has_the_same_pseudonym(running):
    running = running(HMAC)
    with running.serve("GET"):
        auditspan.set_actor("alice")
        with auditspan.record("EXPORT", target_type="report"):
            pass
    (record,) = running.sink.records
    assert record["actor.id"] == ALICE


# -- what a signed token brings


@pytest.mark.parametrize(
    ("mode", "brought", "recorded", "delegate"),
    [
        (HMAC, Actor(ALICE), ALICE, "gateway"),
        (HMAC, Actor(ALICE, delegate="edge"), ALICE, "edge"),
        (HMAC, Actor("alice"), ALICE, "gateway"),
        (HMAC, Actor("alice", delegate="root-user"), ALICE, HASHING.name("root-user")),
        ("raw", Actor(ALICE), ALICE, "gateway"),
        ("raw", Actor("alice"), "alice", "gateway"),
        (OFF, Actor(ALICE), None, "gateway"),
        (OFF, Actor("alice", delegate="root-user"), None, "gateway"),
    ],
    ids=[
        "a-pseudonym-stays",
        "with-what-its-sender-called-the-delegate",
        "a-name-becomes-one",
        "with-its-delegate",
        "a-pseudonym-in-a-service-that-names",
        "a-name-there",
        "a-pseudonym-where-nobody-is-named",
        "a-name-there-too",
    ],
)
def test_an_asserted_actor_has_one_name_in_all_services(running, mode, brought, recorded, delegate):
    running = running(mode)
    with running.serve() as span:
        state = running.state(span)
        state.upstream = Upstream(brought, service="gateway")
    (record,) = running.sink.records
    assert (record["actor.id"], record["actor.delegate"]) == (recorded, delegate)
    assert record["actor.origin"] == "asserted"


def test_nobody_takes_somebodys_pseudonym_for_his_name(running):
    running = running("raw")
    with running.serve():
        auditspan.set_actor(ALICE, delegate=ALICE)
    (record,) = running.sink.records
    assert (record["actor.id"], record["actor.delegate"]) == (f"raw:{ALICE}", f"raw:{ALICE}")
    assert record["actor.key_id"] is None
