"""The operators' pages name what there is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from auditspan import context, settings
from auditspan.propagation import counts, keys, tokens
from auditspan.propagation.destinations import Destinations
from auditspan.shipper import DeliveryCounts
from auditspan.spool import SpoolCounts, frames
from auditspan.spool import segment as files

DOCS = Path(__file__).parents[3] / "docs"
DELIVERY = (DOCS / "delivery.md").read_text()
CONTEXT = (DOCS / "audit-context.md").read_text()


@pytest.mark.parametrize(
    "name", [field.name for counts in (DeliveryCounts, SpoolCounts) for field in dataclasses.fields(counts)]
)
def test_every_counter_is_explained(name):
    assert f"| `{name}` |" in DELIVERY


@pytest.mark.parametrize(
    "variable",
    [
        settings.ENDPOINT,
        settings.PROTOCOL,
        settings.HEADERS,
        settings.CERTIFICATE,
        settings.SPOOL_DIR,
        settings.SPOOL_MAX_BYTES,
        settings.SPOOL_SYNC,
        settings.FLOOD_FULL,
        settings.FLOOD_INTERVAL_S,
    ],
)
def test_every_setting_of_delivery_is_explained(variable):
    assert f"| `{variable}` |" in DELIVERY


@pytest.mark.parametrize(
    "variable",
    [
        settings.CONTEXT_KEYS_FILE,
        settings.CONTEXT_DESTINATIONS,
        settings.CONTEXT_TTL_S,
        settings.CONTEXT_QUEUE_TTL_S,
    ],
)
def test_every_setting_of_the_header_is_explained(variable):
    assert f"| `{variable}` |" in CONTEXT


@pytest.mark.parametrize(
    "reason",
    [
        tokens.MALFORMED,
        tokens.UNKNOWN_KEY,
        tokens.WRONG_ALGORITHM,
        tokens.BAD_SIGNATURE,
        tokens.EXPIRED,
        tokens.WRONG_TRACE,
        context.WRONG_PURPOSE,
        context.UNSIGNED,
    ],
)
def test_every_reason_not_to_believe_a_token_is_explained(reason):
    assert f"| `{reason}` |" in CONTEXT


def test_the_spool_s_format_is_the_one_in_use():
    assert f"`{frames.MAGIC.decode()}`" in DELIVERY
    assert f"1 to {frames.MAX_PAYLOAD_BYTES >> 20} MiB" in DELIVERY
    for suffix in (files.SUFFIX, files.ACK_SUFFIX, files.BAD_SUFFIX):
        assert f"-000001{suffix} " in DELIVERY
    assert f"-c000001{files.COUNT_SUFFIX} " in DELIVERY
    assert f"| {settings.DEFAULT_SPOOL_MAX_BYTES} |" in DELIVERY
    assert all(f"`{purpose}`" in CONTEXT for purpose in keys.PURPOSES)
    assert all(f"`{counter}`" in CONTEXT for counter in (counts.VERIFIED, counts.REJECTED))
    assert f"`{settings.FLOOD_FULL}` | {settings.DEFAULT_FLOOD_FULL} |" in DELIVERY
    assert f"`{settings.FLOOD_INTERVAL_S}` | {settings.DEFAULT_FLOOD_INTERVAL_S:g} |" in DELIVERY
    assert f"at most {tokens.MAX_TOKEN_LENGTH} letters" in CONTEXT


def test_every_example_of_a_destination_can_be_used():
    table = CONTEXT.partition("| entry | matches |")[2].partition("\n\n")[0]
    entries = [
        entry
        for row in table.splitlines()[2:]
        for entry in row.split("|")[1].replace("`", "").replace(",", " ").split()
    ]
    assert len(entries) == 11
    assert Destinations(entries).problems == []
