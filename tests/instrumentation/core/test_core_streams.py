"""The end of a response in pieces is told once, as soon as it is known, and the pieces pass as they are."""

from __future__ import annotations

import asyncio
import gc

import pytest
from auditspan.extractors.streams import AsyncStream, PlainStream


def unknown():
    return -1


class Pieces:
    """What an application gives: it may break in the middle, and wants to be closed."""

    def __init__(self, *pieces, error=None):
        self.pieces, self.error = pieces, error
        self.closed = 0

    def __iter__(self):
        yield from self.pieces
        if self.error is not None:
            raise self.error

    async def __aiter__(self):
        for piece in self:
            yield piece

    def close(self):
        self.closed += 1


async def read(stream):
    return [piece async for piece in stream]


def read_by(kind, stream):
    return list(stream) if kind is PlainStream else asyncio.run(read(stream))


KINDS = pytest.mark.parametrize("kind", [PlainStream, AsyncStream], ids=["plain", "asynchronous"])


@KINDS
def test_the_pieces_pass_and_their_end_is_told_once(kind):
    told = []
    stream = kind(Pieces(b"a", b"bc"), told.append, unknown)
    assert read_by(kind, stream) == [b"a", b"bc"]
    stream.close()
    del stream
    gc.collect()
    assert told == [""]


@KINDS
def test_the_end_is_told_before_the_last_piece_goes_out(kind):
    told = []
    stream = kind(Pieces(b"abc", b"de", b""), told.append, lambda: 5)
    with asyncio.Runner() as loop:
        following = (lambda: next(stream)) if kind is PlainStream else (lambda: loop.run(stream.__anext__()))
        assert (following(), told) == (b"abc", [])
        assert (following(), told) == (b"de", [""])
        assert (following(), told) == (b"", [""])


@KINDS
def test_what_breaks_is_cut_short_by_it_and_raises(kind):
    told = []
    stream = kind(Pieces(b"a", error=ValueError("no more")), told.append, unknown)
    with pytest.raises(ValueError, match="no more"):
        read_by(kind, stream)
    stream.close()
    assert told == ["the response was cut short by ValueError"]


def test_a_cancelled_stream_is_a_client_that_left():
    told = []
    stream = AsyncStream(Pieces(b"a", error=asyncio.CancelledError()), told.append, unknown)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(read(stream))
    assert told == ["the client disconnected"]


@pytest.mark.parametrize("how", ["closed", "dropped"])
@pytest.mark.parametrize(
    ("unread", "says"),
    [({}, "the response was cut short"), ({"unread": ""}, "")],
    ids=["a body", "the body of a HEAD"],
)
def test_what_nobody_reads_to_its_end_is_cut_short(how, unread, says):
    told = []
    stream = PlainStream(Pieces(b"a", b"b"), told.append, unknown, **unread)
    next(stream)
    if how == "closed":
        stream.close()
    del stream
    gc.collect()
    assert told == [says]


@pytest.mark.parametrize(("closes", "times"), [(True, 1), (False, 0)], ids=["its own", "somebody else's"])
def test_the_pieces_are_closed_only_where_nobody_else_does(closes, times):
    pieces = Pieces(b"a")
    PlainStream(pieces, [].append, unknown, closes=closes).close()
    assert pieces.closed == times


def test_the_end_is_told_also_when_closing_the_pieces_fails():
    told = []

    class Stuck(Pieces):
        def close(self):
            raise OSError("stuck")

    stream = PlainStream(Stuck(b"a"), told.append, unknown, closes=True)
    with pytest.raises(OSError, match="stuck"):
        stream.close()
    assert told == ["the response was cut short"]


def test_the_length_may_become_known_with_the_first_piece():
    known, told = [-1], []

    def pieces():
        known[0] = 2  # WSGI's start_response, which a generator calls when it is asked for its first piece
        yield b"ab"
        yield b""

    stream = PlainStream(pieces(), told.append, lambda: known[0])
    assert next(stream) == b"ab"
    assert told == [""]


def test_text_counts_by_its_bytes():
    told = []
    stream = PlainStream(iter(["é", "é"]), told.append, lambda: 4)
    next(stream)
    assert told == []
    next(stream)
    assert told == [""]


def test_a_stream_that_was_let_go_tells_nothing():
    told = []
    stream = PlainStream(Pieces(b"a"), told.append, unknown)
    stream.let_go()
    assert list(stream) == [b"a"]
    stream.close()
    assert told == []


def test_what_can_not_be_iterated_raises_and_tells_nothing():
    told = []
    with pytest.raises(TypeError):
        PlainStream(5, told.append, unknown)
    gc.collect()
    assert told == []
