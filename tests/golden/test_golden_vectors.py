"""The leaves of checked-in requests stay what they are, byte for byte: sealed ledgers depend on it."""

from __future__ import annotations

import hashlib
import json

import pytest
from golden import regenerate

PATHS = regenerate.requests()


def test_there_is_a_vector_for_every_request_that_is_described():
    assert {path.name for path in PATHS} == set(regenerate.REQUESTS)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_a_request_comes_to_the_leaves_that_it_always_came_to(path):
    expected = json.loads(regenerate.expected_path(path).read_text())
    assert regenerate.expectation(regenerate.encoded(path)) == expected


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_hash_and_identity_follow_from_the_content_alone(path):
    leaves = json.loads(regenerate.expected_path(path).read_text())["leaves"]
    assert leaves
    for leaf in leaves:
        content = bytes.fromhex(leaf["content"])
        assert hashlib.sha256(b"\x00" + content).hexdigest() == leaf["hash"]
        assert hashlib.sha256(b"\x00" + content[:-8]).digest()[:16].hex() == leaf["identity"]


def test_a_request_in_an_unusual_encoding_comes_to_the_same_leaves():
    first, second = (
        json.loads((regenerate.VECTORS / f"{name}.bin.leaves.json").read_text())
        for name in ("instrumented", "split")
    )
    assert first == second
