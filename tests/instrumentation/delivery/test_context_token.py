"""The audit-context token: what it says, for whom, how long, and everything that is not believed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest
from auditspan.context import Actor, AuditedSpan, Upstream, upstream, with_state, with_upstream
from auditspan.propagation import HEADER, AuditContextPropagator, Destinations, KeyRing, Tokens
from auditspan.propagation.keys import QUEUES, REQUESTS
from auditspan.propagation.tokens import CUT, MAX_TOKEN_LENGTH, Claims, Rejected
from hypothesis import given, settings
from hypothesis import strategies as st
from itsdangerous import TimestampSigner
from opentelemetry import baggage, trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.kafka.utils import KafkaContextGetter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

TRACE, OTHER_TRACE, SPAN = (
    "4bf92f3577b34da6a3ce929d0e0e4736",
    "0af7651916cd43dd8448eb211c80319c",
    "00f067aa0ba902b7",
)
ALICE = Actor("alice", roles=("support", "refunds"), auth_method="basic", delegate="gateway")
SECRETS = "2026-b newsecret-newsecret-newsecret-newsecret\n2026-a oldsecret-oldsecret-oldsecret-oldsecret"


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def tokens(text: str = SECRETS, clock: Clock | None = None) -> Tokens:
    return Tokens(KeyRing.from_text(text), clock=clock or Clock())


def claims(**changes: object) -> Claims:
    return Claims(
        **{"trace_id": TRACE, "actor": ALICE, "parent_span_id": SPAN, "service": "gateway", **changes}
    )


def on_trace(trace_id: str = TRACE) -> Context:
    span = NonRecordingSpan(
        SpanContext(int(trace_id, 16), int(SPAN, 16), is_remote=True, trace_flags=TraceFlags(0))
    )
    return trace.set_span_in_context(span, Context())


def received(value: str | list[str], judge: Tokens | None, context: Context | None = None) -> Upstream:
    propagator = AuditContextPropagator(judge, Destinations(()), service="orders")
    carrier = {HEADER: value}
    return upstream(propagator.extract(carrier, on_trace() if context is None else context))


def signed_by_hand(
    content: bytes,
    mark: str = "",
    key_id: str = "2026-b",
    secret: bytes = b"newsecret-newsecret-newsecret-newsecret",
    purpose: str = REQUESTS,
) -> str:
    """A token made with nothing but the documented format."""
    derived = hmac.digest(secret, purpose.encode(), hashlib.sha256)
    now = int(Clock.now).to_bytes(4, "big")
    parts = [
        mark + key_id,
        *(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (content, now)),
    ]
    signature = hmac.digest(derived, ".".join(parts).encode(), hashlib.sha256)
    return ".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=").decode()])


def test_the_actor_arrives_as_asserted_with_roles_method_delegate_and_the_record_above():
    token = tokens().sign(claims())
    assert received(token, tokens()) == Upstream(
        Actor("alice", "user", ("support", "refunds"), "asserted", "", "basic", "gateway"), SPAN, "gateway"
    )


def test_the_documented_format_is_the_one_in_use():
    content = {
        "t": TRACE,
        "p": SPAN,
        "s": "gateway",
        "a": ["alice", "user", ["support", "refunds"], "basic", "gateway"],
    }
    assert tokens().sign(claims()) == signed_by_hand(json.dumps(content, separators=(",", ":")).encode())


def test_a_token_for_a_queue_has_a_mark_and_a_purpose_of_its_own():
    token = tokens().sign(claims(actor=None), queue=True)
    content = json.dumps({"t": TRACE, "p": SPAN, "s": "gateway"}, separators=(",", ":")).encode()
    assert token == signed_by_hand(content, mark="q.", purpose=QUEUES)
    assert received(token, tokens()) == Upstream(None, SPAN, "gateway", queued=True)


def test_a_token_can_be_verified_with_an_independent_library():
    derived = hmac.digest(b"newsecret-newsecret-newsecret-newsecret", REQUESTS.encode(), hashlib.sha256)
    signer = TimestampSigner(
        derived, salt=REQUESTS, key_derivation="none", digest_method=hashlib.sha256, sep="."
    )
    value, signed_at = signer.unsign(tokens().sign(claims()), return_timestamp=True)
    assert value.decode() == GOOD.rsplit(".", 2)[0]
    assert signed_at.timestamp() == Clock.now


def test_a_token_without_an_actor_still_carries_the_record_above():
    assert received(tokens().sign(claims(actor=None)), tokens()) == Upstream(None, SPAN, "gateway")


def test_the_session_stays_at_home():
    token = tokens().sign(claims(actor=Actor("alice", session="5e55101d")))
    assert b"5e55101d" not in base64.urlsafe_b64decode(token.split(".")[1] + "==")


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    st.text(min_size=1, max_size=50),
    st.sampled_from(["user", "service", "system"]),
    st.lists(st.text(max_size=20), max_size=5),
    st.text(max_size=20),
    st.text(max_size=20),
)
def test_any_name_travels_unchanged(name, kind, roles, method, delegate):
    actor = Actor(name, kind, tuple(roles), "asserted", "", method, delegate)
    assert received(tokens().sign(claims(actor=actor)), tokens()).actor == actor


def flipped(token: str, part: int) -> str:
    parts = token.split(".")
    letter = parts[part][3]
    parts[part] = parts[part][:3] + ("A" if letter != "A" else "B") + parts[part][4:]
    return ".".join(parts)


GOOD = tokens().sign(claims())


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (flipped(GOOD, 1), "bad_signature"),
        (flipped(GOOD, 2), "bad_signature"),
        (flipped(GOOD, 3), "bad_signature"),
        (GOOD.replace("2026-b", "2026-a"), "bad_signature"),
        (GOOD.replace("2026-b", "2027-a"), "unknown_key"),
        (tokens("2026-b another-another-another-another-secret").sign(claims()), "bad_signature"),
        (tokens().sign(claims(), queue=True).removeprefix("q."), "bad_signature"),
        ("q." + GOOD, "bad_signature"),
        (GOOD.rpartition(".")[0] + ".", "malformed"),
        (GOOD.rpartition(".")[0] + "." + "A" * 43, "bad_signature"),
        (
            GOOD.rpartition(".")[0] + "." + base64.urlsafe_b64encode(hashlib.sha1(b"").digest()).decode(),
            "malformed",
        ),
        ("eyJhbGciOiJub25lIn0." + GOOD.split(".")[1] + ".", "malformed"),
        ("", "malformed"),
        (GOOD + ", " + GOOD, "malformed"),
        ([GOOD, GOOD], "malformed"),
        (GOOD + "." + GOOD, "malformed"),
        (GOOD[:-1], "malformed"),
        (GOOD + "A", "malformed"),
        ("A" * 100_000, "malformed"),
        ("2026-b." + "A" * MAX_TOKEN_LENGTH + "." + ".".join(GOOD.split(".")[2:]), "malformed"),
        ("\x00\xff\u20ac", "malformed"),
        ("alice", "malformed"),
        ("actor=alice;roles=admin", "malformed"),
        (tokens().sign(claims(trace_id=OTHER_TRACE)), "wrong_trace"),
        (signed_by_hand(b"not json"), "malformed"),
        (signed_by_hand(b"{}"), "malformed"),
        (signed_by_hand(b"[" * 2000), "malformed"),
        (signed_by_hand(json.dumps({"t": TRACE, "p": SPAN, "s": 7}).encode()), "malformed"),
        (signed_by_hand(json.dumps({"t": TRACE, "p": "x" * 16, "s": ""}).encode()), "malformed"),
        (
            signed_by_hand(
                json.dumps({"t": TRACE, "p": "", "s": "", "a": ["", "user", [], "", ""]}).encode()
            ),
            "malformed",
        ),
        (
            signed_by_hand(
                json.dumps({"t": TRACE, "p": "", "s": "", "a": ["a", "god", [], "", ""]}).encode()
            ),
            "malformed",
        ),
        (
            signed_by_hand(
                json.dumps({"t": TRACE, "p": "", "s": "", "a": ["a", "user", [1], "", ""]}).encode()
            ),
            "malformed",
        ),
        (
            signed_by_hand(json.dumps({"t": TRACE, "p": "", "s": "", "a": ["a", "user"]}).encode()),
            "malformed",
        ),
    ],
    ids=[
        "changed claims",
        "changed time",
        "changed signature",
        "another key's id",
        "a key that nobody has",
        "another secret under a known id",
        "signed for a queue and sent as for a request",
        "signed for a request and sent as for a queue",
        "no signature",
        "a signature of zeroes",
        "a shorter hash",
        "a JWT that says alg none",
        "empty",
        "doubled in one header",
        "doubled in two headers",
        "two tokens joined",
        "cut",
        "lengthened",
        "over-long garbage",
        "over-long claims",
        "bytes that are no header",
        "a bare name",
        "baggage",
        "replayed on another trace",
        "signed garbage",
        "signed emptiness",
        "signed nesting",
        "a service that is a number",
        "a parent that is no span id",
        "an actor without a name",
        "an unknown kind of actor",
        "a role that is a number",
        "an actor cut short",
    ],
)
def test_what_is_not_believed_names_nobody_and_says_why(value, reason):
    assert received(value, tokens()) == Upstream(rejected=reason)


@pytest.mark.parametrize(
    ("later_s", "reason"),
    [
        (0, ""),
        (59.9, ""),
        (60.1, "expired"),
        (86_400, "expired"),
        (-4.9, ""),
        (-5.1, "expired"),
        (-86_400, "expired"),
    ],
)
def test_a_token_is_believed_for_a_minute_and_little_clock_skew_is_forgiven(later_s, reason):
    clock = Clock()
    judge = tokens(clock=clock)
    token = judge.sign(claims())
    assert received(token, judge).rejected == ""  # now it is cached
    clock.now += later_s
    assert received(token, judge).rejected == reason
    assert received(token, tokens(clock=clock)).rejected == reason


@pytest.mark.parametrize(("later_s", "reason"), [(86_400, ""), (86_401, "expired"), (-5.1, "expired")])
def test_a_token_for_a_queue_is_believed_for_a_day(later_s, reason):
    clock = Clock()
    judge = tokens(clock=clock)
    token = judge.sign(claims(), queue=True)
    assert received(token, judge).rejected == ""
    clock.now += later_s
    assert received(token, judge).rejected == reason


@pytest.mark.parametrize("queue", [False, True], ids=["request", "message"])
def test_a_token_counts_only_where_it_was_signed_for(queue):
    found = received(tokens().sign(claims(), queue=queue), tokens())
    assert found.at(queue=queue) == found
    assert found.at(queue=not queue) == Upstream(rejected="wrong_purpose")


@pytest.mark.parametrize("name", ["audit.actor.id", "user.id", "enduser.id", "enduser.role"])
def test_an_actor_in_plain_baggage_is_rejected_as_unsigned(name):
    context = baggage.set_baggage(name, "root", on_trace())
    propagator = AuditContextPropagator(tokens(), Destinations(()), service="orders")
    assert upstream(propagator.extract({}, context)) == Upstream(rejected="unsigned")
    assert upstream(propagator.extract({HEADER: GOOD}, context)).actor.id == "alice"


def test_other_baggage_is_nobody_s_business():
    context = baggage.set_baggage("tenant", "blue", on_trace())
    propagator = AuditContextPropagator(tokens(), Destinations(()), service="orders")
    assert propagator.extract({}, context) is context


@pytest.mark.parametrize(
    "headers",
    [
        [(HEADER, GOOD.encode()), (HEADER, GOOD.encode())],
        [(HEADER, b"forged"), (HEADER, GOOD.encode())],
        [(HEADER, b"\xff\xfe")],
        [(HEADER, b"")],
    ],
    ids=["doubled", "forged beside a good one", "no text", "empty"],
)
def test_a_message_s_header_that_is_not_one_token_is_rejected(headers):
    propagator = AuditContextPropagator(tokens(), Destinations(()), service="orders")
    found = upstream(propagator.extract(headers, on_trace(), KafkaContextGetter()))
    assert found == Upstream(rejected="malformed")


def test_a_cached_token_is_still_bound_to_its_trace():
    judge = tokens()
    assert received(GOOD, judge).actor is not None
    assert received(GOOD, judge, on_trace(OTHER_TRACE)) == Upstream(rejected="wrong_trace")
    assert received(GOOD, judge, Context()) == Upstream(rejected="wrong_trace")


def test_without_keys_nothing_is_believed_and_nothing_is_sent():
    assert received(GOOD, None) == Upstream(rejected="unknown_key")
    state = AuditedSpan(SPAN, int(TRACE, 16), entry=True, actor=ALICE)
    propagator = AuditContextPropagator(None, Destinations(["orders"]), service="gateway")
    assert propagator.token(with_state(state, on_trace())) == ""


def test_an_outer_request_s_context_does_not_leak_into_a_request_without_one():
    outer = with_upstream(Upstream(ALICE, SPAN, "gateway"), on_trace())
    propagator = AuditContextPropagator(tokens(), Destinations(()), service="orders")
    assert upstream(propagator.extract({}, outer)) == Upstream()
    quiet = on_trace()
    assert propagator.extract({}, quiet) is quiet


def test_a_broken_carrier_is_no_reason_to_fail_or_to_believe(caplog):
    class Getter:
        def get(self, carrier, key):
            raise RuntimeError("broken")

    propagator = AuditContextPropagator(tokens(), Destinations(()), service="orders")
    for _ in range(3):
        assert upstream(propagator.extract({HEADER: GOOD}, on_trace(), Getter())) == Upstream()
    assert caplog.text.count("broken") == 1


def test_keys_rotate_without_a_gap():
    old, new = SECRETS.splitlines()[::-1]
    before, adding, moved, after = (tokens(text) for text in (old, f"{old}\n{new}", f"{new}\n{old}", new))
    for sender, receiver in [
        (before, adding),
        (adding, before),
        (adding, moved),
        (moved, adding),
        (moved, after),
        (after, moved),
    ]:
        assert received(sender.sign(claims()), receiver).actor is not None
    assert received(before.sign(claims()), after).rejected == "unknown_key"


def test_roles_are_cut_to_fit_and_the_cut_is_marked():
    roles = tuple(f"role-{number}" for number in range(2000))
    token = tokens().sign(claims(actor=Actor("alice", roles=roles)))
    assert len(token) <= MAX_TOKEN_LENGTH
    arrived = received(token, tokens()).actor.roles
    assert arrived[-1] == CUT
    assert arrived[:-1] == roles[: len(arrived) - 1]
    assert len(arrived) > 50


def test_a_name_that_fits_into_no_header_is_not_sent():
    with pytest.raises(ValueError, match="too long"):
        tokens().sign(claims(actor=Actor("a" * 5000)))


def test_the_rejection_is_an_exception_with_the_reason():
    with pytest.raises(Rejected, match="malformed"):
        tokens().verify("x", TRACE)
