"""What the shops of all frameworks sell, and to whom. None of it knows a framework, or how it is audited."""

import base64
import contextvars
import os
import threading

import auditspan
import httpx
from opentelemetry import trace

ROLES = {"alice": ["sales", "admin"], "bob": ["sales"]}
tracer = trace.get_tracer("shop")


class WrongPasswordError(ValueError):
    pass


def user_of(authorization):
    """The name in an Authorization header, verified; empty without one."""
    scheme, _, credential = authorization.partition(" ")
    if scheme != "Basic":
        return ""
    name, _, password = base64.b64decode(credential).decode().partition(":")
    if name not in ROLES or password != f"{name}-password":
        raise WrongPasswordError("wrong password")
    return name


def pieces(kind):
    """The pieces of a response: ``whole``, one that ``breaks``, or one that is ``endless``."""
    for number in range(10**6 if kind == "endless" else 3):
        if kind == "breaks" and number == 1:
            raise RuntimeError("out of luck")
        yield f"{number}\n"


def steps():
    with auditspan.record("PREPARE", target_type="step", target_id=1), auditspan.record("FIRST"):
        pass


def notify():
    with auditspan.record("NOTIFY"):
        pass


def in_the_background(work):
    """For frameworks that have no tasks of their own: a thread that goes on in the request's context."""
    threading.Thread(target=contextvars.copy_context().run, args=(work,)).start()


def say(name):
    """Under an inner span, which ordinary sampling drops or not."""
    with tracer.start_as_current_span("inner"):
        auditspan.describe(reason=f"{name}'s reason")


def next_url(depth):
    return f"http://127.0.0.1:{os.environ['PORT']}/calls-itself/{depth - 1}"


def call_itself(depth):
    auditspan.set_actor(f"depth-{depth}")
    if depth:
        httpx.post(next_url(depth), trust_env=False)
    say(depth)
