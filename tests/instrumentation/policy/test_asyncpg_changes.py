"""Changes of data by asyncpg against a real PostgreSQL."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import asynccontextmanager

import asyncpg
import psycopg
import pytest
import sqlalchemy as sa
from auditspan.changes import transaction as tx
from auditspan.extractors import dbapi as extractor
from auditspan.extractors import sqlalchemy
from auditspan.rules_file import parse
from auditspan.settings import Settings
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from sqlalchemy.ext.asyncio import create_async_engine

RULES = "rules: [{table: orders, columns: [status]}]"
INSERT = "INSERT INTO orders (id, status) VALUES ($1, $2)"


@pytest.fixture(autouse=True, scope="module")
def instrumented():
    extractor.start()
    instrumentor = AsyncPGInstrumentor()
    instrumentor.instrument()
    yield
    instrumentor.uninstrument()


@pytest.fixture(scope="module")
def dsn(postgresql):
    with psycopg.connect(postgresql.dsn, autocommit=True) as connection:
        connection.execute("CREATE DATABASE asynchronous")
    with psycopg.connect(postgresql.dsn.replace("dbname=postgres", "dbname=asynchronous")) as connection:
        connection.execute("CREATE TABLE orders (id SERIAL PRIMARY KEY, status TEXT)")
        host, port = connection.info.host, connection.info.port
    return f"postgresql://postgres@{host}:{port}/asynchronous"


@pytest.fixture
def run(installed, dsn):
    """What *work* with a connection of its own, inside a request, leaves behind."""

    def run(work, rules: str = RULES, *, pooled: bool = False):
        running = installed(Settings(), rules=parse(rules, "rules.yaml"))

        async def main() -> None:
            async with _connection(dsn, pooled=pooled) as connection:
                await connection.execute("TRUNCATE orders RESTART IDENTITY")
                with running.serve():
                    done = work(connection)
                    if inspect.isawaitable(done):
                        await done

        asyncio.run(main())
        return [record for record in running.sink.records if "db.system.name" in record.attributes]

    return run


@asynccontextmanager
async def _connection(dsn: str, *, pooled: bool):
    if pooled:
        async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool, pool.acquire() as connection:
            yield connection
    else:
        connection = await asyncpg.connect(dsn)
        try:
            yield connection
        finally:
            await connection.close()


def told(changes) -> list[tuple[str, ...]]:
    return [(each["action"], each["target.id"], each["outcome"], each["reason"]) for each in changes]


@pytest.mark.parametrize("pooled", [False, True], ids=["connection", "pool"])
def test_a_statement_alone_is_a_success_at_once(run, pooled):
    (change,) = run(lambda connection: connection.execute(INSERT, 1, "new"), pooled=pooled)
    assert told([change]) == [("CREATE", "1", "success", None)]
    assert change.attributes["auditspan.change.after.status"] == "new"
    assert change.attributes["db.namespace"] == "asynchronous"


def test_blocks_are_transactions_and_savepoints(run):
    async def work(connection):
        outer = connection.transaction()
        await outer.start()
        inner = connection.transaction()
        await inner.start()
        await connection.execute(INSERT, 1, "inner")
        await inner.rollback()
        await connection.execute(INSERT, 2, "outer")
        await outer.commit()
        last = connection.transaction()
        await last.start()
        await connection.execute(INSERT, 3, "never")
        await last.rollback()

    assert told(run(work)) == [
        ("CREATE", "1", "failure", tx.ROLLED_BACK_TO_SAVEPOINT),
        ("CREATE", "2", "success", None),
        ("CREATE", "3", "failure", tx.ROLLED_BACK),
    ]


def test_a_commit_of_a_transaction_that_is_broken_rolls_it_back(run):
    async def work(connection):
        block = connection.transaction()
        await block.start()
        await connection.execute(INSERT, 1, "new")
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.execute(INSERT, 1, "twice")
        await block.commit()

    assert told(run(work)) == [
        ("CREATE", "1", "failure", tx.ROLLED_BACK),
        ("CREATE", None, "failure", "the statement failed: UniqueViolationError"),
    ]


def test_rows_and_keys_come_from_the_status_and_from_what_was_returned(run):
    async def work(connection):
        await connection.executemany(INSERT, [(1, "a"), (2, "b")])
        await connection.fetch("INSERT INTO orders (id) VALUES (3), (4) RETURNING id")
        await connection.fetchrow("UPDATE orders SET status = 'd' WHERE id = $1 RETURNING id, status", 2)
        prepared = await connection.prepare("DELETE FROM orders WHERE id = ANY($1)")
        await prepared.fetch([2])
        await connection.execute("UPDATE orders SET status = 'e'")
        await connection.fetch("SELECT * FROM orders")

    assert [
        (
            change["action"],
            change.attributes.get("auditspan.change.rows"),
            change.attributes.get("auditspan.change.keys"),
        )
        for change in run(work)
    ] == [
        ("CREATE", 2, ["1", "2"]),
        ("CREATE", 2, ["3", "4"]),
        ("UPDATE", None, None),  # one row was asked for, of however many
        ("DELETE", 1, ["2"]),
        ("UPDATE", 3, None),
    ]


def test_a_connection_that_is_terminated_is_a_failure(run):
    async def work(connection):
        await connection.execute("BEGIN")
        await connection.execute(INSERT, 1, "new")
        connection.terminate()

    assert told(run(work)) == [("CREATE", "1", "failure", tx.NOT_COMMITTED)]


def test_what_sqlalchemy_tells_over_it_is_told_once(installed, dsn):
    sqlalchemy.start()
    running = installed(Settings(), rules=parse(RULES, "rules.yaml"))

    async def main() -> None:
        engine = create_async_engine(dsn.replace("postgresql:", "postgresql+asyncpg:"))
        with running.serve():
            async with engine.begin() as connection:
                await connection.execute(sa.text("INSERT INTO orders (id, status) VALUES (77, 'new')"))
        await engine.dispose()

    asyncio.run(main())
    changes = [record for record in running.sink.records if "db.system.name" in record.attributes]
    assert [(change["action"], change["outcome"]) for change in changes] == [("CREATE", "success")]
