"""Services over HTTP, each with a user whom its framework knows; their requests come without a server, but aiohttp's."""

from __future__ import annotations

import asyncio
import functools
import importlib
import sys
import types
from typing import TYPE_CHECKING, Any, Final

import flask
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.starlette import StarletteInstrumentor
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.responses import JSONResponse
from starlette.routing import Route

from bench.instrumentation.apps import SignedIn, User, fastapi_app, flask_app
from bench.instrumentation.calls import HEADERS, environ_of, path_of, scope_of
from bench.instrumentation.extractors.turns import Subject

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.instrumentation.extractors.turns import Service

    Serve = Callable[[range], None]

METHOD: Final = "POST"


def asgi(app: Any, **more: str) -> Serve:
    """Calls of an ASGI application, each in a task of its own, as a server makes them; *more* are headers."""
    loop = asyncio.new_event_loop()
    headers = [(name.encode(), value.encode()) for name, value in (HEADERS | more).items()]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_: Any) -> None:
        return

    async def some(numbers: range) -> None:
        for number in numbers:
            await loop.create_task(app(scope_of(METHOD, number, headers), receive, send))

    return lambda numbers: loop.run_until_complete(some(numbers))


def wsgi(app: Any, **more: str) -> Serve:
    """Calls of a WSGI application; *more* is in the environment."""

    def start_response(*_: Any) -> Callable[[bytes], object]:
        return len

    def serve(numbers: range) -> None:
        for number in numbers:
            answer: Any = app(environ_of(METHOD, number) | more, start_response)
            for _ in answer:
                pass
            if hasattr(answer, "close"):
                answer.close()

    return serve


def fastapi(service: Service) -> Serve:
    """FastAPI with Starlette's authentication."""
    app = fastapi_app()
    name = "opentelemetry.instrumentation.fastapi:FastAPIInstrumentor"
    service.instrument(name, FastAPIInstrumentor.instrument_app, app)
    return asgi(app)


def starlette(service: Service) -> Serve:
    """Starlette with its own authentication."""

    async def refund(request: Any) -> JSONResponse:
        return JSONResponse({"refunded": request.path_params["order_id"]})

    app = Starlette(
        routes=[Route("/orders/{order_id:int}/refund", refund, methods=[METHOD])],
        middleware=[Middleware(AuthenticationMiddleware, backend=SignedIn())],
    )
    name = "opentelemetry.instrumentation.starlette:StarletteInstrumentor"
    service.instrument(name, StarletteInstrumentor.instrument_app, app)
    return asgi(app)


def instrumented(service: Service, app: flask.Flask) -> flask.Flask:
    """The Flask application *app* with OpenTelemetry's instrumentation."""
    start: Any = FlaskInstrumentor.instrument_app
    service.instrument("opentelemetry.instrumentation.flask:FlaskInstrumentor", start, app)
    return app


def flask_(service: Service) -> Serve:
    """Flask whose user is in ``g``."""
    return wsgi(instrumented(service, flask_app()))


class LoginUser(User):
    """What Flask-Login asks a user for."""

    is_active = True

    def get_id(self) -> str:
        """What a session would hold."""
        return self.id


def flask_with_login(service: Service) -> Serve:
    """Flask whose user Flask-Login loads for each request."""
    flask_login: Any = importlib.import_module("flask_login")
    app = flask.Flask(__name__)
    manager = flask_login.LoginManager(app)
    user = LoginUser()
    manager.request_loader(lambda _: user)

    def refund(order_id: int) -> dict[str, int]:
        return {"refunded": order_id}

    app.post("/orders/<int:order_id>/refund")(flask_login.login_required(refund))
    return wsgi(instrumented(service, app))


def _django(service: Service, view: Any, middleware: list[str], **settings: Any) -> Serve:
    import django  # noqa: PLC0415 - with its settings
    from django.conf import settings as configured  # noqa: PLC0415 - as above
    from django.core.wsgi import get_wsgi_application  # noqa: PLC0415 - as above
    from django.urls import path  # noqa: PLC0415 - as above
    from opentelemetry.instrumentation.django import DjangoInstrumentor  # noqa: PLC0415 - as above

    urls: Any = types.ModuleType("bench_urls")
    urls.urlpatterns = [path("orders/<int:order_id>/refund", view)]
    sys.modules[urls.__name__] = urls
    configured.configure(
        ROOT_URLCONF=urls.__name__,
        MIDDLEWARE=middleware,
        ALLOWED_HOSTS=["*"],
        SECRET_KEY="of a benchmark",
        **settings,
    )
    name = "opentelemetry.instrumentation.django:DjangoInstrumentor"
    service.instrument(name, DjangoInstrumentor().instrument)
    django.setup()
    return wsgi(get_wsgi_application())


def signed_in(get_response: Any) -> Any:
    """Django's middleware of one user."""
    user = User()

    def serve(request: Any) -> Any:
        request.user = user
        return get_response(request)

    return serve


def django_(service: Service) -> Serve:
    """Django whose user a middleware has found."""
    from django.http import JsonResponse  # noqa: PLC0415 - with its settings

    def refund(_: Any, order_id: int) -> JsonResponse:
        return JsonResponse({"refunded": order_id})

    return _django(service, refund, [f"{__name__}.signed_in"])


def django_rest(service: Service) -> Serve:
    """Django whose user REST framework has found."""

    def view(request: Any, **parameters: Any) -> Any:  # made when Django has its settings
        return made()(request, **parameters)

    made = functools.cache(_refund_of_rest)
    return _django(
        service, view, [], INSTALLED_APPS=["rest_framework"], REST_FRAMEWORK={"UNAUTHENTICATED_USER": None}
    )


def _refund_of_rest() -> Any:
    decorators: Any = importlib.import_module("rest_framework.decorators")
    response: Any = importlib.import_module("rest_framework.response")
    user = User()

    class SignedInThere:
        def authenticate(self, request: Any) -> tuple[User, None]:
            del request
            return user, None

    def refund(_: Any, order_id: int) -> Any:
        return response.Response({"refunded": order_id})

    known = decorators.authentication_classes([SignedInThere])(refund)
    return decorators.api_view([METHOD])(known)


def plain_wsgi(service: Service) -> Serve:
    """A WSGI function whose user the server names."""
    from opentelemetry import trace  # noqa: PLC0415 - as the middleware
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware  # noqa: PLC0415 - tells our extractor

    def app(_: Any, start_response: Any) -> list[bytes]:
        trace.get_current_span().set_attribute("http.route", "/orders/{order_id}/refund")
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    return wsgi(OpenTelemetryMiddleware(app, tracer_provider=service.provider), REMOTE_USER="alice")


def aiohttp(service: Service) -> Serve:
    """The server of aiohttp on loopback, and a client in the same thread, whose part is in both figures."""
    from aiohttp import web  # noqa: PLC0415 - replaced by the instrumentation
    from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor  # noqa: PLC0415 - as above

    name = "opentelemetry.instrumentation.aiohttp_server:AioHttpServerInstrumentor"
    service.instrument(name, AioHttpServerInstrumentor().instrument)
    loop = asyncio.new_event_loop()

    @web.middleware
    async def signed_in_here(request: Any, handler: Any) -> Any:
        request["user"] = "alice"
        return await handler(request)

    async def refund(_: Any) -> web.Response:
        return web.Response(text="ok")

    async def start() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        app = web.Application(middlewares=[signed_in_here])
        app.router.add_post("/orders/{order_id}/refund", refund)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return await asyncio.open_connection(*runner.addresses[0][:2])

    reader, writer = loop.run_until_complete(start())

    async def some(numbers: range) -> None:
        for number in numbers:
            writer.write(f"POST {path_of(METHOD, number)} HTTP/1.1\r\nhost: shop\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head[:16]:
                raise RuntimeError(head)
            await reader.readexactly(2)

    return lambda numbers: loop.run_until_complete(some(numbers))


SUBJECTS: Final = (
    Subject("Starlette", "asgi", starlette),
    Subject("FastAPI", "asgi", fastapi),
    Subject("Flask", "flask", flask_),
    Subject("Flask with Flask-Login", "flask", flask_with_login),
    Subject("Django", "django", django_),
    Subject("Django REST framework", "django", django_rest),
    Subject("WSGI", "wsgi", plain_wsgi),
    Subject("aiohttp", "aiohttp_server", aiohttp),
)
