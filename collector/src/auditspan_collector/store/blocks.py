"""ClickHouse's own compressed framing, which ``compress=1`` and ``decompress=1`` ask for.

A block is a 16-byte CityHash128 of what follows, one byte naming the method, the size from that byte on and the
size of the data (both 4 bytes, little endian), and the compressed data: ClickHouse's
src/Compression/CompressedWriteBuffer.cpp and ICompressionCodec.cpp.
"""

from __future__ import annotations

import hmac
import struct
from typing import TYPE_CHECKING, Final

import lz4.block
import zstandard

from auditspan_collector.store.cityhash import cityhash128
from auditspan_collector.store.failures import CANNOT_DECOMPRESS, CHECKSUM_DOESNT_MATCH, QueryFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    class Readable(Protocol):
        """Bytes that come in pieces; an empty one is the end."""

        def read(self, size: int, /) -> bytes:
            """At most *size* bytes."""


_NONE: Final = 0x02
_LZ4: Final = 0x82
_ZSTD: Final = 0x90
_HEADER = struct.Struct("<BII")
_CHECKSUM_BYTES: Final = 16
BLOCK_BYTES: Final = 1 << 20  # as ClickHouse's max_compress_block_size
MAX_BLOCK_BYTES: Final = 64 << 20  # a client's blocks are held in memory whole


def compressed(data: bytes) -> bytes:
    """*data* as LZ4 blocks of at most a megabyte each."""
    out = bytearray()
    for at in range(0, len(data), BLOCK_BYTES):
        piece = data[at : at + BLOCK_BYTES]
        packed = lz4.block.compress(piece, store_size=False)
        block = _HEADER.pack(_LZ4, len(packed) + _HEADER.size, len(piece)) + packed
        out += cityhash128(block)
        out += block
    return bytes(out)


def _exactly(source: Readable, size: int, *, at_start: bool = False) -> bytes:
    parts = []
    wanted = size
    while wanted:
        part = source.read(wanted)
        if not part:
            if at_start and wanted == size:
                return b""
            raise QueryFailed.because(
                CANNOT_DECOMPRESS, "The body ends inside a compressed block.", status=400
            )
        parts.append(part)
        wanted -= len(part)
    return b"".join(parts)


def _unpack(method: int, packed: bytes, size: int) -> bytes:
    try:
        if method == _LZ4:
            return bytes(lz4.block.decompress(packed, uncompressed_size=size))
        if method == _ZSTD:
            return zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)
    except (lz4.block.LZ4BlockError, zstandard.ZstdError) as error:
        raise QueryFailed.because(
            CANNOT_DECOMPRESS, f"A compressed block is damaged: {error}.", status=400
        ) from None
    if method == _NONE:
        return packed
    raise QueryFailed.because(
        CANNOT_DECOMPRESS,
        f"Compression method 0x{method:02x} is unknown; allowed: LZ4, ZSTD, NONE.",
        status=400,
    )


def decompressed(source: Readable) -> Iterator[bytes]:
    """The data in *source*'s blocks, one block at a time. Raises QueryFailed for what is damaged or too large."""
    while checksum := _exactly(source, _CHECKSUM_BYTES, at_start=True):
        header = _exactly(source, _HEADER.size)
        method, packed_size, size = _HEADER.unpack(header)
        if not _HEADER.size <= packed_size <= MAX_BLOCK_BYTES or size > MAX_BLOCK_BYTES:
            raise QueryFailed.because(
                CANNOT_DECOMPRESS,
                f"A compressed block has an impossible size, or more than {MAX_BLOCK_BYTES} bytes.",
                status=400,
            )
        packed = _exactly(source, packed_size - _HEADER.size)
        if not hmac.compare_digest(cityhash128(header + packed), checksum):
            raise QueryFailed.because(
                CHECKSUM_DOESNT_MATCH,
                "Checksum doesn't match: corrupted data, or not ClickHouse's framing.",
                status=400,
            )
        data = _unpack(method, packed, size)
        if len(data) != size:
            raise QueryFailed.because(
                CANNOT_DECOMPRESS, "A compressed block has another size than it says.", status=400
            )
        yield data
