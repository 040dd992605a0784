"""What search, trace and sql have in common: a connection, errors that say what to do, and a quiet end in a pipe."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final

from auditspan_collector.cli.connection import connection_options
from auditspan_collector.cli.render import visible
from auditspan_collector.errors import StoreRejected, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

_CODE = re.compile(r"Code: (\d+)\. ")
_NOT_THERE: Final = "no store there? start one with `auditspan up`, or name another with --url"

# Numbers from ClickHouse's src/Common/ErrorCodes.cpp.
_HINTS: Final = {
    60: "`auditspan sql 'SHOW TABLES'` lists the tables; none: start `auditspan up` or `auditspan collect` once",
    81: "see --database, or start `auditspan up` or `auditspan collect` once, which creates it",
    164: "these commands only read; for settings use `auditspan sql --set`, to change things ClickHouse's own client",
    456: "give each {name:Type} a value with --param name=value",
    516: "see --user and AUDITSPAN_CLICKHOUSE_PASSWORD",
}


def reads_the_store(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a click command the connection options, and see to its end.

    When the store fails, the error says what to do about it. When the reader of the output has seen enough
    (``| head``), the command ends with status 0 and says nothing.
    """

    @connection_options
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            result = function(*args, **kwargs)
            sys.stdout.flush()
        except StoreUnavailable as error:
            # With a code it is the store itself that says so; without one nothing answered.
            hint = "" if _CODE.search(str(error)) else _NOT_THERE
            raise StoreUnavailable(_one_line(error, hint)) from error
        except StoreRejected as error:
            hint = _HINTS.get(error.code, "")
            raise StoreRejected(_one_line(error, hint), code=error.code) from error
        except BrokenPipeError:
            # The interpreter flushes stdout once more when it ends, and would complain then.
            with contextlib.suppress(io.UnsupportedOperation):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return None
        return result

    return wrapped


def _one_line(error: StoreUnavailable | StoreRejected, hint: str) -> str:
    """ClickHouse's message without its ceremony, in one line, and what to do where we know it."""
    text = " ".join(str(error).split())
    code = _CODE.search(text)
    text = re.sub(r"(?:Code: \d+\. )?DB::Exception: ", "", text)
    # A syntax error goes on with everything that could have stood there, often a screen full.
    text = re.sub(r" Expected one of: .*?(?= \([A-Z_]+\)|$)", "", text)
    parts = [f"{text} [code {code[1]}]" if code else text, hint]
    return visible("; ".join(part for part in parts if part))
