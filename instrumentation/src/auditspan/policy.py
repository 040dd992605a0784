"""What the operator decided about records: which there are (rules), whom they name, and whom a proxy spoke for.

Built once from the settings. A part that can't be used is said in the log, and the closed default takes its place:
without usable rules the defaults are in force, without a usable key nobody is named, without a usable network no
proxy is believed. The service starts in any case.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from auditspan import attributes as names
from auditspan.context import Facts
from auditspan.facts import match_path
from auditspan.operator_files import read_small
from auditspan.privacy import add_headers, clean, plain
from auditspan.proxies import Proxies
from auditspan.pseudonyms import HMAC, OFF, RAW, ActorKey, ActorKeyError, ActorNames, people_in
from auditspan.rules import Rules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.util.types import AnyValue

    from auditspan.context import AuditedSpan
    from auditspan.settings import Settings

_log = logging.getLogger(__name__)

# The names that instrumentations have for the connection's other end, the newest first.
_PEER: Final = ("network.peer.address", "net.sock.peer.addr", "net.peer.ip", "client.address")
_MAX_TEXT: Final = 1024  # characters of a target's id
_MAX_KEY_FILE: Final = 4096  # bytes


@dataclass(frozen=True, slots=True)
class Policy:
    """The operator's word on every record. Thread-safe."""

    rules: Rules = field(default_factory=Rules)
    actors: ActorNames = field(default_factory=ActorNames)
    proxies: Proxies = field(default_factory=Proxies)

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        """The policy that *settings* describe; reads the files that they name. Never raises."""
        return cls(_rules(settings), _actors(settings), _proxies(settings))

    def apply(self, state: AuditedSpan, found: Facts, attributes: dict[str, AnyValue]) -> Facts:
        """What a framework *found*, with what the rule for this request says in its place; keeps the rule in *state*."""
        rule = self.rules.of(attributes, found.route) if state.entry else self.rules.default
        state.rule = rule
        if not rule.place:
            return found
        return Facts(
            action=rule.action or found.action,
            outcome=found.outcome,
            reason=found.reason or rule.reason,  # why it was denied goes before why it is done at all
            target_type=rule.target_type or found.target_type,
            target_id=_target_id(state, rule.target_id, found, attributes)
            if rule.target_id
            else found.target_id,
            route=found.route,
            changes=found.changes,
            unrouted=found.unrouted,
        )

    def limit(self, state: AuditedSpan, span: ReadableSpan, attributes: dict[str, AnyValue]) -> ReadableSpan:
        """Take out of *attributes*, in place, and of *span* what the record may not hold; put in what a rule lets."""
        keep = (state.rule or self.rules.default).keep
        source = state.source
        clean(attributes, keep, self.actors, lambda: _query(source, attributes))
        if keep.headers:
            add_headers(attributes, keep, lambda name: _values(source, name))
        if self.proxies and state.entry:
            self._look_behind(source, attributes)
        if not self.actors.hides:
            return plain(span, keep, self.actors)
        people = people_in(state.named())
        self.actors.scrub(attributes, people)
        return plain(span, keep, self.actors, people)

    def without_people(self, state: AuditedSpan, text: str) -> str:
        """*text* as it may be shown, without the names of those who act in *state*."""
        return self.actors.without(text, people_in(state.named())) if text and self.actors.hides else text

    def client(self, state: AuditedSpan, attributes: dict[str, AnyValue]) -> str:
        """Where the request came from, as its record will say; empty when nobody says."""
        peer = next((str(attributes[key]) for key in _PEER if attributes.get(key)), "")
        return (
            self.proxies.client(peer, lambda name: _values(state.source, name)) or peer
            if self.proxies
            else peer
        )

    def _look_behind(self, source: object, attributes: dict[str, AnyValue]) -> None:
        peer = next((str(attributes[key]) for key in _PEER if attributes.get(key)), "")
        client = self.proxies.client(peer, lambda name: _values(source, name))
        if client and client != peer:
            for key in _PEER:
                attributes.pop(key, None)
            attributes["client.address"] = client
            if peer:
                attributes[names.PROXY_ADDRESS] = peer


def _target_id(
    state: AuditedSpan, wanted: Iterable[str], found: Facts, attributes: dict[str, AnyValue]
) -> str:
    ask = getattr(state.source, "parameter", None)
    if ask is None:
        path = str(attributes.get("url.path") or attributes.get("http.target") or "").partition("?")[0]
        ask = match_path(found.route, path).get
    values = [_asked(ask, name) for name in wanted]
    texts = ["" if value is None else str(value) for value in values]
    return "/".join(texts)[:_MAX_TEXT] if any(texts) else ""


def _values(source: object, name: str) -> list[str]:
    ask: Any = getattr(source, "header", None)
    return list(_asked(ask, name) or ()) if ask is not None else []


def _query(source: object, attributes: dict[str, AnyValue]) -> str:
    ask: Any = getattr(source, "query", None)
    if ask is not None:
        return str(_asked(ask) or "")
    texts = (str(attributes.get(name) or "") for name in ("http.target", "url.full", "http.url"))
    return str(
        attributes.get("url.query") or next((text.partition("?")[2] for text in texts if "?" in text), "")
    )


def _asked(ask: Callable[..., object], *arguments: str) -> Any:
    try:
        return ask(*arguments)
    except Exception:  # noqa: BLE001 - the application's and the framework's objects; the record goes on without it
        return None


def _rules(settings: Settings) -> Rules:
    if settings.rules_file is None:
        return Rules()
    from auditspan.rules_file import RulesError, read  # noqa: PLC0415 - most services have no rules

    try:
        return read(settings.rules_file)
    except RulesError as problem:
        mistakes = "\n  ".join(problem.mistakes)
    except Exception as problem:  # noqa: BLE001 - the service starts, whatever it is
        mistakes = f"{settings.rules_file}: {type(problem).__name__}: {problem}"
    _log.error(
        "Auditspan: the rules in OTEL_AUDITSPAN_RULES can't be used; the defaults are in force:\n  %s",
        mistakes,
    )
    return Rules()


def _actors(settings: Settings) -> ActorNames:
    key = None
    try:
        key = _key(settings)
        trouble = "no OTEL_AUDITSPAN_ACTOR_KEY_FILE is set" if settings.actor == HMAC and key is None else ""
    except Exception as problem:  # noqa: BLE001 - as above
        trouble = str(problem) if isinstance(problem, ActorKeyError) else type(problem).__name__
    if trouble:
        _log.error(
            "Auditspan: there is no key for pseudonyms: %s. %s",
            trouble,
            "Session ids are hashed without one" if settings.actor == RAW else "No actor is named",
        )
    return ActorNames(OFF if trouble and settings.actor == HMAC else settings.actor, key)


def _key(settings: Settings) -> ActorKey | None:
    path = settings.actor_key_file
    where, text = "OTEL_AUDITSPAN_ACTOR_KEY", settings.actor_key
    if path is not None:
        where = str(path)
        try:
            text, exposed = read_small(path, _MAX_KEY_FILE)
        except ValueError as problem:
            raise ActorKeyError(str(problem)) from None
        if exposed:
            _log.warning("Auditspan: every user of this host can read the key in %s: chmod o-rwx", path)
    elif not text:
        return None
    try:
        return ActorKey.parse(text)
    except ActorKeyError as problem:
        raise ActorKeyError(f"{where}: {problem}") from None


def _proxies(settings: Settings) -> Proxies:
    proxies = Proxies(settings.trusted_proxies, header=settings.forwarded_header)
    for problem in proxies.problems:
        _log.warning("Auditspan: OTEL_AUDITSPAN_TRUSTED_PROXIES: %s", problem)
    return proxies
