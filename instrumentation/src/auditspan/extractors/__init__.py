"""How Auditspan learns from a framework who acts and what they do; the plugin interface ``auditspan_extractor``.

What stands in ``__all__`` is the whole of it: an extractor needs no other module of ours, and these names keep their
meaning within a major version. docs/frameworks/plugin.md is the guide, examples/falcon_extractor a package to start from.

An extractor is a module, registered as an entry point of the group ``auditspan_extractor``::

    [project.entry-points.auditspan_extractor]
    myframework = "myframework_auditspan.extractor"

It has two names, both required. ``INSTRUMENTORS`` holds the OpenTelemetry instrumentors that it works with, each as
``"module:Class"``. ``instrument(instrumentor, arguments)`` is called when one of them starts to instrument, with its
name and the keyword arguments it was called with, and returns the arguments to use instead: it adds the
instrumentor's own documented hooks and chains those that it was given with ``chain``. It may also return a function
as second value of a pair, which is called when the instrumentor is done::

    INSTRUMENTORS = ("opentelemetry.instrumentation.myframework:MyFrameworkInstrumentor",)

    def instrument(instrumentor, arguments):
        return {**arguments, "request_hook": chain(arguments.get("request_hook"), _begin)}

    def _begin(span, request):
        begin(span, AcmeSource(request))      # AcmeSource is a Source

    def _end(span, request, response):        # while the span is open, authentication behind us
        respond(span)

It may have a function ``start()``, which is called once when Auditspan starts, whatever is instrumented: for a framework
without an instrumentor, or one that tells what happens in it by itself. ``INSTRUMENTORS`` may be empty then.

It may have ``TESTED``, by distribution the oldest and the newest version that it was tested with, both included:
``{"myframework": ("1.2", "2.0")}``; ``("3", "3")`` is any 3. With another the log says so once, and the extractor is used
all the same; a distribution that is not installed is passed over. All of ours have it.

The module must import without its framework: all extractors are loaded at start, only those are used whose
framework is there. Exceptions out of an extractor are caught and logged once; the instrumentor then goes on with the
arguments it was given.

Those of this distribution also say in ``FRAMEWORKS`` what they give, for the README's table (``auditspan.extractors.table``).
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import types
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Protocol

from auditspan import attributes as names
from auditspan import context
from auditspan.context import Actor, Facts, OpenedSpan, Source
from auditspan.facts import grpc_facts, http_facts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from auditspan.context import AuditedSpan

__all__ = [
    "ANONYMOUS",
    "Actor",
    "Extractor",
    "Facts",
    "Source",
    "begin",
    "chain",
    "finish",
    "first_text",
    "grpc_facts",
    "guard",
    "hash_session",
    "held_roles",
    "hold",
    "http_facts",
    "respond",
    "scheme_word",
    "session_of",
    "text",
    "texts",
]

_log = logging.getLogger(__name__)

ANONYMOUS: Final = Actor(names.ANONYMOUS, origin=names.UNVERIFIED)  # the framework says that it is nobody

HOOK: Final = "_auditspan_hook"  # attribute of the hooks that have ours in them

# IANA's HTTP authentication schemes and two common ones. Anything else in the header may be the secret itself.
_AUTH_SCHEMES: Final = frozenset(
    [
        "basic",
        "bearer",
        "concealed",
        "digest",
        "dpop",
        "gnap",
        "hoba",
        "mutual",
        "negotiate",
        "oauth",
        "privatetoken",
        "scram-sha-1",
        "scram-sha-256",
        "vapid",
        "ntlm",
        "apikey",
        "token",
    ]
)
_without: Final[dict[type, tuple[str, ...]]] = {}  # what a class inherits and does not implement
_MAX_WITHOUT: Final = 256
_ONLY_TEXTS: Final = frozenset({str})
_MAX_TEXT: Final = 1024  # characters of an actor's id or role; a user object is not ours to trust with memory


class Extractor(Protocol):
    """The module's interface."""

    INSTRUMENTORS: tuple[str, ...]

    def instrument(
        self, instrumentor: str, arguments: dict[str, Any]
    ) -> dict[str, Any] | tuple[dict[str, Any], Callable[[], None]]:
        """The keyword arguments to instrument with, and what to do afterwards."""


def begin(span: Any, source: Source) -> AuditedSpan | None:
    """Say that *source* knows the request whose entry span is *span*; the state, or None when it is no entry span."""
    state = own_state(span)
    if state is None or not state.entry:
        return None
    state.source = source
    return state


def respond(span: Any) -> None:
    """Say that the response is about to start: authentication ran, and *span* is still open."""
    state = own_state(span)
    if state is not None:
        state.emitter.responding(span, state)


def finish(span: Any) -> None:
    """Say that the last of the response is about to be sent, where the span ends only after that.

    Then the record is on disk before the client has its answer. Optional: otherwise it is written at the span's end.
    """
    state = own_state(span)
    if state is not None:
        state.emitter.finishing(span, state)


def conclude(span: Any) -> None:
    """Say both at once, where all of the response is known before any of it is sent: what it says is found out once."""
    state = own_state(span)
    if state is not None:
        state.emitter.concluding(span, state)


def hold(span: Any) -> bool:
    """Let the record of the request wait for ``finish``, whatever becomes of *span* meanwhile; False for no request's.

    Where the span ends before the response does. Whoever holds it must finish it.
    """
    state = own_state(span)
    if state is None:
        return False
    state.held = True
    return True


def own_state(span: Any) -> OpenedSpan | None:
    """The state of *span* itself, not that of one around it; None when it has none."""
    state = getattr(span, context.SLOT, None)
    if not isinstance(state, OpenedSpan):
        return None
    try:
        ids = span._context  # noqa: SLF001 - as in ``auditspan.spans``: asked several times a request
    except AttributeError:
        ids = span.get_span_context()
    return state if state.span_context is ids else None


def chain(theirs: Any, ours: Callable[..., None], *, raises: bool = True) -> Callable[..., None]:
    """A hook that calls *theirs*, when there is one, and then *ours*. Only theirs may raise.

    Say *raises* is False when *ours* catches what it raises itself, which is cheaper.
    """
    guarded = guard(ours) if raises else _marked(ours)
    if not callable(theirs):
        return guarded

    @functools.wraps(theirs)
    def both(*args: Any, **kwargs: Any) -> None:
        try:
            theirs(*args, **kwargs)
        finally:
            guarded(*args, **kwargs)

    return _marked(both)


_warned: Final[set[str]] = set()


def warn_once(what: str) -> None:
    """Log that *what* of ours failed with the exception that is being handled, the first time."""
    if what not in _warned:
        _warned.add(what)
        _log.warning("Auditspan's %s failed; the service is not affected", what, exc_info=True)


def guard(ours: Callable[..., None]) -> Callable[..., None]:
    """*ours*, never raising; its first failure is logged."""
    warned = False

    def guarded(*args: Any, **kwargs: Any) -> None:
        nonlocal warned
        try:
            ours(*args, **kwargs)
        except Exception:  # noqa: BLE001 - runs inside the application's request
            if not warned:
                warned = True
                _log.warning(
                    "Auditspan's %s failed; the service is not affected", ours.__qualname__, exc_info=True
                )

    return _marked(guarded)


def _marked(hook: Callable[..., None]) -> Callable[..., None]:
    setattr(hook, HOOK, True)
    return hook


def hash_session(session: object) -> str:
    """A session id as it may be stored: 128 bits of SHA-256 in hex, the same for the same session; empty for none."""
    text = session.decode("utf-8", "replace") if isinstance(session, bytes) else str(session or "")
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32] if text else ""


def texts(values: object) -> tuple[str, ...]:
    """*values* as roles: strings of an iterable (or names of its objects), sorted and without repetition."""
    if type(values) is tuple and _ONLY_TEXTS.issuperset(map(type, values)):
        return _in_order(values)
    if isinstance(values, str):
        values = values.split()
    if not isinstance(values, Iterable):
        return ()
    return tuple(sorted({text(value) or first_text(value, ("name",)) for value in values} - {""}))


@functools.lru_cache(maxsize=1024)
def _in_order(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted({text(value) for value in values} - {""}))


def is_authenticated(user: Any) -> bool:
    """Whether *user* says so, by an attribute or (as older users do) a method; one that says nothing is, unless empty."""
    said = getattr(user, "is_authenticated", bool(user))
    return bool(said() if callable(said) else said)


def held_roles(user: Any) -> tuple[str, ...]:
    """The ``roles`` of a user object, when reading them can't start anything.

    An object-relational mapper's attribute may ask the database when it is touched; so only what is stored in the
    object counts, or in its class, or a property that the application wrote itself.
    """
    stored = user if isinstance(user, dict) else getattr(user, "__dict__", {})
    if "roles" in stored:
        return texts(stored["roles"])
    kind: Any = type(user)
    declared = _declared_roles(kind)
    if declared is None:
        return ()
    if isinstance(declared, (property, types.MemberDescriptorType)):
        try:
            return texts(getattr(user, "roles", ()))
        except Exception:  # noqa: BLE001 - the application's code; without roles the actor is still right
            return ()
    return texts(declared) if isinstance(declared, (tuple, list, set, frozenset)) else ()


@functools.lru_cache(maxsize=256)
def _declared_roles(kind: Any) -> object:
    return inspect.getattr_static(kind, "roles", None)


def text(value: object) -> str:
    """*value* as an identifier; empty for None and for objects whose text would be their address in memory."""
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return str(value)[:_MAX_TEXT]
    if value is None or isinstance(value, (bool, bytes)) or type(value).__str__ is object.__str__:
        return ""
    return str(value)[:_MAX_TEXT]


def first_text(thing: Any, attributes: Iterable[str]) -> str:
    """The first of *attributes* of *thing* (or keys, when it is a mapping) that has a text."""
    skipped = _without.get(type(thing), ())
    keyed = hasattr(thing, "keys")  # rows of sqlite3 have them, too
    for name in attributes:
        if name in skipped:
            continue
        try:
            found = thing[name] if keyed else getattr(thing, name, None)
        except NotImplementedError:
            _note_unimplemented(type(thing), name)
            continue
        except (KeyError, IndexError):
            continue
        value = text(found)
        if value:
            return value
    return ""


def _note_unimplemented(kind: type, name: str) -> None:
    """Starlette's BaseUser.identity raises whoever asks, which costs as much as the rest of an actor; so ask once."""
    found = inspect.getattr_static(kind, name, None)
    starlettes = getattr(getattr(found, "fget", None), "__module__", "") == "starlette.authentication"
    if starlettes and len(_without) < _MAX_WITHOUT:
        _without[kind] = (*_without.get(kind, ()), name)


def scheme_word(authorization: str) -> str:
    """The scheme of an Authorization header in lower case ("basic"), never anything of the credential."""
    scheme, space, _ = authorization.strip().partition(" ")
    return scheme.lower() if space and scheme.lower() in _AUTH_SCHEMES else ""


def session_of(session: Mapping[str, object] | None) -> str:
    """The hashed id of a framework's *session*, empty when it carries none."""
    if not session:
        return ""
    return hash_session(first_text(dict(session), ("session_id", "sid", "id", "_id")))
