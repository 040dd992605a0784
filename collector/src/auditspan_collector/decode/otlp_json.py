"""Turn OTLP/JSON into the same request in protobuf, or say which value is wrong.

OTLP's mapping is protobuf's JSON mapping with three differences: trace and span ids are hex, enums are integers, and
unknown fields are ignored. As protobuf's parsers do, this one also takes snake_case names, enum names, 64-bit
numbers as string or number, and null for an absent field. A request in JSON is judged whole, tagged or not:
converting a value is judging it.

References: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding,
https://protobuf.dev/programming-guides/json/
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from google.protobuf.descriptor import FieldDescriptor
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from auditspan_collector.decode import wire
from auditspan_collector.decode.wire import MAX_DEPTH
from auditspan_collector.errors import InvalidRequest

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, EnumDescriptor
    from google.protobuf.message import Message

_HEX_FIELDS: Final = frozenset({"trace_id", "span_id", "parent_span_id"})
_INTEGER_RANGES: Final = {
    FieldDescriptor.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.TYPE_FIXED32: (0, (1 << 32) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.TYPE_FIXED64: (0, (1 << 64) - 1),
}
_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_NOT_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class _Bad(Exception):  # noqa: N818 - becomes InvalidRequest at the door of the module
    """A value that its field can't hold. *path* is filled from the inside out while it rises."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path: list[str] = []


class _Object(list[tuple[str, Any]]):
    """A JSON object as its pairs, so that a repeated name does not silently hide a value."""


class _Constant(NamedTuple):
    """NaN and its like outside a string: Python reads them, JSON has no such thing."""

    text: str


def to_protobuf(body: bytes) -> bytes:
    """The ExportTraceServiceRequest in *body* (JSON in UTF-8) in protobuf's wire format.

    Raises InvalidRequest with byte offset, line and column where it is no JSON, and with the JSON path, without an
    offset, where a value does not fit its field; TooLarge when it holds more objects and arrays than one request may.
    """
    wire.Budget(body).spend(body.count(b"{") + body.count(b"["))
    document = _parse(body)
    request = ExportTraceServiceRequest()
    try:
        _fill(request, document, 0)
    except _Bad as error:
        path = "".join(reversed(error.path)).lstrip(".")
        raise InvalidRequest(error.problem, offset=None, field=path) from None
    return request.SerializeToString()


def _parse(body: bytes) -> Any:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"not UTF-8: {error.reason}", offset=error.start, field="") from None
    try:
        return json.loads(text, object_pairs_hook=_Object, parse_constant=_Constant)
    except json.JSONDecodeError as error:
        offset = len(text[: error.pos].encode())
        problem = f"not JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        raise InvalidRequest(problem, offset=offset, field="") from None
    except RecursionError:
        raise InvalidRequest("JSON nested too deeply", offset=None, field="") from None
    except ValueError as error:  # a number of more digits than Python converts
        raise InvalidRequest(f"not JSON: {error}", offset=None, field="") from None


def _fill(message: Message, value: Any, depth: int) -> None:
    if not isinstance(value, _Object):
        raise _Bad(f"{_kind(value)}, expected an object")
    if depth > MAX_DEPTH:
        raise _Bad(f"nested more than {MAX_DEPTH} messages deep")
    fields = _fields_of(cast("Descriptor", message.DESCRIPTOR))
    seen: set[str] = set()
    for name, content in value:
        field = fields.get(name)
        if field is None or content is None:
            continue
        try:
            _take_slot(field, seen)
            _set(message, field, content, depth)
        except _Bad as error:
            error.path.append(f".{name}")
            raise


def _take_slot(field: FieldDescriptor, seen: set[str]) -> None:
    """Note that *field*, or the one value of its oneof, was given; the last one winning would hide the others."""
    oneof = field.containing_oneof
    slot = field.name if oneof is None else oneof.name
    if slot in seen:
        raise _Bad("given twice" if oneof is None else f"a second {slot}")
    seen.add(slot)


def _set(message: Message, field: FieldDescriptor, content: Any, depth: int) -> None:
    if field.is_repeated:
        if isinstance(content, _Object) or not isinstance(content, list):
            raise _Bad(f"{_kind(content)}, expected an array")
        repeated = getattr(message, field.name)
        for index, element in enumerate(content):
            try:
                if field.message_type is not None:
                    _fill(repeated.add(), element, depth + 1)
                else:
                    repeated.append(_scalar(field, element))
            except _Bad as error:
                error.path.append(f"[{index}]")
                raise
    elif field.message_type is not None:
        inner = getattr(message, field.name)
        inner.SetInParent()
        _fill(inner, content, depth + 1)
    else:
        setattr(message, field.name, _scalar(field, content))


def _scalar(field: FieldDescriptor, content: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        return _string(content)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _hex(content) if field.name in _HEX_FIELDS else _base64(content)
    if field.type == FieldDescriptor.TYPE_BOOL:
        if not isinstance(content, bool):
            raise _Bad(f"{_kind(content)}, expected true or false")
        return content
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return _double(content)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return _enum(cast("EnumDescriptor", field.enum_type), content)
    return _integer(content, *_INTEGER_RANGES[field.type])


def _string(content: Any) -> str:
    if not isinstance(content, str):
        raise _Bad(f"{_kind(content)}, expected a string")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise _Bad("half of a surrogate pair in a string") from None
    return content


def _hex(content: Any) -> bytes:
    text = _string(content)
    if not re.fullmatch("([0-9a-fA-F]{2})*", text):
        raise _Bad(f"{_short(text)} is not hex")
    return bytes.fromhex(text)


def _base64(content: Any) -> bytes:
    text = _string(content).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise _Bad(f"{_short(text)} is not base64") from None


def _double(content: Any) -> float:
    if isinstance(content, str):
        if content in _NOT_FINITE:
            return _NOT_FINITE[content]
        if not _NUMBER.fullmatch(content):
            raise _Bad(f"{_short(content)} is no number")
    elif isinstance(content, bool) or not isinstance(content, int | float):
        raise _Bad(f"{_kind(content)}, expected a number")
    try:
        number = float(content)
        struct.pack("<d", number)
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise _Bad("a number beyond a double's range")
    return number


def _enum(enum: EnumDescriptor, content: Any) -> int:
    if isinstance(content, str) and content in enum.values_by_name:
        return enum.values_by_name[content].number
    return _integer(content, *_INTEGER_RANGES[FieldDescriptor.TYPE_INT32])


def _integer(content: Any, least: int, most: int) -> int:
    if isinstance(content, str) and len(content) <= 20 and _INTEGER.fullmatch(content):
        number = int(content)
    elif isinstance(content, int) and not isinstance(content, bool):
        number = content
    elif isinstance(content, float) and content.is_integer():
        number = int(content)
    else:
        shown = _short(content) if isinstance(content, str) else _kind(content)
        raise _Bad(f"{shown}, expected an integer")
    if not least <= number <= most:
        raise _Bad(f"an integer outside {least} to {most}")
    return number


def _kind(value: Any) -> str:
    if isinstance(value, _Constant):
        return f"a bare {value.text}, which is not JSON"
    if isinstance(value, _Object):
        return "an object"
    kinds = {type(None): "null", bool: "a boolean", str: "a string", list: "an array"}
    return kinds.get(type(value), "a number")


def _short(text: str) -> str:
    """*text* for a message: quoted, and no longer than one line."""
    return json.dumps(text if len(text) <= 40 else text[:37] + "...")


_FIELDS: dict[str, dict[str, FieldDescriptor]] = {}


def _fields_of(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    """The fields of *descriptor* by both their names; kept, since each request asks again."""
    fields = _FIELDS.get(descriptor.full_name)
    if fields is None:
        fields = {name: field for field in descriptor.fields for name in (field.json_name, field.name)}
        _FIELDS[descriptor.full_name] = fields
    return fields
