"""A WSGI application without a framework, with repoze.who and Beaker around it, in OpenTelemetry's middleware."""

import os
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIServer, make_server

import auditspan
from beaker.middleware import SessionMiddleware
from opentelemetry import trace
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
from repoze.who.interfaces import IAuthenticator
from repoze.who.middleware import PluggableAuthenticationMiddleware
from repoze.who.plugins.basicauth import BasicAuthPlugin
from zope.interface import implementer

GROUPS = {"alice": ["sales", "admin"], "bob": ["sales"]}


@implementer(IAuthenticator)
class Passwords:
    """Verifies, and knows the groups."""

    def authenticate(self, environ, identity):
        name = identity.get("login")
        if name in GROUPS and identity.get("password") == f"{name}-password":
            identity["groups"] = GROUPS[name]
            return name
        return None


class Pieces:
    """In pieces; *breaks* raises after the first, *dies* when the server has taken the last."""

    def __init__(self, how):
        self.how = how
        self.pieces = iter([b"first", b"second"])

    def __iter__(self):
        return self

    def __next__(self):
        piece = next(self.pieces)
        if piece == b"second" and self.how == "part":
            raise RuntimeError("the rest is lost")
        return piece

    def close(self):
        if self.how == "killed":
            os._exit(9)  # the client has it all


def session(environ):
    environ["beaker.session"]["seen"] = True
    environ["beaker.session"].save()


def said(environ):
    auditspan.set_actor("carol", roles=["support"])


ANSWERS = {
    "/account": ("302 Found", [("Location", "/login")]),
    "/streams/killed": ("200 OK", [("Content-Length", "11")]),
}
DONE = {
    "/session": session,
    "/said": said,
}


def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith("/orders/"):
        trace.get_current_span().set_attribute("http.route", "/orders/{order_id}")
    DONE.get(path, dict)(environ)
    answer = ANSWERS.get(path, ("200 OK", []))
    if environ["REQUEST_METHOD"] == "DELETE" and not environ.get("REMOTE_USER"):
        answer = ("401 Unauthorized", [])
    start_response(*answer)
    if path.startswith("/streams/"):
        return Pieces(path.rpartition("/")[2])
    return [b"done"]


basic = BasicAuthPlugin("shop")
secured = PluggableAuthenticationMiddleware(
    SessionMiddleware(application, {"session.type": "memory"}),
    [("basic", basic)],
    [("passwords", Passwords())],
    [],
    [],
    lambda _: "browser",
    lambda *_: False,
    remote_user_key="REMOTE_USER" if os.environ.get("TELLS") == "remote-user" else "shop.user",
)
app = OpenTelemetryMiddleware(secured)


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64


if __name__ == "__main__":
    make_server("127.0.0.1", int(os.environ["PORT"]), app, Server).serve_forever()
