"""A Flask service with a database of its own, changed by SQLAlchemy's mapper and by its core."""

import os

import auditspan
from flask import Flask, request
from sqlalchemy import Column, Integer, String, create_engine, delete, insert, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, declarative_base

engine = create_engine(f"sqlite:///{os.environ['DATABASE']}", connect_args={"timeout": 60}, future=True)
Base = declarative_base()  # as 1.4 has it, too


class Order(Base):
    __tablename__ = "orders"
    id = Column(Integer, primary_key=True)
    status = Column(String, nullable=False)
    note = Column(String, nullable=False, default="hunter2")


class Visit(Base):
    __tablename__ = "visits"
    id = Column(Integer, primary_key=True)
    page = Column(String, nullable=False)


Base.metadata.create_all(engine)
app = Flask(__name__)


@app.before_request
def load_user():
    if "X-User" in request.headers:
        auditspan.set_actor(request.headers["X-User"])


@app.post("/orders/<int:order_id>")
def create(order_id):
    with Session(engine) as session, session.begin():
        session.add(Order(id=order_id, status="new"))
    return {}


@app.put("/orders/<int:order_id>")
def change(order_id):
    with Session(engine) as session, session.begin():
        session.get(Order, order_id).status = "paid"
    return {}


@app.delete("/orders/<int:order_id>")
def remove(order_id):
    with Session(engine) as session, session.begin():
        session.delete(session.get(Order, order_id))
    return {}


@app.post("/core/<int:order_id>/<what>")
def core(order_id, what):
    statement = {
        "insert": insert(Order).values(id=order_id, status="new", note="hunter2"),
        "update": update(Order).where(Order.id == order_id).values(note="hunter3"),
        "delete": delete(Order).where(Order.id == order_id),
        "text": text("INSERT INTO visits (page) VALUES ('hunter2')"),
    }[what]
    with engine.begin() as connection:
        connection.execute(statement)
    return {}


@app.post("/rolled-back/<int:order_id>")
def rolled_back(order_id):
    with Session(engine) as session:
        session.add(Order(id=order_id, status="new"))
        session.flush()
        session.rollback()
    return {}


@app.post("/savepoint/<int:order_id>")
def savepoint(order_id):
    with Session(engine) as session, session.begin():
        session.add(Order(id=order_id, status="new"))
        inner = session.begin_nested()
        session.add(Visit(page="hunter2"))
        session.flush()
        inner.rollback()
    return {}


@app.post("/twice/<int:order_id>")
def twice(order_id):
    try:
        with engine.begin() as connection:
            connection.execute(insert(Order).values(id=order_id, status="new"))
            connection.execute(insert(Order).values(id=order_id, status="new"))
    except IntegrityError:
        return {}, 409
    return {}


@app.get("/pages/<page>")
def read(page):
    with engine.begin() as connection:
        connection.execute(insert(Visit).values(page=page))
    return {}


if __name__ == "__main__":
    app.run(port=int(os.environ["PORT"]), threaded=True)
