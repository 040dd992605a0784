"""Takes orders; an order named ``exit`` ends the process on the spot."""

import os

from flask import Flask

app = Flask(__name__)


@app.post("/orders/<order_id>")
def order(order_id):
    if order_id == "exit":
        os._exit(1)
    return {"order": order_id}
