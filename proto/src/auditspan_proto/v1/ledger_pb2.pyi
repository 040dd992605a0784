from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class IndexRange(_message.Message):
    __slots__ = ("first", "last")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    first: int
    last: int
    def __init__(self, first: _Optional[int] = ..., last: _Optional[int] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("stream", "ranges", "duplicates", "conflicts")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    CONFLICTS_FIELD_NUMBER: _ClassVar[int]
    stream: str
    ranges: _containers.RepeatedCompositeFieldContainer[IndexRange]
    duplicates: int
    conflicts: int
    def __init__(self, stream: _Optional[str] = ..., ranges: _Optional[_Iterable[_Union[IndexRange, _Mapping]]] = ..., duplicates: _Optional[int] = ..., conflicts: _Optional[int] = ...) -> None: ...

class LedgerState(_message.Message):
    __slots__ = ("stream", "size", "frontier")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    FRONTIER_FIELD_NUMBER: _ClassVar[int]
    stream: str
    size: int
    frontier: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, stream: _Optional[str] = ..., size: _Optional[int] = ..., frontier: _Optional[_Iterable[bytes]] = ...) -> None: ...
