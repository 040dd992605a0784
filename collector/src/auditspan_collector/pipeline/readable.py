"""From a request to its leaves, the way that can be read: decode, choose, enrich, encode.

This is the path for every request until a faster one exists, for OTLP/JSON always, and the oracle that says what
any other path must give, byte for byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from auditspan import attributes as names

from auditspan_collector import decode
from auditspan_collector.errors import TooLarge
from auditspan_collector.processor.enrich import enrich
from auditspan_collector.processor.select import check_service, choose, problem_of
from auditspan_collector.record import Leaves, Selection
from auditspan_collector.schema import encode_leaf

if TYPE_CHECKING:
    from auditspan_collector.processor.enrich import Limits
    from auditspan_collector.record import OtlpRequest

PROBLEMS_NAMED = 5


def encode(request: OtlpRequest, limits: Limits) -> Selection:
    """The leaves of *request*'s audit-tagged spans, in their order.

    Raises InvalidRequest for bytes that are not OTLP, and PermissionDenied when the sender may not speak for the
    service of a tagged span, and TooLarge when it holds more spans than ``limits.spans_per_request`` or its records come
    to more than ``limits.request_bytes``; then nothing of the request is to be kept. A tagged span without valid ids is left out and counted.
    """
    found = decode.find(request.body, request.encoding, names.PREFIX, spans_limit=limits.spans_per_request)
    chosen = choose(found.spans)
    leaves = []
    size = 0
    problems: list[str] = []
    for tagged in chosen.tagged:
        decoded = decode.decode(tagged)
        problem = problem_of(decoded.span)
        record = None if problem else enrich(decoded, request.sender, request.received_unix_ns, limits)
        if record is None:
            problems.append(problem)
            continue
        check_service(request.sender, record.service_name)
        leaf = encode_leaf(record, request.sender.name)
        leaves.append(leaf)
        size += len(leaf.content)
        if size > limits.request_bytes:
            raise TooLarge(
                f"the {len(chosen.tagged)} records of this request come to more than {limits.request_bytes} bytes, since "
                "each carries its resource; send fewer spans at once, or raise limits.request_bytes"
            )
    return Selection(
        leaves=Leaves.of(leaves),
        spans=found.total,
        tagged=len(chosen.tagged),
        copies=chosen.copies,
        invalid=len(problems),
        problems=tuple(problems[:PROBLEMS_NAMED]),
    )
