from __future__ import annotations

import re

import pytest
from auditspan import facts
from auditspan.context import Facts
from auditspan.facts import ReadMethods, cut_short, grpc_facts, http_facts, match_path
from auditspan.settings import DEFAULT_GRPC_READ_METHODS
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

VALUES = {"order_id": "7", "name": "bob", "bucket": "b", "key": "k"}


def documented() -> list[tuple[str, str, str, str, str]]:
    """The table in the module's docstring."""
    lines = facts.__doc__.splitlines()
    header = next(line for line in lines if line.startswith("    route "))
    starts = [header.index(column) for column in ("route", "method", "action", "target type", "target id")]
    rows = []
    for line in lines[lines.index(header) + 1 :]:
        if not line.startswith("    /"):
            break
        cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], starts[-1] + 6], strict=True)]
        rows += [(cells[1], route.strip(), cells[2], cells[3], cells[4]) for route in cells[0].split(",")]
    return rows


def test_the_table_in_the_docs_has_all_its_rows():
    assert len(documented()) == 11


@pytest.mark.parametrize(("method", "route", "action", "kind", "ident"), documented())
def test_what_the_table_in_the_docs_says(method, route, action, kind, ident):
    path = re.sub(r"\{(\w+)\}", lambda m: VALUES[m[1]], route)
    found = http_facts(method, route, path)
    kind = "" if action == "LOGIN" else kind
    assert (found.action, found.target_id, found.changes) == (action, ident, True)
    if kind:
        assert found.target_type == kind


@pytest.mark.parametrize(
    ("method", "route", "path", "expected"),
    [
        ("GET", "/orders/{id}", "/orders/7", ("READ", "orders", "7", False)),
        ("HEAD", "/orders", "/orders", ("READ", "orders", "", False)),
        ("GET", "/logout", "/logout", ("LOGOUT", "", "", False)),
        ("GET", "/login", "/login", ("READ", "", "", False)),
        ("GET", "/reports/{id}/export", "/reports/1/export", ("EXPORT", "reports", "1", False)),
        ("DELETE", "/auth/token", "/auth/token", ("DELETE", "token", "", True)),
        ("POST", "/api/v1/orders", "/api/v1/orders", ("CREATE", "orders", "", True)),
        ("POST", "/orders/{id}:cancel", "/orders/7:cancel", ("CANCEL", "orders", "7", True)),
        ("POST", "/orders/{id}/hand-over", "/orders/7/hand-over", ("HAND_OVER", "orders", "7", True)),
        ("PUT", "/orders/{id}/approve", "/orders/7/approve", ("APPROVE", "orders", "7", True)),
        ("POST", "/orders/<int:id>/refund", "/orders/7/refund", ("REFUND", "orders", "7", True)),
        ("POST", "/orders/{id:int}/refund", "/orders/7/refund", ("REFUND", "orders", "7", True)),
        ("DELETE", "/files/{path:path}", "/files/a/b/c", ("DELETE", "files", "a/b/c", True)),
        ("POST", "/orgs/{org}/users/{user}", "/orgs/o/users/u", ("CREATE", "users", "u", True)),
        ("POST", "", "/anything/at/all", ("CREATE", "", "", True)),
        ("POST", "/", "/", ("CREATE", "", "", True)),
        ("PURGE", "/cache/{key}", "/cache/k", ("EXECUTE", "cache", "k", True)),
        ("POST", "/{tenant}", "/retail", ("CREATE", "", "retail", True)),
    ],
)
def test_action_and_target_of_a_route(method, route, path, expected):
    found = http_facts(method, route, path)
    assert (found.action, found.target_type, found.target_id, found.changes) == expected


@pytest.mark.parametrize(
    ("status", "location", "expected"),
    [
        (200, "", "success"),
        (201, "", "success"),
        (304, "", "success"),
        (303, "/orders/7", "success"),
        (302, "https://shop/login?next=%2F", "denied"),
        (302, "/account/sign-in/", "denied"),
        (302, "/users/sign_in#form", "denied"),
        (302, "/wp-login.php", "success"),
        (302, "/admin/login.php?from=/", "denied"),
        (400, "", "failure"),
        (401, "", "denied"),
        (403, "", "denied"),
        (404, "", "failure"),
        (422, "", "failure"),
        (500, "", "failure"),
        (0, "", ""),
    ],
)
def test_outcome_of_a_status(status, location, expected):
    assert http_facts("POST", "/orders", "/orders", status=status, location=location).outcome == expected


def test_a_login_that_leads_to_the_login_page_is_no_denied_action():
    assert http_facts("POST", "/logout", "/logout", status=302, location="/login").outcome == "success"


def test_a_refused_login_is_denied_even_as_a_bad_request():
    assert http_facts("POST", "/login", "/login", status=400).outcome == "denied"


@pytest.mark.parametrize(
    ("method", "read", "action"),
    [
        ("CreateOrder", False, "CREATE"),
        ("ChargeCard", False, "CHARGE"),
        ("GetInvoice", True, "READ"),
        ("GetOrCreateCart", False, "EXECUTE"),
        ("ExportInvoices", True, "EXPORT"),
        ("SignIn", False, "LOGIN"),
        ("LogOut", False, "LOGOUT"),
        ("refund_order", False, "REFUND"),
        ("HTTPPing", False, "HTTP"),
        ("Grant", False, "GRANT"),
        ("", False, "EXECUTE"),
    ],
)
def test_action_of_a_grpc_method(method, read, action):
    found = grpc_facts(f"/shop.v1.BillingService/{method}", status=0, read=read)
    assert (found.action, found.target_type, found.changes) == (action, "Billing", not read)


@pytest.mark.parametrize(
    ("status", "outcome", "reason"),
    [
        (0, "success", ""),
        (5, "failure", ""),
        (7, "denied", "PERMISSION_DENIED: why"),
        (16, "denied", "UNAUTHENTICATED: why"),
        (13, "failure", ""),
    ],
)
def test_outcome_of_a_grpc_status(status, outcome, reason):
    found = grpc_facts("/a.B/C", status=status, details="why")
    assert (found.outcome, found.reason) == (outcome, reason)


@pytest.mark.parametrize(
    ("method", "reads"),
    [
        ("GetInvoice", True),
        ("Get", True),
        ("Getaway", False),
        ("GetOrCreate", False),
        ("FindAndModify", False),
        ("CheckOut", True),
        ("Checkout", False),
        ("ListOrders", True),
        ("ServerReflectionInfo", True),
        ("ChargeCard", False),
    ],
)
def test_which_grpc_methods_only_read(method, reads):
    assert ReadMethods(DEFAULT_GRPC_READ_METHODS)(f"/shop.Billing/{method}") is reads


def test_a_pattern_with_a_slash_is_the_full_name():
    reads = ReadMethods(("/shop.Billing/Check*",))
    assert reads("/shop.Billing/CheckCard")
    assert not reads("/shop.Orders/CheckCard")


@pytest.mark.parametrize(
    ("outcome", "why", "expected"),
    [
        ("success", "", ("success", "as it was")),
        ("success", "cut short", ("failure", "cut short")),
        ("", "cut short", ("failure", "cut short")),
        ("failure", "cut short", ("failure", "as it was")),
        ("denied", "cut short", ("denied", "as it was")),
    ],
)
def test_what_was_cut_short_is_no_success(outcome, why, expected):
    found = cut_short(Facts(outcome=outcome, reason="as it was"), why)
    assert (found.outcome, found.reason) == expected


segment = st.text("abcdefgh-_.~%0123456789", min_size=1, max_size=8).filter(lambda s: s not in (".", ".."))


@given(st.lists(st.tuples(st.booleans(), segment), min_size=1, max_size=6))
@hypothesis_settings(deadline=None, max_examples=200)
def test_laying_a_route_over_its_path_gives_the_parameters_back(parts):
    route = "".join(f"/{{p{n}}}" if parameter else f"/{text}" for n, (parameter, text) in enumerate(parts))
    path = "".join(f"/{text}" for _, text in parts)
    expected = {f"p{n}": text for n, (parameter, text) in enumerate(parts) if parameter}
    assert match_path(route, path) == expected


@given(
    st.text(max_size=12),
    st.text(max_size=40),
    st.text(max_size=40),
    st.integers(0, 999),
    st.text(max_size=20),
)
@hypothesis_settings(deadline=None, max_examples=300)
def test_no_request_line_raises(method, route, path, status, location):
    found = http_facts(method, route, path, status=status, location=location)
    assert found.action == found.action.upper() or not found.action.isascii()
    grpc_facts(f"/{route}/{path}", status=status, details=location)
