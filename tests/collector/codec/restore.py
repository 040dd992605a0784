"""Give back the OTLP span that a row of `audit.records` was made of, by what docs/schema.md says alone.

Written apart from the encoder, on what SQL returns, so that a loss on the way in shows.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, EntityRef, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

SELECT = """
SELECT
    hex(trace_id) AS trace_id, hex(span_id) AS span_id, hex(parent_span_id) AS parent_span_id,
    toUnixTimestamp64Nano(start_time) AS start_time, duration_ns, trace_state, span_name, span_kind,
    status_code, status_message, flags,
    dropped_attributes_count, dropped_events_count, dropped_links_count,
    attributes, attribute_types,
    arrayMap(t -> toUnixTimestamp64Nano(t), events.time) AS event_times, events.name AS event_names,
    events.attributes AS event_attributes, events.attribute_types AS event_attribute_types,
    events.dropped_attributes_count AS event_dropped,
    arrayMap(i -> hex(i), links.trace_id) AS link_trace_ids, arrayMap(i -> hex(i), links.span_id) AS link_span_ids,
    links.trace_state AS link_trace_states, links.flags AS link_flags,
    links.attributes AS link_attributes, links.attribute_types AS link_attribute_types,
    links.dropped_attributes_count AS link_dropped,
    resource_attributes, resource_attribute_types, resource_entity_refs, resource_dropped_attributes_count,
    resource_schema_url,
    scope_name, scope_version, scope_attributes, scope_attribute_types, scope_dropped_attributes_count,
    scope_schema_url
"""

KINDS = ["Unspecified", "Internal", "Server", "Client", "Producer", "Consumer"]
CODES = ["Unset", "Ok", "Error"]
Pairs = list[tuple[str, Any]]


def row_of(line: str) -> dict[str, Any]:
    """A line of JSONEachRow; maps stay lists of pairs, since their keys may repeat."""
    return dict(json.loads(line, object_pairs_hook=list))


def span(row: dict[str, Any]) -> Span:
    attributes = _attributes(row["attributes"], row["attribute_types"])
    end = _reserved(attributes, "auditspan.end_time_unix_nano", None)
    start = int(_reserved(attributes, "auditspan.start_time_unix_nano", row["start_time"]))
    end = start + row["duration_ns"] if end is None else int(end)
    restored = Span(
        trace_id=bytes.fromhex(row["trace_id"]),
        span_id=bytes.fromhex(row["span_id"]),
        parent_span_id=bytes.fromhex(row["parent_span_id"]) if row["parent_span_id"].strip("0") else b"",
        trace_state=row["trace_state"],
        name=row["span_name"],
        kind=_number(KINDS, row["span_kind"]),
        start_time_unix_nano=start,
        end_time_unix_nano=end,
        flags=row["flags"],
        attributes=attributes,
        dropped_attributes_count=row["dropped_attributes_count"],
        dropped_events_count=row["dropped_events_count"],
        dropped_links_count=row["dropped_links_count"],
        events=_events(row),
        links=_links(row),
    )
    if row["status_message"] or row["status_code"] != "Unset":
        restored.status.message = row["status_message"]
        restored.status.code = _number(CODES, row["status_code"])
    return restored


def resource(row: dict[str, Any]) -> Resource:
    refs = json.loads(row["resource_entity_refs"] or "[]")
    return Resource(
        attributes=_attributes(row["resource_attributes"], row["resource_attribute_types"]),
        dropped_attributes_count=row["resource_dropped_attributes_count"],
        entity_refs=[json_format.ParseDict(ref, EntityRef()) for ref in refs],
    )


def scope(row: dict[str, Any]) -> InstrumentationScope:
    return InstrumentationScope(
        name=row["scope_name"],
        version=row["scope_version"],
        attributes=_attributes(row["scope_attributes"], row["scope_attribute_types"]),
        dropped_attributes_count=row["scope_dropped_attributes_count"],
    )


def _events(row: dict[str, Any]) -> list[Span.Event]:
    events = []
    for time, name, texts, types, dropped in zip(
        row["event_times"],
        row["event_names"],
        row["event_attributes"],
        row["event_attribute_types"],
        row["event_dropped"],
        strict=True,
    ):
        attributes = _attributes(texts, types)
        time_unix_nano = int(_reserved(attributes, "auditspan.time_unix_nano", time))
        events.append(
            Span.Event(
                time_unix_nano=time_unix_nano,
                name=name,
                attributes=attributes,
                dropped_attributes_count=dropped,
            )
        )
    return events


def _links(row: dict[str, Any]) -> list[Span.Link]:
    links = []
    for trace_id, span_id, state, flags, texts, types, dropped in zip(
        row["link_trace_ids"],
        row["link_span_ids"],
        row["link_trace_states"],
        row["link_flags"],
        row["link_attributes"],
        row["link_attribute_types"],
        row["link_dropped"],
        strict=True,
    ):
        attributes = _attributes(texts, types)
        # Behind one another, so they are taken from the end.
        odd_span_id = _reserved(attributes, "auditspan.span_id", span_id)
        odd_trace_id = _reserved(attributes, "auditspan.trace_id", trace_id)
        links.append(
            Span.Link(
                trace_id=bytes.fromhex(odd_trace_id),
                span_id=bytes.fromhex(odd_span_id),
                trace_state=state,
                flags=flags,
                attributes=attributes,
                dropped_attributes_count=dropped,
            )
        )
    return links


def _number(spelled: list[str], text: str) -> int:
    return spelled.index(text) if text in spelled else int(text)


def _reserved(attributes: list[KeyValue], key: str, otherwise: Any) -> Any:
    """What the collector said in an attribute of its own, which is then taken away, else the column's value."""
    if not any(attribute.key == key for attribute in attributes):
        return otherwise
    index = max(i for i, attribute in enumerate(attributes) if attribute.key == key)
    return attributes.pop(index).value.string_value


def _attributes(texts: Pairs, types: Pairs) -> list[KeyValue]:
    waiting = [tuple(pair) for pair in types]
    restored = []
    for key, text in texts:
        index = next((i for i, (name, _) in enumerate(waiting) if name == key), None)
        kind = "string" if index is None else waiting.pop(index)[1]
        restored.append(KeyValue(key=key, value=_value(text, kind)))
    assert not waiting
    return restored


def _value(text: str, kind: str) -> AnyValue:
    if kind == "anyvalue":
        return json_format.Parse(text, AnyValue())
    if kind in {"array", "kvlist"}:
        return _plain(json.loads(text, object_pairs_hook=lambda pairs: {"pairs": pairs}))
    return {
        "string": lambda: AnyValue(string_value=text),
        "bool": lambda: AnyValue(bool_value={"true": True, "false": False}[text]),
        "int": lambda: AnyValue(int_value=int(text)),
        "double": lambda: AnyValue(double_value=float(text)),
        "bytes": lambda: AnyValue(bytes_value=base64.b64decode(text, validate=True)),
        "empty": AnyValue,
    }[kind]()


def _plain(value: Any) -> AnyValue:
    restored = AnyValue()
    if isinstance(value, bool):
        restored.bool_value = value
    elif isinstance(value, int):
        restored.int_value = value
    elif isinstance(value, float):
        restored.double_value = value
    elif isinstance(value, str):
        restored.string_value = value
    elif isinstance(value, list):
        restored.array_value.SetInParent()
        restored.array_value.values.extend(_plain(element) for element in value)
    elif isinstance(value, dict):
        restored.kvlist_value.SetInParent()
        restored.kvlist_value.values.extend(
            KeyValue(key=key, value=_plain(inner)) for key, inner in value["pairs"]
        )
    return restored
