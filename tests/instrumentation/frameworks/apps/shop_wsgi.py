"""The shop without a framework: a dispatcher by regular expression, and repoze.who, which verifies passwords."""

import json
import re
import time
from urllib.parse import parse_qs
from wsgiref.util import shift_path_info

from opentelemetry import trace
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
from repoze.who.interfaces import IAuthenticator
from repoze.who.middleware import PluggableAuthenticationMiddleware
from repoze.who.plugins.basicauth import BasicAuthPlugin
from shop import ROLES, call_itself, in_the_background, notify, pieces, say, steps
from zope.interface import implementer


@implementer(IAuthenticator)
class Passwords:
    """Verifies, and knows the groups."""

    def authenticate(self, environ, identity):
        name = identity.get("login")
        if name in ROLES and identity.get("password") == f"{name}-password":
            identity["groups"] = ROLES[name]
            return name
        return None


def groups(environ):
    return environ.get("repoze.who.identity", {}).get("groups", ())


def done(environ, **_):
    return "200 OK"


def create(environ):
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    return "200 OK" if json.loads(body or b"{}").get("product") else "422 Unprocessable Content"


def update(environ, order_id):
    return "200 OK" if environ.get("REMOTE_USER") else "401 Unauthorized"


def for_admins(environ, **_):
    return "200 OK" if "admin" in groups(environ) else "403 Forbidden"


def missing(environ, order_id):
    return "404 Not Found"


def crash(environ, order_id):
    raise RuntimeError("out of luck")


def mixed(environ, name):
    time.sleep(int(parse_qs(environ["QUERY_STRING"])["ms"][0]) / 1000)
    say(name)
    return "200 OK"


def calls_itself(environ, depth):
    call_itself(int(depth))
    return "200 OK"


def in_steps(environ):
    steps()
    return "200 OK"


def background(environ):
    in_the_background(notify)
    return "200 OK"


def stream(environ, kind):
    return pieces(kind)


ROUTES = {
    "POST /orders": create,
    "GET /orders/{order_id}": done,
    "PUT /orders/{order_id}": update,
    "DELETE /orders/{order_id}": for_admins,
    "POST /orders/{order_id}/refund": done,
    "POST /orders/{order_id}/missing": missing,
    "POST /orders/{order_id}/crash": crash,
    "GET /reports/{report_id}": done,
    "GET /secrets/{name}": for_admins,
    "POST /streams/{kind}": stream,
    "POST /mixed/{name}": mixed,
    "POST /calls-itself/{depth}": calls_itself,
    "POST /steps": in_steps,
    "POST /background": background,
}
CUSTOMERS = {"PUT /customers/{customer_id}": done}
BACK_OFFICE = {"PUT /{region}/users/{name}/role": for_admins}


def found(routes, environ):
    request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
    for route, view in routes.items():
        match = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route), request)
        if match:
            path = environ["SCRIPT_NAME"] + route.partition(" ")[2]
            trace.get_current_span().set_attribute("http.route", path)  # which nobody else knows
            return view(environ, **match.groupdict())
    return "404 Not Found"


def serve(routes, environ, start_response):
    answer = found(routes, environ)
    streamed = not isinstance(answer, str)
    headers = [("Content-Type", "text/plain")] + [("Content-Length", "2")] * (not streamed)
    start_response("200 OK" if streamed else answer, headers)
    return (piece.encode() for piece in answer) if streamed else [b"{}"]


def application(environ, start_response):
    inside = {"/shop/": CUSTOMERS, "/admin/": BACK_OFFICE}
    for prefix, routes in inside.items():
        if environ["PATH_INFO"].startswith(prefix):
            shift_path_info(environ)
            return serve(routes, environ, start_response)
    return serve(ROUTES, environ, start_response)


basic = BasicAuthPlugin("shop")
secured = PluggableAuthenticationMiddleware(
    application,
    [("basic", basic)],
    [("passwords", Passwords())],
    [],
    [],
    lambda _: "browser",
    lambda *_: False,  # the application answers for itself
    remote_user_key="REMOTE_USER",
)
app = OpenTelemetryMiddleware(secured)
