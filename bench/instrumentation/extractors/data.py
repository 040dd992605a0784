"""Changes of data inside an audited request: one row inserted and committed.

The service without the extractor says the same by hand (``record()``), so that both write as many records, one for the
request and one for the change, and what is measured is hearing of the change. Once more nothing is said by hand
(``extractor_with_record``): then the change's own span and record are in it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import auditspan
from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor
from opentelemetry.trace import SpanKind
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column  # noqa: TC002 - the mapper reads it
from sqlalchemy.pool import StaticPool

from bench.instrumentation.extractors.turns import Subject

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.instrumentation.extractors.turns import Service

    Serve = Callable[[range], None]
    Change = Callable[[int], None]

_TABLE: Final = "CREATE TABLE orders (id INTEGER PRIMARY KEY, status TEXT)"
_INSERT: Final = "INSERT INTO orders (id, status) VALUES (?, ?)"


def _by_hand(order_id: int) -> Any:
    return auditspan.record("CREATE", target_type="orders", target_id=order_id)


def _nothing(_: int) -> Any:
    return contextlib.nullcontext()


def _requests(service: Service, change: Change, *, said: bool) -> Serve:
    """Requests that each make one *change*, which is *said* by hand where nobody hears of it."""
    around = _by_hand if said and not service.measured else _nothing
    tracer = service.provider.get_tracer("bench")
    attributes = {"http.request.method": "POST"}

    def serve(numbers: range) -> None:
        for number in numbers:
            with (
                tracer.start_as_current_span("POST /orders", kind=SpanKind.SERVER, attributes=attributes),
                around(number),
            ):
                change(number)

    return serve


def _driver(service: Service) -> Change:
    """sqlite3 under OpenTelemetry's instrumentation."""
    SQLite3Instrumentor().instrument(tracer_provider=service.provider)
    connection = sqlite3.connect(":memory:")
    connection.execute(_TABLE)
    cursor = connection.cursor()

    def change(number: int) -> None:
        cursor.execute(_INSERT, (number, "new"))
        connection.commit()

    return change


class _Base(DeclarativeBase):
    pass


class _Order(_Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]


def _engine() -> Any:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    _Base.metadata.create_all(engine)
    return engine


def _core(_: Service) -> Change:
    """A statement of SQLAlchemy's."""
    engine = _engine()
    insert = _Base.metadata.tables["orders"].insert()

    def change(number: int) -> None:
        with engine.begin() as connection:
            connection.execute(insert, {"id": number, "status": "new"})

    return change


def _orm(_: Service) -> Change:
    """An object that a session of SQLAlchemy's flushes."""
    engine = _engine()

    def change(number: int) -> None:
        with Session(engine) as session:
            session.add(_Order(id=number, status="new"))
            session.commit()

    return change


def _subjects(on: str, extractor: str, change: Callable[[Service], Change]) -> tuple[Subject, Subject]:
    said = Subject(
        on,
        extractor,
        lambda service: _requests(service, change(service), said=True),
        records=(2, 2),
        tells=b"db.collection.name",
    )
    unsaid = replace(
        said,
        service=lambda service: _requests(service, change(service), said=False),
        records=(1, 2),
        case="extractor_with_record",
    )
    return said, unsaid


SUBJECTS: Final = (
    *_subjects("sqlite3", "dbapi", _driver),
    *_subjects("SQLAlchemy, a statement", "sqlalchemy", _core),
    *_subjects("SQLAlchemy, a flush", "sqlalchemy", _orm),
)
