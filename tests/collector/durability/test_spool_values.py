"""What the spool keeps proves itself when it is read again."""

from __future__ import annotations

import struct
from array import array

import pytest
from auditspan_collector.errors import SpoolDamaged
from auditspan_collector.record import SealedBatch
from auditspan_collector.spool import values
from auditspan_proto.v1 import record_pb2
from xxhash import xxh3_64_intdigest

ROWS = b"".join(bytes([n]) * n for n in range(1, 200))
LENGTHS = array("I", range(1, 200))
BATCH = SealedBatch("shop/one/epoch", 7, 199, ROWS, bytes(range(32)), LENGTHS)
STORED = values.StoredBatch("shop/one/epoch", 7, 199, memoryview(ROWS), bytes(range(32)), LENGTHS)
KEY = values.index_key(7)


def stored(value: bytes) -> bytes:
    """*value* with the checksum that belongs to it."""
    return struct.pack(">Q", xxh3_64_intdigest(KEY + value)) + value


def as_protobuf_writes_it(**changes) -> bytes:
    fields = {name: getattr(BATCH, name) for name in ("stream", "first_index", "count", "rows", "root")}
    return record_pb2.SealedBatch(**{**fields, "row_bytes": BATCH.row_bytes, **changes}).SerializeToString()


def test_a_batch_comes_back_as_it_was():
    assert values.decode_batch(KEY, values.encode_batch(BATCH), "it") == STORED


def test_any_protobuf_library_reads_a_stored_batch():
    message = record_pb2.SealedBatch.FromString(values.encode_batch(BATCH)[8:])
    assert message == record_pb2.SealedBatch.FromString(as_protobuf_writes_it())


def test_a_batch_is_read_whatever_the_order_of_its_fields():
    assert values.decode_batch(KEY, stored(as_protobuf_writes_it()), "it") == STORED


def test_fields_of_a_later_version_are_passed_over():
    unknown = b"\x78\x05" + b"\x82\x01\x03abc"  # 15: varint 5; 16: three bytes
    value = values.encode_batch(BATCH)[8:]
    for changed in (unknown + value, value + unknown):
        assert values.decode_batch(KEY, stored(changed), "it") == STORED


@pytest.mark.parametrize(
    "value",
    [
        values.encode_batch(BATCH)[8:-1],
        as_protobuf_writes_it()[:40],
        as_protobuf_writes_it() + b"\x80",
        b"\x22\xff\xff\xff\xff\x0f",
        b"\x22" + b"\x80" * 20,
        as_protobuf_writes_it(stream="") + b"\x0a\x02\xff\xfe",
        as_protobuf_writes_it(rows=ROWS[:-1]),
        as_protobuf_writes_it(count=198),
        as_protobuf_writes_it(rows=b""),
    ],
    ids=[
        "rows cut",
        "fields cut",
        "a number without end",
        "rows longer than the value",
        "a length of twenty bytes",
        "a stream that is not UTF-8",
        "a row too short",
        "a row too many",
        "no rows",
    ],
)
def test_a_value_that_is_no_batch_is_named(value):
    with pytest.raises(SpoolDamaged, match="batch at index 7"):
        values.decode_batch(KEY, stored(value), "batch at index 7")


def test_one_flipped_bit_anywhere_is_found():
    good = values.encode_batch(BATCH)
    for at in range(0, len(good) * 8, 101):
        bad = bytearray(good)
        bad[at // 8] ^= 1 << at % 8
        with pytest.raises(SpoolDamaged, match="checksum"):
            values.decode_batch(KEY, bytes(bad), "it")


def test_a_batch_under_another_key_is_found():
    with pytest.raises(SpoolDamaged, match="checksum"):
        values.decode_batch(values.index_key(8), values.encode_batch(BATCH), "it")
