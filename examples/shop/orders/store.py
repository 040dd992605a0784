"""Keep the orders in a SQLite file. An order is placed, then paid, then perhaps refunded."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

State = Literal["placed", "paid", "refunded"]

FIRST_ORDER = 1001  # nobody likes to be customer number one
_SCHEMA = """
CREATE TABLE IF NOT EXISTS orders (
    order_id     INTEGER PRIMARY KEY AUTOINCREMENT,
    customer     TEXT NOT NULL,
    item         TEXT NOT NULL,
    quantity     INTEGER NOT NULL CHECK (quantity > 0),
    amount_cents INTEGER NOT NULL CHECK (amount_cents > 0),
    invoice_id   TEXT NOT NULL DEFAULT '',
    state        TEXT NOT NULL DEFAULT 'placed' CHECK (state IN ('placed', 'paid', 'refunded'))
) STRICT
"""
_NUMBER_FROM = """
INSERT INTO sqlite_sequence (name, seq)
SELECT 'orders', ? WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'orders')
"""


class NoSuchOrder(LookupError):  # noqa: N818 - a fact about a request
    """No order has this number."""


@dataclass(frozen=True)
class Order:
    """One row of the table."""

    order_id: int
    customer: str
    item: str
    quantity: int
    amount_cents: int
    invoice_id: str
    state: State


class Orders:
    """All orders of the shop. Safe to call from several threads: each call has a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with closing(self._connect()) as db, db:
            db.execute(_SCHEMA)
            db.execute(_NUMBER_FROM, (FIRST_ORDER - 1,))

    def place(self, customer: str, item: str, quantity: int, amount_cents: int) -> Order:
        """A new order, not paid yet."""
        with closing(self._connect()) as db, db:
            order_id = db.execute(
                "INSERT INTO orders (customer, item, quantity, amount_cents) VALUES (?, ?, ?, ?)",
                (customer, item, quantity, amount_cents),
            ).lastrowid
        assert order_id is not None
        return self.get(order_id)

    def set_paid(self, order_id: int, invoice_id: str) -> Order:
        """The order, with its invoice."""
        with closing(self._connect()) as db, db:
            db.execute(
                "UPDATE orders SET state = 'paid', invoice_id = ? WHERE order_id = ?", (invoice_id, order_id)
            )
        return self.get(order_id)

    def set_refunded(self, order_id: int) -> Order:
        """The order, after its money went back."""
        with closing(self._connect()) as db, db:
            db.execute("UPDATE orders SET state = 'refunded' WHERE order_id = ?", (order_id,))
        return self.get(order_id)

    def get(self, order_id: int) -> Order:
        """Raises NoSuchOrder."""
        with closing(self._connect()) as db:
            row = db.execute(
                "SELECT order_id, customer, item, quantity, amount_cents, invoice_id, state"
                " FROM orders WHERE order_id = ?",
                (order_id,),
            ).fetchone()
        if row is None:
            raise NoSuchOrder(order_id)
        return Order(*row)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=5.0)
