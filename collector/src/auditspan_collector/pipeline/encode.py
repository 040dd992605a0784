"""From a request to its leaves: the compiled way where there is one, the readable way for all else.

Both give the same (tests compare them); which one a request takes shows in nothing but time. The compiled way takes
OTLP/protobuf, and leaves to the readable path single spans that it does not know to encode, and whole requests that
are malformed or refused, whose error the readable path names.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from auditspan_collector import decode
from auditspan_collector.decode.wire import MIN_BYTES_A_MESSAGE, MIN_MESSAGES
from auditspan_collector.errors import AuditspanError
from auditspan_collector.pipeline import readable
from auditspan_collector.pipeline.heads import Heads
from auditspan_collector.processor import enrich
from auditspan_collector.processor.select import check_service
from auditspan_collector.processor.tagging import Tagger
from auditspan_collector.record import Leaves, Selection, sequence_key
from auditspan_collector.schema import FILLED_FROM, LEAF_VERSION, received_column
from auditspan_collector.transcode import COMPILED, Plan, Transcoder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from auditspan_collector.processor.enrich import Limits
    from auditspan_collector.processor.tagging import Rule
    from auditspan_collector.record import Leaf, OtlpRequest
    from auditspan_collector.transcode import Transcoded

_IDLE: Final = 8  # transcoders kept; a walk holds the GIL, so that few are in use at once


def encoder(limits: Limits, rules: Sequence[Rule] = ()) -> Callable[[OtlpRequest], Selection]:
    """What turns a request into its leaves under *limits*; to be called from any thread. Raises as `readable.encode`.

    Interpreted, the walk takes longer than the readable path, so it is used only where it is compiled. *rules* make
    records of spans that say nothing themselves; without them nothing looks for any.
    """
    plain = Encoder(limits) if COMPILED else partial(readable.encode, limits=limits)
    return partial(_with_rules, plain, limits, Tagger(rules)) if rules else plain


def _with_rules(
    plain: Callable[[OtlpRequest], Selection], limits: Limits, tagger: Tagger, request: OtlpRequest
) -> Selection:
    """The selection of *request*, and behind it that of the spans that *tagger* makes records of."""
    selection = plain(request)
    if request.encoding == "protobuf" and not tagger.may_fit(request.body):
        return selection
    found = decode.find(request.body, request.encoding, "", spans_limit=limits.spans_per_request)
    body = tagger.tagged(found.spans)
    if not body:
        return selection
    # A request of its own: what is judged and counted of the one that was sent stays as it is.
    tagged = plain(replace(request, body=body, encoding="protobuf"))
    return Selection(
        leaves=Leaves.of([*selection.leaves, *tagged.leaves]),
        spans=selection.spans,
        tagged=selection.tagged + tagged.tagged,
        copies=selection.copies,
        invalid=selection.invalid + tagged.invalid,
        problems=(*selection.problems, *tagged.problems)[: readable.PROBLEMS_NAMED],
    )


def plan_of(limits: Limits, heads: Heads) -> Plan:
    """What the walk has to know, from the schema and the processors' own tables."""
    return Plan(
        leaf_version=LEAF_VERSION,
        filled_from=FILLED_FROM,
        peer_attributes=enrich.PEER_ATTRIBUTES,
        http_status=enrich.HTTP_STATUS,
        grpc_status=enrich.GRPC_STATUS,
        grpc_denied=enrich.GRPC_DENIED,
        grpc_ok=enrich.GRPC_OK,
        kinds=enrich.KINDS,
        status_codes=enrich.STATUS_CODES,
        attributes_per_span=limits.attributes_per_span,
        events_per_span=limits.events_per_span,
        links_per_span=limits.links_per_span,
        value_bytes=limits.value_bytes,
        request_bytes=limits.request_bytes,
        spans_per_request=limits.spans_per_request,
        min_messages=MIN_MESSAGES,
        min_bytes_a_message=MIN_BYTES_A_MESSAGE,
        heads=heads,
    )


class Encoder:
    """The compiled way, with the readable one behind it. Thread-safe."""

    def __init__(self, limits: Limits, walk: Callable[[Plan], Transcoder] = Transcoder) -> None:
        self._limits = limits
        self._walk = walk
        self._plan = plan_of(limits, Heads(limits))
        self._idle: deque[Transcoder] = deque(maxlen=_IDLE)

    def __call__(self, request: OtlpRequest) -> Selection:
        """The leaves of *request*. Raises as `readable.encode`."""
        if request.encoding == "protobuf":
            try:
                selection = self._select(request)
            except AuditspanError:
                selection = None  # said again by the readable path, which judges in the order of the spans
            if selection is not None:
                return selection
        return readable.encode(request, self._limits)

    def transcoder(self) -> Transcoder:
        """One that nobody uses; a new one if need be."""
        try:
            return self._idle.pop()
        except IndexError:
            return self._walk(self._plan)

    def _select(self, request: OtlpRequest) -> Selection | None:
        transcoder = self.transcoder()
        sender = request.sender
        found = transcoder.run(
            request.body,
            sender.tenant,
            received_column(request.received_unix_ns // 1_000_000),
            partial(sequence_key, sender.name),
            instrumented=sender.instrumented,
        )
        self._idle.append(transcoder)
        if found is None:
            return None
        for service in found.services:
            check_service(sender, service)
        if found.odd:
            return self._with_odd(found, request)
        return Selection(found.leaves, spans=found.spans, tagged=found.tagged, copies=found.copies)

    def _with_odd(self, found: Transcoded, request: OtlpRequest) -> Selection | None:
        """The selection when some spans go the readable way, each as a request of its own."""
        ready = iter(found.leaves)
        leaves: list[Leaf] = []
        problems: list[str] = []
        tagged, copies, invalid, taken = found.tagged, found.copies, 0, 0
        for before, body in found.odd:
            leaves += islice(ready, before - taken)
            taken = before
            alone = readable.encode(replace(request, body=body), self._limits)
            leaves += alone.leaves
            problems += alone.problems
            tagged, copies, invalid = tagged + alone.tagged, copies + alone.copies, invalid + alone.invalid
        leaves += ready
        if sum(len(leaf.content) for leaf in leaves) > self._limits.request_bytes:
            return None
        return Selection(
            leaves=Leaves.of(leaves),
            spans=found.spans,
            tagged=tagged,
            copies=copies,
            invalid=invalid,
            problems=tuple(problems[: readable.PROBLEMS_NAMED]),
        )
