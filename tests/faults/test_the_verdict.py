"""The judge can find something: each kind of wrong, in a copy of the table that was tampered with, is named."""

from __future__ import annotations

import pytest
from faults.verdict import finish, judge

ROOTS = "ledger roots that SQL does not confirm"
# What a SELECT from the true table leaves out, repeats or changes.
TAMPERED = {
    "* FROM {records} WHERE ledger_index != 7": {
        "acknowledged and not stored",
        "gaps in indexes",
        ROOTS,
    },
    "* FROM {records} UNION ALL SELECT * FROM {records} WHERE ledger_index = 7": {
        "stored twice",
        "gaps in indexes",
        ROOTS,
    },
    "* REPLACE (if(ledger_index = 5, 'none', reason) AS reason) FROM {records}": {ROOTS},
    "* REPLACE (addMilliseconds(received_time, ledger_index = 5) AS received_time) FROM {records}": {ROOTS},
    "* REPLACE (transform(ledger_index, [1, 2], [2, 1]) AS ledger_index) FROM {records}": {
        "stored under another index than acknowledged",
        ROOTS,
    },
    "* REPLACE (if(ledger_index = 3, generateUUIDv4(), record_id) AS record_id) FROM {records}": {
        "acknowledged and not stored",
        "stored and never sent",
        ROOTS,
    },
    "* FROM {records}": set(),
}


@pytest.fixture(scope="module")
def ran(make_line_once, shared_store):
    """A run without faults: line, senders, spool."""
    line = make_line_once(shared_store)
    line.start_collector()
    with line.senders() as senders:
        senders.progress(100)
    return line, senders, finish(line)


@pytest.mark.parametrize(
    "select",
    TAMPERED,
    ids=["deleted", "repeated", "a text", "a millisecond", "exchanged", "another id", "nothing"],
)
def test_each_kind_of_wrong_is_named(ran, select):
    line, senders, state = ran
    records, line.table = f"{line.database}.records", f"tampered_{list(TAMPERED).index(select)}"
    line.rows(f"CREATE TABLE {line.database}.{line.table} AS {records}")
    line.rows(f"INSERT INTO {line.database}.{line.table} SELECT {select.format(records=records)}")
    assert {each.partition(" ")[2] for each in judge(line, senders, state).faults} == TAMPERED[select]
