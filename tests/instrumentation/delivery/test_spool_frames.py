"""A segment's content: whatever happened to the file, whole records are read and nothing else is."""

from __future__ import annotations

import os
import struct
import zlib

import pytest
from auditspan.spool import MAX_PAYLOAD_BYTES, Segment, frames
from hypothesis import given, settings
from hypothesis import strategies as st
from instrumentation.delivery.otlp_payloads import names_in, payload

PAYLOADS = [b"first", b"the second one" * 3, b"3rd"]


def file_with(path, content: bytes):
    path.write_bytes(content)
    return path


def read_all(segment: Segment) -> tuple[list[bytes], int]:
    """Every payload, acknowledging as a shipper does, and how many torn places were met."""
    payloads, torn = [], 0
    while True:
        batch = segment.read(2, MAX_PAYLOAD_BYTES)
        torn += batch.skipped
        if not batch.payloads:
            return payloads, torn
        payloads += batch.payloads
        segment.acknowledge(batch.end)


def taken(path) -> Segment:
    segment = Segment.take(path)
    assert segment is not None
    return segment


def test_the_documented_layout_is_what_is_written():
    assert frames.pack(b"abc") == b"ASF1" + struct.pack("<II", 3, zlib.crc32(b"abc")) + b"abc"


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=20))
def test_frames_are_read_back_as_they_were_written(payloads):
    content, offset, found = b"".join(map(frames.pack, payloads)), 0, []
    while isinstance(frame := frames.parse(content, offset), frames.Frame):
        found.append(frame.payload)
        offset = frame.end
    assert found == payloads
    assert offset == len(content)


def test_joined_payloads_are_one_request():
    assert names_in(payload("a") + payload("b") + payload("c")) == ["a", "b", "c"]


def test_a_file_cut_at_any_byte_gives_its_whole_records_and_counts_the_torn_one(tmp_path):
    content = b"".join(map(frames.pack, PAYLOADS))
    ends = [len(b"".join(map(frames.pack, PAYLOADS[:count]))) for count in range(4)]
    for cut in range(len(content) + 1):
        segment = taken(file_with(tmp_path / f"cut-{cut}.spool", content[:cut]))
        whole = sum(end <= cut for end in ends[1:])
        assert read_all(segment) == (PAYLOADS[:whole], int(cut not in ends)), cut
        assert segment.acknowledged == segment.size
        segment.delete()
        torn = tmp_path / f"cut-{cut}.bad"
        assert (torn.read_bytes() if torn.exists() else b"") == content[ends[whole] : cut], cut


def test_any_damaged_byte_costs_its_own_record_and_no_other(tmp_path):
    content = b"".join(map(frames.pack, PAYLOADS))
    start, end = len(frames.pack(PAYLOADS[0])), len(frames.pack(PAYLOADS[0]) + frames.pack(PAYLOADS[1]))
    for at in range(start, end):
        damaged = bytearray(content)
        damaged[at] ^= 0x55
        segment = taken(file_with(tmp_path / f"damaged-{at}.spool", bytes(damaged)))
        assert read_all(segment) == ([PAYLOADS[0], PAYLOADS[2]], 1), at
        segment.close()


@pytest.mark.parametrize(
    "junk",
    [
        b"\x00" * 5000,
        b"ASF1" * 3000,
        b"ASF1\xff\xff\xff\xff" * 2000,
        b"ASF1\x00\x00\x00\x00\x00\x00\x00\x00",
        frames.MAGIC + struct.pack("<II", MAX_PAYLOAD_BYTES, 7),
        os.urandom(100_000),
    ],
    ids=["zeroes", "only magic", "huge lengths", "empty payload", "length beyond the end", "noise"],
)
def test_foreign_content_before_a_record_is_put_aside_and_the_record_delivered(tmp_path, junk):
    segment = taken(file_with(tmp_path / "x.spool", junk + frames.pack(b"good")))
    payloads, torn = read_all(segment)
    assert torn >= 1
    kept = (tmp_path / "x.bad").read_bytes()
    # A file of nothing but false starts is given up as a whole, with all its bytes kept.
    assert (payloads, kept) in (([b"good"], junk), ([], junk + frames.pack(b"good")))
    assert payloads or junk.count(frames.MAGIC) > 64
    segment.close()


def test_damage_that_spans_several_reads_is_skipped(tmp_path):
    junk = os.urandom(1 << 20) * 7
    segment = taken(file_with(tmp_path / "x.spool", frames.pack(b"a") + junk + frames.pack(b"b")))
    assert read_all(segment) == ([b"a", b"b"], 1)
    assert (tmp_path / "x.bad").read_bytes() == junk
    segment.close()


def test_a_restart_goes_on_behind_what_was_acknowledged(tmp_path):
    path = file_with(tmp_path / "x.spool", b"".join(map(frames.pack, PAYLOADS)))
    first = taken(path)
    first.acknowledge(first.read(1, MAX_PAYLOAD_BYTES).end)
    first.close()
    assert read_all(taken(path))[0] == PAYLOADS[1:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda ack: ack.write_bytes(b""),
        lambda ack: ack.write_bytes(os.urandom(40)),
        lambda ack: ack.write_bytes(ack.read_bytes().replace(b" 1 1", b" 1 2")),
        lambda ack: ack.write_bytes(ack.read_bytes()[:-3]),
        lambda ack: ack.unlink(),
    ],
    ids=["empty", "noise", "a changed digit", "cut", "lost"],
)
def test_a_damaged_acknowledgement_sends_again_and_never_skips(tmp_path, damage):
    path = file_with(tmp_path / "x.spool", b"".join(map(frames.pack, PAYLOADS)))
    first = taken(path)
    first.acknowledge(first.read(1, MAX_PAYLOAD_BYTES).end)
    assert (tmp_path / "x.ack").read_bytes().startswith(b"auditspan-ack 1 1")
    damage(tmp_path / "x.ack")
    first.close()
    assert read_all(taken(path))[0] == PAYLOADS


def test_an_acknowledgement_of_another_segment_does_not_count(tmp_path):
    for name in ("x", "y"):
        file_with(tmp_path / f"{name}.spool", b"".join(map(frames.pack, PAYLOADS)))
    first = taken(tmp_path / "x.spool")
    first.acknowledge(first.read(2, MAX_PAYLOAD_BYTES).end)
    first.close()
    (tmp_path / "x.ack").rename(tmp_path / "y.ack")
    assert read_all(taken(tmp_path / "y.spool"))[0] == PAYLOADS


def test_a_live_segment_s_unfinished_end_is_waited_for(tmp_path):
    segment = Segment.create(tmp_path / "x.spool")
    whole = frames.pack(b"whole")
    os.write(segment.fd, whole[:9])
    segment.size = 9
    assert segment.read(9, 999) == (segment.read(9, 999))
    assert segment.read(9, 999).payloads == ()
    os.write(segment.fd, whole[9:])
    segment.size = len(whole)
    assert segment.read(9, 999).payloads == (b"whole",)
    assert segment.read(9, 999).skipped == 0
    assert not (tmp_path / "x.bad").exists()
    segment.close()


def test_a_batch_keeps_to_both_limits_but_never_stalls_on_a_large_record(tmp_path):
    payloads = [b"a" * 10, b"b" * 10, b"c" * 1000, b"d"]
    segment = taken(file_with(tmp_path / "x.spool", b"".join(map(frames.pack, payloads))))
    seen = []
    while batch := segment.read(3, 25).payloads:
        seen.append(len(batch))
        segment.acknowledge(segment.read(3, 25).end)
    assert seen == [2, 1, 1]
    segment.close()
