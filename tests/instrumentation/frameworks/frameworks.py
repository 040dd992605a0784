"""The frameworks that the specification is asked of: how each one's shop is started, and how people sign in to it."""

from __future__ import annotations

import base64
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

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
    response = httpx.post(url, data=form, headers=CSRF, trust_env=False)
    cookie = response.headers["set-cookie"].partition("sessionid=")[2].partition(";")[0]
    return CSRF | {"cookie": f"{CSRF['cookie']}; sessionid={cookie}"}


def json_web_token(service: Any, name: str) -> Headers:
    """A token of djangorestframework-simplejwt."""
    form = {"username": name, "password": f"{name}-password"}
    response = httpx.post(f"http://127.0.0.1:{service.port}/token", data=form, trust_env=False)
    return {"authorization": f"Bearer {response.json()['access']}"}


@dataclass(frozen=True)
class Framework:
    """One shop and the server that it runs in.

    *command* runs in ``apps/``, with ``{port}`` as a free port. *excluded* is the variable that leaves out URLs, or
    empty. *sign_in* gives the headers of somebody who has proved who they are, asked once a person; nobody sends
    *always*. *late*: people are authenticated by views, so without one nobody is known. *cancels*: a handler may be cancelled while it runs.
    """

    name: str
    command: list[str]
    excluded: str = ""
    sign_in: Callable[[Any, str], Headers] = basic
    auth_method: str = "basic"
    cancels: bool = False
    late: bool = False
    always: Headers = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, folder: Path) -> Shop:
        """Start it under opentelemetry-instrument."""
        environment = {"OTEL_AUDITSPAN_READS": "/reports/*", "OTEL_AUDITSPAN_FLOOD_INTERVAL_S": "0"}
        environment |= {self.excluded: "excluded"} if self.excluded else {}
        environment |= {"SHOP_FOLDER": str(folder)} | self.environment
        return Shop(self, services.start(folder, self.command, environment, apps=APPS))


class Shop:
    """A shop that runs, and the people who are signed in to it."""

    def __init__(self, framework: Framework, service: services.Service) -> None:
        self.framework = framework
        self.service = service
        self._headers: dict[str, Headers] = {"": framework.always}

    def headers(self, who: str) -> Headers:
        """What *who* sends with each request; nothing for nobody."""
        if who not in self._headers:
            self._headers[who] = self.framework.sign_in(self.service, who)
        return self._headers[who]

    def call(self, method: str, path: str, who: str = "", **arguments: Any) -> tuple[Any, str]:
        """The response and the trace of a request of *who*."""
        headers = self.headers(who) | arguments.pop("headers", {})
        return self.service.call(method, path, headers=headers, **arguments)

    def record(self, method: str, path: str, who: str = "", **arguments: Any) -> services.Written:
        """The one record of it."""
        (record,) = self.service.records(self.call(method, path, who, **arguments)[1])
        return record


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
)
