"""Read and mark the SDK's spans the short way, where their insides are as known; otherwise the public way.

The public way takes a lock, a copy and a check of each value for every attribute: tens of microseconds a request.
What is written here is ours and of the right types, and what is read is only looked at, so none of that is needed.
Proven against the public way in the tests, whatever the SDK's limits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from opentelemetry.trace import StatusCode

from auditspan import attributes as names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.sdk.trace import ReadableSpan, Span
    from opentelemetry.util.types import AnyValue

_MAX_KNOWN_KEYS: Final = 4096
_UNSET: Final = StatusCode.UNSET


def attributes_of(span: ReadableSpan) -> Mapping[str, AnyValue]:
    """The attributes of *span* as they are and become; to look at, not to change."""
    try:
        found: Mapping[str, AnyValue] = span._attributes._dict  # type: ignore[union-attr] # noqa: SLF001 - see the module
    except AttributeError:
        return span.attributes or {}
    return found


def copy_attributes(span: ReadableSpan) -> dict[str, AnyValue]:
    """The attributes of *span* as they are now."""
    found = attributes_of(span)
    # A dict's own copy is one step, so that no other thread can add to it meanwhile.
    return found.copy() if type(found) is dict else dict(found)


def has_more(span: Any) -> bool:
    """Whether *span* has events, links, a status, or has dropped anything; True when that can't be seen at once."""
    try:
        return bool(
            span._events._dq  # noqa: SLF001 - see the module
            or span._links._dq  # noqa: SLF001 - as above
            or span._attributes.dropped  # noqa: SLF001 - as above
            or span._status._status_code is not _UNSET  # noqa: SLF001 - as above
            or span._events.dropped  # noqa: SLF001 - as above
            or span._links.dropped  # noqa: SLF001 - as above
            or span._status._description  # noqa: SLF001 - as above
        )
    except AttributeError:
        return True


def put(span: Span, ours: Mapping[str, AnyValue]) -> None:
    """Set attributes on the open *span*, last; their values are texts, integers and tuples of texts."""
    if not _put_at_once(span, ours):
        span.set_attributes(ours)


def _put_at_once(span: Any, ours: Mapping[str, AnyValue]) -> bool:
    """False when a limit may be reached, a name be there already, or the SDK not be the one that we know."""
    try:
        bounded, lock = span._attributes, span._lock  # noqa: SLF001 - see the module
        there, inner_lock = bounded._dict, bounded._lock  # noqa: SLF001 - as above
        if bounded.max_value_len is not None or not there.keys().isdisjoint(ours):
            return False
        most = bounded.maxlen
        with lock, inner_lock:
            if span._end_time is not None or (most is not None and len(there) + len(ours) > most):  # noqa: SLF001 - as above
                return False
            there.update(ours)
    except AttributeError:
        return False
    return True


class PlainKeys:
    """Tells whether attributes have none of ours among them, by remembering keys that are not."""

    def __init__(self) -> None:
        self.known: Final[set[str]] = set()

    def __call__(self, attributes: Mapping[str, AnyValue]) -> bool:
        """Whether no key of *attributes* begins with ``audit.``."""
        if self.known.issuperset(attributes):  # a tenth of looking at each key
            return True
        plain = True
        for key in list(attributes):
            if key.startswith(names.PREFIX):
                plain = False
            elif len(self.known) < _MAX_KNOWN_KEYS and type(key) is str:
                self.known.add(key)
        return plain
