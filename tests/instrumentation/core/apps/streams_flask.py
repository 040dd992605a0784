"""Responses that come in pieces, with and without the request's context, break, or never end."""

import time

from flask import Flask, Response, request, stream_with_context

app = Flask(__name__)


def pieces(kind):
    for number in range(10**6 if kind == "endless" else 3):
        if kind == "breaks" and number == 1:
            raise RuntimeError("out of luck")
        yield f"{number}\n"
        time.sleep(0.01)


@app.post("/streams/<kind>")
def stream(kind):
    return pieces(kind)


@app.post("/contexts/<kind>")
def with_context(kind):
    def inside():
        for piece in pieces(kind):
            yield request.method + piece

    return stream_with_context(inside())


@app.post("/known/<kind>")
def of_known_length(kind):
    return Response(pieces(kind), headers={"content-length": "6"})


@app.post("/refused/<kind>")
def refused(kind):
    return Response(pieces(kind), status=403)


@app.post("/nothing/<kind>")
def nothing(kind):
    return Response(pieces(kind), status=204)
