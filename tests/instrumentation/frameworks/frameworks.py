"""The frameworks that the specification is asked of: how each one's shop is started, and how people sign in to it."""

from __future__ import annotations

import base64
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import loopback
from instrumentation.frameworks.shops import RpcShop, Shop

from instrumentation import services

if TYPE_CHECKING:
    from collections.abc import Callable

APPS = Path(__file__).parent / "apps"

Headers = dict[str, str]


def basic(service: Any, name: str) -> Headers:
    """HTTP's own authentication, where the shop reads it."""
    return {"authorization": "Basic " + base64.b64encode(f"{name}:{name}-password".encode()).decode()}


# Django compares a cookie with a header, and takes any text that both have.
CSRF = {"cookie": "csrftoken=" + "a" * 32, "x-csrftoken": "a" * 32}


def session(service: Any, name: str) -> Headers:
    """Django's own login form."""
    url = f"http://127.0.0.1:{service.port}/enter"
    form = {"username": name, "password": f"{name}-password"}
    response = loopback.post(url, data=form, headers=CSRF, timeout=services.DEADLINE_S)
    cookie = response.headers["set-cookie"].partition("sessionid=")[2].partition(";")[0]
    return CSRF | {"cookie": f"{CSRF['cookie']}; sessionid={cookie}"}


def json_web_token(service: Any, name: str) -> Headers:
    """A token of djangorestframework-simplejwt."""
    form = {"username": name, "password": f"{name}-password"}
    response = loopback.post(
        f"http://127.0.0.1:{service.port}/token", data=form, trust_env=False, timeout=services.DEADLINE_S
    )
    return {"authorization": f"Bearer {response.json()['access']}"}


@dataclass(frozen=True)
class Framework:
    """One shop and the server that it runs in.

    *command* runs in ``apps/``, with ``{port}`` as a free port. *excluded* is the variable that leaves out URLs. *sign_in*
    gives the headers of somebody who has proved who they are, asked once a person; nobody sends *always*, and is called
    *nobody* in records. *late*: people are authenticated by views, so without one nobody is known. *cancels*: a handler
    may be cancelled while it runs. *without* names the cases that can't be, each with the reason.
    """

    name: str
    command: list[str]
    excluded: str = ""
    shop: type[Shop] = Shop
    sign_in: Callable[[Any, str], Headers] = basic
    auth_method: str = "basic"
    nobody: str = "anonymous"
    cancels: bool = False
    late: bool = False
    always: Headers = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)

    def start(self, folder: Path) -> Shop:
        """Start it under opentelemetry-instrument."""
        environment = {"OTEL_AUDITSPAN_READS": "/reports/*", "OTEL_AUDITSPAN_FLOOD_INTERVAL_S": "0"}
        environment |= {self.excluded: "excluded"} if self.excluded else {}
        environment |= {"SHOP_FOLDER": str(folder)} | self.environment
        return self.shop(self, services.start(folder, self.command, environment, apps=APPS))


# What only gRPC lacks.
RPC = {
    "no-such-route": "gRPC answers UNIMPLEMENTED before the instrumentation begins a span",
    "mounted-router": "a service is a name, and in no other",
    "sub-application": "a server has services, and no server in it",
}
RPC_SETTINGS = {
    "OTEL_AUDITSPAN_READS": "/shop.v1.ReportsService/*",
    "OTEL_PYTHON_GRPC_EXCLUDED_SERVICES": "shop.v1.ExcludedService",
}
# A record is there whatever ordinary sampling drops; here it drops everything.
NOT_SAMPLED = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}


def _gunicorn(app: str) -> list[str]:
    return [str(services.BIN / "gunicorn"), "--threads", "8", "--bind", "127.0.0.1:{port}", app]


# One line a framework, one file of apps/ each: shop_NAME.py.
FRAMEWORKS = (
    Framework(
        "fastapi", services.uvicorn("shop_fastapi:app"), "OTEL_PYTHON_FASTAPI_EXCLUDED_URLS", cancels=True
    ),
    Framework(
        "starlette",
        services.uvicorn("shop_starlette:app"),
        "OTEL_PYTHON_STARLETTE_EXCLUDED_URLS",
        cancels=True,
        environment=NOT_SAMPLED,
    ),
    Framework("flask", [sys.executable, "shop_flask.py"], "OTEL_PYTHON_FLASK_EXCLUDED_URLS"),
    Framework(
        "django-wsgi",
        _gunicorn("shop_django:application"),
        "OTEL_PYTHON_DJANGO_EXCLUDED_URLS",
        sign_in=session,
        auth_method="session",
        always=CSRF,
    ),
    Framework(
        "django-asgi",
        services.uvicorn("shop_django:asgi"),
        "OTEL_PYTHON_DJANGO_EXCLUDED_URLS",
        sign_in=session,
        auth_method="session",
        cancels=True,
        always=CSRF,
        environment={"SHOP_ASYNC": "1"},
    ),
    Framework(
        "django-rest-framework",
        _gunicorn("shop_django:application"),
        "OTEL_PYTHON_DJANGO_EXCLUDED_URLS",
        sign_in=json_web_token,
        auth_method="bearer",
        late=True,
        environment={"SHOP_URLS": "shop_drf"},
    ),
    Framework(
        "aiohttp-server",
        [sys.executable, "shop_aiohttp.py"],
        "OTEL_PYTHON_AIOHTTP_SERVER_EXCLUDED_URLS",
        cancels=True,
    ),
    Framework(
        "wsgi",
        _gunicorn("shop_wsgi:app"),
        nobody="unknown",
        environment=NOT_SAMPLED,
        without={"excluded-url": "OpenTelemetry's middleware has no setting for it"},
    ),
    Framework(
        "grpc",
        [sys.executable, "shop_grpc.py", "sync"],
        "OTEL_PYTHON_GRPC_EXCLUDED_SERVICES",
        shop=RpcShop,
        nobody="unknown",
        environment=NOT_SAMPLED | RPC_SETTINGS,
        without=RPC,
    ),
    Framework(
        "grpc-aio",
        [sys.executable, "shop_grpc.py", "aio"],
        "OTEL_PYTHON_GRPC_EXCLUDED_SERVICES",
        shop=RpcShop,
        nobody="unknown",
        cancels=True,
        environment=RPC_SETTINGS,
        without=RPC,
    ),
)
