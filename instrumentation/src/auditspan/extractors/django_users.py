"""Whom Django, or Django REST framework, has authenticated in a request, as far as that is known without asking anybody.

Nothing here starts a query: of a user, only what is loaded counts. ``request.user`` is lazy until the application
looks at it; a user whom nothing in the request has asked for had no part in what it was allowed, and is not loaded for
us. Django REST framework puts the user that its authenticators accepted on Django's request, too, with what they
accepted as ``request.auth``: the verified claims of a JSON Web Token, for instance.
"""

from __future__ import annotations

from typing import Any, Final

from auditspan.context import Actor
from auditspan.extractors import (
    ANONYMOUS,
    first_text,
    hash_session,
    is_authenticated,
    scheme_word,
    text,
    texts,
)

_MISSING: Final = object()
_IDENTITIES: Final = ("username", "pk", "id", "user_id", "sub", "email")
_CLAIMS: Final = ("roles", "groups", "scope", "scopes")
_SESSIONS_OWN: Final = ("_cached_user", "_acached_user")  # django/contrib/auth/middleware.py
_AUTH_MIDDLEWARE: Final = "django.contrib.auth.middleware"


def actor_of(request: Any, logged_in: Any = None) -> Actor | None:
    """Who acts in *request*; None when nobody can say. *logged_in* is who has just begun a session in it."""
    user = _user_of(request)
    if user is _MISSING:
        return None
    if not is_authenticated(user):
        return ANONYMOUS
    by_session = user is logged_in or any(user is vars(request).get(place) for place in _SESSIONS_OWN)
    return named(
        user,
        claims=vars(request).get("auth"),
        session=session_of(request) if by_session else "",
        auth_method="session" if by_session else _auth_method(request),
    )


def named(user: Any, *, claims: Any = None, session: str = "", auth_method: str = "") -> Actor | None:
    """*user* as an actor, None without a name; *claims* are those that came with them and were verified."""
    identity = identity_of(user)
    if not identity:
        return None
    return Actor(identity, roles=roles_of(user, claims), session=session, auth_method=auth_method)


def identity_of(user: Any) -> str:
    """The name that *user* signs in with, or its primary key where that is not loaded."""
    kind: Any = type(user)
    if not hasattr(kind, "_meta"):
        return first_text(user, _IDENTITIES) or text(user)
    loaded = vars(user)
    return text(loaded.get(getattr(kind, "USERNAME_FIELD", "username"))) or text(
        loaded.get(kind._meta.pk.attname)  # noqa: SLF001 - Django documents Model._meta
    )


def roles_of(user: Any, claims: Any = None) -> tuple[str, ...]:
    """``superuser``, ``staff``, the groups that were prefetched, a ``roles`` that is stored, and those of *claims*."""
    is_model = hasattr(type(user), "_meta")
    loaded = getattr(user, "__dict__", {})
    found: list[str] = [
        role
        for role in ("superuser", "staff")
        if (loaded.get(f"is_{role}") if is_model else getattr(user, f"is_{role}", False)) is True
    ]
    prefetched = loaded.get("_prefetched_objects_cache", {}).get("groups")
    if prefetched is not None:
        found += texts(prefetched)
    if "roles" in loaded:
        found += texts(loaded["roles"])
    return texts((*found, *_claimed(claims)))


def _claimed(claims: Any) -> list[str]:
    """Roles and scopes of what an authenticator accepted: a token's claims, or a stored token that has a scope."""
    payload = getattr(claims, "payload", None)
    stored = payload if isinstance(payload, dict) else getattr(claims, "__dict__", {})
    return [role for name in _CLAIMS if name in stored for role in texts(stored[name])]


def session_of(request: Any) -> str:
    """The hashed key of the request's session, empty when it has none."""
    return hash_session(getattr(vars(request).get("session"), "session_key", None))


def _auth_method(request: Any) -> str:
    scheme = scheme_word(request.META.get("HTTP_AUTHORIZATION", ""))
    if scheme or not hasattr(vars(request).get("auth"), "token_type"):
        return scheme
    return "bearer"  # a JSON Web Token under a scheme of the application's own


def _user_of(request: Any) -> Any:
    from django.utils.functional import LazyObject, empty  # noqa: PLC0415 - only where Django is

    user = vars(request).get("user", _MISSING)
    if not isinstance(user, LazyObject):
        return user
    wrapped = vars(user).get("_wrapped", empty)
    if wrapped is not empty:
        return wrapped
    for place in _SESSIONS_OWN:  # an asynchronous view asks request.auser()
        if place in vars(request):
            return vars(request)[place]
    from_session = getattr(vars(user).get("_setupfunc"), "__module__", "") == _AUTH_MIDDLEWARE
    session = vars(request).get("session")
    if from_session and session is not None and getattr(session, "session_key", "") is None:
        return None  # no session, so nobody
    return _MISSING
