"""What happens in the shop, and the records that it must leave: the demo plays it, and compares."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shop.gateway.users import Role

PEOPLE: dict[str, Role] = {"alice": "support", "bob": "customer", "carol": "admin"}  # of the gateway
CLERKS = {"alice": "clerk", "dave": "trainee"}  # of the back office, with their groups
ORDER = 1001  # the shop's first


class Record(NamedTuple):
    """What a record must say; *delegate* is the service that knew the actor and vouched for them."""

    service: str
    actor: str
    origin: str
    roles: tuple[str, ...]
    action: str
    target: str
    outcome: str
    delegate: str = ""

    def __str__(self) -> str:
        via = f" via {self.delegate}" if self.delegate else ""
        roles = ",".join(self.roles) or "no role"
        return f"{self.service}: {self.actor} ({self.origin}{via}, {roles}) {self.action} {self.target} {self.outcome}"


@dataclass(frozen=True)
class Act:
    """Somebody's request, the status it must get, and the records it must leave.

    The gateway takes *body* as JSON and a password with each request, the back office a form and a session.
    """

    who: str
    does: str
    where: str
    request: str
    body: Mapping[str, object]
    status: int
    records: list[Record]
    password: str = ""  # instead of theirs


@dataclass(frozen=True)
class Person:
    """Whose records these are: known by one service, which vouches for them behind it. *roles* as records sort them."""

    name: str
    roles: tuple[str, ...]
    known_by: str

    def at(self, service: str, action: str, target: str, outcome: str = "success") -> Record:
        """What they did, as *service* records it."""
        if service == self.known_by:
            return Record(service, self.name, "authenticated", self.roles, action, target, outcome)
        return Record(service, self.name, "asserted", self.roles, action, target, outcome, self.known_by)


BOB = Person("bob", ("customer",), "gateway")
ALICE = Person("alice", ("clerk", "staff"), "backoffice")
DAVE = Person("dave", ("staff", "trainee"), "backoffice")

# Each with its depth in the tree of the request, in the order in which they began.
ORDERED = [
    (0, BOB.at("gateway", "CREATE", "orders")),
    (1, BOB.at("orders", "CREATE", "orders")),
    (2, BOB.at("orders", "CREATE", f"orders:{ORDER}")),  # the row
    (2, BOB.at("billing", "CHARGE", "Billing")),
    (3, BOB.at("billing", "CREATE", f"invoices:INV-{ORDER}")),  # the row
    (2, BOB.at("orders", "UPDATE", f"orders:{ORDER}")),  # the row: paid
    (2, BOB.at("shipping", "EXECUTE", f"shipping.send:{ORDER}")),  # a task, after the answer
    (3, BOB.at("shipping", "CREATE", f"parcels:{ORDER}")),  # the row
]
REFUNDED = [
    (0, ALICE.at("backoffice", "EXECUTE", "order")),
    (1, ALICE.at("orders", "REFUND", f"orders:{ORDER}")),
    (2, ALICE.at("billing", "REFUND", "Billing")),
    (3, ALICE.at("billing", "UPDATE", f"invoices:INV-{ORDER}")),  # the row
    (2, ALICE.at("orders", "UPDATE", f"orders:{ORDER}")),  # the row: refunded
    (1, ALICE.at("backoffice", "UPDATE", f"shop.order:{ORDER}")),  # an entry of the admin site's log
]
REFUND = {"action": "refund", "_selected_action": str(ORDER), "reason": "broken"}


def signs_in(person: Person) -> Act:
    """At the back office."""
    # Groups come with the user of a session, which begins here.
    record = Record("backoffice", person.name, "authenticated", ("staff",), "LOGIN", "", "success")
    return Act(
        person.name, "signs in", "backoffice", "POST /login/", {"username": person.name}, 302, [record]
    )


STORY = [
    Act(
        "bob", "orders two lamps", "gateway", "POST /orders", {"item": "lamp", "quantity": 2}, 201,
        [record for _, record in ORDERED],
    ),
    Act(
        "alice", "mistypes her password", "gateway", f"POST /orders/{ORDER}/refund", {"reason": "broken"}, 401,
        [Record("gateway", "anonymous", "unverified", (), "REFUND", f"orders:{ORDER}", "denied")],
        password="not-hers",
    ),
    Act(
        "bob", "wants to be admin", "gateway", "PUT /users/bob/role", {"role": "admin"}, 403,
        [BOB.at("gateway", "UPDATE", "users:bob", "denied")],
    ),
    signs_in(ALICE),
    Act(
        "alice", "refunds bob's order", "backoffice", "POST /shop/order/", REFUND, 302,
        [record for _, record in REFUNDED],
    ),
    signs_in(DAVE),
    Act(
        "dave", "wants to refund it too", "backoffice", "POST /shop/order/", REFUND, 403,
        [DAVE.at("backoffice", "EXECUTE", "order", "denied")],
    ),
]  # fmt: skip


def as_record(row: dict[str, Any]) -> Record:
    """A row of `auditspan search --format json`."""
    target = ":".join(filter(None, (row["target_type"], row["target_id"])))
    return Record(
        row["service_name"], row["actor_id"], row["actor_origin"], tuple(row["actor_roles"]),
        row["action"], target, row["outcome"], row["actor_delegate"],
    )  # fmt: skip


def differences(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Where what is stored is not what the story must have left, both ways."""
    expected = Counter(record for act in STORY for record in act.records)
    stored = Counter(map(as_record, rows))
    return [
        *(f"record  {record}" for record in (expected - stored).elements()),
        *(f"nothing else; there is  {record}" for record in (stored - expected).elements()),
    ]


def torn(tree: dict[str, Any], expected: list[tuple[int, Record]]) -> list[str]:
    """Where the records of one request, as `auditspan trace --format json` has them, are not the one tree *expected*."""
    records = tree["records"]
    found = Counter((record["depth"], record["place"], as_record(record)) for record in records)
    wanted = Counter((depth, "child" if depth else "root", record) for depth, record in expected)
    missing = [
        f"in the tree, at depth {depth} as {place}:  {record}"
        for depth, place, record in (wanted - found).elements()
    ]
    if len({record["trace_id"] for record in records}) != 1:
        missing.append("one trace id for all of it")
    return missing
