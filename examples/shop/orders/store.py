"""Keep the orders in a database. An order is placed, then paid, then perhaps refunded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sqlalchemy import DDL, CheckConstraint, Text, create_engine, event
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,  # noqa: TC002 - the mapper reads it
    MappedAsDataclass,
    mapped_column,
    sessionmaker,
)

if TYPE_CHECKING:
    from pathlib import Path

State = Literal["placed", "paid", "refunded"]

FIRST_ORDER = 1001  # nobody likes to be customer number one


class NoSuchOrder(LookupError):  # noqa: N818 - a fact about a request
    """No order has this number."""


class Base(MappedAsDataclass, DeclarativeBase):
    """The tables of this service."""


class Order(Base):
    """One row of the table."""

    __tablename__ = "orders"
    __table_args__ = (
        CheckConstraint("quantity > 0"),
        CheckConstraint("amount_cents > 0"),
        CheckConstraint("state IN ('placed', 'paid', 'refunded')"),
        {"sqlite_autoincrement": True, "sqlite_strict": True},
    )

    order_id: Mapped[int] = mapped_column(primary_key=True, init=False)
    customer: Mapped[str] = mapped_column(Text)
    item: Mapped[str] = mapped_column(Text)
    quantity: Mapped[int]
    amount_cents: Mapped[int]
    invoice_id: Mapped[str] = mapped_column(Text, default="")
    state: Mapped[State] = mapped_column(Text, default="placed")


event.listen(
    Order.__table__,
    "after_create",
    DDL(f"INSERT INTO sqlite_sequence (name, seq) VALUES ('orders', {FIRST_ORDER - 1})"),  # type: ignore[no-untyped-call]
)


class Orders:
    """All orders of the shop, in a SQLite file. Safe to call from several threads: each call is a session of its own."""

    def __init__(self, path: Path) -> None:
        engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 5.0})
        Base.metadata.create_all(engine)
        self._sessions = sessionmaker(engine, expire_on_commit=False)

    def place(self, customer: str, item: str, quantity: int, amount_cents: int) -> Order:
        """A new order, not paid yet."""
        order = Order(customer, item, quantity, amount_cents)
        with self._sessions.begin() as session:
            session.add(order)
        return order

    def set_paid(self, order_id: int, invoice_id: str) -> Order:
        """The order, with its invoice."""
        with self._sessions.begin() as session:
            order = session.get_one(Order, order_id)
            order.state, order.invoice_id = "paid", invoice_id
        return order

    def set_refunded(self, order_id: int) -> Order:
        """The order, after its money went back."""
        with self._sessions.begin() as session:
            order = session.get_one(Order, order_id)
            order.state = "refunded"
        return order

    def get(self, order_id: int) -> Order:
        """Raises NoSuchOrder."""
        with self._sessions() as session:
            order = session.get(Order, order_id)
        if order is None:
            raise NoSuchOrder(order_id)
        return order
