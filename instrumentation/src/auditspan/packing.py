"""A record's bytes in one pass over its span's attributes, where this package was compiled (``_packing.c``).

What the bytes are is said in ``wire``, what is left out of them in ``privacy``; this takes what is plain there and
leaves everything else to them. The tests compare both ways.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.trace import SpanKind

from auditspan.privacy import kind_of
from auditspan.spans import has_more
from auditspan.wire import KINDS, remoteness

_pack: Any = None
with contextlib.suppress(ImportError):  # installed where there was no compiler
    from auditspan._packing import pack as _pack

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.util.types import AnyValue

    from auditspan.wire import Around, SpanEncoder

COMPILED: Final = _pack is not None

_MAX_KEYS: Final = 4096
_MAX_KEY: Final = 256  # bytes
_MAX_AROUND: Final = 1024
_SERVER: Final = SpanKind.SERVER


class Packer:
    """Thread-safe: what it keeps only ever gains equal values."""

    def __init__(self, encoder: SpanEncoder) -> None:
        """*encoder* knows how the parts that repeat are encoded."""
        self._encoder = encoder
        self._keys: dict[str, bytes] = {}  # by name: what may be done with it, in one byte, and its field
        self._around: dict[int, Around] = {}  # by the scope's identity

    def pack(
        self, span: Any, attributes: Mapping[str, AnyValue], end_time_ns: int, more: bytes
    ) -> bytes | None:
        """As ``SpanEncoder.encode`` of what ``privacy.clean`` leaves where nothing is kept; None: not at once."""
        if _pack is None or has_more(span):
            return None
        try:
            # The insides, as in ``spans``: each property would cost a call.
            trace_id, span_id, _, trace_flags, trace_state, _ = span._context  # noqa: SLF001 - see above
            parent, name, kind = span._parent, span._name, span._kind  # noqa: SLF001 - see above
            scope, resource, start = span._instrumentation_scope, span._resource, span._start_time  # noqa: SLF001 - see above
        except (AttributeError, TypeError, ValueError):
            return None
        if trace_state:
            return None
        around = self._around.get(id(scope))
        if around is None or around.scope is not scope or around.resource is not resource:
            around = self._learn_around(span)
        encoder = self._encoder
        ids = b"\x0a\x10%b\x12\x08%b" % (trace_id.to_bytes(16), span_id.to_bytes(8))
        flags = trace_flags | 0x100
        if parent is not None:
            ids += b"\x22\x08" + parent.span_id.to_bytes(8)
            flags = trace_flags | remoteness(parent)
        fields = encoder.name(name) + (_SERVER_FIELD if kind is _SERVER else KINDS[kind])
        packed: bytes | None = _pack(
            self._keys, around.parts, ids, fields, start or 0, end_time_ns, attributes, more, flags
        )
        if packed is None and not self._keys.keys() >= attributes.keys():
            self._learn(attributes)
        return packed

    def _learn(self, attributes: Mapping[str, AnyValue]) -> None:
        for key in attributes:
            if key not in self._keys and len(self._keys) < _MAX_KEYS and len(key) < _MAX_KEY:
                self._keys[key] = bytes((kind_of(key),)) + self._encoder.key(key)

    def _learn_around(self, span: Any) -> Around:
        if len(self._around) >= _MAX_AROUND:
            self._around = {}
        # The objects are kept with it, so that an identity can't come to mean another.
        around = self._around[id(span.instrumentation_scope)] = self._encoder.around(span)
        return around


_SERVER_FIELD: Final = KINDS[_SERVER]
