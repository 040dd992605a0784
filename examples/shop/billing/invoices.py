"""Keep the invoices in a database; every change is one transaction, so two refunds can't both succeed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert

if TYPE_CHECKING:
    from pathlib import Path

metadata = MetaData()
invoices = Table(
    "invoices",
    metadata,
    Column("invoice_id", Text, primary_key=True),
    Column("order_id", Text, nullable=False, unique=True),
    Column("customer", Text, nullable=False),
    Column("amount_cents", Integer, CheckConstraint("amount_cents > 0"), nullable=False),
    Column("refunded", Boolean, nullable=False, default=False),
    Column("refund_reason", Text, nullable=False, default=""),
)


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
    """All invoices of the shop, in a SQLite file. Safe to call from several threads: each call has a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 5.0})
        metadata.create_all(self._engine)

    def charge(self, order_id: str, customer: str, amount_cents: int) -> StoredInvoice:
        """The invoice for *order_id*, made now unless it exists: a client that tries again pays once."""
        invoice_id = f"INV-{order_id}"
        charge = insert(invoices).values(
            invoice_id=invoice_id, order_id=order_id, customer=customer, amount_cents=amount_cents
        )
        with self._engine.begin() as db:
            db.execute(charge.on_conflict_do_nothing())
        return self.get(invoice_id)

    def refund(self, invoice_id: str, reason: str) -> StoredInvoice:
        """Give the money back. Raises NoSuchInvoice, or AlreadyRefunded for the second refund."""
        not_yet = (invoices.c.invoice_id == invoice_id) & ~invoices.c.refunded
        with self._engine.begin() as db:
            changed = db.execute(
                update(invoices).where(not_yet).values(refunded=True, refund_reason=reason)
            ).rowcount
        invoice = self.get(invoice_id)
        if not changed:
            raise AlreadyRefunded(invoice_id)
        return invoice

    def get(self, invoice_id: str) -> StoredInvoice:
        """Raises NoSuchInvoice."""
        with self._engine.connect() as db:
            row = db.execute(select(invoices).where(invoices.c.invoice_id == invoice_id)).one_or_none()
        if row is None:
            raise NoSuchInvoice(invoice_id)
        return StoredInvoice(*row)
