"""Failures in ClickHouse's own terms: an error number, its text, and the HTTP status that goes with it.

Numbers and names: ClickHouse's src/Common/ErrorCodes.cpp. Status: src/Server/HTTP/exceptionCodeToHTTPStatus.cpp.
"""

from __future__ import annotations

import re
from typing import Final

BAD_ARGUMENTS: Final = 36
NOT_IMPLEMENTED: Final = 48
CHECKSUM_DOESNT_MATCH: Final = 40
SYNTAX_ERROR: Final = 62
UNKNOWN_SETTING: Final = 115
READONLY: Final = 164
TOO_MANY_SIMULTANEOUS_QUERIES: Final = 202
SOCKET_TIMEOUT: Final = 209
NETWORK_ERROR: Final = 210
QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING: Final = 216
ABORTED: Final = 236
NOT_ENOUGH_SPACE: Final = 243
CANNOT_DECOMPRESS: Final = 271
QUERY_IS_TOO_LARGE: Final = 307
INTO_OUTFILE_NOT_ALLOWED: Final = 358
SESSION_NOT_FOUND: Final = 372
VIOLATED_CONSTRAINT: Final = 469
ACCESS_DENIED: Final = 497
UNKNOWN_ROLE: Final = 511
AUTHENTICATION_FAILED: Final = 516
UNKNOWN_EXCEPTION: Final = 1002

_NAMES: Final = {number: name for name, number in list(globals().items()) if isinstance(number, int)}

_BAD_REQUEST = (
    6,
    15,
    16,
    18,
    25,
    26,
    36,
    38,
    41,
    44,
    53,
    62,
    69,
    72,
    117,
    167,
    168,
    190,
    256,
    257,
    281,
    427,
    675,
    676,
)
_NOT_FOUND = (34, 46, 47, 50, 56, 60, 63, 73, 78, 81, 99, 115, 511)
_STATUS: Final = {
    **dict.fromkeys(_BAD_REQUEST, 400),
    **dict.fromkeys(_NOT_FOUND, 404),
    **dict.fromkeys((192, 193, 497, 512, 516), 403),
    194: 401,
    QUERY_IS_TOO_LARGE: 413,
    NOT_IMPLEMENTED: 501,
    159: 408,
    # 202 is 500 on a server; 503 is what clients retry, and nothing has run yet.
    **dict.fromkeys((76, SOCKET_TIMEOUT, TOO_MANY_SIMULTANEOUS_QUERIES, ABORTED, 439), 503),
}

# ErrnoException and others are exceptions of the engine too.
_CODE = re.compile(r"Code: (\d+)\. DB::\w*Exception: ")
# The engine wraps some errors in themselves, once for each layer that they pass.
_WRAPPED_START = re.compile(r"(?:Code: \d+\. DB::Exception: )+(?=Code: \d+\. DB::Exception: )")
_WRAPPED_END = re.compile(r"(\([A-Z_0-9]+\)) \(version [^)]*\)\.(?: \1 \(version [^)]*\)\.)* \1")


class QueryFailed(Exception):  # noqa: N818 - the outcome of a statement
    """A statement that ends with a ClickHouse exception. *text* is what clients expect to read."""

    def __init__(self, code: int, text: str, *, status: int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.status = status or _STATUS.get(code, 500)

    @classmethod
    def because(cls, code: int, problem: str, *, status: int | None = None) -> QueryFailed:
        """A failure of the store's own, told as ClickHouse would: *problem* says what, and what to do."""
        return cls(code, f"Code: {code}. DB::Exception: {problem} ({_NAMES[code]})", status=status)

    @classmethod
    def from_engine(cls, message: str) -> QueryFailed:
        """What the engine said; its number is in the text."""
        found = _CODE.search(message)
        if found:
            text = _WRAPPED_START.sub("", message[found.start() :].strip())
            return cls(int(found[1]), _WRAPPED_END.sub(r"\1", text))
        return cls.because(UNKNOWN_EXCEPTION, message.strip() or "the engine failed without a reason.")
