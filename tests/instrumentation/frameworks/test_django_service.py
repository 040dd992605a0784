"""What only Django has: signals of signing in and out, the admin site, lazy users, settings that come late."""

from __future__ import annotations

import hashlib
import socket

import pytest
from instrumentation.frameworks.frameworks import FRAMEWORKS, session

from instrumentation import services

DJANGO = [framework for framework in FRAMEWORKS if framework.name in ("django-wsgi", "django-asgi")]


@pytest.fixture(scope="module", params=DJANGO, ids=lambda framework: framework.name)
def shop(request, tmp_path_factory):
    started = request.param.start(tmp_path_factory.mktemp(request.param.name))
    yield started
    started.stop()


def said(record, *which):
    return tuple(record[name] for name in which)


def test_who_signs_in_is_the_actor_of_that_login(shop):
    record = shop.record("POST", "/enter", data={"username": "bob", "password": "bob-password"})
    assert said(record, "action", "outcome", "actor.id", "actor.auth_method") == (
        *("LOGIN", "success", "bob", "session"),
    )
    assert len(record["actor.session_id"]) == 32


def test_a_wrong_password_is_a_denied_login_with_the_name_hashed(shop):
    record = shop.record("POST", "/enter", data={"username": "carol", "password": "guess"})
    digest = hashlib.sha256(b"carol").hexdigest()[:32]
    assert said(record, "action", "outcome", "actor.id", "target.type", "target.id") == (
        *("LOGIN", "denied", "anonymous", "user", f"sha256:{digest}"),
    )
    assert "carol" not in str(record.span)
    assert "guess" not in str(record.span)


def test_who_signs_out_is_the_actor_of_that_logout(shop):
    headers = session(shop.service, "bob")
    record = shop.record("POST", "/leave", headers=headers)
    assert said(record, "action", "outcome", "actor.id") == ("LOGOUT", "success", "bob")
    assert record["actor.session_id"]


def test_a_login_at_a_url_without_a_span_is_a_record_of_its_own(shop):
    _, trace_id = shop.call("POST", "/excluded/login")
    del trace_id  # no span takes it up

    def own():
        return [r for r in services.spooled(shop.service.spool) if r.span.name == "LOGIN"]

    (record,) = services.wait_for(own, "the record")
    assert said(record, "action", "outcome", "actor.id") == ("LOGIN", "success", "bob")


def test_a_password_that_is_asked_of_who_is_known_is_no_login(shop):
    record = shop.record("POST", "/refuse-password", "bob")
    assert said(record, "action", "outcome", "actor.id") == ("CREATE", "denied", "bob")


def test_a_failed_csrf_check_is_denied_and_says_so(shop):
    record = shop.record("POST", "/orders", headers={"x-csrftoken": "b" * 32})
    assert said(record, "outcome", "reason") == ("denied", "403 Forbidden: CSRF verification failed")


def test_a_redirect_to_the_login_page_is_denied_and_one_after_the_work_is_not(shop):
    record = shop.record("GET", "/account")
    assert said(record, "outcome", "reason") == ("denied", "redirected to the login page")
    assert shop.record("POST", "/register")["outcome"] == "success"


def test_a_user_whom_nobody_asked_for_is_not_loaded_for_us(shop):
    def count():
        return shop.call("GET", "/quiet/queries")[0].json()["queries"]

    shop.headers("bob")
    before = count()
    record = shop.record("POST", "/quiet/plain", "bob")
    assert (record["actor.id"], count()) == ("unknown", before)
    assert shop.record("POST", "/quiet/plain")["actor.id"] == "anonymous"


def test_the_user_of_an_asynchronous_view_is_the_actor(shop):
    assert shop.record("POST", "/quiet/asynchronous", "bob")["actor.id"] == "bob"


def test_an_expressions_groups_are_the_routes_parameters(shop):
    record = shop.record("PUT", "/old/tea/12/move", "bob")
    assert said(record, "target.type", "target.id") == ("old", "tea/12")


def test_a_file_is_a_success(shop):
    response, trace_id = shop.call("POST", "/download", "bob")
    assert response.content == b"0123456789"
    (record,) = shop.service.records(trace_id)
    assert record["outcome"] == "success"


def test_what_the_admin_site_changes_are_records_inside_the_requests(shop):
    _, trace_id = shop.call("POST", "/back-office/auth/group/add/", "root", data={"name": "new"})
    request, entry = sorted(shop.service.records(trace_id, 2), key=lambda r: r["target.type"] == "auth.group")
    assert said(entry, "action", "target.type", "actor.id") == ("CREATE", "auth.group", "root")
    assert entry["parent.span_id"] == request.span.span_id.hex()
    chosen = {"action": "delete_selected", "_selected_action": entry["target.id"], "post": "yes"}
    _, trace_id = shop.call("POST", "/back-office/auth/group/", "root", data=chosen)
    actions = sorted(said(r, "action", "target.type") for r in shop.service.records(trace_id, 2))
    assert actions == [("DELETE", "auth.group"), ("EXECUTE", "group")]
    assert request["actor.roles"] == ["staff", "superuser"]


@pytest.mark.parametrize("view", ["slow", "waiting"])
def test_a_client_that_leaves_a_cancelled_request(shop, view):
    if shop.framework.name == "django-wsgi":
        view, expected = "slow", ("success", None)  # nobody cancels it
    elif view == "waiting":
        expected = ("failure", "cancelled before there was a response")
    else:
        reason = "cancelled before there was a response; its view, in a thread, may have done its work"
        expected = ("unknown", reason)
    trace_id = services.new_trace()
    sent = services.traceparent(trace_id) | shop.headers("bob") | {"host": "shop", "content-length": "0"}
    lines = [f"POST /{view} HTTP/1.1", *(f"{name}: {text}" for name, text in sent.items())]
    with socket.create_connection(("127.0.0.1", shop.service.port)) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        services.wait_for(lambda: shop.call("GET", "/quiet/began")[0].json()[view], "the view's beginning")
    (record,) = shop.service.records(trace_id)
    assert said(record, "outcome", "reason") == expected


def test_the_service_says_nothing_unusual_of_us(shop):
    assert shop.service.log.count("Auditspan") == shop.service.log.count("leaves out get no audit record")
