import os
import time

from flask import Blueprint, Flask, abort, g, request, stream_with_context
from shop import (
    ROLES,
    WrongPasswordError,
    call_itself,
    in_the_background,
    notify,
    pieces,
    say,
    steps,
    user_of,
)

app = Flask(__name__)
customers = Blueprint("customers", __name__, url_prefix="/shop")
back_office = Blueprint("back_office", __name__, url_prefix="/admin/<region>")


@app.before_request
def load_user():
    g.user = None
    try:
        name = user_of(request.headers.get("authorization", ""))
    except WrongPasswordError:
        abort(401)
    if name:
        g.user = {"username": name, "roles": ROLES[name]}


def for_admins():
    if "admin" not in (g.user or {}).get("roles", ()):
        abort(403)


@app.post("/orders")
def create():
    if not request.get_json().get("product"):
        abort(422)
    return {}


@app.get("/orders/<int:order_id>")
def read(order_id):
    return {}


@app.put("/orders/<int:order_id>")
def update(order_id):
    if g.user is None:
        abort(401)
    return {}


@app.delete("/orders/<int:order_id>")
def delete(order_id):
    for_admins()
    return {}


@app.post("/orders/<int:order_id>/refund")
def refund(order_id):
    return {}


@app.post("/orders/<int:order_id>/missing")
def missing(order_id):
    abort(404)


@app.post("/orders/<int:order_id>/crash")
def crash(order_id):
    raise RuntimeError("out of luck")


@app.get("/reports/<report_id>")
def report(report_id):
    return {}


@app.get("/secrets/<name>")
def secret(name):
    for_admins()
    return {}


@app.post("/streams/<kind>")
def stream(kind):
    return stream_with_context(pieces(kind))


@app.post("/mixed/<name>")
def mixed(name):
    time.sleep(int(request.args["ms"]) / 1000)
    say(name)
    return {}


@app.post("/calls-itself/<int:depth>")
def calls_itself(depth):
    call_itself(depth)
    return {}


@app.post("/steps")
def in_steps():
    steps()
    return {}


@app.post("/background")
def background():
    in_the_background(notify)
    return {}


@app.post("/excluded")
def excluded():
    return {}


@customers.put("/customers/<customer_id>")
def customer(customer_id):
    return {}


@back_office.put("/users/<name>/role")
def role(region, name):
    for_admins()
    return {}


app.register_blueprint(customers)
app.register_blueprint(back_office)

if __name__ == "__main__":
    app.run(port=int(os.environ["PORT"]), threaded=True)
