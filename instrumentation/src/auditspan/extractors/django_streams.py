"""The end of a response that Django sends in pieces, told when it comes; the request's span has ended long before."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

CUT_SHORT: Final = "the response was cut short"
_LEFT: Final = "the client disconnected"


class Stream:
    """The *pieces* of a response; *ended* is called once, with why they were cut short or an empty text."""

    _ended = True  # as long as it is not made

    def __init__(self, pieces: Any, ended: Callable[[str], None], length: int) -> None:
        """*length* is that of the whole in bytes, 0 when nobody said."""
        self._pieces = pieces
        self._tell = ended
        self._left = length or -1
        self._ended = False

    def close(self) -> None:
        """The server is done with it, or has lost the client."""
        self._end(CUT_SHORT)

    def __del__(self) -> None:
        """Nobody reads on."""
        self._end(CUT_SHORT)

    def _passes(self, piece: bytes) -> None:
        # The client knows that the response is whole when it has these bytes, so it ends before they go out.
        if self._left > 0:
            self._left -= len(piece)
            if self._left <= 0:
                self._end("")

    def _breaks(self, error: BaseException) -> None:
        cancelled = isinstance(error, asyncio.CancelledError)
        self._end(_LEFT if cancelled else f"{CUT_SHORT} by {type(error).__name__}")

    def _end(self, cut_short: str) -> None:
        if not self._ended:
            self._ended = True
            self._tell(cut_short)


class PlainStream(Stream):
    """Of an iterator."""

    def __iter__(self) -> Iterator[bytes]:
        """Itself."""
        return self

    def __next__(self) -> bytes:
        """The next piece."""
        try:
            piece: bytes = next(self._pieces)
        except StopIteration:
            self._end("")
            raise
        except BaseException as error:
            self._breaks(error)
            raise
        self._passes(piece)
        return piece


class AsyncStream(Stream):
    """Of an asynchronous iterator."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Itself."""
        return self

    async def __anext__(self) -> bytes:
        """The next piece."""
        try:
            piece: bytes = await anext(self._pieces)
        except StopAsyncIteration:
            self._end("")
            raise
        except BaseException as error:
            self._breaks(error)
            raise
        self._passes(piece)
        return piece
