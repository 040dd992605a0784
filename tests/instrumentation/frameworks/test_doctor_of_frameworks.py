"""auditspan-doctor on Django, aiohttp and WSGI: which routes are audited, which that may change something are not and why."""

from __future__ import annotations

import json
import subprocess

import pytest
from instrumentation.frameworks.frameworks import APPS

from instrumentation import services


@pytest.fixture
def doctor(tmp_path):
    def report(*arguments, **changes):
        environment = {"SHOP_FOLDER": str(tmp_path)} | changes
        done = subprocess.run(
            [services.BIN / "auditspan-doctor", "--json", "--offline", *arguments],
            cwd=APPS,
            env=services.environment_of(tmp_path / "spool", environment),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode in (0, 1), done.stderr
        return json.loads(done.stdout)

    return report


def rows(report):
    return {(row["method"], row["route"]): row for row in report["application"]["routes"]}


def said(report, *keys):
    found = rows(report)
    return {key: (found[key]["audited"], found[key]["reason"]) for key in keys}


def problems(report):
    return [finding["text"] for finding in report["findings"] if finding["level"] == "problem"]


ANY = "takes any method; methods that may change something are audited"


def test_the_url_patterns_of_django_with_what_each_view_takes(doctor):
    report = doctor(
        "shop_django:application",
        OTEL_PYTHON_DJANGO_EXCLUDED_URLS="excluded",
        OTEL_AUDITSPAN_READS="/orders/{order_id}",
    )
    expected = {
        ("POST", "/orders"): (True, "POST may change something"),
        ("GET", "/orders/{order_id}"): (True, "OTEL_AUDITSPAN_READS: /orders/{order_id}"),
        ("DELETE", "/orders/{order_id}"): (True, "DELETE may change something"),
        ("GET", "/enter"): (False, "GET reads"),
        ("POST", "/enter"): (True, "POST may change something"),
        ("ANY", "/shop/customers/{customer_id}"): (True, ANY),
        ("ANY", "/admin/{region}/users/{name}/role"): (True, ANY),
        ("ANY", "/old/{shelf}/{item_id}/move/"): (True, ANY),
        ("ANY", "/back-office/auth/group/{object_id}/change/"): (True, ANY),
        ("ANY", "/excluded"): (False, "excluded by OTEL_PYTHON_DJANGO_EXCLUDED_URLS"),
    }
    assert said(report, *expected) == expected
    assert ("GET", "/orders") not in rows(report)
    part = report["application"]
    assert (part["framework"], part["instrumented"], part["hooked"]) == ("Django", True, True)
    assert rows(report)["DELETE", "/orders/{order_id}"]["target_type"] == "orders"
    (problem,) = problems(report)
    assert problem.startswith("2 routes that may change something are not audited: ANY /excluded")


def test_the_actions_and_decorators_of_rest_framework_under_asgi(doctor):
    report = doctor("shop_django:asgi", SHOP_URLS="shop_drf")
    methods = {method for method, route in rows(report) if route == "/orders/{order_id}"}
    assert methods == {"GET", "PUT", "DELETE"}
    assert [method for method, route in rows(report) if route == "/orders/{order_id}/crash"] == ["POST"]
    assert [method for method, route in rows(report) if route == "/secrets/{name}"] == ["GET", "PUT"]
    assert rows(report)["POST", "/token"]["action"] == "LOGIN"
    assert problems(report) == []


def test_middleware_in_front_of_django_s_instrumentation_is_named(doctor):
    report = doctor("shop_django:application", OTEL_PYTHON_DJANGO_MIDDLEWARE_POSITION="1")
    notes = [each["text"] for each in report["findings"] if each["part"] == "application"]
    (note,) = notes
    assert note.startswith("django.contrib.sessions.middleware.SessionMiddleware stands around the instr")


def test_aiohttp_s_routes_with_those_of_sub_applications(doctor):
    excluded = {"OTEL_PYTHON_AIOHTTP_SERVER_EXCLUDED_URLS": "^/excluded"}
    report = doctor("shop_aiohttp:shop", "--factory", **excluded)
    expected = {
        ("POST", "/orders"): (True, "POST may change something"),
        ("GET", "/orders/{order_id}"): (False, "GET reads"),
        ("PUT", "/shop/customers/{customer_id}"): (True, "PUT may change something"),
        ("PUT", "/admin/eu/users/{name}/role"): (True, "PUT may change something"),
        ("POST", "/excluded"): (False, "excluded by OTEL_PYTHON_AIOHTTP_SERVER_EXCLUDED_URLS"),
    }
    assert said(report, *expected) == expected
    assert not [route for method, route in rows(report) if method == "HEAD"]
    assert report["application"]["hooked"] is True
    (problem,) = problems(report)
    assert "POST /excluded" in problem


def test_an_aiohttp_application_that_nobody_instruments_is_the_problem(doctor):
    disabled = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "aiohttp-server"}
    report = doctor("shop_aiohttp:shop", "--factory", **disabled)
    assert not [row for row in rows(report).values() if row["audited"]]
    assert "OpenTelemetry does not instrument this aiohttp application" in problems(report)[0]


def test_of_a_wsgi_application_is_said_what_can_be_said(doctor):
    report = doctor("shop_wsgi:app")
    reason = (
        "a WSGI application, whose routes can't be asked for; methods that may change something are audited"
    )
    assert said(report, ("ANY", "/{path}")) == {("ANY", "/{path}"): (True, reason)}
    assert (report["application"]["framework"], report["application"]["hooked"]) == ("WSGI", True)
    (problem,) = problems(doctor("auth_wsgi:update"))
    assert "no instrumentation starts by itself around a WSGI function" in problem


def test_sqlalchemy_needs_no_instrumentation(doctor):
    (row,) = [row for row in doctor()["instrumentation"] if row["framework"] == "SQLAlchemy"]
    assert (row["role"], row["active"], row["instrumentation"]) == ("changes", True, "")


DRIVERS = ("asyncpg", "psycopg", "psycopg2", "sqlite3")


def libraries(report):
    return {row["framework"]: row for row in report["instrumentation"]}


def test_drivers_are_heard_of_where_their_instrumentation_runs(doctor):
    report = doctor(OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="")
    for driver in DRIVERS:
        row = libraries(report)[driver]
        assert (row["role"], row["active"], row["why_not"]) == ("changes", True, ""), driver
        assert row["extractors"] == ["auditspan.extractors.dbapi"]
        assert row["instrumentation"] == f"opentelemetry-instrumentation-{driver}"


def test_a_driver_that_is_not_instrumented_is_noted_with_why_and_with_what_is_heard_of_all_the_same(doctor):
    report = doctor(OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=",".join(DRIVERS))
    why_not = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS names it; what SQLAlchemy changes with it is heard of all the same"
    for driver in DRIVERS:
        row = libraries(report)[driver]
        assert (row["active"], row["why_not"]) == (False, why_not), driver
        note = f"{driver} {row['version']} is installed and not instrumented: {why_not}"
        assert note in [each["text"] for each in report["findings"] if each["level"] == "note"]


def test_libraries_that_verify_tokens_are_named(doctor):
    report = doctor()
    for library in ("PyJWT", "joserfc", "Authlib"):
        row = libraries(report)[library]
        assert (row["role"], row["active"], row["extractors"]) == (
            "actor",
            True,
            ["auditspan.extractors.bearer"],
        )
