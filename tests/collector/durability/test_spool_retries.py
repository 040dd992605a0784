"""What is sent again is stored once; what only says to be the same is stored, and flagged."""

from __future__ import annotations

import msgspec
import pytest
from auditspan_collector.errors import SpoolDamaged, SpoolFull
from auditspan_collector.record import sequence_key
from auditspan_collector.spool import Spool, Verdict
from auditspan_collector.spool.config import CHUNK_BYTES, SEQUENCE_BYTES
from auditspan_collector.spool.sequences import CHUNK, MAX_CHUNKS
from collector.durability.sealing import empty, make_leaf, make_leaves, make_numbered, one_request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

KEPT_NUMBERS = (MAX_CHUNKS - 1) * CHUNK  # at least so many of a sequence are remembered


def kept(committed):
    return [index is not None for index in committed.indexes]


@pytest.fixture
def small_window(spool_config):
    return msgspec.structs.replace(spool_config, dedup_window_records=10)


# By sequence number


def test_a_retry_is_known_however_much_others_sent_since(open_spool, small_window):
    spool = open_spool(small_window)
    spool.commit(one_request(make_numbered(b"quiet", 1, 50)))
    spool.commit(one_request(make_leaves(0, 500)))
    spool.commit(one_request(make_numbered(b"busy", 1, 5000)))
    assert spool.commit(one_request(make_numbered(b"quiet", 1, 50, received=9))).indexes == (None,) * 50


def test_a_retry_is_known_after_release_and_restart(open_spool, small_window):
    first = open_spool(small_window)
    first.commit(one_request(make_numbered(b"a", 1, 500)))
    empty(first)
    first.close()
    again = open_spool(small_window)
    committed = again.commit(one_request(make_numbered(b"a", 400, 200, received=9)))
    assert kept(committed) == [False] * 101 + [True] * 99
    assert committed.flagged == ()


def test_numbers_that_were_skipped_are_new_when_they_come_late(open_spool):
    first = open_spool()
    first.commit(
        one_request(make_numbered(b"a", 1, 3) + make_numbered(b"a", 8, 3) + make_numbered(b"a", 500, 2))
    )
    first.close()
    again = open_spool()
    committed = again.commit(one_request(make_numbered(b"a", 1, 600)))
    assert [n for n, new in enumerate(kept(committed), 1) if not new] == [1, 2, 3, 8, 9, 10, 500, 501]
    assert committed.flagged == ()
    assert kept(again.commit(one_request(make_numbered(b"a", 1, 600)))) == [False] * 600


def test_the_same_number_with_other_content_is_kept_and_flagged_and_itself_known_again(open_spool):
    first = open_spool()
    first.commit(one_request([make_leaf(b"forged", sequence=b"a", number=7)]))
    real = make_leaf(b"real", sequence=b"a", number=7)
    committed = first.commit(one_request([real, real]))
    assert committed.indexes == (1, None)
    assert committed.flagged == ((0, Verdict.CONFLICT),)
    first.close()
    again = open_spool()
    assert again.commit(one_request([real])).indexes == (None,)
    assert again.commit(one_request([make_leaf(b"forged", sequence=b"a", number=7)])).indexes == (None,)


def test_the_same_number_twice_in_one_commit_is_judged_by_its_content(spool):
    one, other = (make_leaf(word, sequence=b"a", number=3) for word in (b"one", b"other"))
    committed = spool.commit(one_request([one, other, one, other]))
    assert committed.indexes == (0, 1, None, None)
    assert committed.flagged == ((1, Verdict.CONFLICT),)


def test_the_same_content_in_two_sequences_is_two_records(spool):
    assert spool.commit(
        one_request([make_leaf(1, sequence=name, number=1) for name in (b"a", b"b")])
    ).indexes == (0, 1)


def test_one_credential_cannot_use_up_the_numbers_of_another():
    assert sequence_key("shop", b"orders", b"s1") != sequence_key("other", b"orders", b"s1")
    assert sequence_key("shop", b"orders", b"s1") != sequence_key("shop", b"order", b"ss1")
    assert sequence_key("sho", b"porders", b"s1") != sequence_key("shop", b"orders", b"s1")


def test_numbers_sent_ahead_make_nothing_vanish(spool):
    highest = (1 << 64) - 1
    spool.commit(
        one_request([make_leaf(b"forged", sequence=b"a", number=n) for n in (highest, 10**9, 5000, 2)])
    )
    real = make_numbered(b"a", 1, 300)
    committed = spool.commit(one_request(real))
    assert kept(committed) == [True] * 300
    assert committed.flagged == ((1, Verdict.CONFLICT),)
    assert kept(spool.commit(one_request(real))) == [False] * 300


def test_below_the_mark_a_record_is_kept_and_flagged_and_its_retry_known_for_the_window(spool):
    spool.commit(one_request(make_numbered(b"a", 1, 200)))
    spool.commit(one_request(make_numbered(b"a", 201, KEPT_NUMBERS + CHUNK)))
    old = make_numbered(b"a", 1, 1)
    committed = spool.commit(one_request(old))
    assert kept(committed) == [True]
    assert committed.flagged == ((0, Verdict.FORGOTTEN),)
    assert kept(spool.commit(one_request(old))) == [False]


@pytest.mark.parametrize("at_once", [True, False], ids=["one commit", "many commits"])
def test_the_latest_numbers_of_a_sequence_are_known_however_many_it_has(open_spool, at_once):
    first = open_spool()
    everything = make_numbered(b"a", 1, 4 * KEPT_NUMBERS)
    step = len(everything) if at_once else 700
    for at in range(0, len(everything), step):
        first.commit(one_request(everything[at : at + step]))
    first.close()
    again = open_spool()
    assert kept(again.commit(one_request(everything[-KEPT_NUMBERS:]))) == [False] * KEPT_NUMBERS
    assert again.commit(one_request(everything[:1])).flagged == ((0, Verdict.FORGOTTEN),)


def test_scattered_numbers_cost_no_more_chunks_than_a_sequence_may_have(open_spool):
    first = open_spool()
    for n in range(1, 3 * MAX_CHUNKS):
        first.commit(one_request(make_numbered(b"a", n * 10 * CHUNK, 1)))
    ((_, sequence),) = first._seen._sequences.known.items()
    assert len(sequence.chunks) == MAX_CHUNKS
    assert entries(first, "digests") == MAX_CHUNKS


def entries(spool, name):
    environment = spool._environment
    return environment.read(lambda txn: txn.stat(db=getattr(environment, name))["entries"])


def test_the_sequence_that_was_quiet_for_longest_gives_way(open_spool, spool_config):
    config = msgspec.structs.replace(spool_config, dedup_sequences=3)
    first = open_spool(config)
    for name in (b"a", b"b", b"c"):
        first.commit(one_request(make_numbered(name, 1, 2)))
    first.commit(one_request(make_numbered(b"a", 3, 1)))
    first.commit(one_request(make_numbered(b"d", 1, 2)))
    assert entries(first, "sequences") == entries(first, "digests") == 3
    first.close()
    again = open_spool(config)
    for name, expected in ((b"a", [False] * 3), (b"c", [False] * 2), (b"d", [False] * 2)):
        assert kept(again.commit(one_request(make_numbered(name, 1, len(expected))))) == expected
    assert kept(again.commit(one_request(make_numbered(b"b", 1, 2)))) == [True, True], (
        "forgotten, so stored again"
    )
    assert kept(again.commit(one_request(make_numbered(b"c", 1, 2)))) == [True, True], (
        "the longest unused by then"
    )


def test_all_sequences_together_take_no_more_than_their_share_of_the_disk(open_spool, spool_config):
    spool = open_spool()
    most = spool_config.sequence_chunks
    for n in range(most // MAX_CHUNKS + 10):
        spool.commit(one_request(make_numbered(b"%d" % n, 1, MAX_CHUNKS * CHUNK)))
        empty(spool)
    assert most - MAX_CHUNKS <= entries(spool, "digests") <= most
    environment = spool._environment
    used = environment.read(
        lambda txn: sum(
            pages * environment.page_bytes
            for name in ("sequences", "digests")
            for kind, pages in txn.stat(db=getattr(environment, name)).items()
            if kind.endswith("_pages")
        )
    )
    assert used < most * CHUNK_BYTES + spool_config.dedup_sequences * SEQUENCE_BYTES


def test_more_new_sequences_in_one_commit_than_are_remembered_is_no_error(open_spool, spool_config):
    config = msgspec.structs.replace(spool_config, dedup_sequences=5)
    first = open_spool(config)
    first.commit(one_request(make_numbered(b"old", 1, 1)))
    many = [leaf for n in range(20) for leaf in make_numbered(b"%d" % n, 1, 2)]
    assert kept(first.commit(one_request(many))) == [True] * 40
    assert entries(first, "sequences") == entries(first, "digests") == 5
    first.close()
    assert kept(open_spool(config).commit(one_request(many))) == [True] * 30 + [False] * 10


def test_without_sequences_numbered_records_share_the_window(open_spool, spool_config):
    spool = open_spool(msgspec.structs.replace(spool_config, dedup_sequences=0))
    spool.commit(one_request(make_numbered(b"a", 1, 20)))
    assert kept(spool.commit(one_request(make_numbered(b"a", 1, 20)))) == [False] * 20
    assert entries(spool, "sequences") == 0


def test_what_was_refused_is_not_remembered_as_sent(open_spool, spool_config):
    spool = open_spool()
    spool.commit(one_request(make_numbered(b"a", 1, 2)))
    large = make_leaf(bytes(spool_config.max_bytes), sequence=b"a", number=3)
    with pytest.raises(SpoolFull):
        spool.commit(one_request([*make_numbered(b"a", 3, 5), large]))
    assert kept(spool.commit(one_request(make_numbered(b"a", 1, 7)))) == [False] * 2 + [True] * 5


@pytest.mark.parametrize("name", ["sequences", "digests"])
def test_a_damaged_memory_of_sequences_is_named_and_takes_nothing(open_spool, name):
    first = open_spool()
    first.commit(one_request(make_numbered(b"a", 1, 3)))
    environment = first._environment

    def damage(txn):
        with txn.cursor(getattr(environment, name)) as cursor:
            assert cursor.first()
            key, stored = (bytes(part) for part in cursor.item())
            txn.put(key, stored[:-1] + bytes([stored[-1] ^ 1]), db=getattr(environment, name))

    environment.write(damage)
    if name == "digests":
        with pytest.raises(SpoolDamaged, match="remembered records of sequence"):
            first.commit(one_request(make_numbered(b"a", 3, 2)))
        assert first.next_index == 3
    else:
        first.close()
        with pytest.raises(SpoolDamaged, match="sequence"):
            open_spool()


# By record id


def test_an_id_with_other_content_is_kept_and_flagged_and_itself_known_again(open_spool):
    first = open_spool()
    one, other = (make_leaf(word, record_id=b"i" * 16) for word in (b"one", b"other"))
    assert first.commit(one_request([one])).flagged == ()
    assert first.commit(one_request([other, other])).flagged == ((0, Verdict.CONFLICT),)
    first.close()
    again = open_spool()
    assert again.commit(one_request([one, other])).indexes == (None, None)


def test_an_id_made_of_anothers_content_makes_nothing_vanish(spool):
    real = make_leaf(b"real", record_id=b"i" * 16)
    trap = make_leaf(b"trap", record_id=real.identity)
    spool.commit(one_request([trap, make_leaf(b"forged", record_id=b"i" * 16)]))
    committed = spool.commit(one_request([real]))
    assert committed.indexes == (2,)
    assert committed.flagged == ((0, Verdict.CONFLICT),)


# Anything, in any order


@st.composite
def histories(draw):
    """Commits of a few sequences and ids: in order, retried, reordered, forged; with restarts between."""
    steps = []
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["send", "send", "send", "restart", "release"]))
        if kind != "send":
            steps.append((kind, ()))
            continue
        records = []
        for _ in range(draw(st.integers(1, 3))):
            name = draw(st.sampled_from([b"a", b"b", b""]))
            first = draw(st.integers(1, 260))
            numbers = list(range(first, first + draw(st.integers(1, 130))))
            if draw(st.booleans()):
                numbers = numbers[::-1] if draw(st.booleans()) else numbers[::3]
            version = draw(st.sampled_from([0, 0, 0, 1]))
            records += [(name, number, version) for number in numbers]
        steps.append((kind, tuple(records)))
    return steps


def leaf_of(record, received):
    name, number, _ = record
    content = b"%s/%d/%d" % record
    if name:
        return make_leaf(content, received=received, sequence=name, number=number)
    return make_leaf(content, received=received, record_id=number.to_bytes(16, "big"))


@given(steps=histories())
@settings(
    deadline=None,
    max_examples=25,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_whatever_is_sent_in_whatever_order_is_stored_once_and_only_other_content_is_flagged(
    tmp_path_factory, spool_config, steps
):
    config = msgspec.structs.replace(spool_config, path=str(tmp_path_factory.mktemp("spool")))
    spool = Spool.open(config, "test", "collector")
    stored, by_key, out = [], {}, []
    try:
        for at, (kind, records) in enumerate(steps):
            if kind == "restart":
                spool.close()
                spool = Spool.open(config, "test", "collector")
            elif kind == "release":
                out += empty(spool)
            committed = spool.commit(one_request([leaf_of(record, at) for record in records]))
            flagged = dict(committed.flagged)
            for place, record in enumerate(records):
                contents = by_key.setdefault(record[:2], set())
                new = record[2] not in contents
                assert (committed.indexes[place] == len(stored)) if new else committed.indexes[place] is None
                assert (place in flagged) == (new and bool(contents))
                if new:
                    contents.add(record[2])
                    stored.append(b"%s/%d/%d" % record)
        assert out + empty(spool) == list(enumerate(stored))
    finally:
        spool.close()
