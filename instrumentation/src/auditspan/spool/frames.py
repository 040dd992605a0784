"""How records lie in a segment file, so that a write cut short anywhere is noticed and skipped, never misread.

A segment is frames one after the other, nothing else; all numbers little endian:

    offset  size  what
    0       4     b"ASF1": Auditspan frame, version 1
    4       4     length of the payload in bytes, 1 to MAX_PAYLOAD_BYTES
    8       4     CRC-32 of the payload (zlib's)
    12      n     the payload: an OTLP ExportTraceServiceRequest with one span

Frames need no separator and no index: payloads joined end to end are themselves one valid request, because
protobuf merges repeated fields (https://protobuf.dev/programming-guides/encoding/#last-one-wins).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final, Literal

MAGIC: Final = b"ASF1"
HEADER: Final = struct.Struct("<4sII")
MAX_PAYLOAD_BYTES: Final = 3 * 1024 * 1024  # below gRPC's default message limit of 4 MiB
MAX_FRAME_BYTES: Final = HEADER.size + MAX_PAYLOAD_BYTES
_pack_header: Final = HEADER.pack
_crc32: Final = zlib.crc32


@dataclass(frozen=True, slots=True)
class Frame:
    """A whole frame: its *payload*, and the offset *end* behind it in the buffer it was parsed from."""

    payload: bytes
    end: int


Broken = Literal["incomplete", "corrupt"]


def pack(payload: bytes) -> bytes:
    """*payload* as one frame. The caller keeps it within 1 to MAX_PAYLOAD_BYTES."""
    return _pack_header(MAGIC, len(payload), _crc32(payload)) + payload


def parse(buffer: bytes, offset: int) -> Frame | Broken:
    """The frame at *offset*; "incomplete" when the buffer ends before it does, "corrupt" when it is none."""
    if len(buffer) - offset < HEADER.size:
        there = buffer[offset : offset + len(MAGIC)]
        return "incomplete" if MAGIC.startswith(there) else "corrupt"
    magic, length, checksum = HEADER.unpack_from(buffer, offset)
    if magic != MAGIC or not 0 < length <= MAX_PAYLOAD_BYTES:
        return "corrupt"
    start = offset + HEADER.size
    if len(buffer) - start < length:
        return "incomplete"
    payload = buffer[start : start + length]
    return Frame(payload, start + length) if zlib.crc32(payload) == checksum else "corrupt"


def next_magic(buffer: bytes, offset: int) -> int:
    """Where behind *offset* another frame may begin; -1 when nowhere in *buffer*."""
    return buffer.find(MAGIC, offset + 1)
