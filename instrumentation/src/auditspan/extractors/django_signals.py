"""What Django's signals say: who signs in, who fails to, who leaves, and what the admin site changed.

Inside a request they shape its record. Outside of one (a management command, a URL without a span), signing in and out
is a record of its own. Each entry in the admin site's log is a record of its own in any case, for one request may
change many objects; it is written when the change has been committed.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace

from auditspan import attributes as names
from auditspan import context
from auditspan.api import PROCESSOR, record
from auditspan.extractors import guard, text
from auditspan.extractors.django import SOURCE, DjangoSource
from auditspan.extractors.django_users import named, session_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from auditspan.pseudonyms import ActorNames

_FLAGS: Final = {
    1: "CREATE",
    2: "UPDATE",
    3: "DELETE",
}  # django/contrib/admin/models.py ADDITION, CHANGE, DELETION


def connect() -> None:
    """Listen, once."""
    from django.apps import apps  # noqa: PLC0415 - called only where Django is
    from django.contrib import auth  # noqa: PLC0415 - as above
    from django.contrib.auth import signals  # noqa: PLC0415 - as above
    from django.db.models.signals import post_save  # noqa: PLC0415 - as above

    for signal, receiver in (
        (signals.user_logged_in, _logged_in),
        (signals.user_logged_out, _logged_out),
        (signals.user_login_failed, _login_failed),
    ):
        signal.connect(receiver, weak=False, dispatch_uid=f"auditspan-{receiver.__name__}")
    post_save.connect(_log_saved, sender="admin.LogEntry", weak=False, dispatch_uid="auditspan-admin")
    apps.lazy_model_operation(_hear_of_many, ("admin", "logentry"))
    if not hasattr(auth.authenticate, SOURCE):
        auth.authenticate = _told_of_proofs(auth.authenticate)
        if hasattr(auth, "aauthenticate"):  # since Django 5.0
            auth.aauthenticate = _told_of_async_proofs(auth.aauthenticate)


# --- signing in and out ------------------------------------------------------------------------------------------


def _logged_in(*_: Any, request: Any = None, user: Any = None, **__: Any) -> None:
    guard(_begin_session)(request, user)


def _begin_session(request: Any, user: Any) -> None:
    source = _source(request)
    if source is not None:
        source.signed, source.logged_in, source.left, source.failed = "LOGIN", user, None, False
        source.proved = named(user, session=session_of(request), auth_method="session")
        return
    with record("LOGIN") as login:
        _name(login, user, request)


def _logged_out(*_: Any, request: Any = None, user: Any = None, **__: Any) -> None:
    guard(_end_session)(request, user)


def _end_session(request: Any, user: Any) -> None:
    source = _source(request)
    if source is not None:
        if user is not None:
            # Now: afterwards nobody knows who it was, nor which session.
            source.left = named(user, session=session_of(request), auth_method="session")
        if not source.signed:  # one user's login ends with another's logout where the session is taken over
            source.signed = "LOGOUT"
        return
    with record("LOGOUT") as logout:
        _name(logout, user, request)


def _login_failed(*_: Any, credentials: Any = None, request: Any = None, **__: Any) -> None:
    guard(_refuse)(credentials or {}, request)


def _refuse(credentials: Any, request: Any) -> None:
    from django.contrib.auth import get_user_model  # noqa: PLC0415 - only where Django is

    fields = (getattr(get_user_model(), "USERNAME_FIELD", ""), "username", "email")
    name = next((text(credentials[field]) for field in fields if credentials.get(field)), "")
    source = _source(request)
    if source is not None:
        if source.state is not None:
            source.attempted = source.state.emitter.actors.attempted(name)
        source.failed = True
        return
    processor = getattr(trace.get_tracer_provider(), PROCESSOR, None)
    actors: ActorNames | None = getattr(processor, "actors", None)
    attempted = actors.attempted(name) if actors is not None else ""
    with record("LOGIN", target_type="user" if attempted else None, target_id=attempted) as login:
        login.outcome(names.DENIED, "the credentials were refused")


def _name(action: record, user: Any, request: Any) -> None:
    actor = named(user) if user is not None else None
    if actor is not None:
        session = getattr(getattr(request, "session", None), "session_key", None)
        action.actor(actor.id, roles=actor.roles, session=session, auth_method="session")


def _source(request: Any) -> DjangoSource | None:
    """That of *request*, which may be Django REST framework's, or of the request that is current."""
    source = getattr(request, SOURCE, None)
    if source is None:
        state = context.current()
        source = state.root().source if state is not None else None
    return source if isinstance(source, DjangoSource) else None


def _proved(request: Any, user: Any) -> None:
    source = _source(request)
    if source is not None:
        source.failed = False
        source.proved = named(user)


def _told_of_proofs(original: Callable[..., Any]) -> Callable[..., Any]:
    """``authenticate`` has a signal for failure only; views that hand out tokens begin no session, which has one."""
    from django.views.decorators.debug import sensitive_variables  # noqa: PLC0415 - only where Django is

    @functools.wraps(original)
    @sensitive_variables()  # type: ignore[untyped-decorator] # error pages shall not show the credentials in our frame either
    def authenticate(request: Any = None, **credentials: Any) -> Any:
        user = original(request, **credentials)
        if user is not None:
            guard(_proved)(request, user)
        return user

    setattr(authenticate, SOURCE, True)
    return authenticate


def _told_of_async_proofs(original: Callable[..., Any]) -> Callable[..., Any]:
    from django.views.decorators.debug import sensitive_variables  # noqa: PLC0415 - only where Django is

    @functools.wraps(original)
    @sensitive_variables()  # type: ignore[untyped-decorator] # as above
    async def aauthenticate(request: Any = None, **credentials: Any) -> Any:
        user = await original(request, **credentials)
        if user is not None:
            guard(_proved)(request, user)
        return user

    return aauthenticate


# --- the admin site ----------------------------------------------------------------------------------------------


def _log_saved(*_: Any, instance: Any = None, created: bool = False, raw: bool = False, **__: Any) -> None:
    if created and not raw:
        guard(_tell_of)([instance])


def _hear_of_many(log_entry: Any) -> None:
    """Of entries that are written at once, as for objects that were chosen from a list, no signal tells."""
    manager: Any = type(log_entry._default_manager)  # noqa: SLF001 - Django documents it
    original = manager.bulk_create
    if hasattr(original, SOURCE):
        return

    @functools.wraps(original)
    def bulk_create(self: Any, objs: Iterable[Any], *args: Any, **kwargs: Any) -> Any:
        entries = original(self, objs, *args, **kwargs)
        guard(_tell_of)(entries)
        return entries

    setattr(bulk_create, SOURCE, True)
    manager.bulk_create = bulk_create


def _tell_of(entries: Iterable[Any]) -> None:
    from django.contrib.contenttypes.models import ContentType  # noqa: PLC0415 - only where the admin site is
    from django.db import transaction  # noqa: PLC0415 - as above

    told = []
    for entry in entries:
        # Its manager remembers each type, and has just been asked for this one.
        kind = ContentType.objects.get_for_id(entry.content_type_id) if entry.content_type_id else None
        target = f"{kind.app_label}.{kind.model}" if kind is not None else ""
        told.append((_FLAGS.get(entry.action_flag, "EXECUTE"), target, text(entry.object_id)))

    def committed() -> None:
        for action, target_type, target_id in told:
            with record(action, target_type=target_type, target_id=target_id):
                pass

    using = next((entry._state.db for entry in entries), None)  # noqa: SLF001 - Django documents it
    transaction.on_commit(guard(committed), using=using)
