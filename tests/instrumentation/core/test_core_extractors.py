"""What extractors take from objects that are not ours, without setting anything off in them."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

import pytest
from auditspan.extractors import (
    chain,
    first_text,
    guard,
    hash_session,
    held_roles,
    scheme_word,
    session_of,
    text,
    texts,
)
from auditspan.extractors.asgi import AsgiSource


class Plain:
    def __init__(self, **values):
        self.__dict__.update(values)


@dataclass(slots=True)
class Slotted:
    roles: list[str]


class WithProperty:
    @property
    def roles(self):
        return ["editor"]


class WithRaisingProperty:
    @property
    def roles(self):
        raise RuntimeError("detached")


class AsksTheDatabase:
    """An object-relational mapper's descriptor."""

    def __get__(self, instance, owner):
        raise AssertionError("somebody asked the database")


class Mapped:
    roles = AsksTheDatabase()


class Loaded(Mapped):
    def __init__(self):
        self.__dict__["roles"] = [Plain(name="admin")]


class Constant:
    roles = ("staff",)


@pytest.mark.parametrize(
    ("user", "roles"),
    [
        (Plain(roles=["b", "a", "b"]), ("a", "b")),
        (Plain(roles="b a"), ("a", "b")),
        (Plain(roles=[Plain(name="admin")]), ("admin",)),
        (Plain(roles=None), ()),
        (Plain(), ()),
        ({"roles": ["x"]}, ("x",)),
        (Slotted(["s"]), ("s",)),
        (WithProperty(), ("editor",)),
        (WithRaisingProperty(), ()),
        (Mapped(), ()),
        (Loaded(), ("admin",)),
        (Constant(), ("staff",)),
        ("alice", ()),
    ],
    ids=lambda v: type(v).__name__,
)
def test_roles_are_read_only_where_that_sets_nothing_off(user, roles):
    assert held_roles(user) == roles


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ("Basic YWxpY2U6cHc=", "basic"),
        ("bearer abc", "bearer"),
        ("DPoP abc", "dpop"),
        ("hunter2", ""),
        ("hunter2 ", ""),
        ("hunter2 and more", ""),
        ("", ""),
    ],
)
def test_only_a_known_scheme_is_taken_from_a_header(header, word):
    assert scheme_word(header) == word


def test_a_row_of_a_database_is_a_user():
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    row = connection.execute("SELECT 5 AS id, 'ann' AS username").fetchone()
    connection.close()
    assert first_text(row, ("missing", "username", "id")) == "ann"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a", "a"), (7, "7"), (None, ""), (True, ""), (b"raw", ""), (object(), ""), ("x" * 5000, "x" * 1024)],
    ids=["text", "number", "none", "boolean", "bytes", "address", "long"],
)
def test_what_is_an_identifier(value, expected):
    assert text(value) == expected


def test_roles_that_are_no_collection_are_none():
    assert texts(7) == ()


def test_sessions_are_hashed_and_told_apart():
    assert hash_session("a") == hash_session(b"a") != hash_session("b")
    assert hash_session(None) == hash_session("") == ""
    assert session_of({"sid": "a"}) == session_of({"session_id": "a"}) == hash_session("a")
    assert session_of({"cart": "a"}) == session_of(None) == ""


def test_a_hook_of_ours_never_raises_and_says_so_once(caplog):
    def broken():
        raise RuntimeError("broken")

    hook = guard(broken)
    hook()
    hook()
    assert len(caplog.records) == 1


def test_the_users_own_hook_comes_first_and_may_raise():
    calls = []

    def theirs(*args):
        calls.append(("theirs", args))
        raise ValueError("theirs")

    both = chain(theirs, lambda *args: calls.append(("ours", args)))
    with pytest.raises(ValueError, match="theirs"):
        both(1, 2)
    assert calls == [("theirs", (1, 2)), ("ours", (1, 2))]
    chain(None, lambda *args: calls.append(("alone", args)))(3)
    assert calls[-1] == ("alone", (3,))


@pytest.mark.parametrize(
    ("scope", "actor"),
    [
        ({}, None),
        ({"user": None}, "anonymous"),
        ({"user": Plain(is_authenticated=False, username="x")}, "anonymous"),
        ({"user": Plain(is_authenticated=True, username="ann")}, "ann"),
        ({"user": Plain(is_authenticated=lambda: True, id=5)}, "5"),
        ({"user": {"sub": "ann"}}, "ann"),
        ({"user": "ann"}, "ann"),
        ({"user": Plain(is_authenticated=True)}, None),
    ],
    ids=[
        "no-middleware",
        "none",
        "not-authenticated",
        "username",
        "method-and-id",
        "claims",
        "text",
        "no-name",
    ],
)
def test_who_a_scope_names(scope, actor):
    found = AsgiSource(scope).actor()
    assert (found.id if found else None) == actor
