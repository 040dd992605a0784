"""pairs: the table holds what a dict would, in either form, whatever the keys."""

from __future__ import annotations

import random

import pytest
from auditspan_collector import pairs
from collector.codec import both_paths
from hypothesis import given, settings
from hypothesis import strategies as st

FORMS = {"compiled": pairs, "interpreted": both_paths.interpreted("pairs")}
both_forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
SECRET = bytes(range(16))
# Few different ones, so that they meet.
keys = st.integers(0, 30).map(lambda number: number.to_bytes(16, "big"))
some = st.lists(st.tuples(keys, st.binary(min_size=16, max_size=16)), max_size=6)
steps = st.lists(st.tuples(st.sampled_from(["add", "add", "drop", "has_any", "clear"]), some), max_size=40)


def joined(given):
    return b"".join(key + value for key, value in given)


def test_both_forms_are_compared():
    assert not pairs.__file__.endswith(".py"), "`make setup` compiles it"
    assert FORMS["interpreted"].__file__.endswith(".py")


@both_forms
@settings(max_examples=200, deadline=None, derandomize=True)
@given(steps=steps)
def test_the_table_does_what_a_dict_does(form, steps):
    table, model = form.Pairs(SECRET), {}
    for step, given_pairs in steps:
        mine = dict(given_pairs)
        if step == "add":
            new = len(mine) == len(given_pairs) and not model.keys() & mine.keys()
            assert table.add(joined(given_pairs)) is new
            model |= mine if new else {}
        elif step == "clear":
            table.clear()
            model = {}
        elif step == "drop":
            table.drop(joined(given_pairs))
            for key in mine:
                model.pop(key, None)
        else:
            assert table.has_any(joined(given_pairs)) is bool(model.keys() & mine.keys())
        assert len(table) == len(model)
    for number in range(31):
        key = number.to_bytes(16, "big")
        assert table.get(key) == model.get(key)


@both_forms
def test_many_come_and_go_as_in_a_window(form):
    """The oldest leave as the newest come: what was pushed on must still be found."""
    rng = random.Random(5)
    entries = [joined((rng.randbytes(16), rng.randbytes(16)) for _ in range(50)) for _ in range(60)]
    table = form.Pairs(SECRET)
    for at, entry in enumerate(entries):
        if at >= 20:
            table.drop(entries[at - 20])
        assert table.add(entry)
        assert len(table) == 50 * min(at + 1, 20)
        for old in entries[max(0, at - 19) : at + 1]:
            assert table.get(old[32:48]) == old[48:64]
        assert not any(table.has_any(gone) for gone in entries[: max(0, at - 19)])


@both_forms
def test_keys_that_differ_in_a_bit_are_told_apart(form):
    all_bits = [(1 << bit).to_bytes(16, "big") for bit in range(128)]
    table = form.Pairs(SECRET)
    assert table.add(joined((key, key) for key in all_bits))
    assert [table.get(key) for key in all_bits] == all_bits
    assert table.get(bytes(16)) is None


@both_forms
def test_keys_and_values_stand_side_by_side(form):
    assert form.side_by_side(b"k" * 16 + b"l" * 16, b"v" * 16 + b"w" * 16) == (
        b"k" * 16 + b"v" * 16 + b"l" * 16 + b"w" * 16
    )
    assert form.side_by_side(b"", b"") == b""
    for wrong in ((b"k" * 16, b"v" * 15), (b"k" * 15, b"v" * 15), (b"k" * 32, b"v" * 16)):
        with pytest.raises(ValueError, match="bytes of keys"):
            form.side_by_side(*wrong)


@both_forms
def test_a_key_of_another_length_is_refused(form):
    with pytest.raises(ValueError, match="a key of 15 bytes"):
        form.Pairs(SECRET).get(bytes(15))
