"""Authentication inside and around OpenTelemetry's middleware."""

from opentelemetry import trace
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
from shop import user_of


def update(environ, start_response):
    trace.get_current_span().set_attribute("http.route", "/{place}/orders/{order_id}")
    start_response("200 OK", [("Content-Length", "0")])
    return [b""]


def authenticated(application):
    def serve(environ, start_response):
        if name := user_of(environ.get("HTTP_AUTHORIZATION", "")):
            environ["REMOTE_USER"] = name
        return application(environ, start_response)

    return serve


inside = OpenTelemetryMiddleware(authenticated(update))
around = authenticated(OpenTelemetryMiddleware(update))


def app(environ, start_response):
    which = inside if environ["PATH_INFO"].startswith("/inside/") else around
    return which(environ, start_response)
