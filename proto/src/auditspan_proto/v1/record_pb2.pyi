from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class SealedBatch(_message.Message):
    __slots__ = ("stream", "first_index", "count", "rows", "root", "row_bytes")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    ROW_BYTES_FIELD_NUMBER: _ClassVar[int]
    stream: str
    first_index: int
    count: int
    rows: bytes
    root: bytes
    row_bytes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, stream: _Optional[str] = ..., first_index: _Optional[int] = ..., count: _Optional[int] = ..., rows: _Optional[bytes] = ..., root: _Optional[bytes] = ..., row_bytes: _Optional[_Iterable[int]] = ...) -> None: ...

class InsertRange(_message.Message):
    __slots__ = ("first_index", "last_index", "root", "started_unix_nano")
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    LAST_INDEX_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    STARTED_UNIX_NANO_FIELD_NUMBER: _ClassVar[int]
    first_index: int
    last_index: int
    root: bytes
    started_unix_nano: int
    def __init__(self, first_index: _Optional[int] = ..., last_index: _Optional[int] = ..., root: _Optional[bytes] = ..., started_unix_nano: _Optional[int] = ...) -> None: ...
