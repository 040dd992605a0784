"""Make records of spans that say nothing of audit themselves, where an operator's rule says so.

For services that nobody can change. A rule names a service and what of its spans is meant, and says what the action is; the
record has everything that a span with those attributes would have given, and ``auditspan.tagged`` with the rule's name. A rule
never says who acted: it names the attribute that tells, and the actor stays unverified, since nobody vouches for it.

Pure: the same spans and rules give the same bytes.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Final, Literal

from auditspan import attributes as names
from msgspec import Meta, Struct
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from auditspan_collector.decode import decode
from auditspan_collector.errors import ConfigError
from auditspan_collector.processor import values

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from opentelemetry.proto.common.v1.common_pb2 import KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from auditspan_collector.decode import DecodedSpan, FoundSpan

TAGGED: Final = "auditspan.tagged"  # string; the rule that made a record of the span
_KINDS: Final = {"internal": 1, "server": 2, "client": 3, "producer": 4, "consumer": 5}
_WILD: Final = "*?["  # fnmatch's

Kind = Literal["internal", "server", "client", "producer", "consumer"]
_Name = Annotated[str, Meta(min_length=1, max_length=128)]


class Rule(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry of ``tagging.rules``. Of a span's rules the first that fits counts; patterns know ``*`` and ``?``.

    Attributes:
        name: What the rule is called in the records that it makes (attribute ``auditspan.tagged``).
        service: Pattern of the ``service.name``. It costs least where it begins with letters that few others begin with.
        span: Pattern of the span's name.
        kinds: Which kinds of spans.
        having: What the span's attributes must be, each ``key=pattern``: ``http.request.method=POST``. All must fit.
        action: What the record says was done.
        target_type: What kind of thing it was done to.
        target_id: Key of the attribute whose value says to which.
        actor: Key of the attribute whose value says who. Without it, what other conventions call the user
            (``user.id``, ``enduser.id``); the actor is ``unverified`` in any case.

    """

    name: _Name
    service: Annotated[str, Meta(min_length=1)]
    action: _Name
    span: str = "*"
    kinds: tuple[Kind, ...] = ("server", "consumer")
    having: tuple[str, ...] = ()
    target_type: str = ""
    target_id: str = ""
    actor: str = ""

    def __post_init__(self) -> None:
        """Refuse a condition without a key."""
        for condition in self.having:
            if not condition.partition("=")[0] or "=" not in condition:
                raise ConfigError(
                    f"having: {condition!r}; allowed: key=pattern, for instance http.request.method=POST"
                )


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``tagging`` section: records of spans that say nothing of audit, for services that nobody can change.

    Attributes:
        rules: Which spans. A span that is a record by itself is left as it is.

    """

    rules: tuple[Rule, ...] = ()


class Tagger:
    """The rules, made ready. Thread-safe."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = [(rule, [condition.split("=", 1) for condition in rule.having]) for rule in rules]
        heads = {_head(rule.service) for rule in rules}
        self._heads = () if "" in heads else tuple(head.encode() for head in sorted(heads))

    def may_fit(self, body: bytes) -> bool:
        """Whether the OTLP/protobuf request *body* may have spans of these services; quick, and never wrongly False."""
        return not self._heads or any(head in body for head in self._heads)

    def tagged(self, spans: Iterable[FoundSpan]) -> bytes:
        """An OTLP/protobuf request with those *spans* that a rule fits, tagged; empty when there are none.

        Raises InvalidRequest when one of *spans* is malformed.
        """
        made = ExportTraceServiceRequest()
        for found in spans:
            decoded = decode(found)
            if any(attribute.key.startswith(names.PREFIX) for attribute in decoded.span.attributes):
                continue
            rule = self._rule_for(decoded)
            if rule is not None:
                _add(made, decoded, rule)
        return made.SerializeToString()

    def _rule_for(self, decoded: DecodedSpan) -> Rule | None:
        service = _text(decoded.resource.attributes, "service.name")
        return next(
            (
                rule
                for rule, having in self._rules
                if fnmatchcase(service, rule.service) and _fits(decoded.span, rule, having)
            ),
            None,
        )


def _fits(span: Span, rule: Rule, having: list[list[str]]) -> bool:
    return (
        any(span.kind == _KINDS[kind] for kind in rule.kinds)
        and fnmatchcase(span.name, rule.span)
        and all(
            any(fnmatchcase(text, pattern) for text in _texts(span.attributes, key))
            for key, pattern in having
        )
    )


def _add(made: ExportTraceServiceRequest, decoded: DecodedSpan, rule: Rule) -> None:
    group = made.resource_spans.add(schema_url=decoded.resource_schema_url)
    group.resource.CopyFrom(decoded.resource)
    scoped = group.scope_spans.add(schema_url=decoded.scope_schema_url)
    scoped.scope.CopyFrom(decoded.scope)
    span = scoped.spans.add()
    span.CopyFrom(decoded.span)
    given = decoded.span.attributes
    said = {
        names.ACTION: rule.action,
        names.TARGET_TYPE: rule.target_type,
        names.TARGET_ID: _text(given, rule.target_id) if rule.target_id else "",
        names.ACTOR_ID: _text(given, rule.actor) if rule.actor else "",
        TAGGED: rule.name,
    }
    for key, text in said.items():
        if text:
            span.attributes.add(key=key).value.string_value = text


def _texts(attributes: Iterable[KeyValue], key: str) -> list[str]:
    return [values.text_of(attribute.value)[0] for attribute in attributes if attribute.key == key]


def _text(attributes: Iterable[KeyValue], key: str) -> str:
    return next(iter(_texts(attributes, key)), "")


def _head(pattern: str) -> str:
    """What a text that fits *pattern* surely begins with."""
    return pattern[: min((pattern.find(wild) for wild in _WILD if wild in pattern), default=len(pattern))]
