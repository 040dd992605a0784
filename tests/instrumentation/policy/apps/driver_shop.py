"""A Flask service that changes its database with a DB-API driver alone: DRIVER is sqlite3, psycopg or psycopg2."""

import importlib
import os
from contextlib import closing

import auditspan
from flask import Flask, request

driver = importlib.import_module(os.environ["DRIVER"])
app = Flask(__name__)


def connect():
    if driver.__name__ == "sqlite3":
        return driver.connect(os.environ["DATABASE"], timeout=60)
    return driver.connect(os.environ["DATABASE"])


def execute(connection, sql, parameters=()):
    """As everybody writes it, in the driver's own style of parameters."""
    cursor = connection.cursor()
    cursor.execute(sql if driver.paramstyle == "qmark" else sql.replace("?", "%s"), parameters)
    return cursor


with closing(connect()) as setting_up:
    execute(setting_up, "CREATE TABLE orders (id INTEGER PRIMARY KEY, status TEXT, note TEXT)")
    execute(setting_up, "CREATE TABLE visits (page TEXT)")
    setting_up.commit()


@app.before_request
def load_user():
    if "X-User" in request.headers:
        auditspan.set_actor(request.headers["X-User"])


@app.post("/orders/<int:order_id>")
def create(order_id):
    with closing(connect()) as connection:
        values = (order_id, "new", "hunter2")
        execute(connection, "INSERT INTO orders (id, status, note) VALUES (?, ?, ?)", values)
        connection.commit()
    return {}


@app.put("/orders/<int:order_id>")
def change(order_id):
    with closing(connect()) as connection, connection:
        sql = "UPDATE orders SET status = ?, note = ? WHERE id = ? AND status = ?"
        execute(connection, sql, ("paid", "hunter3", order_id, "new"))
    return {}


@app.delete("/orders/<int:order_id>")
def remove(order_id):
    with closing(connect()) as connection:
        execute(connection, "DELETE FROM orders WHERE id = ?", (order_id,))
        connection.commit()
    return {}


@app.post("/visits")
def visit():
    with closing(connect()) as connection:
        execute(connection, "INSERT INTO visits VALUES ('hunter2')")
        connection.commit()
    return {}


@app.post("/rolled-back/<int:order_id>")
def rolled_back(order_id):
    with closing(connect()) as connection:
        execute(connection, "INSERT INTO orders (id, status) VALUES (?, 'new')", (order_id,))
        connection.rollback()
    return {}


@app.post("/crash/<int:order_id>")
def crash(order_id):
    with closing(connect()) as connection, connection:
        execute(connection, "INSERT INTO orders (id, status) VALUES (?, 'new')", (order_id,))
        raise RuntimeError("out of luck")


@app.post("/forgotten/<int:order_id>")
def forgotten(order_id):
    with closing(connect()) as connection:
        execute(connection, "INSERT INTO orders (id, status) VALUES (?, 'new')", (order_id,))
    return {}


@app.post("/savepoint/<int:order_id>")
def savepoint(order_id):
    with closing(connect()) as connection:
        execute(connection, "INSERT INTO orders (id, status) VALUES (?, 'new')", (order_id,))
        execute(connection, "SAVEPOINT mine")
        execute(connection, "INSERT INTO visits VALUES ('hunter2')")
        execute(connection, "ROLLBACK TO SAVEPOINT mine")
        connection.commit()
    return {}


@app.post("/twice/<int:order_id>")
def twice(order_id):
    with closing(connect()) as connection:
        sql = "INSERT INTO orders (id, status, note) VALUES (?, 'new', 'hunter2')"
        try:
            execute(connection, sql, (order_id,))
            execute(connection, sql, (order_id,))
        except driver.IntegrityError:
            connection.rollback()
            return {}, 409
        connection.commit()
    return {}


@app.get("/pages/<page>")
def read(page):
    with closing(connect()) as connection:
        execute(connection, "INSERT INTO visits VALUES (?)", (page,))
        connection.commit()
    return {}


if __name__ == "__main__":
    app.run(port=int(os.environ["PORT"]), threaded=True)
