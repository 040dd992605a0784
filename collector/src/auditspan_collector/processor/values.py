"""Give an OTLP value the text that a column holds, and the type that gives it back.

| value | text | type |
|---|---|---|
| string | itself | none: what has no type is a string |
| bool, int | true or false, decimal digits | bool, int |
| double | the shortest digits that give it back, always with . or e; NaN, Infinity, -Infinity | double |
| bytes | base64 | bytes |
| array, key-value list | plain JSON, where that keeps every value and type | array, kvlist |
| array, key-value list | OTLP's own JSON of the AnyValue, where it would not | anyvalue |
| no value | empty | empty |

Plain JSON loses bytes, numbers that are not finite, and repeated keys; anything nested that holds one of them is
written the long way. Integers and doubles stay apart in plain JSON: 1 and 1.0. An empty value inside is null.
A reference into a profile's string table means no value, as OTLP tells receivers of traces.
"""

from __future__ import annotations

import base64
import json
import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, EntityRef, KeyValue

STRING: Final = "string"  # named only where its key repeats


class _NotPlain(Exception):  # noqa: N818 - an answer, not a failure
    """Plain JSON would lose something of this value."""


def text_of(value: AnyValue) -> tuple[str, str]:
    """Text and type of *value*; the type of a string is STRING."""
    return _TEXTS[value.WhichOneof("value")](value)


def _structured(value: AnyValue, kind: str) -> tuple[str, str]:
    try:
        return compact_json(_plain(value)), kind
    except _NotPlain:
        return compact_json(_otlp(value)), "anyvalue"


def double_text(number: float) -> str:
    """The shortest text that gives *number* back, with names for what has no digits."""
    if math.isfinite(number):
        return repr(number)
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def compact_json(value: Any) -> str:
    """*value* as JSON without spaces, other than ASCII left as it is."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def entity_refs_text(refs: Sequence[EntityRef]) -> str:
    """A resource's entity references as JSON, all fields named; empty when there are none."""
    if not refs:
        return ""
    return compact_json(
        [
            {
                "schemaUrl": ref.schema_url,
                "type": ref.type,
                "idKeys": list(ref.id_keys),
                "descriptionKeys": list(ref.description_keys),
            }
            for ref in refs
        ]
    )


def strings_of(value: AnyValue) -> tuple[str, ...]:
    """The texts of an array's elements; any other value that is not empty is a list of one."""
    if value.WhichOneof("value") == "array_value":
        return tuple(text_of(element)[0] for element in value.array_value.values)
    text = text_of(value)[0]
    return (text,) if text else ()


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(element) for element in value.array_value.values]
    if kind == "kvlist_value":
        return _plain_pairs(value.kvlist_value.values)
    if kind == "bytes_value" or (kind == "double_value" and not math.isfinite(value.double_value)):
        raise _NotPlain
    if kind is None or kind == "string_value_strindex":
        return None
    return getattr(value, kind)


def _plain_pairs(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    plain = {pair.key: _plain(pair.value) for pair in pairs}
    if len(plain) != len(pairs):
        raise _NotPlain
    return plain


def _otlp(value: AnyValue) -> dict[str, Any]:
    """*value* in OTLP's JSON mapping: opentelemetry/proto/common/v1/common.proto, AnyValue."""
    return _OTLP[value.WhichOneof("value")](value)


def _otlp_double(number: float) -> float | str:
    return number if math.isfinite(number) else double_text(number)


def _otlp_pairs(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    return {"values": [{"key": pair.key, "value": _otlp(pair.value)} for pair in pairs]}


_TEXTS: Final[dict[str | None, Callable[[AnyValue], tuple[str, str]]]] = {
    "string_value": lambda value: (value.string_value, STRING),
    "bool_value": lambda value: ("true" if value.bool_value else "false", "bool"),
    "int_value": lambda value: (str(value.int_value), "int"),
    "double_value": lambda value: (double_text(value.double_value), "double"),
    "bytes_value": lambda value: (base64.b64encode(value.bytes_value).decode(), "bytes"),
    "array_value": lambda value: _structured(value, "array"),
    "kvlist_value": lambda value: _structured(value, "kvlist"),
    "string_value_strindex": lambda _: ("", "empty"),
    None: lambda _: ("", "empty"),
}
_OTLP: Final[dict[str | None, Callable[[AnyValue], dict[str, Any]]]] = {
    "string_value": lambda value: {"stringValue": value.string_value},
    "bool_value": lambda value: {"boolValue": value.bool_value},
    "int_value": lambda value: {"intValue": str(value.int_value)},
    "double_value": lambda value: {"doubleValue": _otlp_double(value.double_value)},
    "bytes_value": lambda value: {"bytesValue": base64.b64encode(value.bytes_value).decode()},
    "array_value": lambda value: {
        "arrayValue": {"values": [_otlp(inner) for inner in value.array_value.values]}
    },
    "kvlist_value": lambda value: {"kvlistValue": _otlp_pairs(value.kvlist_value.values)},
    "string_value_strindex": lambda _: {},
    None: lambda _: {},
}
