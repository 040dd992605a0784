"""A Flask application that verifies a bearer token in each request; both services have Flask's extractor."""

from __future__ import annotations

import importlib
import time
import warnings
from typing import TYPE_CHECKING, Any, Final

import flask
import joserfc.jwk
import joserfc.jwt
import jwt

from bench.instrumentation.extractors.turns import Subject
from bench.instrumentation.extractors.web import instrumented, wsgi

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.instrumentation.extractors.turns import Service

_SECRET: Final = "0123456789abcdef" * 3
_ALGORITHM: Final = "HS256"


def _pyjwt() -> Callable[[str], object]:
    return lambda token: jwt.decode(token, _SECRET, algorithms=[_ALGORITHM])


def _joserfc() -> Callable[[str], object]:
    key = joserfc.jwk.OctKey.import_key(_SECRET)
    return lambda token: joserfc.jwt.decode(token, key, algorithms=[_ALGORITHM])


def _authlib() -> Callable[[str], object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it advises joserfc, which is measured as well
        authlib: Any = importlib.import_module("authlib.jose")
    tokens = authlib.JsonWebToken([_ALGORITHM])
    return lambda token: tokens.decode(token, _SECRET)


def _service(library: Callable[[], Callable[[str], object]]) -> Callable[[Service], Any]:
    def serves(service: Service) -> Any:
        app = flask.Flask(__name__)
        verify = library()

        @app.post("/orders/<int:order_id>/refund")
        def refund(order_id: int) -> dict[str, int]:
            verify(flask.request.headers["Authorization"].removeprefix("Bearer "))
            return {"refunded": order_id}

        claims = {"sub": "alice", "scope": "orders:read orders:write", "exp": int(time.time()) + 36_000}
        token = jwt.encode(claims, _SECRET, _ALGORITHM)
        return wsgi(instrumented(service, app), HTTP_AUTHORIZATION=f"Bearer {token}")

    return serves


SUBJECTS: Final = tuple(
    Subject(on, "bearer", _service(library), beside=("flask",))
    for on, library in (
        ("PyJWT in Flask", _pyjwt),
        ("joserfc in Flask", _joserfc),
        ("Authlib in Flask", _authlib),
    )
)
