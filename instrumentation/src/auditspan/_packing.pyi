from collections.abc import Mapping

from opentelemetry.util.types import AnyValue

def record_id(unix_ns: int, a: int, b: int, /) -> bytes: ...
def pack(
    keys: dict[str, bytes],
    around: tuple[bytes, bytes, bytes, bytes],
    ids: bytes,
    fields: bytes,
    start: int,
    end: int,
    attributes: Mapping[str, AnyValue],
    more: bytes,
    flags: int,
    /,
) -> bytes | None: ...
