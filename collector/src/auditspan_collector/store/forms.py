"""multipart/form-data: further parameters in the body, for queries that are too long for a URL (RFC 7578)."""

from __future__ import annotations

from email.message import Message
from typing import TYPE_CHECKING

from auditspan_collector.store.failures import BAD_ARGUMENTS, NOT_IMPLEMENTED, QUERY_IS_TOO_LARGE, QueryFailed

if TYPE_CHECKING:
    from auditspan_collector.store.body import Body


def _parameter(header: str, value: str, name: str) -> str | None:
    message = Message()
    message[header] = value
    found = message.get_param(name, header=header)
    return found if isinstance(found, str) else None


def _field(part: bytes) -> tuple[str, str]:
    head, blank, value = part.partition(b"\r\n\r\n")
    disposition = ""
    for line in head.split(b"\r\n"):
        name, _, text = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            disposition = text.strip().decode("utf-8", "surrogateescape")
    name_given = _parameter("Content-Disposition", disposition, "name") if blank else None
    if name_given is None:
        raise QueryFailed.because(BAD_ARGUMENTS, "The request's form has a part without a name.")
    if _parameter("Content-Disposition", disposition, "filename") is not None:
        raise QueryFailed.because(
            NOT_IMPLEMENTED,
            f"External data ({name_given!r}) is not served by the embedded store; insert it into a table, or pass it "
            "as a query parameter.",
        )
    return name_given, value.decode("utf-8", "surrogateescape")


def read(body: Body, content_type: str, limit: int) -> dict[str, str]:
    """The fields of a form, or nothing when *content_type* is no form. Raises QueryFailed; at most *limit* bytes."""
    if not content_type.lower().startswith("multipart/form-data"):
        return {}
    boundary = _parameter("Content-Type", content_type, "boundary")
    if not boundary:
        raise QueryFailed.because(BAD_ARGUMENTS, "The request's form has no boundary.")
    data = body.at_most(limit + 1)
    if len(data) > limit:
        raise QueryFailed.because(
            QUERY_IS_TOO_LARGE, f"The form is larger than {limit} bytes (store.max_form_bytes)."
        )
    delimiter = b"\r\n--" + boundary.encode("latin-1", "replace")
    parts = (b"\r\n" + data).split(delimiter)
    if len(parts) < 2 or not parts[-1].startswith(b"--"):
        raise QueryFailed.because(BAD_ARGUMENTS, "The request's form is malformed.")
    return dict(_field(part.removeprefix(b"\r\n")) for part in parts[1:-1])
