"""Who acts, for each way in which people and services prove who they are, as each framework exposes it."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from pathlib import Path

import loopback
import pytest
from instrumentation.frameworks.frameworks import APPS, CSRF, FRAMEWORKS, basic, session

from instrumentation import services

ALICE = {
    "actor.id": "alice",
    "actor.type": "user",
    "actor.origin": "authenticated",
    "actor.roles": ["orders:read", "orders:write", "sales"],
    "actor.auth_method": "bearer",
    "actor.session_id": hashlib.sha256(b"a-session-of-the-issuer").hexdigest()[:32],
}
UNKNOWN = {"actor.id": "unknown", "actor.origin": "unverified", "actor.roles": None}
DENIED = {"outcome": "denied", "reason": "401 Unauthorized"}


def _tokens():
    spec = importlib.util.spec_from_file_location("auth_tokens", APPS / "auth_tokens.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


token = _tokens().token


def bearer(**claims):
    return {"authorization": f"Bearer {token(**claims)}"}


def of(record, expected):
    return {name: record[name] for name in expected}


def running(tmp_path_factory, name, command, environment=None):
    service = services.start(tmp_path_factory.mktemp(name), command, environment, apps=APPS)
    yield service
    service.stop()


# --- bearer tokens -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fastapi(tmp_path_factory):
    yield from running(tmp_path_factory, "fastapi", services.uvicorn("auth_fastapi:app"))


@pytest.mark.parametrize("route", ["pyjwt", "joserfc", "optional"])
def test_the_subject_of_a_token_that_a_dependency_has_verified_is_the_actor(fastapi, route):
    record = fastapi.record("PUT", f"/{route}/7", headers=bearer())
    assert of(record, ALICE) == ALICE
    assert (record["outcome"], record["target.id"]) == ("success", "7")
    assert "a-session-of-the-issuer" not in str(record.span)


@pytest.mark.parametrize("route", ["pyjwt", "joserfc"])
@pytest.mark.parametrize(
    "claims",
    [{"key": "another secret, and as long as that one"}, {"exp": 1}, {"aud": "another-shop"}],
    ids=["another-key", "expired", "for-somebody-else"],
)
def test_a_token_that_is_refused_names_nobody(fastapi, route, claims):
    record = fastapi.record("PUT", f"/{route}/7", headers=bearer(**claims))
    assert of(record, UNKNOWN | DENIED) == UNKNOWN | DENIED


def test_a_token_that_was_revoked_names_nobody_though_its_signature_is_right(fastapi):
    record = fastapi.record("PUT", "/revoked/7", headers=bearer())
    assert of(record, UNKNOWN | DENIED) == UNKNOWN | DENIED


def test_who_lacks_a_scope_is_known(fastapi):
    record = fastapi.record("PUT", "/scoped/7", headers=bearer())
    expected = ALICE | {"outcome": "denied", "reason": "403 Forbidden"}
    assert of(record, expected) == expected


@pytest.mark.parametrize("route", ["read-only", "unsigned"])
def test_a_token_that_nobody_has_verified_names_nobody(fastapi, route):
    changes = {"key": None, "algorithm": "none"} if route == "unsigned" else {}
    record = fastapi.record("PUT", f"/{route}/7", headers=bearer(**changes))
    expected = UNKNOWN | {"outcome": "success"}
    assert of(record, expected) == expected
    assert "alice" not in str({k: v for k, v in record.attributes.items() if k.startswith("audit.")})


@pytest.mark.parametrize("claims", [{"exp": 1}, {"aud": "another-shop"}])
def test_a_token_that_an_application_goes_on_without_names_nobody(fastapi, claims):
    record = fastapi.record("PUT", "/optional/7", headers=bearer(**claims))
    assert of(record, UNKNOWN) == UNKNOWN


def test_a_token_that_is_no_credential_of_the_request_names_nobody(fastapi):
    record = fastapi.record("PUT", f"/query/7?invitation={token()}")
    assert of(record, UNKNOWN) == UNKNOWN


def test_the_application_s_word_comes_before_a_token_s(fastapi):
    record = fastapi.record("PUT", "/set-actor/7", headers=bearer())
    expected = {"actor.id": "carol", "actor.roles": ["support"], "actor.delegate": "alice"}
    assert of(record, expected) == expected


def test_a_client_s_own_token_is_that_of_a_service(fastapi):
    record = fastapi.record("PUT", "/pyjwt/7", headers=bearer(sub="web", sid=None))
    expected = {"actor.id": "web", "actor.type": "service", "actor.session_id": None}
    assert of(record, expected) == expected


@pytest.mark.parametrize(
    ("claims", "roles"),
    [
        ({"scope": "a b"}, ["a", "b"]),
        ({"scp": ["a", "b"]}, ["a", "b"]),
        ({"permissions": ["a"], "roles": ["b"], "groups": ["c"]}, ["a", "b", "c"]),
        ({"realm_access": {"roles": ["a", "b"]}}, ["a", "b"]),
        ({"roles": {"a": {"org": 7}}}, ["a"]),
        ({"roles": True, "scope": 7, "scp": [{}]}, None),
    ],
    ids=["scope", "scp", "permissions-roles-groups", "keycloak", "zitadel", "of-other-types"],
)
def test_roles_are_what_the_issuer_writes_them_as(fastapi, claims, roles):
    claims = dict.fromkeys(("scope", "groups")) | claims
    record = fastapi.record("PUT", "/pyjwt/7", headers=bearer(**claims))
    assert (record["actor.id"], record["actor.roles"]) == ("alice", roles)


@pytest.fixture(scope="module")
def flask(tmp_path_factory):
    yield from running(tmp_path_factory, "flask", [sys.executable, "auth_flask.py"])


@pytest.mark.parametrize("route", ["pyjwt", "authlib"])
def test_the_subject_of_a_token_that_a_decorator_has_verified_is_the_actor(flask, route):
    record = flask.record("PUT", f"/{route}/7", headers=bearer())
    assert of(record, ALICE) == ALICE
    refused = flask.record("PUT", f"/{route}/7", headers=bearer(exp=1))
    assert of(refused, UNKNOWN | DENIED) == UNKNOWN | DENIED


def test_who_lacks_a_scope_of_authlib_s_is_known(flask):
    record = flask.record("DELETE", "/authlib/7", headers=bearer())
    expected = ALICE | {"outcome": "denied", "reason": "403 Forbidden"}
    assert of(record, expected) == expected


def test_a_token_that_authlib_has_looked_up_names_its_user_or_its_client(flask):
    record = flask.record("PUT", "/opaque/7", headers={"authorization": "Bearer opaque-of-bob"})
    expected = {"actor.id": "bob", "actor.type": "user", "actor.roles": ["orders:write"]}
    assert of(record, expected) == expected
    record = flask.record("PUT", "/opaque/7", headers={"authorization": "Bearer opaque-of-the-till"})
    assert of(record, ("actor.id", "actor.type")) == {"actor.id": "till", "actor.type": "service"}
    record = flask.record("PUT", "/opaque/7", headers={"authorization": "Bearer made-up"})
    assert of(record, UNKNOWN | DENIED) == UNKNOWN | DENIED


def test_the_example_of_the_guide_does_what_it_says(tmp_path):
    guide = (Path(__file__).parents[3] / "docs/frameworks/bearer.md").read_text()
    (tmp_path / "shop.py").write_text(guide.partition("```python\n")[2].partition("```")[0])
    command = [*services.uvicorn("shop:app"), "--app-dir", str(tmp_path)]
    service = services.start(tmp_path, command)
    try:
        expected = ALICE | {"action": "UPDATE", "outcome": "success", "target.id": "7"}
        assert of(service.record("PUT", "/orders/7", headers=bearer(aud=None)), expected) == expected
        assert of(service.record("PUT", "/orders/7", headers=bearer(exp=1)), DENIED) == DENIED
    finally:
        service.stop()


# --- Flask-Login -------------------------------------------------------------------------------------------------


def signed_in(flask):
    url = f"http://127.0.0.1:{flask.port}/login"
    form = {"name": "alice", "password": "alice-password"}
    response = loopback.post(url, data=form, timeout=services.DEADLINE_S)
    return {"cookie": response.headers["set-cookie"].partition(";")[0]}


BY_SESSION = {
    "actor.id": "alice",
    "actor.roles": ["admin", "sales"],
    "actor.auth_method": "session",
    "outcome": "success",
}


def test_flask_login_s_user_is_the_actor_and_its_session_kept_as_a_hash(flask):
    headers = signed_in(flask)
    record = flask.record("PUT", "/sessions/7", headers=headers)
    assert of(record, BY_SESSION) == BY_SESSION
    assert re.fullmatch("[0-9a-f]{32}", record["actor.session_id"])
    assert record["actor.session_id"] not in headers["cookie"]
    assert (
        flask.record("PUT", "/sessions/8", headers=headers)["actor.session_id"] == record["actor.session_id"]
    )


def test_flask_login_s_redirect_is_denied_and_nobody(flask):
    record = flask.record("PUT", "/sessions/7")
    expected = {"actor.id": "anonymous", "outcome": "denied", "reason": "redirected to the login page"}
    assert of(record, expected) == expected


def test_signing_in_and_out_with_flask_login_are_login_and_logout(flask):
    record = flask.record("POST", "/login", data={"name": "alice", "password": "alice-password"})
    assert of(record, BY_SESSION | {"action": ""})["action"] == "LOGIN"
    assert of(record, BY_SESSION) == BY_SESSION
    record = flask.record("POST", "/login", data={"name": "alice", "password": "guess"})
    assert of(record, ("action", "outcome")) == {"action": "LOGIN", "outcome": "denied"}
    record = flask.record("POST", "/logout", headers=signed_in(flask))
    assert of(record, BY_SESSION | {"action": ""}) == BY_SESSION | {"action": "LOGOUT"}


def test_a_user_whom_nothing_has_asked_for_is_not_loaded_for_us(flask):
    assert flask.record("PUT", "/unasked/7", headers=signed_in(flask))["actor.id"] == "unknown"


# --- Django REST framework ---------------------------------------------------------------------------------------

(REST,) = (framework for framework in FRAMEWORKS if framework.name == "django-rest-framework")
BOB = {"actor.id": "bob", "actor.origin": "authenticated", "outcome": "success"}


@pytest.fixture(scope="module")
def rest(tmp_path_factory):
    started = REST.start(tmp_path_factory.mktemp("rest"))
    yield started
    started.stop()


def stored_token(service, name):
    form = {"username": name, "password": f"{name}-password"}
    response = loopback.post(
        f"http://127.0.0.1:{service.port}/keys", data=form, trust_env=False, timeout=services.DEADLINE_S
    )
    return {"authorization": f"Token {response.json()['token']}"}


@pytest.mark.parametrize(
    ("sign_in", "auth_method"),
    [(session, "session"), (stored_token, "token"), (basic, "basic")],
    ids=["session", "token", "basic"],
)
def test_each_authentication_of_rest_framework_names_the_actor(rest, sign_in, auth_method):
    headers = sign_in(rest.service, "bob")
    record = rest.record("PUT", "/orders/7", headers=headers)
    expected = BOB | {"actor.auth_method": auth_method, "action": "UPDATE"}
    assert of(record, expected) == expected
    assert bool(record["actor.session_id"]) == (auth_method == "session")
    secret = headers.get("authorization", headers.get("cookie", "")).rpartition("sessionid=")[2]
    assert secret.removeprefix("Basic ").removeprefix("Token ") not in str(record.span)


@pytest.mark.parametrize(
    "headers",
    [{"authorization": "Token made-up"}, {"authorization": "Basic Ym9iOmd1ZXNz"}],
    ids=["token", "basic"],
)
def test_credentials_that_rest_framework_refuses_are_denied_and_nobody_s(rest, headers):
    record = rest.record("PUT", "/orders/7", headers=headers)
    assert of(record, ("outcome", "action")) == {"outcome": "denied", "action": "UPDATE"}
    assert record["actor.id"] in ("anonymous", "unknown")


@pytest.mark.parametrize("path", ["/keys", "/token"], ids=["authtoken", "json-web-token"])
def test_an_endpoint_that_gives_out_tokens_is_a_login(rest, path):
    record = rest.record("POST", path, data={"username": "bob", "password": "bob-password"})
    assert of(record, BOB | {"action": ""}) == BOB | {"action": "LOGIN"}
    record = rest.record("POST", path, data={"username": "bob", "password": "guess"})
    expected = {"action": "LOGIN", "outcome": "denied", "actor.id": "anonymous", "target.type": "user"}
    assert of(record, expected) == expected
    assert "guess" not in str(record.span)


# --- where the middleware stands ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asgi(tmp_path_factory):
    yield from running(tmp_path_factory, "asgi", services.uvicorn("auth_asgi:app"))


@pytest.mark.parametrize("place", ["given", "added", "around"])
@pytest.mark.parametrize("kind", ["fastapi", "starlette"])
def test_the_actor_is_the_same_wherever_starlette_s_authentication_stands(asgi, kind, place):
    path = f"/{kind}-{place}/orders/7"
    expected = {"actor.id": "alice", "actor.roles": ["admin", "sales"], "outcome": "success"}
    assert of(record := asgi.record("PUT", path, headers=basic(asgi, "alice")), expected) == expected
    assert record["target.id"] == "7"
    nobody = {"actor.id": "anonymous", "outcome": "denied"}
    assert of(asgi.record("PUT", path), nobody) == nobody


@pytest.mark.parametrize("kind", ["fastapi", "starlette"])
def test_a_backend_s_own_user_has_its_identity_and_roles(asgi, kind):
    headers = basic(asgi, "bob") | {"x-person": "1"}
    record = asgi.record("PUT", f"/{kind}-given/orders/7", headers=headers)
    assert of(record, ("actor.id", "actor.roles")) == {"actor.id": "bob", "actor.roles": ["sales", "staff"]}


@pytest.mark.parametrize("kind", ["fastapi", "starlette"])
def test_a_backend_s_refusal_is_denied_where_it_stands_inside(asgi, kind):
    for place in ("given", "added"):
        record = asgi.record("PUT", f"/{kind}-{place}/orders/7", headers={"authorization": "Basic Ym9iOng="})
        expected = {"actor.id": "anonymous", "outcome": "denied", "reason": "wrong password"}
        assert of(record, expected) == expected


def test_the_actor_is_the_same_inside_and_around_wsgi_s_middleware(tmp_path_factory):
    command = [str(services.BIN / "gunicorn"), "--bind", "127.0.0.1:{port}", "auth_wsgi:app"]
    service = services.start(tmp_path_factory.mktemp("wsgi"), command, apps=APPS)
    try:
        for place in ("inside", "around"):
            record = service.record("PUT", f"/{place}/orders/7", headers=basic(service, "alice"))
            expected = {"actor.id": "alice", "actor.auth_method": "basic", "target.id": "7"}
            assert of(record, expected) == expected
    finally:
        service.stop()


def test_the_actor_is_the_same_when_django_s_instrumentation_stands_innermost(tmp_path_factory):
    (wsgi,) = (framework for framework in FRAMEWORKS if framework.name == "django-wsgi")
    command, environment = wsgi.command, {"OTEL_PYTHON_DJANGO_MIDDLEWARE_POSITION": "4"}
    folder = tmp_path_factory.mktemp("innermost")
    service = services.start(folder, command, {"SHOP_FOLDER": str(folder)} | environment, apps=APPS)
    try:
        record = service.record("PUT", "/orders/7", headers=session(service, "bob"))
        expected = BOB | {"actor.auth_method": "session", "actor.roles": ["sales"]}
        assert of(record, expected) == expected
        assert (
            service.record("POST", "/orders", json={"product": "tea"}, headers=CSRF)["actor.id"]
            == "anonymous"
        )
    finally:
        service.stop()
