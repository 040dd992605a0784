"""What the operator wants audited, and what a record may hold of a request. Pure: no files, no clock.

A rule names requests by route, method, RPC or task, or changes of data by table, and the first one that fits counts. It is
looked for once for each route and method, and for each table; after that it is one look into a dictionary. Where no rule
fits, the defaults are in force.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from auditspan.facts import glob, plain_route

if TYPE_CHECKING:
    import re
    from collections.abc import Mapping

AUDIT: Final = "audit"
SKIP: Final = "skip"

_RPC: Final = "rpc"  # in the place of the method, which is in upper case for HTTP
_TASK: Final = "task"
_TASK_NAME: Final = "celery.task_name"  # of the span that Celery's instrumentation makes of a run
_MAX_KNOWN: Final = 4096
_MAX_KNOWN_LENGTH: Final = 256  # characters; a path that no route matches is the client's to choose

# Columns whose values let whoever reads them act as somebody else, or pay for it.
SECRET_COLUMNS: Final = frozenset(
    [
        "password",
        "passwd",
        "pwd",
        "password_hash",
        "hashed_password",
        "secret",
        "client_secret",
        "token",
        "access_token",
        "refresh_token",
        "api_key",
        "apikey",
        "private_key",
        "otp_secret",
        "totp_secret",
        "session_key",
        "cvv",
        "cvc",
        "pin",
    ]
)


@dataclass(frozen=True, slots=True)
class Keep:
    """What a record may hold besides what it always does: nothing, unless a rule says so.

    Names of request *headers* (or gRPC metadata) in lower case, of *query* parameters as the URL means them, and
    whether messages and stack traces of *exceptions*, which may quote anything, stay. *anything* says whether one of them does.
    """

    headers: frozenset[str] = frozenset()
    query: frozenset[str] = frozenset()
    exceptions: bool = False
    anything: bool = field(init=False)

    def __post_init__(self) -> None:
        """Known beforehand, because it is asked for each record."""
        object.__setattr__(self, "anything", bool(self.headers or self.query or self.exceptions))

    def __or__(self, other: Keep) -> Keep:
        """What one of the two keeps."""
        return Keep(
            self.headers | other.headers, self.query | other.query, self.exceptions or other.exceptions
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds for the requests that it fits. Empty: as it would be without the rule.

    *routes*, *methods*, *rpcs* and *tasks* are all-of, each one-of; *tables* stand alone. *target_id* names the parameters (of a
    table, the columns) whose values, joined by a slash, are the target's id; *columns* those whose values a change may
    show; *place* is where the rule stands (``rules.yaml:12``).
    """

    place: str = ""
    routes: tuple[str, ...] = ()
    methods: frozenset[str] = frozenset()
    rpcs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    do: str = ""
    action: str = ""
    target_type: str = ""
    target_id: tuple[str, ...] = ()
    reason: str = ""
    keep: Keep = field(default_factory=Keep)
    columns: tuple[str, ...] = ()


class Rules:
    """Rules in their order, and what all records may *keep*. Thread-safe."""

    def __init__(self, rules: tuple[Rule, ...] = (), keep: Keep = Keep()) -> None:
        self.default: Final = Rule(keep=keep)
        requests = tuple(rule for rule in rules if not rule.tables)
        self._rules = tuple((_Matcher(rule), replace(rule, keep=rule.keep | keep)) for rule in requests)
        self._known: dict[tuple[object, str], Rule] = {}
        self._skips = any(rule.do == SKIP for rule in requests)
        self._tables = tuple(
            (tuple(glob(table.lower()) for table in rule.tables), rule) for rule in rules if rule.tables
        )
        self._known_tables: dict[str, Rule] = {}

    def __bool__(self) -> bool:
        """Whether there are any for requests."""
        return bool(self._rules)

    def of(self, attributes: Mapping[str, object], route: str) -> Rule:
        """The rule for an entry span with *attributes*.

        *route* is the pattern that matched, parameters as ``{name}``, or the path where none did;
        ``/package.Service/Method`` for an RPC. The task that a span runs is read from *attributes*.
        """
        if not self._rules:
            return self.default
        method = _method(attributes)
        if method == _TASK:
            route = str(attributes[_TASK_NAME])
        key = (method, route)
        found = self._known.get(key)
        if found is None:
            found = next((rule for fits, rule in self._rules if fits(*key)), self.default)
            if len(route) <= _MAX_KNOWN_LENGTH:
                if len(self._known) >= _MAX_KNOWN:
                    self._known = {}
                self._known[key] = found
        return found

    def of_table(self, table: str) -> Rule:
        """The rule for changes of *table*, which may be ``schema.table``; either fits, in upper case or lower."""
        if not self._tables:
            return self.default
        found = self._known_tables.get(table)
        if found is None:
            full = table.lower()
            alone = full.rpartition(".")[2]
            fits = (rule for patterns, rule in self._tables if _any(patterns, full) or _any(patterns, alone))
            found = next(fits, self.default)
            if len(table) <= _MAX_KNOWN_LENGTH:
                if len(self._known_tables) >= _MAX_KNOWN:
                    self._known_tables = {}
                self._known_tables[table] = found
        return found

    def promises(self, attributes: Mapping[str, object], *, default: bool) -> bool:
        """Whether a span that starts with *attributes* is sure to become a record; *default* is what holds without rules.

        Other services are told of it as their record's parent, so this says no where the end may.
        """
        if not self._rules:
            return default
        route = str(attributes.get("http.route") or "")
        if not route and _method(attributes) == _RPC:
            route = f"/{attributes.get('rpc.service')}/{attributes.get('rpc.method')}"
        if not route:
            return default and not self._skips
        do = self.of(attributes, plain_route(route)).do
        return do == AUDIT if do else default


class _Matcher:
    """One rule's patterns, compiled."""

    def __init__(self, rule: Rule) -> None:
        self._methods = rule.methods
        self._routes = tuple(glob(plain_route(route)) for route in rule.routes)
        self._rpcs = tuple(glob(rpc) for rpc in rule.rpcs)
        self._tasks = tuple(glob(task) for task in rule.tasks)

    def __call__(self, method: object, route: str) -> bool:
        if method == _RPC:
            return _any(self._rpcs, route)
        if method == _TASK:
            return _any(self._tasks, route)
        if self._rpcs or self._tasks or (self._methods and method not in self._methods):
            return False
        return not self._routes or _any(self._routes, route)


def _any(patterns: tuple[re.Pattern[str], ...], text: str) -> bool:
    return any(pattern.fullmatch(text) for pattern in patterns)


def _method(attributes: Mapping[str, object]) -> object:
    method = attributes.get("http.request.method") or attributes.get("http.method")
    if method:
        return method
    if "rpc.system" in attributes or "rpc.service" in attributes:
        return _RPC
    return _TASK if _TASK_NAME in attributes else ""
