"""The end of a response that is sent in pieces, told once when it comes; the request's span may have ended long before."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from auditspan.extractors import finish, guard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

CUT_SHORT: Final = "the response was cut short"
GONE: Final = "the client disconnected"
WITHOUT_BODY: Final = frozenset({100, 101, 102, 103, 204, 304})  # statuses (RFC 9110 sections 6.4.1 and 15)
_finish: Final = guard(finish)


def ending(source: Any, span: Any) -> Callable[[str], None]:
    """What tells *source*, by its ``cut_short``, how the response ended, and finishes the request of *span*."""

    def ended(cut_short: str) -> None:
        source.cut_short = cut_short
        _finish(span)

    return ended


class Stream:
    """The *pieces* of a response, which pass as they are.

    *ended* is called once, with why they were cut short or an empty text; it may not raise. *length* gives the bytes of
    the whole, below 0 as long as nobody has said. *unread* is why they were cut short where nobody read them to their
    end. Where it *closes* them, closing it does so; elsewhere whoever made them.
    """

    _ended = True  # as long as it is not made

    def __init__(
        self,
        pieces: Any,
        ended: Callable[[str], None],
        length: Callable[[], int],
        *,
        closes: bool = False,
        unread: str = CUT_SHORT,
    ) -> None:
        self._pieces, self._iterator = pieces, self._begun(pieces)
        self._tell, self._length = ended, length
        self._closes, self._unread = closes, unread
        self._sent = 0  # bytes, counted while the length is known
        self._ended = False

    def let_go(self) -> None:
        """Tell nothing of its end."""
        self._ended = True

    def close(self) -> None:
        """The server is done with it, or has lost the client."""
        try:
            close = getattr(self._pieces, "close", None) if self._closes else None
            if close is not None:
                close()
        finally:
            self._end(self._unread)

    def __del__(self) -> None:
        """Nobody reads on."""
        if not self._ended:
            self._end(self._unread)

    def _begun(self, pieces: Any) -> Any:
        return iter(pieces)

    def _passes(self, piece: bytes | str) -> None:
        # The client knows that the response is whole when it has these bytes, so it ends before they go out.
        length = self._length()
        if length >= 0 and not self._ended:
            self._sent += len(piece.encode() if isinstance(piece, str) else piece)
            if self._sent >= length:
                self._end("")

    def _breaks(self, error: BaseException) -> None:
        self._end(f"{CUT_SHORT} by {type(error).__name__}")

    def _end(self, cut_short: str) -> None:
        if not self._ended:
            self._ended = True
            self._tell(cut_short)


class PlainStream(Stream):
    """Of an iterable, of bytes or (with Flask) of text."""

    def __iter__(self) -> Iterator[Any]:
        """Itself."""
        return self

    def __next__(self) -> Any:
        """The next piece."""
        try:
            piece = next(self._iterator)
        except StopIteration:
            self._end("")
            raise
        except BaseException as error:
            self._breaks(error)
            raise
        self._passes(piece)
        return piece


class AsyncStream(Stream):
    """Of an asynchronous iterable."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Itself."""
        return self

    async def __anext__(self) -> bytes:
        """The next piece."""
        try:
            piece: bytes = await anext(self._iterator)
        except StopAsyncIteration:
            self._end("")
            raise
        except BaseException as error:
            self._breaks(error)
            raise
        self._passes(piece)
        return piece

    def _begun(self, pieces: Any) -> Any:
        return aiter(pieces)

    def _breaks(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            self._end(GONE)
        else:
            super()._breaks(error)
