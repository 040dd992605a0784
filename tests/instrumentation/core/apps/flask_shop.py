"""A Flask service that keeps its user in ``g``, as Flask's tutorial does, or as Flask-Login does."""

import os
import threading

import auditspan
from flask import Blueprint, Flask, abort, g, redirect, request, session
from opentelemetry import trace

USERS = {"alice": ["sales", "admin"], "bob": ["sales"]}


class User:
    """What Flask-Login asks of a user."""

    def __init__(self, name):
        self.name = name
        self.roles = USERS[name]
        self.is_authenticated = True

    def get_id(self):
        return self.name


class Anonymous:
    is_authenticated = False


app = Flask(__name__)
app.secret_key = "for tests only"
shop = Blueprint("shop", __name__, url_prefix="/shop")


@app.before_request
def load_user():
    name = session.get("name")
    if "X-Extension" in request.headers:  # where Flask-Login leaves it
        g._login_user = User(name) if name else Anonymous()
        if "X-Http-Auth" in request.headers:  # where Flask-HTTPAuth leaves it
            g.flask_httpauth_user = request.headers["X-Http-Auth"]
    elif request.path != "/plain":
        g.user = {"username": name, "roles": USERS[name]} if name else None


@app.post("/login")
def login():
    name = request.form["name"]
    if request.form["password"] != f"{name}-password":
        abort(401)
    session["name"] = name
    session["session_id"] = "a-secret-session"
    g.user = {"username": name, "roles": USERS[name]}
    return {}


@app.get("/orders/<int:order_id>")
def read(order_id):
    return {"id": order_id}


@app.post("/orders")
def create():
    return {"id": 7}


@app.delete("/orders/<int:order_id>")
def delete(order_id):
    user = g.get("user") or {}
    if "admin" not in user.get("roles", ()):
        abort(403)
    return {}


@app.post("/orders/<int:order_id>/crash")
def crash(order_id):
    raise RuntimeError("out of luck")


@app.get("/account")
def account():
    return redirect("/login?next=/account")


@app.post("/plain")
def plain():
    return {}


@app.post("/threads/<name>")
def threads(name):
    span = trace.get_current_span()

    def work():
        with trace.use_span(span):
            auditspan.set_actor(f"{name}-in-a-thread")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return {"pid": os.getpid()}


@shop.put("/customers/<customer_id>")
def customer(customer_id):
    return {}


app.register_blueprint(shop)

if __name__ == "__main__":
    app.run(port=int(os.environ["PORT"]), threaded=True)
