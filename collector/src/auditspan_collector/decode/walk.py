"""Find the spans of a request byte by byte, and judge what is wanted of them.

Two steps, so that what nobody wants costs little: a walk over the framing down to each span's fields and attribute
keys, and, for a span that is asked for, everything in it, in its resource and in its scope. Pieces of one message
that lie apart are parsed one by one and merged, which is how protobuf defines it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from auditspan_collector.decode import wire
from auditspan_collector.errors import InvalidRequest, TooLarge

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue

_REQUEST = wire.shape_of(ExportTraceServiceRequest.DESCRIPTOR)
_RESOURCE_SPANS = wire.shape_of(ResourceSpans.DESCRIPTOR)
_SCOPE_SPANS = wire.shape_of(ScopeSpans.DESCRIPTOR)
_SPAN = wire.shape_of(Span.DESCRIPTOR)
_KEY_VALUE = wire.shape_of(KeyValue.DESCRIPTOR)
_RESOURCE = wire.shape_of(Resource.DESCRIPTOR)
_SCOPE = wire.shape_of(InstrumentationScope.DESCRIPTOR)

_HEAD_FIELD, _CHILDREN_FIELD = 1, 2  # Resource or InstrumentationScope, and the level below; 3 is schema_url
_ATTRIBUTES_TAG = 9 << 3 | wire.LEN  # Span.attributes
_KEY_TAG = 1 << 3 | wire.LEN  # KeyValue.key
_VALUE_TAG = 2 << 3 | wire.LEN  # KeyValue.value

# What is judged as one (a span, a resource, a scope, an attribute) is the outermost message, as it is for upb when
# it parses that one.
_TOP = 0

_Attribute = tuple[int, str, int, int]  # index in its span, key, begin, end
_Head = TypeVar("_Head", Resource, InstrumentationScope)
_Message = TypeVar("_Message", KeyValue, Resource, InstrumentationScope, Span)


class _Group:
    """A ResourceSpans or a ScopeSpans: what its spans share, found in the first walk and judged when asked for."""

    __slots__ = ("decoded", "end", "heads", "parent", "path", "start", "urls")

    def __init__(self, start: int, end: int, path: str, parent: _Group | None = None) -> None:
        self.start, self.end, self.path, self.parent = start, end, path, parent
        self.heads: list[tuple[int, int]] = []  # pieces of the Resource or the InstrumentationScope
        self.urls: list[tuple[int, int]] = []
        self.decoded: tuple[Resource | InstrumentationScope, str] | None = None


class SpanFrame:
    """Where one span lies in a request, and which of its attributes have the prefix that was looked for."""

    __slots__ = ("_attributes", "_body", "_budget", "_end", "_index", "_scope", "_start")

    def __init__(
        self,
        scope: _Group,
        index: int,
        where: tuple[bytes, int, int],
        attributes: list[_Attribute],
        budget: wire.Budget,
    ) -> None:
        self._body, self._start, self._end = where
        self._scope, self._index = scope, index
        self._attributes = attributes
        self._budget = budget

    @property
    def path(self) -> str:
        """The field path of the span in its request."""
        return f"{self._scope.path}.spans[{self._index}]"

    def values(self, key: str) -> list[AnyValue]:
        """The values of each attribute named *key*, judged; nothing else of the span is. Raises InvalidRequest."""
        return [
            _built(
                KeyValue,
                _KEY_VALUE,
                self._body,
                (begin, end),
                f"{self.path}.attributes[{index}]",
                self._budget,
            ).value
            for index, name, begin, end in self._attributes
            if name == key
        ]

    def span(self) -> Span:
        """The span, judged. Raises InvalidRequest."""
        return _built(Span, _SPAN, self._body, (self._start, self._end), self.path, self._budget)

    def scope(self) -> tuple[InstrumentationScope, str]:
        """Its scope and the scope's schema URL, judged. Raises InvalidRequest."""
        return _head(self._body, self._scope, InstrumentationScope, _SCOPE, self._budget)

    def resource(self) -> tuple[Resource, str]:
        """Its resource and the resource's schema URL, judged. Raises InvalidRequest."""
        resource_spans = self._scope.parent
        assert resource_spans is not None  # noqa: S101 - a ScopeSpans is always found in a ResourceSpans
        return _head(self._body, resource_spans, Resource, _RESOURCE, self._budget)


class Walk:
    """One walk through the request *body*, looking for spans with an attribute whose key starts with *prefix*.

    *total* counts the spans, *frames* are those with such an attribute. Raises InvalidRequest for broken framing or
    keys of any span, and TooLarge as soon as there are more than *spans_limit* of them, or more of their resources or
    scopes, or more messages than a request may hold.
    """

    def __init__(self, body: bytes, prefix: str, spans_limit: int = wire.SPANS_LIMIT) -> None:
        self._body, self._prefix = body, prefix
        self._budget = wire.Budget(body)
        self._spans_limit = spans_limit
        self._groups = 0
        self.total = 0
        self.frames: list[SpanFrame] = []
        try:
            for index, (start, end) in enumerate(self._children(None, 0, len(body), _REQUEST)):
                self._resource_spans(_Group(start, end, f"resource_spans[{index}]"))
        except wire.Malformed as error:
            raise _refusal(error) from None

    def _resource_spans(self, group: _Group) -> None:
        try:
            children = self._children(group, group.start, group.end, _RESOURCE_SPANS)
            for index, (start, end) in enumerate(children):
                name = f"scope_spans[{index}]"
                self._scope_spans(_Group(start, end, f"{group.path}.{name}", group), name)
        except wire.Malformed as error:
            error.path.append(group.path)
            raise

    def _scope_spans(self, group: _Group, name: str) -> None:
        index = -1
        try:
            children = self._children(group, group.start, group.end, _SCOPE_SPANS)
            for index, (start, end) in enumerate(children):
                attributes, count = _attributes(self._body, start, end, self._prefix)
                if not attributes:
                    self._budget.spend(count)
                else:  # counted when the span is judged
                    self.frames.append(
                        SpanFrame(group, index, (self._body, start, end), attributes, self._budget)
                    )
        except wire.Malformed as error:
            if index >= 0:
                error.path.append(f"spans[{index}]")
            error.path.append(name)
            raise

    def _children(
        self, group: _Group | None, start: int, end: int, shape: wire.Shape
    ) -> list[tuple[int, int]]:
        """The repeated messages of a level; what they share is noted in *group*."""
        children = []
        for number, begin, finish in wire.parts(self._body, start, end, shape, _TOP):
            self._budget.spend()
            if group is None or number == _CHILDREN_FIELD:
                children.append((begin, finish))
                self._count(shape)
            elif number == _HEAD_FIELD:
                group.heads.append((begin, finish))
            else:
                group.urls.append((begin, finish))
        return children

    def _count(self, shape: wire.Shape) -> None:
        if shape is _SCOPE_SPANS:
            self.total += 1
        else:
            self._groups += 1
        check_spans(self.total, self._groups, self._spans_limit)


def check_spans(spans: int, groups: int, limit: int) -> None:
    """Raise TooLarge when there are more than *limit* spans, or more resources and scopes than that."""
    if spans > limit or groups > limit:
        what = "spans" if spans > limit else "resources and scopes"
        raise TooLarge(
            f"the request holds more than {limit} {what} (limits.spans_per_request); send smaller batches"
        )


def _attributes(body: bytes, start: int, end: int, prefix: str) -> tuple[list[_Attribute], int]:
    """The attributes with *prefix* of the span between *start* and *end*; all keys are judged, the rest is framed.

    Beside them, how many attributes the span has at all. Tags and lengths of one byte, nearly all there are, are read in place.
    """
    found = []
    count = 0
    pos = start
    while pos < end:
        at = pos
        try:
            key = body[pos]
            if key < 0x80 and key & 7 == wire.LEN and pos + 1 < end and body[pos + 1] < 0x80 and key > 7:
                begin = pos + 2
                pos = begin + body[pos + 1]
                if pos > end:
                    wire.span_of(body, at + 1, end)  # raises
            else:
                number, wire_type, pos = wire.tag(body, pos, end)
                key = number << 3 | wire_type
                if number == _ATTRIBUTES_TAG >> 3:
                    wire.check_wire_type(_SPAN.fields[number], wire_type, at)
                if key != _ATTRIBUTES_TAG:
                    pos = wire.skip(body, pos, end, number, wire_type, _TOP)
                    continue
                begin, pos = wire.span_of(body, pos, end)
        except wire.Malformed as error:
            _locate_in_span(error, body, start, at, end)
            raise
        if key == _ATTRIBUTES_TAG:
            try:
                name = _key(body, begin, pos)
            except wire.Malformed as error:
                error.path.append(f"attributes[{count}]")
                raise
            if name.startswith(prefix):
                found.append((count, name, begin, pos))
            count += 1
    return found, count


def _key(body: bytes, start: int, end: int) -> str:
    """The key of the KeyValue between *start* and *end*; of several, the last."""
    if end - start > 2 and body[start] == _KEY_TAG and body[start + 1] < 0x80:
        # Nearly every KeyValue is a key and a value with lengths of one byte, and nothing more to judge.
        value = start + 2 + body[start + 1]
        if value + 1 < end and body[value] == _VALUE_TAG and value + 2 + body[value + 1] == end:
            try:
                return body[start + 2 : value].decode()
            except UnicodeDecodeError:
                pass  # the loop below finds it again, and where
    key = ""
    for number, begin, finish in wire.parts(body, start, end, _KEY_VALUE, _TOP):
        if number == _KEY_TAG >> 3:
            try:
                key = wire.check_utf8(body, begin, finish)
            except wire.Malformed as error:
                error.path.append("key")
                raise
    return key


def _locate_in_span(error: wire.Malformed, body: bytes, start: int, at: int, end: int) -> None:
    try:
        number = wire.tag(body, at, end)[0]
    except wire.Malformed:
        return  # the tag itself is broken; the span is as close as a path gets
    wire.locate(error, body, start, at, _SPAN, number)


def _head(
    body: bytes, group: _Group, message: type[_Head], shape: wire.Shape, budget: wire.Budget
) -> tuple[_Head, str]:
    """What the spans of *group* share, judged once: its Resource or InstrumentationScope, and its schema URL."""
    if group.decoded is None:
        path = f"{group.path}.{'resource' if message is Resource else 'scope'}"
        head = message()
        for where in group.heads:
            head.MergeFrom(_built(message, shape, body, where, path, budget))
        url = ""
        for begin, end in group.urls:
            try:
                url = wire.check_utf8(body, begin, end)
            except wire.Malformed as error:
                error.path += ["schema_url", group.path]
                raise _refusal(error) from None
        group.decoded = (head, url)
    return cast("tuple[_Head, str]", group.decoded)


def _built(  # noqa: PLR0917 - where and what, as everywhere in this walk
    message: type[_Message],
    shape: wire.Shape,
    body: bytes,
    where: tuple[int, int],
    path: str,
    budget: wire.Budget,
) -> _Message:
    """The *message* that lies at *where*, judged. Raises InvalidRequest."""
    begin, end = where
    try:
        wire.judge(body, begin, end, shape, _TOP, budget)
    except wire.Malformed as error:
        error.path.append(path)
        raise _refusal(error) from None
    try:
        built = message.FromString(body[begin:end])
    except DecodeError as error:
        # Never seen: a test compares the two on random bytes. Should they differ, refusing is the safe answer.
        raise InvalidRequest(str(error), offset=begin, field=path) from None
    built.DiscardUnknownFields()
    return built


def _refusal(error: wire.Malformed) -> InvalidRequest:
    return InvalidRequest(error.problem, offset=error.offset, field=".".join(reversed(error.path)))
