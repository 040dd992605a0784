"""Keep the parcels in a database: one an order, however often somebody asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Column, Integer, MetaData, Table, Text, create_engine
from sqlalchemy.dialects.sqlite import insert

if TYPE_CHECKING:
    from pathlib import Path

metadata = MetaData()
parcels = Table(
    "parcels",
    metadata,
    Column("order_id", Integer, primary_key=True, autoincrement=False),
    Column("customer", Text, nullable=False),
    Column("content", Text, nullable=False),
)


class Parcels:
    """All parcels of the shop, in a SQLite file."""

    def __init__(self, path: Path) -> None:
        self._engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 5.0})
        metadata.create_all(self._engine)

    def send(self, order_id: int, customer: str, content: str) -> bool:
        """Whether it is sent now; False when it was sent before: a queue may deliver a message twice."""
        parcel = insert(parcels).values(order_id=order_id, customer=customer, content=content)
        with self._engine.begin() as db:
            return bool(db.execute(parcel.on_conflict_do_nothing()).rowcount)
