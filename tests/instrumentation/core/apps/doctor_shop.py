"""Applications of many shapes, for auditspan-doctor to look at. Their middleware must not be made for that."""

import os

import auditspan
from fastapi import APIRouter, FastAPI
from flask import Blueprint, Flask
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

print("a line of the application's own")

own = TracerProvider()
for provider in (own, trace.get_tracer_provider()):
    provider.add_span_processor(
        SimpleSpanProcessor(OTLPSpanExporter())
    )  # as by hand; to OTEL_EXPORTER_OTLP_ENDPOINT
own.get_tracer("shop").start_span("at import").end()
with trace.get_tracer("shop").start_as_current_span("at import"), auditspan.record("IMPORT"):
    metrics.get_meter("shop").create_counter("imports").add(1)


class Expensive:
    def __init__(self, app):
        raise AssertionError("the application's middleware was made")


def answer(*args, **kwargs):
    return PlainTextResponse("")


async def call(scope, receive, send):
    raise AssertionError("the application was called")


router = APIRouter(prefix="/v1")
router.add_api_route("/orders/{order_id:int}", answer, methods=["PUT", "GET"])
router.add_api_route("/orders/{order_id}/refund", answer, methods=["POST"])

inner = FastAPI(openapi_url=None)
inner.add_api_route("/users/{name}/role", answer, methods=["PUT"])

app = FastAPI(openapi_url=None)
app.include_router(router)
app.add_api_route("/jobs", answer, methods=["POST"])
app.add_api_route("/reports/{name}", answer, methods=["GET"])
app.add_api_websocket_route("/live", answer)
app.mount("/admin", inner)
app.mount("/other", call)
app.add_middleware(Expensive)

starlette_app = Starlette(
    routes=[
        Route("/orders", answer, methods=["POST"]),
        Mount(
            "/{region}",
            routes=[Route("/orders/{id}", answer, methods=["DELETE"]), WebSocketRoute("/w", answer)],
        ),
    ],
    middleware=[Middleware(Expensive)],
)
wrapped = CORSMiddleware(starlette_app)


def make(*, name="flask"):
    flask_app = Flask(name)
    blueprint = Blueprint("orders", name, url_prefix="/orders")
    blueprint.add_url_rule("/<int:order_id>", view_func=answer, methods=["PUT", "GET"], endpoint="one")
    flask_app.register_blueprint(blueprint)
    return flask_app


def make_several():
    return ProxyFix(DispatcherMiddleware(make(), {"/old": make(name="old")}))


def make_by_hand():
    by_hand = FastAPI(openapi_url=None)
    by_hand.include_router(router)
    FastAPIInstrumentor.instrument_app(by_hand, excluded_urls="refund")
    return by_hand


def broken():
    raise LookupError(os.environ["DATABASE_URL"])
