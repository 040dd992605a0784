"""Keep the invoices in a SQLite file; every change is one transaction, so two refunds can't both succeed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS invoices (
    invoice_id    TEXT PRIMARY KEY,
    order_id      TEXT NOT NULL UNIQUE,
    customer      TEXT NOT NULL,
    amount_cents  INTEGER NOT NULL CHECK (amount_cents > 0),
    refunded      INTEGER NOT NULL DEFAULT 0,
    refund_reason TEXT NOT NULL DEFAULT ''
) STRICT
"""


class NoSuchInvoice(LookupError):  # noqa: N818 - a fact about a request
    """Nothing was ever charged under this id."""


class AlreadyRefunded(ValueError):  # noqa: N818 - a state
    """The money went back before."""


@dataclass(frozen=True)
class StoredInvoice:
    """One row of the table."""

    invoice_id: str
    order_id: str
    customer: str
    amount_cents: int
    refunded: bool
    refund_reason: str


class Invoices:
    """All invoices of the shop. Safe to call from several threads: each call has a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with closing(self._connect()) as db, db:
            db.execute(_SCHEMA)

    def charge(self, order_id: str, customer: str, amount_cents: int) -> StoredInvoice:
        """The invoice for *order_id*, made now unless it exists: a client that tries again pays once."""
        invoice_id = f"INV-{order_id}"
        with closing(self._connect()) as db, db:
            db.execute(
                "INSERT INTO invoices (invoice_id, order_id, customer, amount_cents) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO NOTHING",
                (invoice_id, order_id, customer, amount_cents),
            )
        return self.get(invoice_id)

    def refund(self, invoice_id: str, reason: str) -> StoredInvoice:
        """Give the money back. Raises NoSuchInvoice, or AlreadyRefunded for the second refund."""
        with closing(self._connect()) as db, db:
            changed = db.execute(
                "UPDATE invoices SET refunded = 1, refund_reason = ? WHERE invoice_id = ? AND refunded = 0",
                (reason, invoice_id),
            ).rowcount
        invoice = self.get(invoice_id)
        if not changed:
            raise AlreadyRefunded(invoice_id)
        return invoice

    def get(self, invoice_id: str) -> StoredInvoice:
        """Raises NoSuchInvoice."""
        with closing(self._connect()) as db:
            row = db.execute(
                "SELECT invoice_id, order_id, customer, amount_cents, refunded, refund_reason"
                " FROM invoices WHERE invoice_id = ?",
                (invoice_id,),
            ).fetchone()
        if row is None:
            raise NoSuchInvoice(invoice_id)
        return StoredInvoice(row[0], row[1], row[2], row[3], bool(row[4]), row[5])

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=5.0)
